use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::binidx::TokenFile;
use serde_json::Value;
use tempfile::tempdir;

/// Runs the command in a folder.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rwkvx-datasets"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// What a run that must succeed prints.
fn stdout(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert_eq!(errors, "", "nothing but results without a terminal");
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a run that must fail.
fn failure(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert_eq!(output.stdout, b"");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// As in `rwkvx-datasets tokenize ... | true`.
#[cfg(unix)]
#[test]
fn nobody_reading_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_rwkvx-datasets"))
        .args(["tokenize", "--text", "A"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn tokenize_prints_a_json_array() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("text"), "The pass key is 43568.").unwrap();
    let expected = "[6699,31635,21952,4600,3516,676,57,47]\n";
    assert_eq!(stdout(folder, &["tokenize", "--file", "text"]), expected);
    assert_eq!(
        stdout(folder, &["tokenize", "--text", "The pass key is 43568."]),
        expected
    );
    assert_eq!(
        stdout(folder, &["tokenize", "--text", "Aé", "--tokenizer", "byte"]),
        "[66,196,170]\n"
    );
    let json: Value =
        serde_json::from_str(&stdout(folder, &["tokenize", "--text", "\n\n", "--json"])).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"tokenizer": "rwkv-world", "tokens": 1, "ids": [261]})
    );
}

#[test]
fn prepare_writes_what_inspect_shows() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let lines: String = (0..2_000)
        .map(|number| format!("{{\"text\": \"Document {number}.\"}}\n"))
        .collect();
    fs::write(folder.join("in.jsonl"), lines).unwrap();
    let arguments = [
        "prepare",
        "jsonl",
        "in.jsonl",
        "--out",
        "set",
        "--no-shuffle",
        "--threads",
        "2",
        "--json",
    ];
    let told: Value = serde_json::from_str(&stdout(folder, &arguments)).unwrap();
    let tokens = TokenFile::open(&folder.join("set")).unwrap().len();
    assert_eq!(told["documents"], 2_000);
    assert_eq!(told["tokens"], tokens);
    assert_eq!(told["dtype"], "uint16");
    assert_eq!(told["magic_primes"][0]["ctx"], 512);
    assert_eq!(
        told,
        serde_json::from_str::<Value>(&stdout(folder, &["inspect", "set", "--json"])).unwrap()
    );
    assert_eq!(
        stdout(folder, &["inspect", "set", "--document", "7"]),
        "Document 7.\n"
    );

    let text = stdout(
        folder,
        &[
            "prepare", "jsonl", "in.jsonl", "--out", "set", "--epochs", "2",
        ],
    );
    assert!(
        text.contains(&format!("{} tokens (uint16) in 4000 documents", 2 * tokens)),
        "{text}"
    );
    assert!(text.contains("magic prime"), "{text}");
}

#[test]
fn prepare_reads_parquet_and_mds_and_packs() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let data = data.to_str().unwrap();
    let [lines, parquet, shards, tokenizer] =
        ["documents.jsonl", "parquet", "mds/zstd", "tokenizer.json"]
            .map(|name| format!("{data}/{name}"));
    let inputs: [(&str, &[&str]); 3] = [
        ("jsonl", &[&lines]),
        ("minipile", &[&parquet, "--column", "text"]),
        ("prolong", &[&shards, "--source-tokenizer", &tokenizer]),
    ];
    for (format, input) in inputs {
        let options = ["--out", format, "--pack", "100", "--seed", "7", "--json"];
        let arguments = [&["prepare", format][..], input, &options].concat();
        let told: Value = serde_json::from_str(&stdout(folder, &arguments)).unwrap();
        assert_eq!(
            told["documents"],
            told["tokens"].as_u64().unwrap().div_ceil(100)
        );
    }
    for extension in ["bin", "idx"] {
        let read = |name| fs::read(folder.join(name).with_extension(extension)).unwrap();
        assert!(read("minipile") == read("jsonl") && read("prolong") == read("jsonl"));
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), 6, "no draft is left");
}

#[test]
fn needles_are_documents_of_the_length_asked_for() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let arguments = [
        "needles",
        "--out",
        "set",
        "--documents",
        "300",
        "--tokens",
        "600",
        "--seed",
        "3",
    ];
    stdout(folder, &arguments);
    let bytes = fs::read(folder.join("set.bin")).unwrap();
    let file = TokenFile::open(&folder.join("set")).unwrap();
    assert_eq!((file.documents(), file.len()), (300, 300 * 600));
    stdout(folder, &arguments);
    assert_eq!(
        fs::read(folder.join("set.bin")).unwrap(),
        bytes,
        "the same seed is the same file"
    );

    let only = [
        "needles",
        "--out",
        "uuid",
        "--documents",
        "3",
        "--kind",
        "ruler-uuid,facts",
        "--tokens",
        "700",
    ];
    stdout(folder, &only);
    let document = stdout(
        folder,
        &["inspect", "uuid", "--document", "2", "--tokenizer", "byte"],
    );
    assert!(
        document.contains("uuid") || document.contains("What is"),
        "{document}"
    );
}

