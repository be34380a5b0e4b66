//! The token shift, with what it carries from one piece of text to the next.

use burn::module::Param;
use burn::tensor::Tensor;
use rwkvx_kernels::{KernelBackend, ShiftInputs};

use crate::layers::LayerNorm;

/// The mixes of the norm of every position of `x`, `[batch, time, channels]`, with that of the one before it, each `[batch * time, channels]`.
///
/// `carry` is the norm of the last position of the piece before, `[batch, channels]`, and becomes that of the last one of this piece. Without it
/// the text starts here.
pub(crate) fn norm_and_shift<B: KernelBackend, const N: usize>(
    norm: &LayerNorm<B>,
    x: Tensor<B, 3>,
    carry: Option<&mut Tensor<B, 2>>,
    amounts: [&Param<Tensor<B, 1>>; N],
) -> [Tensor<B, 2>; N] {
    let shifted = rwkvx_kernels::norm_and_shift(ShiftInputs {
        x,
        weight: norm.weight.val(),
        bias: norm.bias.val(),
        carry: carry.as_deref().cloned(),
        amounts: amounts.map(Param::val),
    });
    if let (Some(carry), Some(last)) = (carry, shifted.carry) {
        *carry = last;
    }
    shifted.mixes
}
