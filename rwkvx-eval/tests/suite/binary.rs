//! The program from outside.

use std::fs;

use rwkvx_eval::grid::Answer;
use rwkvx_eval::report::Report;
use rwkvx_eval::{lambada, passkey, sniah};
use serde_json::Value;

use crate::support::{save_run, succeed};

#[test]
fn sniah_prints_a_table_and_leaves_report_csv_and_picture() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let options = [
        "sniah",
        "--len",
        "600,1K",
        "--depths",
        "3",
        "--samples",
        "2",
        "--answer-tokens",
        "40",
    ];
    let table = succeed(place.path(), &options);
    assert!(table.contains("runs/demo-1/model.safetensors"), "{table}");
    for task in ["passkey", "number", "uuid"] {
        let row = table.lines().find(|line| line.starts_with(task)).unwrap();
        assert_eq!(row.matches("/6)").count(), 2, "{row}");
    }
    let out = place.path().join("runs/sniah-1");
    assert!(
        fs::read(out.join("heat_map.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    let csv = fs::read_to_string(out.join("grid.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 3 * 2 * 3);

    let json = succeed(
        place.path(),
        &[&options[..], &["--json", "--out", "again"]].concat(),
    );
    let again: Report<sniah::Settings, Vec<Answer>> = serde_json::from_str(&json).unwrap();
    let first = fs::read_to_string(out.join("report.json")).unwrap();
    let first: Report<sniah::Settings, Vec<Answer>> = serde_json::from_str(&first).unwrap();
    assert_eq!(
        (&again.settings, &again.result),
        (&first.settings, &first.result)
    );
    assert_eq!(again.result.len(), 3 * 2 * 3 * 2);
    assert!(place.path().join("again/heat_map.png").exists());
    assert_eq!(again.model.file, first.model.file);
    assert_eq!(again.model.file.sha256.len(), 64);
}

#[test]
fn the_model_trained_last_is_asked() {
    let place = tempfile::tempdir().unwrap();
    let old = save_run(place.path(), "z");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    save_run(place.path(), "a");
    // A run that has not come to its end, and the results of a benchmark.
    fs::create_dir_all(place.path().join("runs/unfinished")).unwrap();
    let options = [
        "sniah",
        "--len",
        "600",
        "--depths",
        "1",
        "--samples",
        "1",
        "--answer-tokens",
        "40",
        "--task",
        "passkey",
    ];
    for _ in 0..2 {
        let table = succeed(place.path(), &options);
        assert!(table.contains("runs/a/model.safetensors"), "{table}");
    }
    assert!(place.path().join("runs/sniah-2/report.json").exists());
}

#[test]
fn passkey_and_lambada_run_too() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let json = succeed(
        place.path(),
        &[
            "passkey",
            "--len",
            "300",
            "--depths",
            "2",
            "--samples",
            "3",
            "--json",
        ],
    );
    let report: Report<passkey::Settings, Vec<Answer>> = serde_json::from_str(&json).unwrap();
    assert_eq!(report.result.len(), 6);

    let file = place.path().join("texts.jsonl");
    fs::write(
        &file,
        "{\"text\": \"He opened the old door\"}\n{\"text\": \"two words\"}\n",
    )
    .unwrap();
    let json = succeed(place.path(), &["lambada", "texts.jsonl", "--json"]);
    let report: Report<Value, lambada::Scores> = serde_json::from_str(&json).unwrap();
    assert_eq!(report.result.answers.len(), 2);
    // Random weights: each of the word's 5 or 6 bytes is one of 257, roughly.
    assert!(
        report.result.perplexity.ln() / 5.5 > 4.0,
        "{:?}",
        report.result
    );
    let table = succeed(place.path(), &["lambada", "texts.jsonl"]);
    assert!(
        table.contains("accuracy") && table.contains("perplexity"),
        "{table}"
    );
}

#[test]
fn another_chunk_size_is_another_reading_of_the_same_weights() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let json = succeed(
        place.path(),
        &[
            "sniah",
            "--len",
            "600",
            "--depths",
            "1",
            "--samples",
            "1",
            "--answer-tokens",
            "40",
            "--chunk-size",
            "16",
            "--top-k",
            "5",
            "--json",
        ],
    );
    let report: Report<sniah::Settings, Vec<Answer>> = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (report.model.config.chunk_size, report.model.config.top_k),
        (16, 5)
    );
}
