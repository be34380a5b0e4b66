//! Damaged Parquet files and MDS shards, and options that do not fit: each is told, and loses nothing.

use std::fs;
use std::path::Path;

use rwkvx_datasets::prepare::{Format, PrepareOptions};
use tempfile::{TempDir, tempdir};

use crate::inputs::{fixture, options, run};

/// A copy of a folder of fixtures.
fn copied(name: &str) -> TempDir {
    let folder = tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// The error of a run on `input`, which must leave an existing token file as it was.
fn refused(format: Format, input: &Path, options: &PrepareOptions) -> String {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    fs::write(out.with_extension("bin"), "bin").unwrap();
    fs::write(out.with_extension("idx"), "idx").unwrap();
    let message = run(format, &[input.to_path_buf()], &out, options)
        .unwrap_err()
        .to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(fs::read(out.with_extension("bin")).unwrap(), b"bin");
    assert_eq!(fs::read(out.with_extension("idx")).unwrap(), b"idx");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    message
}

#[test]
fn damaged_shards_are_refused_with_their_place() {
    type Damage = fn(&mut Vec<u8>);
    let plain = "shard.00000.mds";
    // The offsets of the first shard's samples are at 4, 8, ...; its first sample starts where the first one says.
    let cases: [(&str, &str, Damage, &[&str]); 14] = [
        ("mds/plain", plain, |bytes| bytes.clear(), &["0 bytes"]),
        (
            "mds/plain",
            plain,
            |bytes| bytes.truncate(500),
            &["500 bytes"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| bytes.push(0),
            &["the index says"],
        ),
        ("mds/plain", plain, |bytes| bytes[0] += 1, &["samples"]),
        (
            "mds/plain",
            plain,
            |bytes| bytes[4..8].fill(0),
            &["byte 4", "starts at 0"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| bytes[8..12].fill(0xff),
            &["byte 4", "sample 1"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| bytes[8..12].fill(0),
            &["byte 4", "sample 1"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| at_first(bytes)[0] = 0xff,
            &["sample 1", "input_ids"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| at_first(bytes)[0] -= 1,
            &["sample 1", "follow"],
        ),
        // Behind the three sizes and the domain: dimensions, shape and bounds of the documents, 3 x 2 of them.
        (
            "mds/plain",
            plain,
            |bytes| at_first(bytes)[20] = 0x0c,
            &["sample 1", "indices"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| at_first(bytes)[21] = 9,
            &["sample 1", "indices", "18 values"],
        ),
        (
            "mds/plain",
            plain,
            |bytes| at_first(bytes)[24] = 0xff,
            &["sample 1", "bounds"],
        ),
        (
            "mds/zstd",
            "shard.00001.mds.zstd",
            |bytes| bytes.truncate(200),
            &["zstd"],
        ),
        (
            "mds/zstd",
            "shard.00001.mds.zstd",
            |bytes| bytes[0] = 0,
            &["zstd"],
        ),
    ];
    for (folder, shard, damage, words) in cases {
        let folder = copied(folder);
        let path = folder.path().join(shard);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let message = refused(Format::Prolong, folder.path(), &options(Format::Prolong));
        assert!(message.contains(shard), "{message}");
        for word in words {
            assert!(message.contains(word), "{message:?} lacks {word:?}");
        }
    }
}

fn at_first(shard: &mut [u8]) -> &mut [u8] {
    let start = u32::from_le_bytes(shard[4..8].try_into().unwrap());
    &mut shard[start as usize..]
}

#[test]
fn an_index_that_cannot_be_followed_is_refused() {
    let cases = [
        ("\"version\": 2}", "\"version\": 3}", "version 3"),
        ("\"format\": \"mds\"", "\"format\": \"json\"", "json"),
        (
            "\"column_sizes\": [null, ",
            "\"column_sizes\": [",
            "lists of columns",
        ),
        ("\"samples\": ", "\"samples\": 1", "samples, the index says"),
        ("\"input_ids\"", "\"ids\"", "no column \"input_ids\""),
        ("\"ndarray:uint32\"", "\"pkl\"", "pkl"),
        ("\"ndarray:uint32\"", "\"ndarray:float32\"", "float32"),
        ("\"ndarray:uint32\"", "\"ndarray:uint64\"", "8 bytes"),
        ("shard.00000.mds", "shard.00009.mds", "shard.00009.mds"),
        ("{\"shards\"", "{\"shard\"", "index.json: not an index"),
        ("{\"shards\"", "{\"shards", "index.json: not an index"),
    ];
    for (from, to, word) in cases {
        let folder = copied("mds/plain");
        let path = folder.path().join("index.json");
        let index = fs::read_to_string(&path).unwrap();
        assert!(index.contains(from), "{from}");
        fs::write(&path, index.replace(from, to)).unwrap();
        let message = refused(Format::Prolong, folder.path(), &options(Format::Prolong));
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
    let folder = copied("mds/zstd");
    let path = folder.path().join("index.json");
    let index = fs::read_to_string(&path).unwrap();
    fs::write(&path, index.replace("zstd:7", "br:11")).unwrap();
    let message = refused(Format::Prolong, folder.path(), &options(Format::Prolong));
    assert!(message.contains("br:11"), "{message}");
    let empty = tempdir().unwrap();
    let message = refused(Format::Prolong, empty.path(), &options(Format::Prolong));
    assert!(message.contains("index.json"), "{message}");
}

#[test]
fn options_that_do_not_fit_the_format_are_refused() {
    let tokenizer = Some(fixture("tokenizer.json"));
    let column = Some("other".to_owned());
    let none = PrepareOptions::default();
    let with_column = PrepareOptions {
        column,
        source_tokenizer: None,
        ..none.clone()
    };
    let with_tokenizer = PrepareOptions {
        source_tokenizer: tokenizer.clone(),
        ..none.clone()
    };
    let with_both = PrepareOptions {
        source_tokenizer: tokenizer,
        ..with_column.clone()
    };
    let wrong_tokenizer = PrepareOptions {
        source_tokenizer: Some(fixture("documents.jsonl")),
        ..none.clone()
    };
    let nothing = PrepareOptions {
        pack: Some(0),
        ..none.clone()
    };
    for (format, input, options, word) in [
        (Format::Jsonl, "documents.jsonl", &with_column, "column"),
        (
            Format::Jsonl,
            "documents.jsonl",
            &with_tokenizer,
            "source-tokenizer",
        ),
        (Format::Jsonl, "documents.jsonl", &nothing, "pack"),
        (
            Format::Minipile,
            "parquet",
            &with_tokenizer,
            "source-tokenizer",
        ),
        (
            Format::Minipile,
            "parquet",
            &with_column,
            "no column \"other\"",
        ),
        (Format::Prolong, "mds/plain", &none, "source-tokenizer"),
        (
            Format::Prolong,
            "mds/plain",
            &with_both,
            "no column \"other\"",
        ),
        (
            Format::Prolong,
            "mds/plain",
            &wrong_tokenizer,
            "documents.jsonl",
        ),
    ] {
        let message = refused(format, &fixture(input), options);
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

#[test]
fn ids_of_another_vocabulary_are_named() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let json = fs::read_to_string(fixture("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["model"]["merges"] = serde_json::json!([]);
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    vocabulary.retain(|_, id| id.as_u64() < Some(258));
    fs::write(&path, json.to_string()).unwrap();
    let options = PrepareOptions {
        source_tokenizer: Some(path),
        ..PrepareOptions::default()
    };
    let message = refused(Format::Prolong, &fixture("mds/plain"), &options);
    assert!(
        message.contains("shard.00000.mds, sample 1: token ") && message.contains("vocabulary"),
        "{message}"
    );
}

#[test]
fn parquet_that_cannot_be_read_is_refused() {
    let message = refused(
        Format::Minipile,
        &fixture("documents.jsonl"),
        &PrepareOptions::default(),
    );
    assert!(
        message.contains("documents.jsonl: not a readable Parquet file"),
        "{message}"
    );
    let id = PrepareOptions {
        column: Some("id".to_owned()),
        ..PrepareOptions::default()
    };
    let file = fixture("parquet/train-00000-of-00002.parquet");
    let message = refused(Format::Minipile, &file, &id);
    assert!(message.contains("one string a row"), "{message}");
    let empty = tempdir().unwrap();
    let message = refused(Format::Minipile, empty.path(), &PrepareOptions::default());
    assert!(message.contains("no *.parquet files"), "{message}");
}

/// Damage anywhere is either told, with the place, or harmless; it never ends the process.
#[test]
fn no_damaged_byte_is_fatal() {
    for (format, folder, name, step) in [
        (
            Format::Minipile,
            "parquet",
            "train-00000-of-00002.parquet",
            3,
        ),
        (
            Format::Minipile,
            "parquet",
            "train-00001-of-00002.parquet",
            3,
        ),
        (Format::Prolong, "mds/plain", "shard.00000.mds", 13),
        (Format::Prolong, "mds/plain", "index.json", 5),
        (Format::Prolong, "mds/zstd", "shard.00001.mds.zstd", 13),
    ] {
        let whole = fs::read(fixture(folder).join(name)).unwrap();
        let inputs = copied(folder);
        let written = tempdir().unwrap();
        let mut refused = 0;
        let mut check = |bytes: &[u8]| {
            fs::write(inputs.path().join(name), bytes).unwrap();
            let (input, out) = (inputs.path().to_path_buf(), written.path().join("out"));
            if let Err(error) = run(format, &[input], &out, &options(format)) {
                let message = error.to_string();
                let place = inputs.path().to_str().unwrap();
                assert!(message.contains(place), "{message:?} lacks {place:?}");
                refused += 1;
            }
        };
        for place in (0..whole.len()).step_by(step) {
            let mut bytes = whole.clone();
            bytes[place] ^= 0xff;
            check(&bytes);
        }
        for length in (0..whole.len()).step_by(7 * step) {
            check(&whole[..length]);
        }
        assert!(refused > whole.len() / step / 8, "{name}: {refused}");
    }
}
