use std::fs;
use std::path::Path;

use rwkvx_datasets::binidx::{Dtype, TokenFile, TokenFileWriter};
use tempfile::tempdir;

/// Two documents of three and two tokens, `int32`.
fn good(prefix: &Path) -> (Vec<u8>, Vec<u8>) {
    let mut writer = TokenFileWriter::create(prefix, Dtype::I32).unwrap();
    writer.push(&[1, 2, 0]).unwrap();
    writer.push(&[3, 0]).unwrap();
    writer.finish().unwrap();
    let read = |extension| fs::read(prefix.with_extension(extension)).unwrap();
    (read("idx"), read("bin"))
}

/// Places in the index of two items and three boundaries.
const VERSION: usize = 9;
const CODE: usize = 17;
const ITEMS: usize = 18;
const BOUNDARIES: usize = 26;
const SIZES: usize = 34;
const POINTERS: usize = SIZES + 2 * 4;
const DOCUMENTS: usize = POINTERS + 2 * 8;

type Damage = fn(&mut Vec<u8>, &mut Vec<u8>);

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// What is done to the good files, and words the error must have.
const DAMAGES: &[(&str, Damage, &[&str])] = &[
    (
        "empty index",
        |idx, _| idx.clear(),
        &["bad.idx", "truncated"],
    ),
    (
        "header cut",
        |idx, _| idx.truncate(33),
        &["bad.idx", "truncated"],
    ),
    (
        "index cut",
        |idx, _| idx.truncate(idx.len() - 1),
        &["bad.idx", "truncated"],
    ),
    (
        "index too long",
        |idx, _| idx.push(0),
        &["bad.idx", "2 items"],
    ),
    (
        "other magic",
        |idx, _| idx[0] = b'X',
        &["bad.idx", "MMIDIDX"],
    ),
    (
        "a text file",
        |idx, _| *idx = b"hello world, ".repeat(9),
        &["bad.idx", "MMIDIDX"],
    ),
    (
        "version 2",
        |idx, _| put(idx, VERSION, &2u64.to_le_bytes()),
        &["bad.idx", "version 2"],
    ),
    ("float type", |idx, _| idx[CODE] = 6, &["bad.idx", "code 6"]),
    (
        "unknown type",
        |idx, _| idx[CODE] = 77,
        &["bad.idx", "code 77"],
    ),
    (
        "huge items",
        |idx, _| put(idx, ITEMS, &u64::MAX.to_le_bytes()),
        &["bad.idx", "more than any file"],
    ),
    (
        "many items",
        |idx, _| put(idx, ITEMS, &(1u64 << 40).to_le_bytes()),
        &["bad.idx", "truncated"],
    ),
    (
        "huge boundaries",
        |idx, _| put(idx, BOUNDARIES, &u64::MAX.to_le_bytes()),
        &["bad.idx", "more than any file"],
    ),
    (
        "negative size",
        |idx, _| put(idx, SIZES, &(-3i32).to_le_bytes()),
        &["bad.idx", "item 0", "-3"],
    ),
    (
        "huge size",
        |idx, _| put(idx, SIZES + 4, &i32::MAX.to_le_bytes()),
        &["bad.bin", "20 bytes", "describes"],
    ),
    (
        "wrong pointer",
        |idx, _| put(idx, POINTERS + 8, &8i64.to_le_bytes()),
        &["bad.idx", "item 1", "byte 8"],
    ),
    (
        "negative pointer",
        |idx, _| put(idx, POINTERS, &(-4i64).to_le_bytes()),
        &["bad.idx", "byte -4"],
    ),
    (
        "first boundary",
        |idx, _| put(idx, DOCUMENTS, &1i64.to_le_bytes()),
        &["bad.idx", "boundary 0"],
    ),
    (
        "falling boundary",
        |idx, _| put(idx, DOCUMENTS + 8, &(-1i64).to_le_bytes()),
        &["bad.idx", "boundary 1"],
    ),
    (
        "boundary past the end",
        |idx, _| put(idx, DOCUMENTS + 16, &9i64.to_le_bytes()),
        &["bad.idx", "item 9"],
    ),
    (
        "boundary before the end",
        |idx, _| put(idx, DOCUMENTS + 16, &1i64.to_le_bytes()),
        &["bad.idx", "item 1"],
    ),
    (
        "narrower type",
        |idx, _| idx[CODE] = 8,
        &["bad.idx", "corrupt"],
    ),
    (
        "empty data",
        |_, bin| bin.clear(),
        &["bad.bin", "0 bytes", "20"],
    ),
    (
        "data cut",
        |_, bin| bin.truncate(19),
        &["bad.bin", "19 bytes", "20"],
    ),
    (
        "data too long",
        |_, bin| bin.push(0),
        &["bad.bin", "21 bytes", "20"],
    ),
];

