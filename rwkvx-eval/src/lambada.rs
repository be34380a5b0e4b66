//! LAMBADA: the last word of a passage that only its whole context gives away.
//!
//! A record has the field `text`. The text is split at its last space; the word after it, with the space, is scored after
//! the words before. Accuracy is the share of words whose tokens are all the most likely ones; perplexity is `exp` of the
//! mean negative log-probability per word (lm-evaluation-harness, `lambada_openai`).

use std::path::PathBuf;

use rwkvx_model::Score;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Result;
use crate::records;
use crate::requests::Request;
use crate::statistics::Mean;

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of last words that the model would have said, 0 to 1.
    pub accuracy: Mean,
    /// Perplexity per word.
    pub perplexity: f64,
    /// The last words, in the order of the texts.
    pub answers: Vec<Answer>,
}

/// How likely a last word is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Natural logarithm of its probability.
    pub log_probability: f64,
    /// Whether the model would have said it.
    pub right: bool,
}

/// Reads the first `limit` texts of a file, Parquet or lines of JSON, and splits them.
///
/// # Errors
///
/// If the file cannot be read or holds no text, or a record no text with a space before its last word.
pub fn read(file: PathBuf, limit: Option<usize>) -> Result<Vec<Request>> {
    let records = records::read(&[file], limit)?;
    let request = |record: &records::Record| {
        let Some(Value::String(text)) = record.fields.get("text") else {
            return Err(record.error("not a record like {\"text\": \"...\"}"));
        };
        match text.rsplit_once(' ') {
            Some((context, word)) if !word.trim().is_empty() => Ok(Request {
                context: context.to_owned(),
                continuation: format!(" {word}"),
            }),
            _ => {
                Err(record.error("the text has no last word after a space, and so none to ask for"))
            }
        }
    };
    records.iter().map(request).collect()
}

/// What the scores of the last words come to.
pub fn scores(scores: &[Score]) -> Scores {
    let answers: Vec<Answer> = scores
        .iter()
        .map(|score| Answer {
            log_probability: score.log_probability(),
            right: score.greedy,
        })
        .collect();
    let mean = Mean::of(answers.iter().map(|answer| answer.log_probability));
    Scores {
        accuracy: Mean::of(
            answers
                .iter()
                .map(|answer| f64::from(u8::from(answer.right))),
        ),
        perplexity: (-mean.value).exp(),
        answers,
    }
}
