//! Hooks a backend's own passes into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, backend::Backend};

use super::{KeyInputs, Keys, OutputInputs, TimeMixBackward, ValueInputs, reference};
use crate::KernelBackend;
use crate::joint::{self, unwrap, wrap};

/// The body of [`KernelBackend::token_shift`] with gradients.
pub(crate) fn token_shift<B: KernelBackend, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 3>,
    carry: Option<Tensor<Autodiff<B, C>, 2>>,
    amounts: Vec<Tensor<Autodiff<B, C>, 1>>,
) -> Vec<Tensor<Autodiff<B, C>, 2>> {
    match (B::TIME_MIX_BACKWARD, &carry, amounts.len()) {
        (Some(by_hand), None, 1) => shift::<B, C, 2, 1>(by_hand, x, amounts),
        (Some(by_hand), None, 6) => shift::<B, C, 7, 6>(by_hand, x, amounts),
        _ => reference::token_shift(x, carry, amounts),
    }
}

/// `P` counts `x` and the `N` amounts.
fn shift<B: KernelBackend, C: CheckpointStrategy, const P: usize, const N: usize>(
    by_hand: TimeMixBackward<B>,
    x: Tensor<Autodiff<B, C>, 3>,
    amounts: Vec<Tensor<Autodiff<B, C>, 1>>,
) -> Vec<Tensor<Autodiff<B, C>, 2>> {
    let [batch, time, channels] = x.dims();
    let zeros = Zeros::<B>::of([batch * time, channels], &x);
    apply::<B, C, P, N>(
        "TokenShift",
        x_and_amounts(x, amounts),
        |inputs| {
            let (x, amounts) = split(inputs);
            let mixes = B::token_shift(x, None, amounts).into_iter().map(unwrap);
            array(mixes)
        },
        move |inputs, d_mixes| {
            let (x, amounts) = split(inputs);
            let d = (by_hand.token_shift)(x, amounts, d_mixes.map(wrap).into());
            x_and_amounts(d.x, d.amounts)
        },
    )
    .map(wrap)
    .into()
}
