//! All that a time mix does head by head, between the projections before it and the one after.

use burn::tensor::{Tensor, backend::Backend};

use super::{KeyInputs, ValueInputs};
use crate::{KernelBackend, shapes};

/// Inputs of [`mix_heads`]; sequences are `[rows, channels]` with `rows = batch * time`.
#[derive(Debug, Clone)]
pub struct HeadInputs<B: Backend> {
    /// What each head reads from its state.
    pub receptance: Tensor<B, 2>,
    /// What [`prepare_keys`](super::prepare_keys) takes.
    pub keys: KeyInputs<B>,
    /// What is written.
    pub values: Values<B>,
    /// What the result is multiplied by.
    pub gate: Tensor<B, 2>,
    /// Weight of the norm, `[channels]`.
    pub weight: Tensor<B, 1>,
    /// Bias of the norm, `[channels]`.
    pub bias: Tensor<B, 1>,
    /// Weight of the current token's own bonus, `[heads, head_size]`: `r_k`.
    pub bonus: Tensor<B, 2>,
    /// State before the first token, `[batch, heads, value, key]`; `None` is zero.
    pub state: Option<Tensor<B, 4>>,
    /// Texts.
    pub batch: usize,
}

/// The values of a time mix.
#[derive(Debug, Clone)]
pub enum Values<B: Backend> {
    /// As they were projected, `[rows, channels]`: those of layer 0.
    Projected(Tensor<B, 2>),
    /// Moved towards those of layer 0 by [`mix_value`](super::mix_value).
    Mixed(ValueInputs<B>),
}

/// Outputs of [`mix_heads`].
#[derive(Debug, Clone)]
pub struct HeadOutputs<B: Backend> {
    /// What the output projection takes, `[rows, channels]`.
    pub gated: Tensor<B, 2>,
    /// State after the last token, `[batch, heads, value, key]`.
    pub state: Tensor<B, 4>,
}

/// [`prepare_keys`](super::prepare_keys), [`mix_value`](super::mix_value), the recurrence [`wkv7`](crate::wkv7()) and
/// [`gate_output`](super::gate_output), one after the other. Differentiable in everything.
///
/// A GPU does all of it at once for a single token of each text.
///
/// # Panics
/// If a shape is none of these.
pub fn mix_heads<B: KernelBackend>(inputs: HeadInputs<B>) -> HeadOutputs<B> {
    const OPERATOR: &str = "mix_heads";
    inputs.keys.check(OPERATOR);
    let rows_channels @ [rows, channels] = inputs.keys.key.dims();
    let size = inputs.keys.head_size;
    let heads = channels / size;
    let axes = "[rows, channels]";
    let value = match &inputs.values {
        Values::Projected(value) => value,
        Values::Mixed(values) => {
            values.check(OPERATOR);
            &values.value
        }
    };
    for (name, sequence) in [
        ("receptance", &inputs.receptance),
        ("value", value),
        ("gate", &inputs.gate),
    ] {
        shapes::expect(OPERATOR, name, axes, sequence, rows_channels);
    }
    for (name, vector) in [("weight", &inputs.weight), ("bias", &inputs.bias)] {
        shapes::expect(OPERATOR, name, "[channels]", vector, [channels]);
    }
    let bonus = &inputs.bonus;
    shapes::expect(
        OPERATOR,
        "bonus",
        "[heads, head_size]",
        bonus,
        [heads, size],
    );
    let batch = inputs.batch;
    assert!(
        batch > 0 && rows > 0 && rows.is_multiple_of(batch),
        "mix_heads: {rows} rows are no whole number of tokens of {batch} texts"
    );
    if let Some(state) = &inputs.state {
        let expected = [batch, heads, size, size];
        let axes = "[batch, heads, value, key]";
        shapes::expect(OPERATOR, "state", axes, state, expected);
    }
    B::mix_heads(inputs)
}
