//! `rwkvx-eval latency`: what it counts; not how fast the machine is.

use rwkvx_eval::latency::Point;
use serde_json::Value;

use crate::support::{program, save_run, succeed};

fn points(report: &Value) -> Vec<Point> {
    serde_json::from_value(report["result"]["points"].clone()).unwrap()
}

#[test]
fn both_models_are_measured_at_every_length() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let options = [
        "latency",
        "--len",
        "300,1K,64",
        "--tokens",
        "3",
        "--batch",
        "2",
    ];
    let json = succeed(place.path(), &[&options[..], &["--json"]].concat());
    let points = points(&serde_json::from_str(&json).unwrap());
    let found: Vec<(&str, usize)> = points
        .iter()
        .map(|point| (point.model.as_str(), point.length))
        .collect();
    let lengths = [64, 300, 1024];
    let of = |model: &'static str| lengths.map(|length| (model, length));
    assert_eq!(found, [of("rwkv7"), of("rwkvx")].concat());
    for point in &points {
        assert!(point.prefill_tokens_per_second > 0.0);
        assert!(point.step_ms_min <= point.step_ms && point.step_ms <= point.step_ms_max);
        assert!(point.floor_ms > 0.0);
    }
    let (rwkv7, rwkvx) = points.split_at(3);
    // A recurrent state of a size, and a cache that grows by keys and values of 32 channels for two texts.
    assert!(
        rwkv7
            .iter()
            .all(|point| point.state_bytes == rwkv7[0].state_bytes)
    );
    assert!(rwkvx[2].state_bytes - rwkv7[2].state_bytes >= 2 * 2 * 1024 * 32 * 4);
    // Two chunks of 32 tokens are read at any length, and a mean for every chunk.
    let read = |index: usize| rwkvx[index].step_bytes - rwkv7[index].step_bytes;
    assert!(
        read(0) < read(1) && read(2) - read(1) == 2 * 32 * 4 * ((1024 + 3) / 32 - (300 + 3) / 32)
    );

    let table = succeed(place.path(), &options);
    assert!(table.contains("rwkvx") && table.contains("1K"), "{table}");
    assert!(place.path().join("runs/latency-2/report.json").exists());

    // What was measured is not overwritten.
    let again = program(
        place.path(),
        &[&options[..], &["--out", "runs/latency-2"]].concat(),
    );
    let error = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success());
    assert!(
        error.contains("--out: runs/latency-2/report.json is there"),
        "{error}"
    );
}

#[test]
fn a_budget_keeps_memory_and_reads_constant() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let options = [
        "latency",
        "--len",
        "200,400,800",
        "--tokens",
        "2",
        "--cache-budget",
        "100",
    ];
    let json = succeed(place.path(), &[&options[..], &["--json"]].concat());
    let points = points(&serde_json::from_str(&json).unwrap());
    let hybrid = &points[3..];
    assert!(
        hybrid
            .iter()
            .all(|point| point.state_bytes == hybrid[0].state_bytes)
    );
    // Keys and values of 128 rows (100 in whole chunks of 32), 3 means or 4, 10 queries.
    assert!(hybrid[0].state_bytes - points[0].state_bytes <= (2 * 128 + 4 + 10 + 1) * 32 * 4);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    for options in [
        ["--len", "0"],
        ["--tokens", "0"],
        ["--batch", "0"],
        ["--len", "1G"],
    ] {
        let output = program(place.path(), &[&["latency"], &options[..]].concat());
        assert!(!output.status.success(), "{options:?}");
    }
}
