//! From the recurrence to the output projection.

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// Inputs of [`gate_output`]; five sequences `[rows, channels]` and three vectors.
#[derive(Debug, Clone)]
pub struct OutputInputs<B: Backend> {
    /// What the recurrence gives.
    pub output: Tensor<B, 2>,
    /// The receptance that it took.
    pub receptance: Tensor<B, 2>,
    /// The key that it took.
    pub key: Tensor<B, 2>,
    /// The value that it took.
    pub value: Tensor<B, 2>,
    /// What the result is multiplied by.
    pub gate: Tensor<B, 2>,
    /// Weight of the norm, `[channels]`.
    pub weight: Tensor<B, 1>,
    /// Bias of the norm, `[channels]`.
    pub bias: Tensor<B, 1>,
    /// Weight of the current token's own bonus, `[heads, head_size]`: `r_k`.
    pub bonus: Tensor<B, 2>,
}

/// Per head, with `normal` the output with mean 0 and variance 1 (to which 64e-5 is added):
///
/// ```text
/// (normal weight + bias + (receptance . key bonus) value) gate
/// ```
///
/// as `[rows, channels]`. Differentiable in everything. By hand: 6 passes, and 11 for the gradient. In tensor operations: 27, and some 70.
///
/// # Panics
/// If a shape is none of these, or the channels are not those of the heads.
pub fn gate_output<B: KernelBackend>(inputs: OutputInputs<B>) -> Tensor<B, 2> {
    let rows_channels @ [_, channels] = inputs.output.dims();
    let [heads, head_size] = inputs.bonus.dims();
    assert!(
        channels == heads * head_size,
        "gate_output: `bonus` [{heads}, {head_size}] does not fit {channels} channels"
    );
    for (name, sequence) in [
        ("receptance", &inputs.receptance),
        ("key", &inputs.key),
        ("value", &inputs.value),
        ("gate", &inputs.gate),
    ] {
        let axes = "[rows, channels]";
        shapes::expect("gate_output", name, axes, sequence, rows_channels);
    }
    for (name, vector) in [("weight", &inputs.weight), ("bias", &inputs.bias)] {
        shapes::expect("gate_output", name, "[channels]", vector, [channels]);
    }
    B::gate_output(inputs)
}
