//! Loss on long texts, by the length that is read and by position; LongPPL.
//!
//! Of each document tokens are read from `skip` on, as RWKV-X's evaluation on PG19 does, and every token after the first
//! of them is scored. The loss at a length is the mean over its tokens, then over documents that are long enough.
//!
//! LongPPL (arXiv 2410.23771) is the perplexity of key tokens only: those that the model predicts well, and much better
//! than with the last `window` tokens before them alone. Its authors let one strong model choose the key tokens for all
//! others; here the model that is evaluated chooses its own.

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_model::ScoredText;
use serde::{Deserialize, Serialize};

use crate::language_model::Scorer;
use crate::provenance::InputFile;
use crate::statistics::Mean;
use crate::{Error, Result};

/// What to read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Where the documents are from.
    pub files: Vec<InputFile>,
    /// Lengths in tokens, rising.
    pub lengths: Vec<usize>,
    /// Tokens at the beginning of each document that are not read.
    pub skip: usize,
    /// Most documents.
    pub documents: usize,
    /// Parts of the longest length whose loss is told.
    pub parts: usize,
    /// How key tokens are chosen; none are without it.
    pub key_tokens: Option<KeyTokens>,
}

/// Which tokens are key tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyTokens {
    /// Tokens before a token that a short context has at least.
    pub window: usize,
    /// Tokens that are scored by the same short context, which grows by them.
    pub stride: usize,
    /// Least gain in log-probability by the whole context.
    pub least_gain: f32,
    /// Greatest loss with the whole context.
    pub greatest_loss: f32,
}

impl Default for KeyTokens {
    /// As LongPPL's authors have it.
    fn default() -> Self {
        Self {
            window: 4096,
            stride: 1024,
            least_gain: 2.0,
            greatest_loss: 2.0,
        }
    }
}

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// By the length that is read.
    pub lengths: Vec<AtLength>,
    /// By position.
    pub positions: Vec<Part>,
    /// Of key tokens, where they were asked for.
    pub long_ppl: Option<LongPpl>,
    /// By document.
    pub documents: Vec<Document>,
}

/// Loss of texts of a length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtLength {
    /// Tokens that are scored.
    pub length: usize,
    /// Documents that are long enough.
    pub documents: usize,
    /// Nats per token.
    pub loss: Mean,
}

/// Loss of the tokens from one position to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The first, from 0.
    pub start: usize,
    /// Behind the last.
    pub end: usize,
    /// Documents that are long enough.
    pub documents: usize,
    /// Nats per token.
    pub loss: Mean,
}

/// Perplexity of key tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LongPpl {
    /// Tokens that have a short context to compare with.
    pub tokens: usize,
    /// Key tokens among them.
    pub key_tokens: usize,
    /// Mean loss of the key tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
}

/// Losses of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Which one of the input, from 1.
    pub number: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Mean loss at each length that it has.
    pub losses: Vec<f64>,
}

/// A document's part that is read.
#[derive(Clone, Debug)]
pub struct Text {
    number: usize,
    tokens: usize,
    ids: Vec<u32>,
}

/// The first documents that are long enough for the shortest length, cut to the longest that they have.
///
/// # Errors
///
/// If there is none, or the tokenizer refuses one.
pub fn texts(
    documents: &[String],
    tokenizer: &Tokenizer,
    settings: &Settings,
) -> Result<Vec<Text>> {
    let mut texts = Vec::new();
    let mut longest = 0;
    for (document, number) in documents.iter().zip(1..) {
        if texts.len() == settings.documents {
            break;
        }
        let mut ids = tokenizer.encode(document)?;
        let tokens = ids.len();
        longest = longest.max(tokens);
        // One token more than is scored.
        let fits = |&&length: &&usize| settings.skip + length < tokens;
        if let Some(length) = settings.lengths.iter().rfind(fits) {
            ids.truncate(settings.skip + length + 1);
            ids.drain(..settings.skip);
            texts.push(Text {
                number,
                tokens,
                ids,
            });
        }
    }
    match texts.is_empty() {
        false => Ok(texts),
        true => Err(Error::option(
            "--len",
            format!(
                "no document has more than {} tokens, which the shortest length and --skip take; the longest of {} has \
                 {longest}",
                settings.skip + settings.lengths[0],
                documents.len()
            ),
        )),
    }
}

