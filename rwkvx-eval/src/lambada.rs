//! LAMBADA: the last word of a passage that only its whole context gives away.
//!
//! A record is a line of JSON, `{"text": "..."}`. The text is split at its last space; the word after it, with the
//! space, is scored after a line break and the words before. Accuracy is the share of words whose tokens are all the
//! most likely ones; perplexity is `exp` of the mean negative log-probability per word (lm-evaluation-harness,
//! `lambada_openai`; prefix of RWKV's evaluation adapter).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::language_model::{LanguageModel, ScoredText};
use crate::{Error, Result};

/// What a text begins with: a document's first token is never scored well without one.
const PREFIX: &str = "\n";
/// Texts scored side by side. They are sorted by length, so that little is padded.
const BATCH: usize = 16;

/// One text.
#[derive(Debug, Deserialize)]
struct Record {
    text: String,
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Texts.
    pub texts: usize,
    /// Share of last words that the model would have said, 0 to 1.
    pub accuracy: f64,
    /// Standard error of `accuracy`.
    pub accuracy_stderr: f64,
    /// Perplexity per word.
    pub perplexity: f64,
}

/// Reads the texts of a file and prepares the first `limit` of them.
///
/// # Errors
///
/// If the file cannot be read, holds no text, or a line is not a record with at least two words; the error names the
/// line.
pub fn read(path: &Path, tokenizer: &Tokenizer, limit: Option<usize>) -> Result<Vec<ScoredText>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut texts = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        if limit.is_some_and(|limit| texts.len() == limit) {
            break;
        }
        let bad = |reason: String| Error::Record {
            path: path.to_path_buf(),
            line: number + 1,
            reason,
        };
        let line = line.map_err(|error| bad(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let Record { text } = serde_json::from_str(&line)
            .map_err(|error| bad(format!("not a record like {{\"text\": \"...\"}}: {error}")))?;
        let Some((context, _)) = text.trim_end().rsplit_once(' ') else {
            return Err(bad(
                "the text has no space, and so no last word to ask for".to_owned()
            ));
        };
        let ids = tokenizer.encode(&format!("{PREFIX}{}", text.trim_end()))?;
        let context = tokenizer.encode(&format!("{PREFIX}{context}"))?.len();
        if context >= ids.len() {
            return Err(bad("the last word has no token of its own".to_owned()));
        }
        texts.push(ScoredText { ids, context });
    }
    match texts.is_empty() {
        true => Err(Error::Record {
            path: path.to_path_buf(),
            line: 1,
            reason: "the file holds no texts; give one with lines like {\"text\": \"...\"}"
                .to_owned(),
        }),
        false => Ok(texts),
    }
}

/// Scores every text. `progress` counts texts.
///
/// # Errors
///
/// If the model refuses a text.
pub fn run(
    model: &dyn LanguageModel,
    mut texts: Vec<ScoredText>,
    progress: &ProgressBar,
) -> Result<Scores> {
    texts.sort_by_key(|text| text.ids.len());
    let mut right = 0;
    let mut log_probability = 0.0;
    for batch in texts.chunks(BATCH) {
        for likelihood in model.score(batch)? {
            right += usize::from(likelihood.greedy);
            log_probability += likelihood.log_probability;
        }
        progress.inc(batch.len() as u64);
    }
    let count = texts.len() as f64;
    let accuracy = right as f64 / count;
    Ok(Scores {
        texts: texts.len(),
        accuracy,
        accuracy_stderr: (accuracy * (1.0 - accuracy) / (count - 1.0).max(1.0)).sqrt(),
        perplexity: (-log_probability / count).exp(),
    })
}
