//! Two reports side by side.

use std::fs;
use std::path::Path;

use rwkvx_eval::compare::{compare, different_settings};
use serde_json::{Value, json};

use crate::support::{benchmark, command, program, save_run, succeed};

/// A report of answers to a needle benchmark; those of `right` are right.
fn grid(right: &[bool], seed: u64) -> Value {
    let answers: Vec<Value> = right
        .iter()
        .enumerate()
        .map(|(sample, right)| {
            json!({
                "task": "uuid", "length": 1024, "depth": 50.0, "sample": sample, "expected": format!("{sample}"),
                "said": "", "correct": right,
            })
        })
        .collect();
    json!({ "benchmark": "sniah", "settings": { "seed": seed, "file": { "path": seed } }, "result": answers })
}

#[test]
fn differences_are_of_the_same_questions() {
    let (f, t) = (false, true);
    let first = grid(&[f, f, t, t, f], 1);
    let second = grid(&[t, f, t, t], 1);
    let [difference] = &compare(&first, &second).unwrap()[..] else {
        panic!("one measure");
    };
    assert_eq!(
        (difference.measure.as_str(), difference.count),
        ("uuid at 1024", 4)
    );
    assert_eq!(
        (difference.first.value, difference.second.value),
        (0.5, 0.75)
    );
    assert_eq!(difference.difference.value, 0.25);
    // Differences 1, 0, 0, 0: sample variance 1/4, standard error 1/4.
    assert_eq!(difference.difference.stderr, 0.25);
    assert_eq!(difference.interval(), Some([0.25 - 0.49, 0.25 + 0.49]));
    let single = &compare(&first, &grid(&[t], 1)).unwrap()[0];
    assert_eq!((single.count, single.interval()), (1, None));
    let back = &compare(&second, &first).unwrap()[0];
    assert_eq!(back.difference.value, -0.25);
    assert!(different_settings(&first, &second).is_empty());
    assert_eq!(different_settings(&first, &grid(&[t], 2)), ["seed"]);
}

#[test]
fn measures_stand_in_the_order_of_their_lengths() {
    let mut report = grid(&[true, true], 1);
    report["result"][1]["length"] = json!(512);
    let differences = compare(&report, &report).unwrap();
    let measures: Vec<&str> = differences.iter().map(|it| it.measure.as_str()).collect();
    assert_eq!(measures, ["uuid at 512", "uuid at 1024"]);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let good = grid(&[true], 1);
    let mut other = good.clone();
    other["benchmark"] = json!("lambada");
    let error = compare(&good, &other).unwrap_err().to_string();
    assert!(
        error.contains("of sniah") && error.contains("of lambada"),
        "{error}"
    );
    let error = compare(&other, &other).unwrap_err().to_string();
    assert!(error.contains("not a report of lambada"), "{error}");
    let error = compare(&good, &grid(&[], 1)).unwrap_err().to_string();
    assert!(error.contains("no question in common"), "{error}");
}

/// Runs a benchmark on one model of two sizes of chunks, and compares the reports.
fn compared(place: &Path, benchmark: &[&str]) -> (String, Value) {
    for (chunks, out) in [("32", "a"), ("8", "b")] {
        let options = ["--chunk-size", chunks, "--out", out];
        succeed(place, &[benchmark, &options].concat());
    }
    let table = succeed(place, &["compare", "a", "b/report.json"]);
    let json = succeed(place, &["compare", "a", "b", "--json"]);
    (table, serde_json::from_str(&json).unwrap())
}

#[test]
fn reports_of_every_benchmark_are_compared() {
    let texts: String = ["He opened the old door", "two words", "a third one"]
        .map(|text| json!({ "text": text.repeat(20) }).to_string() + "\n")
        .concat();
    let data = benchmark("");
    let data = data.to_str().unwrap();
    for (arguments, measures) in [
        (&["choice", "--task", "all", "--data", data][..], 12),
        (&["lambada", "texts.jsonl"], 2),
        (
            &[
                "perplexity",
                "texts.jsonl",
                "--skip",
                "0",
                "--len",
                "100,200",
            ],
            2,
        ),
        (
            &["passkey", "--len", "300", "--depths", "2", "--samples", "1"],
            1,
        ),
        // Of each of two models at two lengths: ms per token, prefill, state.
        (&["latency", "--len", "100,200", "--tokens", "3"], 12),
    ] {
        let place = tempfile::tempdir().unwrap();
        save_run(place.path(), "demo-1");
        fs::write(place.path().join("texts.jsonl"), &texts).unwrap();
        let (table, json) = compared(place.path(), arguments);
        assert!(
            table.contains("95% interval") && table.contains("demo-1"),
            "{table}"
        );
        assert_eq!(
            json["measures"].as_array().unwrap().len(),
            measures,
            "{json}"
        );
        assert_eq!(json["different_settings"], json!([]));
    }
}

/// As in `rwkvx-eval compare ... | true`.
#[cfg(unix)]
#[test]
fn nobody_reading_is_no_error() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    compared(place.path(), &["latency", "--len", "100", "--tokens", "3"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut compare = command(place.path(), &["compare", "a", "b"]);
    let output = compare.stdout(writer).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn files_that_are_no_reports_are_named() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("a.json"), "{\"benchmark\": \"sniah\"}").unwrap();
    fs::write(place.path().join("b.json"), "{").unwrap();
    for (first, says) in [
        (
            "a.json",
            "a.json: not a report of rwkvx-eval: no field `program`",
        ),
        ("b.json", "b.json: not a report of rwkvx-eval"),
        ("none", "none"),
        (".", "report.json"),
    ] {
        let output = program(place.path(), &["compare", first, first]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(says),
            "{errors}"
        );
    }
}
