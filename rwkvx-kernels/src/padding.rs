//! Rows filled up with zeros to a size that a body can work on. Both operators ignore such columns: they add nothing to any product
//! of rows.

use burn::tensor::{Tensor, backend::Backend};

/// Appends zeros to each row of the last axis so that its size becomes a multiple of `unit`.
pub(crate) fn pad_rows<B: Backend>(tensor: Tensor<B, 4>, unit: usize) -> Tensor<B, 4> {
    let [a, b, c, size] = tensor.dims();
    let missing = size.next_multiple_of(unit) - size;
    if missing == 0 {
        return tensor;
    }
    let zeros = Tensor::zeros([a, b, c, missing], (&tensor.device(), tensor.dtype()));
    Tensor::cat(vec![tensor, zeros], 3)
}

/// Undoes [`pad_rows`].
pub(crate) fn cut_rows<B: Backend>(tensor: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
    let [a, b, c, padded] = tensor.dims();
    if padded == size {
        tensor
    } else {
        tensor.slice([0..a, 0..b, 0..c, 0..size])
    }
}

/// [`pad_rows`] along both axes of a state `[batch, heads, value, key]`.
pub(crate) fn pad_state<B: Backend>(state: Tensor<B, 4>, unit: usize) -> Tensor<B, 4> {
    let [.., size] = state.dims();
    if size.is_multiple_of(unit) {
        return state;
    }
    pad_rows(pad_rows(state, unit).swap_dims(2, 3), unit).swap_dims(2, 3)
}

/// Undoes [`pad_state`].
pub(crate) fn cut_state<B: Backend>(state: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
    let [batch, heads, padded, _] = state.dims();
    if padded == size {
        state
    } else {
        state.slice([0..batch, 0..heads, 0..size, 0..size])
    }
}
