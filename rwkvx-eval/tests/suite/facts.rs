//! Many facts in one text: what is asked, what counts as right, and the command.

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::needles::ValueWeights;
use rwkvx_eval::facts::{Settings, run};
use rwkvx_eval::language_model::Scorer;
use rwkvx_eval::{Result, table};
use rwkvx_model::{Score, ScoredText};
use serde_json::Value;

use crate::support::{save_run, succeed};

/// Copies what stands in the text, but only of texts that tell at most so many facts.
struct Copies {
    at_most: usize,
}

impl Scorer for Copies {
    fn score(&self, texts: &[ScoredText], on_read: &mut dyn FnMut(usize)) -> Result<Vec<Score>> {
        let score = |text: &ScoredText| {
            on_read(text.ids.len() - 1);
            let told = Tokenizer::open("byte")
                .unwrap()
                .decode_lossy(&text.ids[..text.context])
                .split_whitespace()
                .filter(|word| word.contains('-'))
                .count();
            // The first question names its key twice.
            let knows = told - 2 <= self.at_most;
            let continuation = text.continuation();
            Score {
                log_probabilities: vec![-1.0; continuation.len()],
                likeliest: continuation
                    .iter()
                    .map(|&id| if knows { id } else { 1 })
                    .collect(),
                greedy: knows,
            }
        };
        Ok(texts.iter().map(score).collect())
    }
}

fn settings() -> Settings {
    Settings {
        facts: vec![32, 4],
        lengths: vec![600, 1200],
        texts: 3,
        questions: 5,
        values: ValueWeights::NUMBERS,
        seed: 1,
    }
}

#[test]
fn a_reader_is_right_as_far_as_it_keeps_facts() {
    let tokenizer = Tokenizer::open("byte").unwrap();
    let model = Copies { at_most: 4 };
    let answers = run(&model, &tokenizer, &settings(), &ProgressBar::hidden()).unwrap();
    // Four facts are asked four times, thirty-two five times; thirty-two do not fit 600 bytes.
    let counted = |facts: &str, length| {
        let of_cell = answers
            .iter()
            .filter(|answer| answer.task == facts && answer.length == length);
        let (right, wrong): (Vec<_>, Vec<_>) = of_cell.partition(|answer| answer.correct);
        (right.len(), wrong.len())
    };
    assert_eq!(counted("4 facts", 600), (12, 0));
    assert_eq!(counted("4 facts", 1200), (12, 0));
    assert_eq!(counted("32 facts", 600), (0, 0));
    assert_eq!(counted("32 facts", 1200), (0, 15));
    assert!(answers.iter().all(|answer| {
        (0.0..100.0).contains(&answer.depth)
            && answer.depth % 10.0 == 0.0
            && answer.correct == (answer.said.trim() == answer.expected)
    }));
    let text = table::by_length(&[("model".to_owned(), &answers)]);
    assert!(
        text.contains("100% (12/12)") && text.contains("0% (0/15)"),
        "{text}"
    );
    assert!(text.lines().last().unwrap().contains(" - "), "{text}");
}

#[test]
fn facts_that_fit_nowhere_are_refused() {
    let tokenizer = Tokenizer::open("byte").unwrap();
    let settings = Settings {
        facts: vec![400],
        ..settings()
    };
    let model = Copies { at_most: 4 };
    let error = run(&model, &tokenizer, &settings, &ProgressBar::hidden()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("--facts") && message.contains("ask for at least"),
        "{message}"
    );
}

#[test]
fn the_command_reports_what_can_be_compared() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let options = ["facts", "--facts", "2,4", "--len", "500", "--texts", "2"];
    let table = succeed(place.path(), &[&options[..], &["--out", "a"]].concat());
    for (task, asked) in [("2 facts", "/4)"), ("4 facts", "/8)")] {
        let row = table.lines().find(|line| line.starts_with(task)).unwrap();
        assert!(row.contains(asked), "{row}");
    }
    for file in ["report.json", "grid.csv", "heat_map.png"] {
        assert!(place.path().join("a").join(file).exists(), "{file}");
    }
    let json = succeed(
        place.path(),
        &[&options[..], &["--out", "b", "--json"]].concat(),
    );
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["result"].as_array().unwrap().len(), 2 * 2 + 2 * 4);
    let compared = succeed(place.path(), &["compare", "a", "b"]);
    assert!(compared.contains("4 facts at 500"), "{compared}");
}
