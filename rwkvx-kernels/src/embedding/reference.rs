//! The lookup and its gradient by Burn's own operators.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, backend::Backend};

/// The definition of [`embedding`](crate::embedding()).
pub fn embedding<B: Backend>(weight: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    weight.select(0, ids)
}

/// The gradient `[vocab, channels]` of the table.
pub(crate) fn gradient<B: Backend>(
    vocab: usize,
    ids: Tensor<B, 1, Int>,
    d_rows: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([_, channels], dtype) = (d_rows.dims(), d_rows.dtype());
    let sums = Tensor::zeros([vocab, channels], (&d_rows.device(), DType::F32));
    sums.select_assign(0, ids, d_rows.cast(DType::F32), IndexingUpdateOp::Add)
        .cast(dtype)
}
