//! Texts being read and written: a state, the logits after it, and tokens chosen by them.

use std::ops::ControlFlow;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, Transaction};
use rwkvx_kernels::{CacheBudget, KernelBackend, cross_entropy_rows};

use crate::Error;
use crate::model::RwkvX;
use crate::sample::{DeviceSamplers, Sampler, chosen};
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
    /// Tokens are chosen by [`rwkvx_kernels::sample`](rwkvx_kernels::sample()).
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
        let vocab = model.config().vocab_size;
        let mut samplers = DeviceSamplers::new(samplers, vocab, &model.device());
        let made = self.make(model, &mut samplers, options, &mut on_token);
        samplers.finish();
        made
    }

    fn make(
        &mut self,
        model: &RwkvX<B>,
        samplers: &mut DeviceSamplers<'_, B>,
        options: &GenerateOptions,
        on_token: &mut impl FnMut(Made) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut going = vec![true; self.state.batch()];
        for _ in 0..options.max_tokens {
            let Some(logits) = &self.logits else {
                return Err(Error::TokenRows(
                    "nothing was read to go on from".to_owned(),
                ));
            };
            let ids = samplers.sample(logits.clone(), &going); // [batch]
            let chosen = read_chosen(logits.clone(), ids.clone(), &going, options)?;
            // A text that was ended by a stop token is left before it.
            let mut all_stopped = true;
            for made in chosen {
                let stopped = options.stop.contains(&made.token);
                all_stopped &= stopped;
                going[made.row] = !stopped && on_token(made).is_continue();
            }
            if !all_stopped {
                // Texts that have ended are gone on with unseen, as long as others need the batch.
                self.logits = Some(model.step(ids, &mut self.state));
            }
            if !going.contains(&true) {
                break;
            }
        }
        Ok(())
    }
}

/// What was chosen for the rows of `logits` `[batch, vocab]` that go on, read from the device.
fn read_chosen<B: KernelBackend>(
    logits: Tensor<B, 2>,
    ids: Tensor<B, 1, Int>,
    going: &[bool],
    options: &GenerateOptions,
) -> Result<Vec<Made>, Error> {
    let mut read = Transaction::<B>::default().register(ids.clone());
    if options.log_probabilities {
        // What is no token is an error below.
        read = read.register(cross_entropy_rows(logits, ids.clamp_min(0)).nll);
    }
    let data = read.execute();
    let nll: Option<Vec<f32>> = data.get(1).map(|nll| nll.iter().collect());
    let rows = data[0].iter::<i32>().enumerate();
    rows.filter(|&(row, _)| going[row])
        .map(|(row, id)| {
            Ok(Made {
                row,
                token: chosen(id)?,
                log_probability: nll.as_ref().map(|nll| -nll[row]),
            })
        })
        .collect()
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
