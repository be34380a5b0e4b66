//! The product in tensor operations.

use burn::tensor::{Tensor, backend::Backend};

use super::{Product, WeightLayout};
use crate::{KernelBackend, pointwise};

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

/// The definition of [`project_all`](crate::project_all): one after another.
pub(crate) fn project_all<B: KernelBackend>(products: Vec<Product<B>>) -> Vec<Tensor<B, 2>> {
    let one = |product: Product<B>| {
        let mut output = B::project(product.x, product.weight, product.layout);
        if let Some(function) = product.then {
            output = pointwise::apply(function, output);
        }
        match product.plus {
            Some(plus) => output + plus,
            None => output,
        }
    };
    products.into_iter().map(one).collect()
}
