//! The product in tensor operations.

use burn::tensor::{Tensor, backend::Backend};

use super::WeightLayout;

/// The definition of [`project`](crate::project()).
pub fn project<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    layout: WeightLayout,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let weight = weight.dequantize();
    let weight = match layout {
        WeightLayout::OutIn => weight.transpose(),
        WeightLayout::InOut => weight,
    };
    x.cast(weight.dtype()).matmul(weight).cast(dtype)
}
