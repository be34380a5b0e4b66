//! The passkey test of the RWKV-X repository, by its script's protocol.
//!
//! Depths are 0, 10, ... 90 percent, the keys are five fixed numbers, lengths are nominal ([`passkey`]), and an answer
//! is right only if what the model says, cut to as many tokens as the key has, is the key.

use indicatif::ProgressBar;
use rwkvx_datasets::{Tokenizer, passkey};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::grid::{Answer, Place, Question, ask, depths};
use crate::journal::Journal;
use crate::language_model::Speaker;
use crate::lengths::rising;

/// Deepest a needle stands in the script's own grid of ten depths, in percent.
const LAST_DEPTH: f32 = 90.0;

/// What to ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Nominal lengths in tokens.
    pub lengths: Vec<usize>,
    /// Depths, evenly from 0 to 90 percent.
    pub depths: usize,
    /// Keys per length and depth: the first so many of the script's five.
    pub samples: usize,
}

impl Settings {
    /// Every place of one length, key by key, because prompts with the same key have the same length.
    fn places(&self, length: usize) -> Vec<Place> {
        (0..self.samples.min(passkey::KEYS.len()))
            .flat_map(|sample| {
                depths(self.depths, LAST_DEPTH)
                    .into_iter()
                    .map(move |depth| Place {
                        length,
                        depth,
                        sample,
                    })
            })
            .collect()
    }

    /// Tokens of all prompts together, nominally.
    pub fn tokens(&self) -> u64 {
        self.lengths
            .iter()
            .map(|&length| (length * self.places(length).len()) as u64)
            .sum()
    }
}

/// Asks everything that `journal` has no answer to, shortest texts first.
///
/// # Errors
///
/// If a length is one that the script cannot make.
pub fn run(
    model: &dyn Speaker,
    tokenizer: &Tokenizer,
    settings: &Settings,
    journal: &mut Journal,
    progress: &ProgressBar,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for length in rising(settings.lengths.iter().copied()) {
        progress.set_message(format!("passkey at {length}"));
        let question = |place| question(place, tokenizer);
        let places = settings.places(length);
        answers.extend(ask(
            model, tokenizer, "passkey", &places, question, journal, progress,
        )?);
    }
    Ok(answers)
}

fn question(place: Place, tokenizer: &Tokenizer) -> Result<Question> {
    let key = passkey::KEYS[place.sample];
    let expected = key.to_string();
    let answer = expected.clone();
    Ok(Question {
        ids: tokenizer.encode(&passkey::prompt(place.length, place.depth, key)?)?,
        // The script counts the key's tokens without the space before it. In the World vocabulary the space and the
        // first digits are one token; where it is a token of its own it must not cost the last digit.
        max_tokens: tokenizer.encode(&format!(" {key}"))?.len(),
        is_right: Box::new(move |said| said.trim() == answer),
        stop_when_right: false,
        expected,
    })
}
