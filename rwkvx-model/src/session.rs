//! Texts being read and written: a state, the logits after it, and tokens chosen by them.

use std::ops::ControlFlow;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rwkvx_kernels::{CacheBudget, KernelBackend};

use crate::Error;
use crate::model::RwkvX;
use crate::sample::Sampler;
use crate::state::State;
use crate::tokens::ids_tensor;

/// Tokens read at once, over all rows: enough to keep the matrix products large, few enough to keep memory flat.
pub const PREFILL_PIECE: usize = 4096;

/// A batch of texts of equal length, and what may follow each.
///
/// A clone is a branch: the two go on apart from each other.
#[derive(Debug, Clone)]
pub struct Session<B: Backend> {
    pub(crate) state: State<B>,
    /// `[batch, vocab]`; `None` before the first token.
    pub(crate) logits: Option<Tensor<B, 2>>,
}

/// When generation ends, and what is told of each token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerateOptions {
    /// At most so many tokens are made for each text.
    pub max_tokens: usize,
    /// A token of these ends its text and is not given out.
    pub stop: Vec<u32>,
    /// Whether [`Made::log_probability`] is wanted.
    pub log_probabilities: bool,
}

/// A token that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Made {
    /// Which of the texts it goes on.
    pub row: usize,
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability by the model, before penalties, temperature and cuts; if asked for.
    pub log_probability: Option<f32>,
}

impl<B: KernelBackend> Session<B> {
    /// `batch` texts before their first token, whose caches hold no more than `budget` says.
    pub fn new(model: &RwkvX<B>, batch: usize, budget: Option<CacheBudget>) -> Self {
        let state = model.state(batch);
        Self {
            state: match budget {
                Some(budget) => state.with_cache_budget(budget),
                None => state,
            },
            logits: None,
        }
    }

    /// The state after the tokens so far.
    pub fn state(&self) -> &State<B> {
        &self.state
    }

    /// The logits of the next token, `[batch, vocab]`; `None` before the first.
    pub fn logits(&self) -> Option<&Tensor<B, 2>> {
        self.logits.as_ref()
    }

    /// Reads more of every text, the same number of tokens of each, in pieces; `on_read` is told the tokens read, all rows together, after
    /// every piece.
    ///
    /// # Errors
    /// If the rows are empty, of unequal lengths or not as many as there are texts, or hold an id past the vocabulary.
    pub fn read(
        &mut self,
        model: &RwkvX<B>,
        rows: &[impl AsRef<[u32]>],
        mut on_read: impl FnMut(usize),
    ) -> Result<(), Error> {
        let batch = self.state.batch();
        let ids = ids_tensor::<B>(rows, model.config().vocab_size, &model.device())?; // [batch, time]
        let [found, time] = ids.dims();
        if found != batch {
            return Err(Error::TokenRows(format!(
                "{found} rows for {batch} texts; give one for each"
            )));
        }
        self.state.reserve(self.state.tokens() + time);
        for piece in ids.split((PREFILL_PIECE / batch).max(1), 1) {
            let read = batch * piece.dims()[1];
            self.logits = Some(model.prefill(piece, &mut self.state));
            on_read(read);
        }
        Ok(())
    }

    /// The likeliest next tokens of every text, a row of `max_tokens` for each, or fewer once `enough` says of the rows so far that no more are needed.
    /// The last ones are not read.
    pub fn greedy(
        &mut self,
        model: &RwkvX<B>,
        max_tokens: usize,
        enough: impl Fn(&[Vec<u32>]) -> bool,
    ) -> Vec<Vec<u32>> {
        let batch = self.state.batch();
        let mut said = vec![Vec::with_capacity(max_tokens); batch];
        for made in 1..=max_tokens {
            let Some(logits) = self.logits.take() else {
                break;
            };
            let next = logits.argmax(1).reshape([batch]); // [batch]
            let ids = next.clone().into_data();
            for (row, id) in said.iter_mut().zip(ids.iter::<u32>()) {
                row.push(id);
            }
            if made == max_tokens || enough(&said) {
                break;
            }
            self.logits = Some(model.step(next, &mut self.state));
        }
        said
    }

