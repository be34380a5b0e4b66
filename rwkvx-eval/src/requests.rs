//! What is asked where texts are scored: how likely a continuation is after a context.

use std::fs;
use std::path::Path;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_model::{Score, ScoredText, write_beside};
use serde::{Deserialize, Serialize};

use crate::language_model::Scorer;
use crate::{Error, Result};

/// What every text begins with, as RWKV's own evaluation has it: no first token is scored well without one.
pub const PREFIX: &str = "\n";

/// A continuation that is scored after a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What stands before.
    pub context: String,
    /// What is scored.
    pub continuation: String,
}

/// Scores all requests, in their order. `progress` counts tokens, of which it is told the number.
///
/// # Errors
///
/// If a continuation is empty, or the model refuses a text.
pub fn score(
    model: &dyn Scorer,
    tokenizer: &Tokenizer,
    requests: &[Request],
    progress: &ProgressBar,
) -> Result<Vec<Score>> {
    let prefix = tokenizer.encode(PREFIX)?;
    let text = |request: &Request| {
        let Request {
            context,
            continuation,
        } = request;
        ScoredText::new(tokenizer, &prefix, context, continuation)
    };
    let texts: std::result::Result<Vec<_>, _> = requests.iter().map(text).collect();
    let texts = texts?;
    let tokens: usize = texts.iter().map(|text| text.ids.len() - 1).sum();
    progress.set_length(tokens as u64);
    model.score(&texts, &mut |read| progress.inc(read as u64))
}

/// A request as it was asked and answered, a line of the log.
#[derive(Serialize)]
struct Logged<'a> {
    #[serde(flatten)]
    request: &'a Request,
    log_probability: f64,
    greedy: bool,
}

/// Writes requests and their scores to `requests.jsonl` in a folder, which is made if it is not there.
///
/// # Errors
///
/// If the file cannot be written.
pub fn log(directory: &Path, requests: &[Request], scores: &[Score]) -> Result<()> {
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    write_beside(&directory.join("requests.jsonl"), |out| {
        for (request, score) in requests.iter().zip(scores) {
            let logged = Logged {
                request,
                log_probability: score.log_probability(),
                greedy: score.greedy,
            };
            serde_json::to_writer(&mut *out, &logged)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
    .map_err(Error::from)
}
