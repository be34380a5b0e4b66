//! The token shift: every token also sees the one before it.

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// Gradients of a loss with respect to what [`token_shift`] takes.
#[derive(Debug, Clone)]
pub struct ShiftGrads<B: Backend> {
    /// With respect to `x`, `[batch, time, channels]`.
    pub x: Tensor<B, 3>,
    /// With respect to each of the amounts, `[channels]`.
    pub amounts: Vec<Tensor<B, 1>>,
}

/// From `x`, the amounts and the gradients of the mixes, those of `x` and the amounts.
pub type ShiftBackward<B> = fn(Tensor<B, 3>, Vec<Tensor<B, 1>>, Vec<Tensor<B, 2>>) -> ShiftGrads<B>;

/// The mixes `x_t + (x_{t-1} - x_t) * amount`, one per amount, as `[batch * time, channels]`.
///
/// `x` is `[batch, time, channels]`, each amount `[channels]`. `carry`, `[batch, channels]`, is the token before the first; without it
/// the text starts here, after zeros. Differentiable in everything; by hand with one amount or six, and without carry.
///
/// Of `N` mixes, by hand: 1 + N passes, and N + 2 for the gradient. In tensor operations: 5 + 5N, and 7 + 7N.
///
/// # Panics
/// If a shape is none of these, or `x` has an empty axis.
pub fn token_shift<B: KernelBackend, const N: usize>(
    x: Tensor<B, 3>,
    carry: Option<Tensor<B, 2>>,
    amounts: [Tensor<B, 1>; N],
) -> [Tensor<B, 2>; N] {
    let dims @ [batch, _, channels] = x.dims();
    assert!(
        dims.iter().all(|&size| size > 0),
        "token_shift: `x` must be [batch, time, channels] with no axis empty, found {dims:?}"
    );
    for amount in &amounts {
        shapes::expect("token_shift", "amount", "[channels]", amount, [channels]);
    }
    if let Some(carry) = &carry {
        let expected = [batch, channels];
        shapes::expect("token_shift", "carry", "[batch, channels]", carry, expected);
    }
    let mixed = B::token_shift(x, carry, amounts.into());
    mixed.try_into().expect("a mix per amount")
}
