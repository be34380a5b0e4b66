//! From rows of logits to a token of each, and nothing else leaves the device.
//!
//! A row's token is chosen in this order:
//!
//! 1. Penalties: what has occurred loses [`presence_penalty`](Draw::presence_penalty) and [`frequency_penalty`](Draw::frequency_penalty) times its
//!    count from its logit; what is [`BANNED`] is impossible.
//! 2. Cuts: tokens stand in the order of their logits, those of equal ones in the order of ids. Kept are the fewest first ones that
//!    together reach the share [`top_p`](Draw::top_p), at most [`top_k`](Draw::top_k) of them.
//! 3. Draw: the probabilities of what is kept are reshaped by the temperature and summed up in the order of ids; the token at which the sum passes the
//!    [`uniform`](Draw::uniform) share of the whole is chosen.
//!
//! All bodies choose the same token, to the last bit: probabilities are integers (see [`rule`]), whose sums do not depend on their order, and
//! the few operations on floats before them are each rounded once.

#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;
pub(crate) mod rule;

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::{KernelBackend, shapes};
pub use reference::sample_row;

/// The count of a token that is never chosen.
pub const BANNED: f32 = -1.0;

/// In the place of a token: none is possible.
pub const NONE_LEFT: i32 = -1;

/// In the place of a token: a logit is infinite or not a number.
pub const NOT_A_NUMBER: i32 = -2;

/// How the token of a row is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Flattens (above 1) or sharpens (below 1) the kept probabilities; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens whose probabilities together reach this share; 1 keeps all.
    pub top_p: f32,
    /// Keeps at most so many tokens; 0 keeps all.
    pub top_k: usize,
    /// Taken from the logit of every token that has occurred.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for every time it has occurred.
    pub frequency_penalty: f32,
    /// What is left of an occurrence after one more token.
    pub penalty_decay: f32,
    /// A random number, all equally likely: which part of the sum of probabilities decides, in 2^-32.
    pub uniform: u32,
}

/// What [`sample`] gives.
#[derive(Debug, Clone)]
pub struct Sampled<B: Backend> {
    /// The token of each row, `[rows]`; [`NONE_LEFT`] or [`NOT_A_NUMBER`] where there is none, 0 where none was asked for.
    pub ids: Tensor<B, 1, Int>,
    /// The counts after it, `[rows, vocab]`.
    pub counts: Option<Tensor<B, 2>>,
}

/// Chooses a token of each row of `logits` `[rows, vocab]`; rows without a draw are left alone.
///
/// `counts` `[rows, vocab]` in f32 says how often every token has occurred, a little less for each token since: 0 is never, [`BANNED`] may never be. They come back
/// with the chosen tokens counted, in the same memory if nothing else shares it. Without them there are no penalties.
///
/// # Panics
/// If the shapes are not these, or an axis is empty.
pub fn sample<B: KernelBackend>(
    logits: Tensor<B, 2>,
    counts: Option<Tensor<B, 2>>,
    draws: &[Option<Draw>],
) -> Sampled<B> {
    const NAME: &str = "sample";
    let dims @ [rows, vocab] = logits.dims();
    assert!(
        rows > 0 && vocab > 0,
        "{NAME}: `logits` must be [rows, vocab] with no axis empty, found {dims:?}"
    );
    assert!(
        draws.len() == rows,
        "{NAME}: `draws` must be one for each of {rows} rows, found {}",
        draws.len()
    );
    if let Some(counts) = &counts {
        shapes::expect(NAME, "counts", "[rows, vocab]", counts, dims);
    }
    B::sample(logits, counts, draws)
}