#[test]
fn every_damaged_file_is_refused_with_its_name_and_reason() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("bad");
    let (idx, bin) = good(&prefix);
    TokenFile::open(&prefix).unwrap();
    for (what, damage, words) in DAMAGES {
        let (mut idx, mut bin) = (idx.clone(), bin.clone());
        damage(&mut idx, &mut bin);
        fs::write(prefix.with_extension("idx"), idx).unwrap();
        fs::write(prefix.with_extension("bin"), bin).unwrap();
        let Err(error) = TokenFile::open(&prefix) else {
            panic!("{what} was accepted");
        };
        let message = error.to_string();
        for word in *words {
            assert!(message.contains(word), "{what}: {message:?} lacks {word:?}");
        }
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn no_truncation_or_flipped_byte_of_an_index_panics() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("bad");
    let (idx, _) = good(&prefix);
    let path = prefix.with_extension("idx");
    for place in 0..idx.len() {
        fs::write(&path, &idx[..place]).unwrap();
        assert!(TokenFile::open(&prefix).is_err(), "cut at {place}");
        for value in [0, 0x7f, 0x80, 0xff] {
            let mut flipped = idx.clone();
            flipped[place] = value;
            fs::write(&path, &flipped).unwrap();
            if let Ok(file) = TokenFile::open(&prefix) {
                let mut ids = vec![0; file.len() as usize];
                let _ = file.read(0, &mut ids);
                // Where the first document ends within the file is free; everything else is fixed by the data.
                let first_end = place == DOCUMENTS + 8 && value == 0;
                assert!(
                    first_end || flipped == idx,
                    "byte {place} as {value} went unnoticed"
                );
            }
        }
    }
}

#[test]
fn a_negative_id_is_refused_where_it_is_read() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("bad");
    let (_, mut bin) = good(&prefix);
    put(&mut bin, 8, &(-7i32).to_le_bytes());
    fs::write(prefix.with_extension("bin"), bin).unwrap();
    let file = TokenFile::open(&prefix).unwrap();
    file.read(0, &mut [0; 2]).unwrap();
    let message = file.read(1, &mut [0; 2]).unwrap_err().to_string();
    assert!(message.contains("token 2 is -7"), "{message}");
}

#[test]
fn missing_files_and_folders_are_named() {
    let folder = tempdir().unwrap();
    let prefix = folder.path().join("bad");
    good(&prefix);
    fs::remove_file(prefix.with_extension("bin")).unwrap();
    let message = TokenFile::open(&prefix).unwrap_err().to_string();
    assert!(
        message.contains("bad.bin") && message.contains("No such file"),
        "{message}"
    );
    fs::remove_file(prefix.with_extension("idx")).unwrap();
    fs::create_dir(prefix.with_extension("idx")).unwrap();
    let message = TokenFile::open(&prefix).unwrap_err().to_string();
    assert!(
        message.contains("bad.idx") && message.contains("not a regular file"),
        "{message}"
    );
}
