//! The norm in tensor operations.

use burn::tensor::{Tensor, backend::Backend};

use super::EPSILON;

/// The definition of [`layer_norm`](crate::layer_norm()).
///
/// The power stands for a root and a division: Burn's NdArray takes reciprocals, also in the gradient of a division,
/// by an instruction that is right to 12 bits only.
pub fn layer_norm<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let centered = x.clone() - x.mean_dim(1);
    let variance = (centered.clone() * centered.clone()).mean_dim(1);
    let normal = centered * (variance + EPSILON).powf_scalar(-0.5);
    normal * weight.unsqueeze() + bias.unsqueeze()
}