    /// Goes on from what was read: chooses a token for every text by its sampler, gives it to `on_token`, and so on until an option or `on_token` ends
    /// each text. What was given out last has been read too, so that the texts can be gone on with later.
    ///
    /// While all samplers take the likeliest tokens and no log-probabilities are wanted, only the chosen tokens leave the device.
    ///
    /// # Errors
    /// If nothing was read, there are not as many samplers as texts, or a sampler cannot choose.
    pub fn generate(
        &mut self,
        model: &RwkvX<B>,
        samplers: &mut [Sampler],
        options: &GenerateOptions,
        mut on_token: impl FnMut(Made) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let batch = self.state.batch();
        if samplers.len() != batch {
            return Err(Error::Sampling(format!(
                "{} samplers for {batch} texts; give one for each",
                samplers.len()
            )));
        }
        let on_device = !options.log_probabilities && samplers.iter().all(Sampler::is_greedy);
        let mut going = vec![true; batch];
        for _ in 0..options.max_tokens {
            let Some(logits) = &self.logits else {
                return Err(Error::TokenRows(
                    "nothing was read to go on from".to_owned(),
                ));
            };
            let chosen = match on_device {
                true => likeliest(logits.clone()),
                false => choose(logits.clone(), samplers, &going, options.log_probabilities)?,
            };
            for (made, going) in chosen.iter().zip(&mut going).filter(|(_, going)| **going) {
                *going = !options.stop.contains(&made.token) && on_token(*made).is_continue();
            }
            // Texts that have ended are gone on with unseen, as long as others need the batch; a text that was
            // ended by a stop token is left before it.
            let all_stopped = chosen.iter().all(|made| options.stop.contains(&made.token));
            if !all_stopped {
                let ids = chosen.iter().map(|made| i64::from(made.token)).collect();
                let ids = TensorData::new::<i64, _>(ids, [batch]);
                let ids = Tensor::<B, 1, Int>::from_data(ids, &model.device());
                self.logits = Some(model.step(ids, &mut self.state));
            }
            if !going.contains(&true) {
                break;
            }
        }
        Ok(())
    }
}

/// The likeliest token of every row of `[batch, vocab]`.
fn likeliest<B: Backend>(logits: Tensor<B, 2>) -> Vec<Made> {
    let tokens = logits.argmax(1).into_data();
    let tokens = tokens.iter::<u32>().enumerate();
    let made = tokens.map(|(row, token)| Made {
        row,
        token,
        log_probability: None,
    });
    made.collect()
}

/// A token of every row of `[batch, vocab]`, by the sampler of that row; of rows that have ended, any.
fn choose<B: Backend>(
    logits: Tensor<B, 2>,
    samplers: &mut [Sampler],
    going: &[bool],
    log_probabilities: bool,
) -> Result<Vec<Made>, Error> {
    let [_, vocab] = logits.dims();
    let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let rows = logits.chunks_exact(vocab).zip(samplers).zip(going);
    rows.enumerate()
        .map(|(row, ((logits, sampler), &going))| {
            let token = match going {
                true => sampler.sample(logits.to_vec())?,
                false => 0,
            };
            Ok(Made {
                row,
                token,
                log_probability: (going && log_probabilities)
                    .then(|| log_probability(logits, token)),
            })
        })
        .collect()
}

/// `log softmax` of the logits at a token.
fn log_probability(logits: &[f32], token: u32) -> f32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - best).exp()).sum();
    (f64::from(logits[token as usize] - best) - sum.ln()) as f32
}

/// Reads `prompt` and gives every further token to `on_token` as soon as it is chosen, until an option or `on_token` ends it.
///
/// # Errors
/// If the prompt is empty or holds an id past the vocabulary, or the sampler cannot choose.
pub fn generate<B: KernelBackend>(
    model: &RwkvX<B>,
    prompt: &[u32],
    sampler: &mut Sampler,
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut session = Session::new(model, 1, None);
    session.read(model, &[prompt], |_| ())?;
    let sampler = std::slice::from_mut(sampler);
    session.generate(model, sampler, options, |made| on_token(made.token))
}

/// The most likely next tokens of texts of equal length, all of them at once: a row of `max_tokens` tokens for each, or
/// fewer once `enough` says of the rows so far that no more are needed. `on_read` is told the tokens read, all rows
/// together, after every piece.
///
/// # Errors
/// If the prompts are empty or of unequal lengths, or hold an id past the vocabulary.
pub fn greedy<B: KernelBackend>(
    model: &RwkvX<B>,
    prompts: &[impl AsRef<[u32]>],
    max_tokens: usize,
    enough: impl Fn(&[Vec<u32>]) -> bool,
    on_read: impl FnMut(usize),
) -> Result<Vec<Vec<u32>>, Error> {
    if prompts.is_empty() {
        return Err(Error::TokenRows(
            "a batch needs at least one row".to_owned(),
        ));
    }
    let mut session = Session::new(model, prompts.len(), None);
    session.read(model, prompts, on_read)?;
    Ok(session.greedy(model, max_tokens, enough))
}
