use std::fs;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use rwkvx_datasets::binidx::{Dtype, TokenFile};
use rwkvx_datasets::prepare::{Format, PrepareOptions, Prepared, prepare};
use rwkvx_datasets::{Result, Tokenizer};
use tempfile::{TempDir, tempdir};

/// A folder with an input file.
fn input(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn run(format: Format, input: &Path, options: &PrepareOptions) -> Result<Prepared> {
    let tokenizer = Tokenizer::open("rwkv-world").unwrap();
    let out = input.with_file_name("out");
    let inputs = [input.to_path_buf()];
    prepare(
        format,
        &inputs,
        &out,
        &tokenizer,
        options,
        &ProgressBar::hidden(),
    )
}

/// The text of each document of the file written beside `input`.
fn documents(input: &Path) -> Vec<String> {
    let tokenizer = Tokenizer::open("rwkv-world").unwrap();
    let file = TokenFile::open(&input.with_file_name("out")).unwrap();
    let text = |document| {
        let span = file.document(document).unwrap();
        let mut ids = vec![1; (span.end - span.start) as usize];
        file.read(span.start, &mut ids).unwrap();
        assert_eq!(ids.pop(), Some(0), "token 0 ends a document");
        assert!(!ids.contains(&0));
        tokenizer.decode_lossy(&ids)
    };
    (0..file.documents()).map(text).collect()
}

fn numbered_lines(count: usize) -> String {
    (0..count)
        .map(|number| format!("{{\"text\": \"document {number}\"}}\n"))
        .collect()
}

#[test]
fn json_lines_become_documents_in_order_without_shuffling() {
    let lines = "{\"text\": \"one\"}\n\n  \n{\"id\": 7, \"text\": \"zwei é\\n\\u00e9\\ud83d\\ude00\"}\r\n{\"text\": \"\"}\n{\"text\":\"last\"}";
    let (_folder, path) = input("in.jsonl", lines);
    let prepared = run(Format::Jsonl, &path, &PrepareOptions::default()).unwrap();
    assert_eq!(documents(&path), ["one", "zwei é\né😀", "", "last"]);
    assert_eq!((prepared.documents, prepared.dtype), (4, Dtype::U16));
    assert_eq!(
        prepared.tokens,
        TokenFile::open(&path.with_file_name("out")).unwrap().len()
    );
}

#[test]
fn a_text_file_is_one_document() {
    let (_folder, path) = input("in.txt", "Two\nlines.\n");
    run(Format::Text, &path, &PrepareOptions::default()).unwrap();
    assert_eq!(documents(&path), ["Two\nlines.\n"]);
}

#[test]
fn every_epoch_has_every_document_in_a_new_order() {
    let (_folder, path) = input("in.jsonl", numbered_lines(50));
    let options = PrepareOptions {
        epochs: 3,
        shuffle: true,
        seed: 5,
        ..PrepareOptions::default()
    };
    run(Format::Jsonl, &path, &options).unwrap();
    let written = documents(&path);
    let epochs: Vec<&[String]> = written.chunks(50).collect();
    assert_eq!(epochs.len(), 3);
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2] && epochs[0] != epochs[2]);
    let sorted = |epoch: &[String]| {
        let mut documents = epoch.to_vec();
        documents.sort();
        documents
    };
    run(Format::Jsonl, &path, &PrepareOptions::default()).unwrap();
    let all = sorted(&documents(&path));
    assert!(epochs.iter().all(|epoch| sorted(epoch) == all));
}

#[test]
fn the_seed_and_not_the_threads_decide_the_file() {
    let (_folder, path) = input("in.jsonl", numbered_lines(300));
    let bytes = |threads, seed| {
        let options = PrepareOptions {
            epochs: 2,
            shuffle: true,
            seed,
            ..PrepareOptions::default()
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(Format::Jsonl, &path, &options))
            .unwrap();
        fs::read(path.with_file_name("out.bin")).unwrap()
    };
    assert_eq!(bytes(1, 1), bytes(4, 1));
    assert_ne!(bytes(1, 1), bytes(1, 2));
}

#[test]
fn bad_input_is_named_with_its_line_and_writes_nothing() {
    let cases: [(Format, &[u8], &[&str]); 9] = [
        (Format::Jsonl, b"", &["no documents", "input"]),
        (Format::Jsonl, b"\n \n", &["no documents"]),
        (Format::Text, b"", &["no documents"]),
        (
            Format::Jsonl,
            b"{\"text\": \"a\"}\n{\"text\": \"b\"\n",
            &["line 2", "text"],
        ),
        (
            Format::Jsonl,
            b"{\"text\": \"a\"}\n\n{\"txt\": \"b\"}\n",
            &["line 3", "text"],
        ),
        (Format::Jsonl, b"{\"text\": 5}", &["line 1", "text"]),
        (Format::Jsonl, b"\x80\x02garbage\0\xff", &["line 1"]),
        (Format::Jsonl, b"{\"text\": \"\xff\"}", &["line 1"]),
        (Format::Text, b"fine\nbroken \xff\n", &["line 2", "UTF-8"]),
    ];
    for (format, content, words) in cases {
        let (folder, path) = input("input", content);
        let message = run(format, &path, &PrepareOptions::default())
            .unwrap_err()
            .to_string();
        for word in words {
            assert!(message.contains(word), "{message:?} lacks {word:?}");
        }
        assert_eq!(message.lines().count(), 1, "{message}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "only the input is left"
        );
    }
}

#[test]
fn a_tokenizer_that_loses_text_is_refused() {
    let (folder, path) = input("in.txt", "Upper Case");
    let json = serde_json::json!({
        "version": "1.0",
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"upper": 0, "case": 1, "?": 2}, "unk_token": "?"},
        "added_tokens": []
    });
    let tokenizer = folder.path().join("tokenizer.json");
    fs::write(&tokenizer, json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(tokenizer.to_str().unwrap()).unwrap();
    let out = folder.path().join("out");
    let result = prepare(
        Format::Text,
        &[path],
        &out,
        &tokenizer,
        &PrepareOptions::default(),
        &ProgressBar::hidden(),
    );
    let message = result.unwrap_err().to_string();
    assert!(
        message.contains("in.txt") && message.contains("give the text back"),
        "{message}"
    );
}
