//! What must end in a clear error: no panic, no exit code 0, nothing written.

use std::fs;

use crate::support::{benchmark, program, save_run};

#[test]
fn bad_options_and_files_are_named() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    save_run(place.path(), "demo-1");
    fs::write(at("garbage.safetensors"), [7; 300]).unwrap();
    fs::write(at("garbage.pth"), [7; 300]).unwrap();
    fs::write(at("empty.txt"), " \n").unwrap();
    fs::write(at("binary.txt"), [0xff, 0xfe]).unwrap();
    fs::write(at("file"), "").unwrap();
    fs::write(at("texts.jsonl"), "{\"text\": \"oneword\"}\n").unwrap();
    fs::write(at("damaged.parquet"), [7; 300]).unwrap();
    let whole = fs::read(benchmark("sciq/data/test-00000-of-00001.parquet")).unwrap();
    let mut parquet = whole.clone();
    parquet[..whole.len() / 2].fill(0xff);
    fs::write(at("cut.parquet"), parquet).unwrap();
    let good = fs::read(at("runs/demo-1/model.safetensors")).unwrap();
    fs::write(at("cut.safetensors"), &good[..good.len() - 10]).unwrap();

    let cases: &[(&[&str], &[&str])] = &[
        (
            &["sniah", "--len", "100"],
            &["100 tokens is too short", "ask for at least"],
        ),
        (&["sniah", "--len", "4096000000"], &["4096000000"]),
        (&["sniah", "--len", "ten"], &["--len", "4096, 4K or 1M"]),
        (&["sniah", "--len", ""], &["--len"]),
        (&["sniah", "--depths", "0"], &["--depths"]),
        (&["sniah", "--samples", "0"], &["--samples"]),
        (&["sniah", "--task", "key"], &["--task", "passkey"]),
        (
            &["sniah", "--haystack", "none.txt"],
            &["--haystack", "none.txt"],
        ),
        (
            &["sniah", "--haystack", "empty.txt", "--task", "number"],
            &["haystack", "empty"],
        ),
        (
            &["sniah", "--haystack", "binary.txt"],
            &["--haystack", "UTF-8"],
        ),
        (&["sniah", "--model", "none.pth"], &["none.pth"]),
        (
            &["sniah", "--model", "garbage.safetensors"],
            &["garbage.safetensors"],
        ),
        (&["sniah", "--model", "garbage.pth"], &["garbage.pth"]),
        (
            &["sniah", "--model", "cut.safetensors"],
            &["cut.safetensors"],
        ),
        (
            &["sniah", "--tokenizer", "rwkv-world"],
            &["--tokenizer", "65536 ids"],
        ),
        (
            &["sniah", "--tokenizer", "none.json"],
            &["--tokenizer", "none.json"],
        ),
        (&["sniah", "--chunk-size", "0"], &["chunk_size"]),
        (
            &["sniah", "--len", "600", "--answer-tokens", "600"],
            &["too short"],
        ),
        (&["passkey", "--len", "100"], &["100 tokens is too short"]),
        (&["passkey", "--samples", "6"], &["--samples"]),
        (&["lambada", "none.jsonl"], &["none.jsonl"]),
        (&["lambada", "texts.jsonl"], &["texts.jsonl, line 1"]),
        (&["lambada", "empty.txt"], &["empty.txt", "no records"]),
        (&["choice", "--data", "."], &["--task"]),
        (&["choice", "--task", "piqa"], &["--data"]),
        (
            &["choice", "--task", "chess", "--data", "."],
            &["--task", "\"chess\"", "hellaswag"],
        ),
        (
            &["choice", "--task", "piqa", "--data", "none"],
            &[
                "--data",
                "none",
                "validation-00000-of-00001.parquet",
                "baber/piqa",
            ],
        ),
        (
            &["choice", "--task", "piqa", "--data", "none", "--download"],
            &["--download", "baber/piqa", "datasets/README.md"],
        ),
        (
            &["choice", "--task", "piqa", "--data", "texts.jsonl"],
            &["texts.jsonl, line 1: no field `goal`", "text"],
        ),
        (
            &["choice", "--task", "sciq", "--data", "damaged.parquet"],
            &["damaged.parquet", "not a readable Parquet file"],
        ),
        (
            &["choice", "--task", "sciq", "--data", "cut.parquet"],
            &["cut.parquet", "not a readable Parquet file"],
        ),
        (
            &["choice", "--task", "mmlu", "--data", "texts.jsonl"],
            &["--data", "no dev split"],
        ),
        (
            &[
                "sniah",
                "--len",
                "600",
                "--answer-tokens",
                "40",
                "--depths",
                "1",
                "--samples",
                "1",
                "--out",
                "file/sub",
            ],
            &["file/sub"],
        ),
    ];
    for (arguments, says) in cases {
        let output = program(place.path(), arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
        for part in *says {
            assert!(
                errors.contains(part),
                "{arguments:?}, {part:?} missing: {errors}"
            );
        }
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert_eq!(fs::read_dir(at("runs")).unwrap().count(), 1);
}

#[test]
fn without_any_model_the_error_says_how_to_get_one() {
    let place = tempfile::tempdir().unwrap();
    let output = program(place.path(), &["sniah"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        errors.contains("cargo run --release -p rwkvx-train"),
        "{errors}"
    );
}