/// Tokens that are read in all.
pub fn tokens(texts: &[Text], settings: &Settings) -> u64 {
    let of_text = |text: &Text| {
        let short: usize = settings.key_tokens.map_or(0, |key_tokens| {
            let contexts = short_contexts(&text.ids, key_tokens);
            contexts.iter().map(|context| context.ids.len() - 1).sum()
        });
        (text.ids.len() - 1 + short) as u64
    };
    texts.iter().map(of_text).sum()
}

/// Scores every text. `progress` counts tokens.
///
/// # Errors
///
/// If the model refuses a text.
pub fn run(
    model: &dyn Scorer,
    texts: &[Text],
    settings: &Settings,
    progress: &ProgressBar,
) -> Result<Scores> {
    let mut losses: Vec<Vec<f32>> = Vec::new();
    let mut key_losses: Vec<f64> = Vec::new();
    let mut compared = 0;
    for text in texts {
        let of_text = score(model, &[whole(&text.ids)], progress)?.remove(0);
        if let Some(key_tokens) = settings.key_tokens {
            let contexts = short_contexts(&text.ids, key_tokens);
            let short = score(model, &contexts, progress)?.concat();
            // The loss of token t stands at t - 1; short contexts begin to score at `window`.
            let whole = &of_text[of_text.len() - short.len()..];
            compared += short.len();
            let pairs = whole.iter().zip(&short);
            let keys = pairs.filter(|&(&long, &short)| {
                short - long > key_tokens.least_gain && long < key_tokens.greatest_loss
            });
            key_losses.extend(keys.map(|(&long, _)| f64::from(long)));
        }
        losses.push(of_text);
    }
    let mean_over_documents = |start: usize, end: usize| {
        let parts = losses.iter().filter_map(|losses| losses.get(start..end));
        let means: Vec<f64> = parts.map(mean).collect();
        (means.len(), Mean::of(means))
    };
    let lengths = settings.lengths.iter().map(|&length| {
        let (documents, loss) = mean_over_documents(0, length);
        AtLength {
            length,
            documents,
            loss,
        }
    });
    let longest = losses.iter().map(Vec::len).max().unwrap_or(0);
    let edge = |part: usize| longest * part / settings.parts;
    let positions = (0..settings.parts).map(|part| (edge(part), edge(part + 1)));
    let positions = positions
        .filter(|(start, end)| start < end)
        .map(|(start, end)| {
            let (documents, loss) = mean_over_documents(start, end);
            Part {
                start,
                end,
                documents,
                loss,
            }
        });
    let documents = texts.iter().zip(&losses).map(|(text, losses)| Document {
        number: text.number,
        tokens: text.tokens,
        losses: settings
            .lengths
            .iter()
            .filter_map(|&length| losses.get(..length))
            .map(mean)
            .collect(),
    });
    let key_loss = Mean::of(key_losses.iter().copied()).value;
    Ok(Scores {
        lengths: lengths.collect(),
        positions: positions.collect(),
        long_ppl: settings.key_tokens.map(|_| LongPpl {
            tokens: compared,
            key_tokens: key_losses.len(),
            loss: key_loss,
            perplexity: key_loss.exp(),
        }),
        documents: documents.collect(),
    })
}

/// Losses of the scored tokens of texts, in nats.
fn score(
    model: &dyn Scorer,
    texts: &[ScoredText],
    progress: &ProgressBar,
) -> Result<Vec<Vec<f32>>> {
    let scores = model.score(texts, &mut |read| progress.inc(read as u64))?;
    let losses = scores.into_iter().map(|score| {
        let log_probabilities = score.log_probabilities.into_iter();
        log_probabilities.map(|value| -value).collect()
    });
    Ok(losses.collect())
}

fn whole(ids: &[u32]) -> ScoredText {
    ScoredText {
        ids: ids.to_vec(),
        context: 1,
    }
}

/// Short contexts of all tokens from `window` on, `stride` of them each.
fn short_contexts(ids: &[u32], KeyTokens { window, stride, .. }: KeyTokens) -> Vec<ScoredText> {
    (window..ids.len())
        .step_by(stride)
        .map(|start| ScoredText {
            ids: ids[start - window..(start + stride).min(ids.len())].to_vec(),
            context: window,
        })
        .collect()
}

fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}
