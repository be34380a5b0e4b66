//! The functions and their gradients by Burn's own operators.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::Pointwise;

/// The function of each element.
pub(crate) fn forward<B: Backend>(function: Pointwise, x: FloatTensor<B>) -> FloatTensor<B> {
    match function {
        Pointwise::Sigmoid => B::sigmoid(x),
        Pointwise::Tanh => B::float_tanh(x),
        Pointwise::SquaredRelu => {
            let positive = B::relu(x);
            B::float_mul(positive.clone(), positive)
        }
    }
}

/// The gradient of `x` from the result `y` and its gradient: `dy y (1 - y)`, `dy (1 - y^2)` or `2 dy sqrt(y)`.
pub(crate) fn backward<B: Backend>(
    function: Pointwise,
    y: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    let squared = |y: FloatTensor<B>| B::float_mul(y.clone(), y);
    match function {
        Pointwise::Sigmoid => B::float_mul(dy, B::float_sub(y.clone(), squared(y))),
        Pointwise::Tanh => B::float_sub(dy.clone(), B::float_mul(dy, squared(y))),
        Pointwise::SquaredRelu => {
            B::float_mul_scalar(B::float_mul(dy, B::float_sqrt(y)), 2.0.into())
        }
    }
}
