//! The token shift: every position also sees the position before it.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// `x_{t-1} - x_t`, `[batch, time, channels]`.
///
/// `carry` is the last position of the piece before, `[batch, channels]`, and becomes the last one of this piece.
/// Without it the text starts here, after zeros.
pub(crate) fn shift_difference<B: Backend>(
    x: Tensor<B, 3>,
    carry: Option<&mut Tensor<B, 2>>,
) -> Tensor<B, 3> {
    let [batch, time, channels] = x.dims();
    let first = match carry {
        Some(carry) => {
            let last = x
                .clone()
                .slice([0..batch, time - 1..time])
                .reshape([batch, channels]);
            std::mem::replace(carry, last).reshape([batch, 1, channels])
        }
        None => Tensor::zeros([batch, 1, channels], &x.device()),
    };
    let previous = match time {
        1 => first,
        _ => Tensor::cat(vec![first, x.clone().slice([0..batch, 0..time - 1])], 1),
    };
    previous - x
}

/// The mix `x + d * amount` of a position and the one before it; `x` and `d` are `[rows, channels]`, `amount` `[channels]`.
pub(crate) fn mix<B: Backend>(
    x: &Tensor<B, 2>,
    d: &Tensor<B, 2>,
    amount: Tensor<B, 1>,
) -> Tensor<B, 2> {
    d.clone() * amount.unsqueeze() + x.clone()
}