#[test]
fn every_subcommand_explains_itself() {
    let folder = tempdir().unwrap();
    for command in ["tokenize", "prepare", "needles", "inspect"] {
        let help = stdout(folder.path(), &[command, "--help"]);
        assert!(help.contains("Usage:") && help.contains("--json"), "{help}");
    }
}

#[test]
fn what_cannot_be_done_fails_with_one_or_two_lines_that_name_it() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("empty"), "").unwrap();
    fs::write(folder.join("garbage"), b"\x80\x04\xff\0garbage\n").unwrap();
    fs::write(folder.join("short.idx"), b"MMIDIDX\0\0").unwrap();
    fs::write(folder.join("short.bin"), b"").unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["tokenize", "--file", "missing"], "missing"),
        (&["tokenize", "--file", "garbage"], "garbage"),
        (
            &["tokenize", "--text", "a", "--tokenizer", "nosuch"],
            "nosuch",
        ),
        (
            &["tokenize", "--text", "a", "--tokenizer", "garbage"],
            "garbage",
        ),
        (
            &["tokenize", "--text", "a", "--tokenizer", "empty"],
            "empty",
        ),
        (&["prepare", "jsonl", "missing", "--out", "set"], "missing"),
        (&["prepare", "jsonl", "empty", "--out", "set"], "empty"),
        (
            &["prepare", "jsonl", "garbage", "--out", "set"],
            "garbage, line 1",
        ),
        (
            &["prepare", "text", "garbage", "--out", "set"],
            "garbage, line 1",
        ),
        (
            &["prepare", "text", ".", "--out", "set"],
            "not a regular file",
        ),
        (
            &["prepare", "minipile", "garbage", "--out", "set"],
            "garbage: not a readable Parquet file",
        ),
        (
            &["prepare", "prolong", ".", "--out", "set"],
            "source-tokenizer: prolong",
        ),
        (
            &["prepare", "text", "short.idx", "--out", "nosuch/set"],
            "nosuch/set.bin",
        ),
        (
            &["needles", "--out", "set", "--tokens", "20"],
            "--tokens 20",
        ),
        (&["needles", "--out", "nosuch/set"], "nosuch/set.bin"),
        (&["inspect", "missing"], "missing.idx"),
        (&["inspect", "short"], "short.idx"),
    ];
    for (arguments, word) in cases {
        let message = failure(folder, arguments);
        assert!(message.contains(word), "{arguments:?}: {message}");
        assert!(
            message.starts_with("error: ") && message.lines().count() <= 2,
            "{message}"
        );
    }
    let left: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 4, "nothing is left behind: {left:?}");
}

#[test]
fn unusable_options_are_refused() {
    let folder = tempdir().unwrap();
    let cases: &[&[&str]] = &[
        &["tokenize", "--text", "a", "--file", "b"],
        &["prepare", "parquet", "a", "--out", "b"],
        &["prepare", "jsonl", "--out", "b"],
        &["prepare", "jsonl", "a", "--out", "b", "--epochs", "0"],
        &["prepare", "jsonl", "a", "--out", "b", "--pack", "0"],
        &["needles", "--out", "b", "--kind", "haystack"],
        &["needles", "--out", "b", "--tokens", "1"],
        &["inspect"],
    ];
    for arguments in cases {
        failure(folder.path(), arguments);
    }
}

#[test]
fn a_needle_file_decodes_to_its_questions() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    stdout(
        folder,
        &[
            "needles",
            "--out",
            "set",
            "--documents",
            "1",
            "--tokens",
            "512",
            "--kind",
            "ruler-passkey",
        ],
    );
    let file = TokenFile::open(&folder.join("set")).unwrap();
    let mut ids = vec![0; 512];
    file.read(0, &mut ids).unwrap();
    let text = Tokenizer::open("byte").unwrap().decode_lossy(&ids);
    let (_, answer) = text
        .rsplit_once("mentioned in the provided text is ")
        .unwrap();
    assert!(
        answer.len() == 7 && text.contains(&format!(" is: {answer}.")),
        "{text}"
    );
}
