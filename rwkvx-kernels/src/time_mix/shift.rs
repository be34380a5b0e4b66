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
    check("token_shift", &x, carry.as_ref(), &amounts);
    let mixed = B::token_shift(x, carry, amounts.into());
    mixed.try_into().expect("a mix per amount")
}

/// Inputs of [`norm_and_shift`].
#[derive(Debug, Clone)]
pub struct ShiftInputs<B: Backend, A> {
    /// The stream, `[batch, time, channels]`.
    pub x: Tensor<B, 3>,
    /// Weight of the norm, `[channels]`.
    pub weight: Tensor<B, 1>,
    /// Bias of the norm, `[channels]`.
    pub bias: Tensor<B, 1>,
    /// The norm of the token before the first, `[batch, channels]`; without it the text starts here.
    pub carry: Option<Tensor<B, 2>>,
    /// How much of the token before goes into each mix, `[channels]` each.
    pub amounts: A,
}

/// Outputs of [`norm_and_shift`].
#[derive(Debug, Clone)]
pub struct Shifted<B: Backend, M> {
    /// The mixes, `[batch * time, channels]` each.
    pub mixes: M,
    /// The norm of the last token, `[batch, channels]`, where the inputs have a carry.
    pub carry: Option<Tensor<B, 2>>,
}

/// The [`token_shift`] of the [`layer_norm`](crate::layer_norm()) of a stream, and what is carried to the next piece of text. Differentiable in
/// everything.
///
/// A GPU does both at once for a single token of each text.
///
/// # Panics
/// If a shape is none of these, or `x` has an empty axis.
pub fn norm_and_shift<B: KernelBackend, const N: usize>(
    inputs: ShiftInputs<B, [Tensor<B, 1>; N]>,
) -> Shifted<B, [Tensor<B, 2>; N]> {
    const OPERATOR: &str = "norm_and_shift";
    let ShiftInputs {
        x,
        weight,
        bias,
        carry,
        amounts,
    } = inputs;
    check(OPERATOR, &x, carry.as_ref(), &amounts);
    let [_, _, channels] = x.dims();
    for (name, vector) in [("weight", &weight), ("bias", &bias)] {
        shapes::expect(OPERATOR, name, "[channels]", vector, [channels]);
    }
    let shifted = B::norm_and_shift(ShiftInputs {
        x,
        weight,
        bias,
        carry,
        amounts: amounts.into(),
    });
    Shifted {
        mixes: shifted.mixes.try_into().expect("a mix per amount"),
        carry: shifted.carry,
    }
}

fn check<B: Backend>(
    operator: &str,
    x: &Tensor<B, 3>,
    carry: Option<&Tensor<B, 2>>,
    amounts: &[Tensor<B, 1>],
) {
    let dims @ [batch, _, channels] = x.dims();
    assert!(
        dims.iter().all(|&size| size > 0),
        "{operator}: `x` must be [batch, time, channels] with no axis empty, found {dims:?}"
    );
    for amount in amounts {
        shapes::expect(operator, "amount", "[channels]", amount, [channels]);
    }
    if let Some(carry) = carry {
        let expected = [batch, channels];
        shapes::expect(operator, "carry", "[batch, channels]", carry, expected);
    }
}
