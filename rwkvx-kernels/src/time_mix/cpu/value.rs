//! The value residual.

use burn::tensor::Tensor;

use super::rows::{RowPass, run};
use crate::cpu::HostMemory;
use crate::cpu::simd::sigmoid;
use crate::time_mix::ValueInputs;

/// The body of [`KernelBackend::mix_value`](crate::KernelBackend::mix_value).
pub(crate) fn mix_value<B: HostMemory>(inputs: ValueInputs<B>) -> Tensor<B, 2> {
    let [_, channels] = inputs.value.dims();
    let sequences = [inputs.value, inputs.first, inputs.amount];
    let ([mixed], []) = run(Forward, channels, sequences, [inputs.amount_bias]);
    mixed
}

/// The passes of [`TimeMixBackward::mix_value`](crate::TimeMixBackward::mix_value).
pub(super) fn backward<B: HostMemory>(
    inputs: ValueInputs<B>,
    d_mixed: Tensor<B, 2>,
) -> ValueInputs<B> {
    let [_, channels] = inputs.value.dims();
    let sequences = [inputs.value, inputs.first, inputs.amount, d_mixed];
    let ([value, first, amount], [amount_bias]) =
        run(Backward, channels, sequences, [inputs.amount_bias]);
    ValueInputs {
        value,
        first,
        amount,
        amount_bias,
    }
}

struct Forward;

impl RowPass<3, 1, 1, 0, 0> for Forward {
    const COST: usize = 20;

    #[inline(always)]
    fn row(
        _: usize,
        [value, first, amount]: [&[f32]; 3],
        [bias]: [&[f32]; 1],
        [mixed]: [&mut [f32]; 1],
        []: [&mut [f32]; 0],
        []: [&mut [f32]; 0],
    ) {
        each!(i,
            mixed = value[i] + (first[i] - value[i]) * sigmoid(amount[i] + bias[i]);
        );
    }
}

struct Backward;

impl RowPass<4, 1, 3, 1, 0> for Backward {
    const COST: usize = 30;

    #[inline(always)]
    fn row(
        _: usize,
        [value, first, amount, d_mixed]: [&[f32]; 4],
        [bias]: [&[f32]; 1],
        [d_value, d_first, d_amount]: [&mut [f32]; 3],
        [d_bias]: [&mut [f32]; 1],
        []: [&mut [f32]; 0],
    ) {
        let share = &mut *d_value;
        each!(i,
            share = sigmoid(amount[i] + bias[i]);
            d_first = d_mixed[i] * share[i];
            d_amount = d_first[i] * (first[i] - value[i]) * (1.0 - share[i]);
            d_value = d_mixed[i] - d_first[i];
            d_bias += d_amount[i];
        );
    }
}
