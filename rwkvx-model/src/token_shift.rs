//! The token shift, with what it carries from one piece of text to the next.

use burn::module::Param;
use burn::tensor::Tensor;
use rwkvx_kernels::KernelBackend;

/// The mixes of every position of `x`, `[batch, time, channels]`, with the one before it, each `[batch * time, channels]`.
///
/// `carry` is the last position of the piece before, `[batch, channels]`, and becomes the last one of this piece. Without it
/// the text starts here.
pub(crate) fn token_shift<B: KernelBackend, const N: usize>(
    x: Tensor<B, 3>,
    carry: Option<&mut Tensor<B, 2>>,
    amounts: [&Param<Tensor<B, 1>>; N],
) -> [Tensor<B, 2>; N] {
    let [batch, time, channels] = x.dims();
    let before = carry.map(|carry| {
        let last = x.clone().slice([0..batch, time - 1..time]);
        std::mem::replace(carry, last.reshape([batch, channels]))
    });
    rwkvx_kernels::token_shift(x, before, amounts.map(Param::val))
}
