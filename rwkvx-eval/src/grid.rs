//! Questions by task, length and depth: asked, counted by cell.

use indicatif::ProgressBar;
use rwkvx_datasets::{END_OF_DOCUMENT, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::journal::Journal;
use crate::language_model::Speaker;

/// Where a question stands in the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Length of the text, in tokens.
    pub length: usize,
    /// Where the needle stands, in percent.
    pub depth: f32,
    /// Number of the question among those of this length and depth, from 0.
    pub sample: usize,
}

/// A question and what counts as its answer.
pub struct Question {
    /// The prompt.
    pub ids: Vec<u32>,
    /// What should be said, for the record.
    pub expected: String,
    /// Most tokens the model may say.
    pub max_tokens: usize,
    /// Whether the words of the model are right.
    pub is_right: Box<dyn Fn(&str) -> bool>,
    /// Whether the answer stays right whatever else is said.
    pub stop_when_right: bool,
}

impl Question {
    /// What of a row of tokens is said in answer: nothing after the end of the document, and not too much.
    fn words<'a>(&self, row: &'a [u32]) -> &'a [u32] {
        let end = row.iter().position(|&id| id == END_OF_DOCUMENT);
        &row[..end.unwrap_or(row.len()).min(self.max_tokens)]
    }

    /// Whether nothing that may follow a row of tokens changes what becomes of it.
    fn is_answered_by(&self, row: &[u32], tokenizer: &Tokenizer) -> bool {
        row.contains(&END_OF_DOCUMENT)
            || self.stop_when_right && (self.is_right)(&tokenizer.decode_lossy(self.words(row)))
    }
}

/// What a model said to a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Task.
    pub task: String,
    /// Length of the text, in tokens.
    pub length: usize,
    /// Where the needle stands, in percent.
    pub depth: f32,
    /// Number of the question in its cell, from 0.
    pub sample: usize,
    /// What should have been said.
    pub expected: String,
    /// What was said.
    pub said: String,
    /// Whether that is right.
    pub correct: bool,
}

/// Right answers among some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Right answers.
    pub correct: usize,
    /// Questions asked.
    pub asked: usize,
}

impl Count {
    /// Counts those answers that `belongs` picks.
    pub fn of(answers: &[Answer], belongs: impl Fn(&Answer) -> bool) -> Self {
        let mut count = Self::default();
        for answer in answers.iter().filter(|answer| belongs(answer)) {
            count.correct += usize::from(answer.correct);
            count.asked += 1;
        }
        count
    }

    /// Share of right answers, 0 to 1; 0 where nothing was asked.
    pub fn share(self) -> f64 {
        self.correct as f64 / self.asked.max(1) as f64
    }
}

/// `count` depths from 0 to `last` percent, evenly; a single one is the middle.
pub fn depths(count: usize, last: f32) -> Vec<f32> {
    match count {
        1 => vec![last / 2.0],
        _ => (0..count)
            .map(|depth| depth as f32 * last / (count - 1) as f32)
            .collect(),
    }
}

/// Asks one task's questions at one length, those that `journal` has no answer to; gives the answers in the order of
/// `places`. `progress` counts tokens read.
///
/// # Errors
///
/// If a question cannot be made, the model refuses it, or an answer cannot be written down.
pub fn ask(
    model: &dyn Speaker,
    tokenizer: &Tokenizer,
    task: &str,
    places: &[Place],
    question: impl Fn(Place) -> Result<Question>,
    journal: &mut Journal,
    progress: &ProgressBar,
) -> Result<Vec<Answer>> {
    let mut answers: Vec<Option<Answer>> = places
        .iter()
        .map(|&place| journal.answer(task, place))
        .collect();
    let open: Vec<usize> = (0..places.len())
        .filter(|&index| answers[index].is_none())
        .collect();
    let questions = open.iter().map(|&index| question(places[index]));
    let questions = questions.collect::<Result<Vec<_>>>()?;
    let prompts: Vec<&[u32]> = questions.iter().map(|it| it.ids.as_slice()).collect();
    let max_tokens = questions.iter().map(|question| question.max_tokens).max();
    let enough = |index: usize, row: &[u32]| questions[index].is_answered_by(row, tokenizer);
    let mut read = |tokens| progress.inc(tokens as u64);
    let mut said = |index: usize, row: Vec<u32>| {
        let question: &Question = &questions[index];
        let place = places[open[index]];
        let said = tokenizer.decode_lossy(question.words(&row));
        let answer = Answer {
            task: task.to_owned(),
            length: place.length,
            depth: place.depth,
            sample: place.sample,
            expected: question.expected.clone(),
            correct: (question.is_right)(&said),
            said,
        };
        journal.write(&answer)?;
        answers[open[index]] = Some(answer);
        Ok(())
    };
    if !prompts.is_empty() {
        let max_tokens = max_tokens.unwrap_or(0);
        model.greedy(&prompts, max_tokens, &enough, &mut read, &mut said)?;
    }
    Ok(answers.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_reach_from_the_beginning_to_the_end() {
        assert_eq!(depths(5, 100.0), [0.0, 25.0, 50.0, 75.0, 100.0]);
        assert_eq!(depths(10, 90.0)[..3], [0.0, 10.0, 20.0]);
        assert_eq!(depths(1, 100.0), [50.0]);
    }
}
