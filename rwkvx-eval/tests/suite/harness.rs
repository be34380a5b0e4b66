//! The requests that lm-evaluation-harness makes of the small benchmarks, and its metrics: ours are the same.
//!
//! `scripts/eval/parity` wrote them, and runs the harness itself.

use std::collections::BTreeMap;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::records::{Record, read, split_files};
use rwkvx_eval::requests::Request;
use rwkvx_eval::tasks::{Question, Task};
use rwkvx_eval::{choice, lambada};
use rwkvx_model::Score;
use serde::Deserialize;

use crate::support::{Told, benchmark};

/// What the harness asked and found.
#[derive(Deserialize)]
struct Harness {
    /// Context, continuation, log-probability, greedy.
    requests: Vec<(String, String, f32, bool)>,
    metrics: BTreeMap<String, f64>,
}

impl Harness {
    fn of(task: &str) -> Self {
        let path = benchmark(&format!("../harness/{task}.json"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[track_caller]
    fn assert_same_requests(&self, task: &str, requests: &[Request]) {
        assert_eq!(requests.len(), self.requests.len(), "{task}");
        for (ours, (context, continuation, ..)) in requests.iter().zip(&self.requests) {
            assert_eq!(
                (&ours.context, &ours.continuation),
                (context, continuation),
                "{task}"
            );
        }
    }

    fn scores(&self) -> Vec<Score> {
        let score = |&(_, _, log_probability, greedy): &(String, String, f32, bool)| Score {
            log_probabilities: vec![log_probability],
            likeliest: Vec::new(),
            greedy,
        };
        self.requests.iter().map(score).collect()
    }
}

fn records(task: &Task, split: &str) -> Vec<Record> {
    read(
        &split_files(&benchmark(&task.name), &task.config, split),
        None,
    )
    .unwrap()
}

fn questions(task: &Task) -> Vec<Question> {
    let shots = task.shots.as_ref();
    let examples = shots.map_or(Vec::new(), |shots| records(task, &shots.split));
    task.questions(&records(task, &task.split), &examples)
        .unwrap()
}

#[test]
fn questions_are_asked_as_the_harness_asks_them() {
    for task in Task::all() {
        let requests = choice::requests(&questions(&task));
        Harness::of(&task.name).assert_same_requests(&task.name, &requests);
    }
}

#[test]
fn answers_count_as_the_harness_counts_them() {
    let byte = Tokenizer::open("byte").unwrap();
    for task in Task::all() {
        let harness = Harness::of(&task.name);
        let told = Told(harness.scores());
        let bar = ProgressBar::hidden();
        let (found, _) = choice::run(&told, &byte, &task, &questions(&task), &bar).unwrap();
        assert_eq!(
            2 * found.metrics.len(),
            harness.metrics.len(),
            "{}",
            task.name
        );
        for (metric, mean) in found.metrics {
            let theirs = ["", "_stderr"].map(|ending| format!("{}{ending}", metric.name()));
            for (ours, theirs) in [mean.value, mean.stderr].into_iter().zip(theirs) {
                let distance = (ours - harness.metrics[&theirs]).abs();
                assert!(distance < 1e-12, "{} {theirs}: {ours}", task.name);
            }
        }
    }
}

#[test]
fn lambada_is_asked_and_counted_as_the_harness_does_it() {
    let harness = Harness::of("lambada");
    let requests = lambada::read(benchmark("lambada/test.jsonl"), None).unwrap();
    harness.assert_same_requests("lambada", &requests);
    let found = lambada::scores(&harness.scores());
    assert_eq!(found.accuracy.value, harness.metrics["acc"]);
    assert_eq!(found.accuracy.stderr, harness.metrics["acc_stderr"]);
    let theirs = harness.metrics["perplexity"];
    assert!((found.perplexity / theirs - 1.0).abs() < 1e-5);
}

#[test]
fn the_client_in_the_documentation_is_the_one_that_is_tested() {
    let documentation = include_str!("../../../docs/evaluation.md");
    assert!(documentation.contains(include_str!("../../../scripts/eval/rwkvx_lm.py")));
}
