//! Multiple choice from files to reports.

use std::fs;

use rwkvx_eval::choice::Scores;
use rwkvx_eval::records::{read, split_files};
use rwkvx_eval::report::Report;
use rwkvx_eval::tasks::{Metric, Task};
use serde_json::Value;

use crate::support::{benchmark, save_run, succeed};

fn task(name: &str) -> Task {
    Task::all()
        .into_iter()
        .find(|task| task.name == name)
        .unwrap()
}

#[test]
fn every_task_is_asked_and_reported() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let data = benchmark("");
    let options = ["choice", "--task", "all", "--data", data.to_str().unwrap()];
    let json = succeed(
        place.path(),
        &[&options[..], &["--json", "--log-requests"]].concat(),
    );
    let report: Report<Value, Vec<Scores>> = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> = report
        .result
        .iter()
        .map(|scores| scores.task.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "hellaswag",
            "piqa",
            "arc_easy",
            "arc_challenge",
            "winogrande",
            "sciq",
            "mmlu"
        ]
    );
    let mmlu = &report.result[6];
    assert_eq!((mmlu.answers.len(), mmlu.groups.len()), (6, 2));
    let by_subject: f64 = mmlu
        .groups
        .values()
        .map(|group| group[&Metric::Acc].value)
        .sum();
    assert!((by_subject / 2.0 - mmlu.metrics[&Metric::Acc].value).abs() < 1e-12);
    // Eight files: two splits of MMLU, one each of the others.
    assert_eq!(report.settings["files"].as_array().unwrap().len(), 8);

    let log = fs::read_to_string(place.path().join("runs/choice-1/requests.jsonl")).unwrap();
    let first: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(first["continuation"], " waits until it boils.");
    assert!(first["log_probability"].as_f64().unwrap() < 0.0);

    let table = succeed(place.path(), &[&options[..], &["--limit", "2"]].concat());
    let row = table.lines().find(|line| line.starts_with("sciq")).unwrap();
    assert!(row.contains(" 2  acc "), "{row}");
}

#[test]
fn a_task_that_is_named_twice_is_asked_once() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let data = benchmark("");
    for (tasks, asked) in [("sciq,piqa,sciq", 2), ("piqa,all", 7)] {
        let json = succeed(
            place.path(),
            &[
                "choice",
                "--task",
                tasks,
                "--data",
                data.to_str().unwrap(),
                "--limit",
                "1",
                "--json",
            ],
        );
        let report: Report<Value, Vec<Scores>> = serde_json::from_str(&json).unwrap();
        assert_eq!(report.result.len(), asked, "{tasks}");
    }
}

#[test]
fn a_single_task_may_be_a_file_or_its_own_folder() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let file = benchmark("winogrande/validation.jsonl");
    for data in [file.as_path(), file.parent().unwrap()] {
        let options = [
            "choice",
            "--task",
            "winogrande",
            "--data",
            data.to_str().unwrap(),
            "--json",
        ];
        let report: Report<Value, Vec<Scores>> =
            serde_json::from_str(&succeed(place.path(), &options)).unwrap();
        assert_eq!(report.result[0].answers.len(), 4);
    }
}

#[test]
fn several_models_are_asked_in_turn() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "a");
    save_run(place.path(), "b");
    let data = benchmark("piqa");
    let json = succeed(
        place.path(),
        &[
            "choice",
            "--task",
            "piqa",
            "--data",
            data.to_str().unwrap(),
            "--json",
            "--model",
            "runs/a/model.safetensors",
            "--model",
            "runs/b/model.safetensors",
            "--out",
            "both",
        ],
    );
    let reports: Vec<Report<Value, Vec<Scores>>> = serde_json::from_str(&json).unwrap();
    assert_eq!(reports[0].result, reports[1].result);
    for name in ["a", "b"] {
        assert!(
            place
                .path()
                .join("both")
                .join(name)
                .join("report.json")
                .exists()
        );
    }
}

#[test]
fn records_that_cannot_be_asked_are_named() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("validation.jsonl");
    let good = "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}\n";
    for (name, line, says) in [
        (
            "piqa",
            "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 2}",
            "the answer is 2, of 2 choices",
        ),
        (
            "piqa",
            "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": -1}",
            "the answer is -1",
        ),
        (
            "piqa",
            "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": 7, \"label\": 0}",
            "a choice is 7",
        ),
        (
            "piqa",
            "{\"goal\": \"g\", \"sol1\": \"a\", \"label\": 0}",
            "no field `sol2`, which piqa needs; the fields are",
        ),
    ] {
        fs::write(&path, [good, line].concat()).unwrap();
        let records = read(std::slice::from_ref(&path), None).unwrap();
        let error = task(name).questions(&records, &[]).unwrap_err().to_string();
        assert!(
            error.contains("validation.jsonl, line 2") && error.contains(says),
            "{error}"
        );
    }
    let arc = "{\"question\": \"q\", \"choices\": {\"text\": [\"x\"], \"label\": [\"A\"]}, \"answerKey\": \"B\"}";
    fs::write(&path, arc).unwrap();
    let records = read(std::slice::from_ref(&path), None).unwrap();
    let error = task("arc_easy")
        .questions(&records, &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("B is not in"), "{error}");
}

#[test]
fn examples_are_of_the_questions_subject() {
    let task = task("mmlu");
    let of = |split| read(&split_files(&benchmark("mmlu"), "all", split), None).unwrap();
    let questions = task.questions(&of("test"), &of("dev")).unwrap();
    for question in &questions {
        let subject = question.group.as_deref().unwrap();
        let name = subject.rsplit('_').next().unwrap();
        let context = &question.choices[0].request.context;
        assert_eq!(context.matches("Answer: ").count(), 5);
        assert_eq!(context.matches(&format!("split about {name}?")).count(), 6);
    }
    let too_few = task
        .questions(&of("test"), &of("dev")[..7])
        .unwrap_err()
        .to_string();
    assert!(
        too_few.contains("has 1 examples of world_religions, 5 are needed"),
        "{too_few}"
    );
}
