//! The norm in tensor operations.

use burn::tensor::{Tensor, backend::Backend};

use super::{EPSILON, LayerNormGrads};

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

/// The gradients of the norm.
pub(crate) fn backward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    d_normal: Tensor<B, 2>,
) -> LayerNormGrads<B> {
    let centered = x.clone() - x.mean_dim(1);
    let variance = (centered.clone() * centered.clone()).mean_dim(1);
    let inverse = (variance + EPSILON).powf_scalar(-0.5); // [rows, 1]
    let normal = centered * inverse.clone();
    let d_weight = (d_normal.clone() * normal.clone()).sum_dim(0);
    let d_bias = d_normal.clone().sum_dim(0);
    let d = d_normal * weight.unsqueeze();
    let along = (d.clone() * normal.clone()).mean_dim(1);
    LayerNormGrads {
        x: (d.clone() - d.mean_dim(1) - normal * along) * inverse,
        weight: d_weight.squeeze_dim(0),
        bias: d_bias.squeeze_dim(0),
    }
}
