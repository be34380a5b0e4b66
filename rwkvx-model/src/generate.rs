//! Reading prompts and going on from them.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor};
use rwkvx_kernels::KernelBackend;

use crate::Error;
use crate::model::RwkvX;
use crate::sample::Sampler;
use crate::state::State;
use crate::tokens::ids_tensor;

/// Tokens read at once, over all rows: enough to keep the matrix products large, few enough to keep memory flat.
const PREFILL_PIECE: usize = 4096;

/// When generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateOptions {
    /// At most so many tokens are made.
    pub max_tokens: usize,
    /// A token of these ends the text and is not given out.
    pub stop: Vec<u32>,
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
    let device = model.device();
    let (mut logits, mut state) = read(model, &[prompt], |_| ())?; // [1, vocab]
    for made in 1..=options.max_tokens {
        let token = sampler.sample(logits.into_data().iter::<f32>().collect())?;
        if options.stop.contains(&token) || on_token(token).is_break() || made == options.max_tokens
        {
            break;
        }
        let ids = Tensor::<B, 1, Int>::from_ints([token as i32], &device);
        logits = model.step(ids, &mut state);
    }
    Ok(())
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
    let (mut logits, mut state) = read(model, prompts, on_read)?; // [batch, vocab]
    let mut said = vec![Vec::with_capacity(max_tokens); prompts.len()];
    for made in 1..=max_tokens {
        let next = logits.argmax(1).reshape([prompts.len()]); // [batch]
        let ids = next.clone().into_data();
        for (row, id) in said.iter_mut().zip(ids.iter::<u32>()) {
            row.push(id);
        }
        if made == max_tokens || enough(&said) {
            break;
        }
        logits = model.step(next, &mut state);
    }
    Ok(said)
}

/// Reads prompts of equal length in pieces: the logits after their last tokens, `[batch, vocab]`, and the state there.
fn read<B: KernelBackend>(
    model: &RwkvX<B>,
    prompts: &[impl AsRef<[u32]>],
    mut on_read: impl FnMut(usize),
) -> Result<(Tensor<B, 2>, State<B>), Error> {
    let batch = prompts.len();
    let ids = ids_tensor::<B>(prompts, model.config().vocab_size, &model.device())?; // [batch, time]
    let [_, time] = ids.dims();
    let mut state = model.state(batch);
    state.reserve(time);
    let piece = (PREFILL_PIECE / batch).max(1);
    let mut start = 0;
    loop {
        let end = (start + piece).min(time);
        let logits = model.prefill(ids.clone().slice([0..batch, start..end]), &mut state);
        on_read(batch * (end - start));
        if end == time {
            return Ok((logits, state));
        }
        start = end;
    }
}
