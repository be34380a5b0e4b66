//! Texts that tell many facts: how much a model keeps, against their number as well as the length of the text.
//!
//! One needle, however deep it lies, fills a recurrent state no more than any other; many facts of which any may be asked do. A text
//! tells `n` numbers (or UUIDs), each under a key of its own, somewhere in generated prose, and asks for some of them at its end, one after the
//! other. An answer is right if every token of it is the likeliest after the text before it, the right answers to the questions before
//! included: it is what the model would have said there.

use std::collections::BTreeMap;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::needles::{FactsSpec, FactsText, ValueWeights};
use rwkvx_model::ScoredText;
use serde::{Deserialize, Serialize};

use crate::grid::{Answer, Count};
use crate::language_model::Scorer;
use crate::lengths::rising;
use crate::{Error, Result};

/// Texts scored at a time.
const TEXTS: usize = 64;

/// What to ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Facts of a text.
    pub facts: Vec<usize>,
    /// Lengths of texts in tokens, questions and answers included.
    pub lengths: Vec<usize>,
    /// Texts for each number of facts and length.
    pub texts: usize,
    /// Questions at the end of a text, fewer where it has fewer facts.
    pub questions: usize,
    /// How often each type of value is drawn.
    pub values: ValueWeights,
    /// Decides facts, their places and the prose.
    pub seed: u64,
}

impl Settings {
    /// Tokens of all texts together, those included that do not fit.
    pub fn tokens(&self) -> u64 {
        let texts = self.facts.len() * self.texts;
        (texts * self.lengths.iter().sum::<usize>()) as u64
    }
}

/// The task of so many facts, as answers name it.
pub fn task(facts: usize) -> String {
    format!("{facts} facts")
}

/// Right answers at one length by the number of facts.
pub fn by_number(answers: &[Answer], length: usize) -> BTreeMap<usize, Count> {
    let mut counts = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.length == length) {
        let number = answer.task.split(' ').next().and_then(|it| it.parse().ok());
        if let Some(number) = number {
            let count: &mut Count = counts.entry(number).or_default();
            count.correct += usize::from(answer.correct);
            count.asked += 1;
        }
    }
    counts
}

/// Asks everything, few facts and short texts first. Numbers of facts that do not fit a length are left out there. The depths of
/// answers are those of their facts, rounded down to tens of percent.
///
/// # Errors
///
/// If no number of facts fits any length, or the model refuses a text.
pub fn run(
    model: &dyn Scorer,
    tokenizer: &Tokenizer,
    settings: &Settings,
    progress: &ProgressBar,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    let mut refused = None;
    for facts in rising(settings.facts.iter().copied()) {
        for length in rising(settings.lengths.iter().copied()) {
            progress.set_message(format!("{} at {length}", task(facts)));
            match texts(tokenizer, settings, facts, length) {
                Ok(texts) => answers.extend(ask(model, tokenizer, &texts, facts, progress)?),
                Err(error @ rwkvx_datasets::Error::PromptTooShort { .. }) => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
    }
    match refused {
        Some(error) if answers.is_empty() => Err(Error::option("--facts", error.to_string())),
        _ => Ok(answers),
    }
}

fn texts(
    tokenizer: &Tokenizer,
    settings: &Settings,
    facts: usize,
    length: usize,
) -> rwkvx_datasets::Result<Vec<FactsText>> {
    let text = |sample: usize| {
        let spec = FactsSpec {
            tokens: length,
            facts,
            questions: settings.questions.min(facts),
            values: settings.values,
            seed: settings.seed.wrapping_add(sample as u64),
        };
        FactsText::new(&spec, tokenizer)
    };
    (0..settings.texts).map(text).collect()
}

fn ask(
    model: &dyn Scorer,
    tokenizer: &Tokenizer,
    texts: &[FactsText],
    facts: usize,
    progress: &ProgressBar,
) -> Result<Vec<Answer>> {
    let mut answers: Vec<Answer> = Vec::new();
    for texts in texts.chunks(TEXTS) {
        let scored: Vec<ScoredText> = texts
            .iter()
            .map(|text| ScoredText {
                ids: text.ids.clone(),
                context: text.context(),
            })
            .collect();
        let scores = model.score(&scored, &mut |read| progress.inc(read as u64))?;
        for (text, score) in texts.iter().zip(scores) {
            for asked in &text.asked {
                let said = text.said(asked, &score.likeliest);
                answers.push(Answer {
                    task: task(facts),
                    length: text.ids.len(),
                    depth: (asked.depth_percent / 10.0).floor() * 10.0,
                    sample: answers.len(),
                    expected: asked.value.clone(),
                    said: tokenizer.decode_lossy(said),
                    correct: text.is_answered(asked, &score.likeliest),
                });
            }
        }
    }
    Ok(answers)
}
