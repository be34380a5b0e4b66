//! The rows of a table that ids name.

pub(crate) mod autodiff;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;

use burn::tensor::{Int, Tensor};

use crate::KernelBackend;

/// Rows of `weight` `[vocab, channels]` by `ids` `[rows]`, as `[rows, channels]`. Differentiable in `weight`.
///
/// The gradient adds up the rows of each id in f32.
pub fn embedding<B: KernelBackend>(weight: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    <B as KernelBackend>::embedding(weight, ids)
}
