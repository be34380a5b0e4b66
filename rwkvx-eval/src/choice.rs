//! Multiple choice: which continuation does the model find likeliest?

use std::collections::BTreeMap;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_model::Score;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::language_model::Scorer;
use crate::requests::{self, Request};
use crate::statistics::Mean;
use crate::tasks::{Metric, Question, Task};

/// What came out of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The task's name.
    pub task: String,
    /// Shares of right answers, 0 to 1, over all questions.
    pub metrics: BTreeMap<Metric, Mean>,
    /// The same by group, where the task has groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, BTreeMap<Metric, Mean>>,
    /// What was chosen, in the order of the questions.
    pub answers: Vec<Answer>,
}

/// What the model chose of a question's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Index of the right choice.
    pub right: usize,
    /// Index of the likeliest choice.
    pub likeliest: usize,
    /// Index of the likeliest choice by its mean over characters.
    pub likeliest_by_length: usize,
}

impl Answer {
    /// Whether the choice that a metric looks at is the right one.
    pub fn is_right(&self, metric: Metric) -> bool {
        self.right
            == match metric {
                Metric::Acc => self.likeliest,
                Metric::AccNorm => self.likeliest_by_length,
            }
    }
}

/// Every choice of every question, one after another.
pub fn requests(questions: &[Question]) -> Vec<Request> {
    questions
        .iter()
        .flat_map(|question| &question.choices)
        .map(|choice| choice.request.clone())
        .collect()
}

/// Asks a task's questions; also gives the score of each of their [`requests()`].
///
/// # Errors
///
/// If the model refuses a text.
pub fn run(
    model: &dyn Scorer,
    tokenizer: &Tokenizer,
    task: &Task,
    questions: &[Question],
    progress: &ProgressBar,
) -> Result<(Scores, Vec<Score>)> {
    let scores = requests::score(model, tokenizer, &requests(questions), progress)?;
    let mut left = scores.as_slice();
    let answers: Vec<Answer> = questions
        .iter()
        .map(|question| {
            let (of_question, others) = left.split_at(question.choices.len());
            left = others;
            answer(question, of_question)
        })
        .collect();
    // Right or wrong by metric, group by group; a task without groups is one.
    let mut right: BTreeMap<Metric, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for (question, answer) in questions.iter().zip(&answers) {
        for &metric in &task.metrics {
            let group = question.group.clone().unwrap_or_default();
            let values = right.entry(metric).or_default().entry(group).or_default();
            values.push(f64::from(u8::from(answer.is_right(metric))));
        }
    }
    let mut groups: BTreeMap<String, BTreeMap<Metric, Mean>> = BTreeMap::new();
    for (&metric, by_group) in &right {
        for (group, values) in by_group.iter().filter(|(group, _)| !group.is_empty()) {
            let mean = Mean::of(values.iter().copied());
            groups
                .entry(group.clone())
                .or_default()
                .insert(metric, mean);
        }
    }
    let metrics = right
        .iter()
        .map(|(&metric, by_group)| (metric, Mean::pooled(by_group.values().map(Vec::as_slice))));
    let result = Scores {
        task: task.name.clone(),
        metrics: metrics.collect(),
        groups,
        answers,
    };
    Ok((result, scores))
}

fn answer(question: &Question, scores: &[Score]) -> Answer {
    let log_probabilities = scores.iter().map(Score::log_probability);
    let by_length = log_probabilities
        .clone()
        .zip(&question.choices)
        .map(|(log_probability, choice)| log_probability / choice.characters as f64);
    Answer {
        right: question.answer,
        likeliest: first_largest(log_probabilities),
        likeliest_by_length: first_largest(by_length),
    }
}

/// Index of the largest value, of equal ones the first.
fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    values
        .enumerate()
        .reduce(|best, other| if other.1 > best.1 { other } else { best })
        .map_or(0, |(index, _)| index)
}
