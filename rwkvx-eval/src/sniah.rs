//! RULER's three single-needle tasks over a grid of lengths and depths (S-NIAH).
//!
//! Prompts are [`ruler`]'s, filled to exactly the length asked for, with room for the answer counted in. RULER draws a
//! depth for each sample; here depths form a grid. The answer is right if it stands anywhere in what the model says.

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::ruler::{self, Fit, PromptSpec, Task};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::grid::{Answer, Place, Question, ask, depths};
use crate::journal::Journal;
use crate::language_model::Speaker;
use crate::lengths::rising;

/// Deepest a needle stands, in percent.
const LAST_DEPTH: f32 = 100.0;

/// What to ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Names of tasks: `passkey`, `number`, `uuid`.
    pub tasks: Vec<String>,
    /// Lengths in tokens, the room for the answer included.
    pub lengths: Vec<usize>,
    /// Depths, evenly from the beginning to the end.
    pub depths: usize,
    /// Questions per task, length and depth.
    pub samples: usize,
    /// Tokens of each length that are left for the answer, 128 in RULER.
    pub answer_tokens: usize,
    /// Decides keys, values and generated essays.
    pub seed: u64,
    /// File of the essays; without it they are generated.
    pub haystack: Option<String>,
}

impl Settings {
    /// The tasks by value; names that are none are left out.
    fn tasks(&self) -> impl Iterator<Item = Task> {
        let named = |task: &Task| self.tasks.iter().any(|name| name == task.name());
        Task::ALL.into_iter().filter(named)
    }

    /// Every place of one length, shallowest first.
    fn places(&self, length: usize) -> Vec<Place> {
        depths(self.depths, LAST_DEPTH)
            .into_iter()
            .flat_map(|depth| {
                (0..self.samples).map(move |sample| Place {
                    length,
                    depth,
                    sample,
                })
            })
            .collect()
    }

    /// Tokens of all prompts together.
    pub fn tokens(&self) -> u64 {
        let per_length = (self.tasks().count() * self.depths * self.samples) as u64;
        let prompt = |&length: &usize| length.saturating_sub(self.answer_tokens) as u64;
        per_length * self.lengths.iter().map(prompt).sum::<u64>()
    }
}

/// Asks everything that `journal` has no answer to, shortest texts first. `essays` is the text of `settings.haystack`.
///
/// # Errors
///
/// If a length is too short for a task's fixed text and the answer; the error names the least that works.
pub fn run(
    model: &dyn Speaker,
    tokenizer: &Tokenizer,
    settings: &Settings,
    essays: Option<&str>,
    journal: &mut Journal,
    progress: &ProgressBar,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for length in rising(settings.lengths.iter().copied()) {
        for task in settings.tasks() {
            progress.set_message(format!("{task} at {length}"));
            let question = |place| question(task, place, tokenizer, settings, essays);
            let places = settings.places(length);
            answers.extend(ask(
                model,
                tokenizer,
                task.name(),
                &places,
                question,
                journal,
                progress,
            )?);
        }
    }
    Ok(answers)
}

fn question(
    task: Task,
    place: Place,
    tokenizer: &Tokenizer,
    settings: &Settings,
    essays: Option<&str>,
) -> Result<Question> {
    let spec = PromptSpec {
        tokens_to_generate: settings.answer_tokens,
        fit: Fit::Exact,
        depth: Some(place.depth),
        seed: seed_of(settings.seed, place),
        ..PromptSpec::new(task, place.length)
    };
    let prompt = ruler::build(&spec, tokenizer, essays)?;
    Ok(Question {
        ids: tokenizer.encode(&prompt.text)?,
        expected: prompt.answer.clone(),
        max_tokens: settings.answer_tokens,
        is_right: Box::new(move |said| prompt.is_answered_by(said)),
        stop_when_right: true,
    })
}

/// A seed for each place, so that a question does not depend on which others are asked.
fn seed_of(seed: u64, place: Place) -> u64 {
    [
        place.length as u64,
        u64::from(place.depth.to_bits()),
        place.sample as u64,
    ]
    .into_iter()
    // Steps of SplitMix64's increment, mixed by its first multiplier.
    .fold(seed, |seed, value| {
        let mixed = (seed ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    })
}
