//! The functions and their gradients by Burn's own operators.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::Pointwise;

/// The function of each element.
pub(crate) fn forward<B: Backend>(function: Pointwise, x: FloatTensor<B>) -> FloatTensor<B> {
    match function {
        Pointwise::Sigmoid => B::sigmoid(x),
        Pointwise::Tanh => B::float_tanh(x),
    }
}

/// The gradient of `x` from the result `y` and its gradient: `dy y (1 - y)` or `dy (1 - y^2)`.
pub(crate) fn backward<B: Backend>(
    function: Pointwise,
    y: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    let squared = B::float_mul(y.clone(), y.clone());
    match function {
        Pointwise::Sigmoid => B::float_mul(dy, B::float_sub(y, squared)),
        Pointwise::Tanh => B::float_sub(dy.clone(), B::float_mul(dy, squared)),
    }
}
