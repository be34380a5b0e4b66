//! From projections to what the recurrence takes.

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// Inputs of [`prepare_keys`]; three sequences `[rows, channels]` and four vectors `[channels]`.
#[derive(Debug, Clone)]
pub struct KeyInputs<B: Backend> {
    /// The decay before its bias and its sigmoid.
    pub decay: Tensor<B, 2>,
    /// The in-context learning rate before its bias and its sigmoid.
    pub rate: Tensor<B, 2>,
    /// The projected key.
    pub key: Tensor<B, 2>,
    /// What is added to `decay`: `w0`.
    pub decay_bias: Tensor<B, 1>,
    /// What is added to `rate`: `a0`.
    pub rate_bias: Tensor<B, 1>,
    /// Scale from key to removal key: `k_k`.
    pub removal_scale: Tensor<B, 1>,
    /// How far the rate scales the key: `k_a`.
    pub rate_scale: Tensor<B, 1>,
    /// Channels per head.
    pub head_size: usize,
}

/// Outputs of [`prepare_keys`]; four sequences `[rows, channels]`.
#[derive(Debug, Clone)]
pub struct Keys<B: Backend> {
    /// ln of the decay, in (-0.6066, 0).
    pub log_decay: Tensor<B, 2>,
    /// The key, scaled by the rate.
    pub key: Tensor<B, 2>,
    /// `-kk`
    pub removal: Tensor<B, 2>,
    /// `kk * a`
    pub replacement: Tensor<B, 2>,
}

/// With `a = sigmoid(rate + rate_bias)` and `kk` every head of `key * removal_scale` divided by its length (a head shorter than 1e-12
/// by 1e-12):
///
/// ```text
/// log_decay = -exp(-1/2) sigmoid(decay + decay_bias)      removal     = -kk
/// key       = key (1 + (a - 1) rate_scale)                replacement = kk a
/// ```
///
/// Differentiable in everything. By hand: 7 passes, and 10 for the gradient. In tensor operations: 30, and some 70.
///
/// # Panics
/// If a shape is none of these, or the channels are not a whole number of heads.
pub fn prepare_keys<B: KernelBackend>(inputs: KeyInputs<B>) -> Keys<B> {
    inputs.check("prepare_keys");
    B::prepare_keys(inputs)
}

impl<B: Backend> KeyInputs<B> {
    /// Panics if a shape is none of those above, or the channels are not a whole number of heads.
    pub(super) fn check(&self, operator: &str) {
        let rows_channels @ [_, channels] = self.key.dims();
        let head_size = self.head_size;
        assert!(
            head_size > 0 && channels.is_multiple_of(head_size),
            "{operator}: {channels} channels are no whole number of heads of {head_size}"
        );
        for (name, sequence) in [("decay", &self.decay), ("rate", &self.rate)] {
            let axes = "[rows, channels]";
            shapes::expect(operator, name, axes, sequence, rows_channels);
        }
        for (name, vector) in [
            ("decay_bias", &self.decay_bias),
            ("rate_bias", &self.rate_bias),
            ("removal_scale", &self.removal_scale),
            ("rate_scale", &self.rate_scale),
        ] {
            shapes::expect(operator, name, "[channels]", vector, [channels]);
        }
    }
}
