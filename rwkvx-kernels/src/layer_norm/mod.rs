//! The norm before every mix and before the head.

pub(crate) mod autodiff;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// Added to the variance.
pub(crate) const EPSILON: f64 = 1e-5;

/// `x` `[rows, channels]` with mean 0 and variance 1 in every row (1e-5 is added to the variance), times `weight`, plus `bias`, both
/// `[channels]`. Differentiable in everything.
///
/// By hand: 2 passes, and 5 for the gradient. In tensor operations: 8, and some 20.
///
/// # Panics
/// If the sizes differ.
pub fn layer_norm<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let [_, channels] = x.dims();
    for (name, vector) in [("weight", &weight), ("bias", &bias)] {
        shapes::expect("layer_norm", name, "[channels]", vector, [channels]);
    }
    <B as KernelBackend>::layer_norm(x, weight, bias)
}

/// Gradients of the inputs of [`layer_norm`](layer_norm()).
#[derive(Debug)]
pub struct LayerNormGrads<B: Backend> {
    /// `[rows, channels]`.
    pub x: Tensor<B, 2>,
    /// `[channels]`.
    pub weight: Tensor<B, 1>,
    /// `[channels]`.
    pub bias: Tensor<B, 1>,
}
