//! The same documents in every format, written by the formats' own libraries (`tests/data/make_fixtures.py`).

use std::fs;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use rwkvx_datasets::binidx::TokenFile;
use rwkvx_datasets::prepare::{Format, PrepareOptions, Prepared, prepare};
use rwkvx_datasets::{Result, Tokenizer};
use tempfile::tempdir;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

pub(crate) fn run(
    format: Format,
    inputs: &[PathBuf],
    out: &Path,
    options: &PrepareOptions,
) -> Result<Prepared> {
    let tokenizer = Tokenizer::open("rwkv-world").unwrap();
    let hidden = ProgressBar::hidden();
    prepare(format, inputs, out, &tokenizer, options, &hidden)
}

pub(crate) fn options(format: Format) -> PrepareOptions {
    PrepareOptions {
        source_tokenizer: (format == Format::Prolong).then(|| fixture("tokenizer.json")),
        ..PrepareOptions::default()
    }
}

/// Both files of the fixture's token file.
fn written(format: Format, inputs: &[&str], options: &PrepareOptions) -> (Vec<u8>, Vec<u8>) {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let inputs: Vec<_> = inputs.iter().map(|name| fixture(name)).collect();
    run(format, &inputs, &out, options).unwrap();
    let read = |extension| fs::read(out.with_extension(extension)).unwrap();
    (read("bin"), read("idx"))
}

#[test]
fn every_format_gives_the_file_that_json_lines_give() {
    let expected = written(
        Format::Jsonl,
        &["documents.jsonl"],
        &PrepareOptions::default(),
    );
    let parquet = [
        "parquet/train-00000-of-00002.parquet",
        "parquet/train-00001-of-00002.parquet",
    ];
    for (format, inputs) in [
        (Format::Minipile, &["parquet"][..]),
        (Format::Minipile, &parquet),
        (Format::Prolong, &["mds/plain"]),
        (Format::Prolong, &["mds/zstd"]),
    ] {
        let found = written(format, inputs, &options(format));
        assert!(found == expected, "{inputs:?}");
        let shuffled = PrepareOptions {
            epochs: 2,
            shuffle: true,
            ..options(format)
        };
        let lines = PrepareOptions {
            source_tokenizer: None,
            ..shuffled.clone()
        };
        let expected = written(Format::Jsonl, &["documents.jsonl"], &lines);
        assert!(
            written(format, inputs, &shuffled) == expected,
            "{inputs:?} shuffled"
        );
    }
}

#[test]
fn sequences_that_cut_documents_keep_all_whole_characters() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let inputs = [fixture("mds/fixed")];
    run(Format::Prolong, &inputs, &out, &options(Format::Prolong)).unwrap();
    let file = TokenFile::open(&out).unwrap();
    let mut ids = vec![0; file.len() as usize];
    file.read(0, &mut ids).unwrap();
    let text = Tokenizer::open("rwkv-world").unwrap().decode_lossy(&ids);
    assert!(!text.contains('\u{fffd}'), "{text}");
    let lines = fs::read_to_string(fixture("documents.jsonl")).unwrap();
    let documents = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let source: String = documents
        .map(|document| document["text"].as_str().unwrap().to_owned())
        .collect();
    // The last sequence was not full and is not in the fixture.
    let mut rest = source.chars();
    let lost = text
        .chars()
        .map(|char| rest.by_ref().take_while(|source| *source != char).count())
        .sum::<usize>();
    assert!(lost <= file.documents(), "{lost} characters were cut");
    assert!(rest.as_str().len() < 100, "{:?}", rest.as_str());
}

#[test]
fn packing_cuts_the_same_tokens_into_sequences() {
    let documents = PrepareOptions {
        epochs: 3,
        shuffle: true,
        ..PrepareOptions::default()
    };
    let packed = PrepareOptions {
        pack: Some(64),
        ..documents.clone()
    };
    let (tokens, _) = written(Format::Minipile, &["parquet"], &documents);
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let prepared = run(Format::Minipile, &[fixture("parquet")], &out, &packed).unwrap();
    assert_eq!(fs::read(out.with_extension("bin")).unwrap(), tokens);
    let file = TokenFile::open(&out).unwrap();
    assert_eq!(
        file.documents() as u64,
        prepared.tokens.div_ceil(64),
        "nothing is dropped"
    );
    assert_eq!(file.documents(), prepared.documents);
    for sequence in 0..file.documents() {
        let span = file.document(sequence).unwrap();
        assert_eq!(span.start, 64 * sequence as u64);
        assert_eq!(span.end, prepared.tokens.min(span.start + 64));
    }
}
