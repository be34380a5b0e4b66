//! Interrupted runs: stopped after a batch, and gone on from there.

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::{TempDir, tempdir};

use super::source::Records;
use super::*;

/// A source that fails after some records, as a run that is killed ends.
struct Stopping {
    source: Box<dyn Source>,
    left: AtomicUsize,
}

impl Source for Stopping {
    fn files(&self) -> Vec<&Path> {
        self.source.files()
    }

    fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    fn records(&self, file: usize) -> Result<Records<'_>> {
        let records = self.source.records(file)?;
        Ok(Box::new(records.map(|record| {
            let before = self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            before.map_err(|_| Error::value("test", "stopped"))?;
            record
        })))
    }

    fn documents<'a>(&self, record: &'a Record) -> Result<Vec<Cow<'a, str>>> {
        self.source.documents(record)
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn world() -> Tokenizer {
    Tokenizer::open("rwkv-world").unwrap()
}

/// A run that is stopped after `records` records, each a batch.
fn interrupt(
    format: Format,
    inputs: &[PathBuf],
    out: &Path,
    options: &PrepareOptions,
    records: usize,
) {
    let source = Stopping {
        source: source::open(format, inputs, options).unwrap(),
        left: AtomicUsize::new(records),
    };
    let tokenizer = world();
    let dtype = Dtype::for_vocabulary(tokenizer.vocab_size());
    let job = job(format, &source, &tokenizer, options).unwrap();
    let mut draft = Draft::open(out, dtype, job, options.restart).unwrap();
    let stopped = tokenize(&source, &tokenizer, &mut draft, 1, &ProgressBar::hidden());
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
}

fn run(
    format: Format,
    inputs: &[PathBuf],
    out: &Path,
    options: &PrepareOptions,
) -> Result<Prepared> {
    prepare(
        format,
        inputs,
        out,
        &world(),
        options,
        &ProgressBar::hidden(),
    )
}

fn files(folder: &TempDir) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder.path()).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    });
    let mut files: Vec<_> = entries.collect();
    files.sort();
    files
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_files() {
    let shuffled = PrepareOptions {
        epochs: 2,
        shuffle: true,
        ..PrepareOptions::default()
    };
    let decoded = PrepareOptions {
        source_tokenizer: Some(fixture("tokenizer.json")),
        ..shuffled.clone()
    };
    for (format, input, options, records) in [
        (Format::Jsonl, "documents.jsonl", &shuffled, [2, 10, 23]),
        (Format::Minipile, "parquet", &shuffled, [2, 13, 23]),
        (Format::Prolong, "mds/plain", &decoded, [2, 3, 4]),
        (Format::Prolong, "mds/zstd", &decoded, [2, 3, 4]),
    ] {
        let inputs = [fixture(input)];
        let whole = tempdir().unwrap();
        run(format, &inputs, &whole.path().join("out"), options).unwrap();
        for stop in records {
            let folder = tempdir().unwrap();
            let out = folder.path().join("out");
            for records in [1, stop] {
                interrupt(format, &inputs, &out, options, records);
                // The batch after the last one of the journal, written in part.
                for part in ["out.part.bin", "out.part.sizes"] {
                    let mut file = OpenOptions::new();
                    let mut file = file.append(true).open(folder.path().join(part)).unwrap();
                    file.write_all(b"partial").unwrap();
                }
            }
            run(format, &inputs, &out, options).unwrap();
            assert!(
                files(&folder) == files(&whole),
                "{input} stopped after {stop}"
            );
        }
    }
}

#[test]
fn a_run_goes_on_from_where_it_was_and_does_not_start_again() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let inputs = [fixture("documents.jsonl")];
    let options = PrepareOptions::default();
    interrupt(Format::Jsonl, &inputs, &out, &options, 20);
    // Other ids than the input's show which part of the result comes from the interrupted run.
    let part = out.with_extension("part.bin");
    let mut ids = fs::read(&part).unwrap();
    ids[..2].copy_from_slice(&[77, 0]);
    fs::write(&part, &ids).unwrap();
    run(Format::Jsonl, &inputs, &out, &options).unwrap();
    let written = fs::read(out.with_extension("bin")).unwrap();
    assert_eq!(written[..ids.len()], ids);
    assert!(written.len() > ids.len());
}

#[test]
fn another_run_is_refused_until_the_interrupted_one_is_discarded() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let inputs = [fixture("documents.jsonl")];
    let options = PrepareOptions::default();
    run(Format::Jsonl, &inputs, &out, &options).unwrap();
    let before = files(&folder);
    interrupt(Format::Jsonl, &inputs, &out, &options, 5);
    let left = files(&folder);

    let copy = tempdir().unwrap();
    let other = [copy.path().join("documents.jsonl")];
    fs::copy(&inputs[0], &other[0]).unwrap();
    let refused = |result: Result<Prepared>, word: &str| {
        let message = result.unwrap_err().to_string();
        for word in ["out.part", word, "--restart"] {
            assert!(message.contains(word), "{message:?} lacks {word:?}");
        }
        assert!(files(&folder) == left, "everything stays as it was");
    };
    refused(run(Format::Jsonl, &other, &out, &options), "inputs");
    refused(run(Format::Text, &inputs, &out, &options), "format");
    let byte = Tokenizer::open("byte").unwrap();
    let hidden = ProgressBar::hidden();
    let result = prepare(Format::Jsonl, &inputs, &out, &byte, &options, &hidden);
    refused(result, "tokenizer");

    let restart = PrepareOptions {
        restart: true,
        ..options
    };
    run(Format::Jsonl, &other, &out, &restart).unwrap();
    assert!(files(&folder) == before, "the same documents, and no draft");
}

#[test]
fn a_damaged_journal_or_draft_is_refused() {
    let inputs = [fixture("documents.jsonl")];
    let options = PrepareOptions::default();
    for (part, content) in [
        ("out.part.json", &b"{\"job\": "[..]),
        ("out.part.json", b""),
        ("out.part.bin", b"\0\0"),
        ("out.part.sizes", b"\x01\0\0"),
        ("out.part.sizes", &[0xff; 20]),
    ] {
        let folder = tempdir().unwrap();
        let out = folder.path().join("out");
        interrupt(Format::Jsonl, &inputs, &out, &options, 5);
        fs::write(folder.path().join(part), content).unwrap();
        let message = run(Format::Jsonl, &inputs, &out, &options)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("out.part") && message.contains("--restart"),
            "{message}"
        );
    }
}

#[test]
fn two_runs_do_not_write_the_same_file() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let draft = Draft::open(&out, Dtype::U16, Job::new(), false).unwrap();
    let inputs = [fixture("documents.jsonl")];
    let options = PrepareOptions::default();
    let message = run(Format::Jsonl, &inputs, &out, &options)
        .unwrap_err()
        .to_string();
    assert!(message.contains("another run"), "{message}");
    drop(draft);
    run(Format::Jsonl, &inputs, &out, &options).unwrap();
}
