use std::fs;
use std::path::Path;

use rwkvx_datasets::binidx::{Dtype, TokenFile, TokenFileWriter};
use tempfile::tempdir;

fn write(prefix: &Path, dtype: Dtype, documents: &[&[u32]]) {
    let mut writer = TokenFileWriter::create(prefix, dtype).unwrap();
    for document in documents {
        writer.push(document).unwrap();
    }
    writer.finish().unwrap();
}

fn read_all(prefix: &Path) -> Vec<u32> {
    let file = TokenFile::open(prefix).unwrap();
    let mut ids = vec![0; file.len() as usize];
    file.read(0, &mut ids).unwrap();
    ids
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_bytes_on_disk_are_those_of_the_format() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("two");
    write(&prefix, Dtype::U16, &[&[258, 3, 0], &[65_535, 0]]);
    let bin = fs::read(prefix.with_extension("bin")).unwrap();
    assert_eq!(bin, [2, 1, 3, 0, 0, 0, 255, 255, 0, 0]);

    let mut idx = b"MMIDIDX\0\0".to_vec();
    idx.extend(1u64.to_le_bytes()); // version
    idx.push(8); // uint16
    idx.extend(2u64.to_le_bytes()); // items
    idx.extend(3u64.to_le_bytes()); // boundaries
    idx.extend([3i32, 2].map(i32::to_le_bytes).concat()); // sizes in tokens
    idx.extend([0i64, 6].map(i64::to_le_bytes).concat()); // offsets in bytes
    idx.extend([0i64, 1, 2].map(i64::to_le_bytes).concat()); // documents
    assert_eq!(fs::read(prefix.with_extension("idx")).unwrap(), idx);
}

#[test]
fn every_integer_type_round_trips_to_its_largest_id() {
    let folder = tempdir().unwrap();
    for dtype in Dtype::ALL {
        let prefix = folder.path().join(dtype.name());
        let first = [1, 2, dtype.max_id()];
        write(&prefix, dtype, &[&first, &[], &[7, 0]]);
        assert_eq!(read_all(&prefix), [1, 2, dtype.max_id(), 7, 0]);
        let file = TokenFile::open(&prefix).unwrap();
        assert_eq!((file.dtype(), file.documents(), file.len()), (dtype, 3, 5));
        let spans: Vec<_> = (0..4).map(|document| file.document(document)).collect();
        assert_eq!(spans, [Some(0..3), Some(3..3), Some(3..5), None]);
    }
}

#[test]
fn reading_crosses_documents_and_stops_at_the_end() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("file");
    write(&prefix, Dtype::I32, &[&[1, 2, 3], &[4, 5]]);
    let file = TokenFile::open(&prefix).unwrap();
    let mut ids = [0; 3];
    file.read(2, &mut ids).unwrap();
    assert_eq!(ids, [3, 4, 5]);
    for offset in [3, 5, u64::MAX] {
        let message = file.read(offset, &mut ids).unwrap_err().to_string();
        assert!(message.contains("holds 5 tokens"), "{message}");
    }
    file.read(5, &mut []).unwrap();
}

#[test]
fn an_id_too_large_for_the_type_is_refused() {
    let folder = tempdir().unwrap();
    for dtype in Dtype::ALL
        .into_iter()
        .filter(|dtype| dtype.max_id() < u32::MAX)
    {
        let mut writer = TokenFileWriter::create(&folder.path().join("file"), dtype).unwrap();
        let message = writer
            .push(&[0, dtype.max_id() + 1])
            .unwrap_err()
            .to_string();
        assert!(message.contains(dtype.name()), "{message}");
    }
}

#[test]
fn what_is_written_can_be_cut_into_items_of_one_size() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("file");
    for (size, expected) in [
        (4, vec![(0, 4), (4, 7)]),
        (7, vec![(0, 7)]),
        (9, vec![(0, 7)]),
        (i32::MAX as u32, vec![(0, 7)]),
    ] {
        let mut writer = TokenFileWriter::create(&prefix, Dtype::U16).unwrap();
        writer.push(&[1, 2, 0]).unwrap();
        writer.push(&[3, 4, 5, 0]).unwrap();
        writer.cut(size).unwrap();
        writer.finish().unwrap();
        let file = TokenFile::open(&prefix).unwrap();
        let spans: Vec<_> = (0..file.documents())
            .map(|document| file.document(document).unwrap())
            .map(|span| (span.start, span.end))
            .collect();
        assert_eq!(spans, expected, "{size}");
        assert_eq!(read_all(&prefix), [1, 2, 0, 3, 4, 5, 0]);
    }
    let mut writer = TokenFileWriter::create(&prefix, Dtype::U16).unwrap();
    for size in [0, 1 << 31] {
        let message = writer.cut(size).unwrap_err().to_string();
        assert!(message.contains(&format!("{size} tokens")), "{message}");
    }
}

#[test]
fn an_unfinished_file_leaves_nothing_and_keeps_the_old_one() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("file");
    write(&prefix, Dtype::U16, &[&[1, 2, 3]]);
    let mut writer = TokenFileWriter::create(&prefix, Dtype::U16).unwrap();
    writer.push(&[9; 100]).unwrap();
    drop(writer);
    assert_eq!(names(folder.path()), ["file.bin", "file.idx"]);
    assert_eq!(read_all(&prefix), [1, 2, 3]);
    write(&prefix, Dtype::I64, &[&[70_000]]);
    assert_eq!(names(folder.path()), ["file.bin", "file.idx"]);
    assert_eq!(read_all(&prefix), [70_000]);
}

#[test]
fn a_file_that_is_open_keeps_its_tokens_while_it_is_replaced() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("file");
    write(&prefix, Dtype::U16, &[&[1, 2, 3]]);
    let old = TokenFile::open(&prefix).unwrap();
    write(&prefix, Dtype::U16, &[&[9]]);
    let mut ids = [0; 3];
    old.read(0, &mut ids).unwrap();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn a_missing_folder_is_named() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("missing").join("file");
    let message = TokenFileWriter::create(&prefix, Dtype::U16)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("missing/file.bin") && message.contains("folder"),
        "{message}"
    );
}
