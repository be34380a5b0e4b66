//! The value residual.

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// Inputs of [`mix_value`]; three sequences `[rows, channels]` and a vector.
#[derive(Debug, Clone)]
pub struct ValueInputs<B: Backend> {
    /// The projected value.
    pub value: Tensor<B, 2>,
    /// The value of layer 0.
    pub first: Tensor<B, 2>,
    /// How far to go from `value` to `first`, before its bias and its sigmoid.
    pub amount: Tensor<B, 2>,
    /// What is added to `amount`, `[channels]`: `v0`.
    pub amount_bias: Tensor<B, 1>,
}

/// `value + (first - value) sigmoid(amount + amount_bias)`, `[rows, channels]`.
///
/// Differentiable in everything. By hand: 4 passes, and 7 for the gradient. In tensor operations: 13, and some 25.
///
/// # Panics
/// If the sequences differ in shape, or the bias is not `[channels]`.
pub fn mix_value<B: KernelBackend>(inputs: ValueInputs<B>) -> Tensor<B, 2> {
    inputs.check("mix_value");
    B::mix_value(inputs)
}

impl<B: Backend> ValueInputs<B> {
    /// Panics if the sequences differ in shape, or the bias is not `[channels]`.
    pub(super) fn check(&self, operator: &str) {
        let rows_channels @ [_, channels] = self.value.dims();
        for (name, sequence) in [("first", &self.first), ("amount", &self.amount)] {
            let axes = "[rows, channels]";
            shapes::expect(operator, name, axes, sequence, rows_channels);
        }
        let bias = &self.amount_bias;
        shapes::expect(operator, "amount_bias", "[channels]", bias, [channels]);
    }
}
