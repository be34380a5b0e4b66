//! Reading a prompt and going on from it.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor};
use rwkvx_kernels::KernelBackend;

use crate::Error;
use crate::model::RwkvX;
use crate::sample::Sampler;
use crate::tokens::ids_tensor;

/// Tokens of the prompt read at once: enough to keep the matrix products large, few enough to keep memory flat.
const PREFILL_PIECE: usize = 2048;

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
    let vocab_size = model.config().vocab_size;
    let device = model.device();
    let mut state = model.state(1);
    let mut logits = None;
    for piece in ids_tensor::<B>(&[prompt], vocab_size, &device)?.split(PREFILL_PIECE, 1) {
        logits = Some(model.prefill(piece, &mut state)); // [1, vocab]
    }
    let Some(mut logits) = logits else {
        return Ok(());
    };
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
