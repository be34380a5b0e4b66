//! The definition in tensor operations.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, backend::Backend};

use super::RowLosses;

/// The body of [`KernelBackend::cross_entropy_rows`](crate::KernelBackend::cross_entropy_rows).
pub fn cross_entropy_rows<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> RowLosses<B> {
    let rows = logits.dims()[0];
    let logits = logits.cast(DType::F32);
    let (largest, largest_at) = logits.clone().max_dim_with_indices(1); // [rows, 1]
    let target = logits.clone().gather(1, targets.reshape([rows, 1])); // [rows, 1]
    let log_sum = (logits - largest.clone()).exp().sum_dim(1).log(); // [rows, 1]
    let nll = log_sum.clone() + (largest.clone() - target);
    RowLosses {
        nll: nll.reshape([rows]),
        largest: largest.reshape([rows]),
        largest_at: largest_at.reshape([rows]),
        log_sum: log_sum.reshape([rows]),
    }
}

/// The body of [`KernelBackend::cross_entropy_gradient`](crate::KernelBackend::cross_entropy_gradient).
pub fn cross_entropy_gradient<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    losses: RowLosses<B>,
    shares: Tensor<B, 1>,
    l2_wrap: f64,
) -> Tensor<B, 2> {
    let (rows, dtype) = (logits.dims()[0], logits.dtype());
    let column = |x: Tensor<B, 1>| x.reshape([rows, 1]);
    let (largest, shares) = (column(losses.largest), column(shares));
    let log_softmax = logits.cast(DType::F32) - largest.clone() - column(losses.log_sum);
    let pull = largest * l2_wrap;
    (log_softmax.exp() * shares.clone())
        .scatter(
            1,
            targets.reshape([rows, 1]),
            shares.neg(),
            IndexingUpdateOp::Add,
        )
        .scatter(
            1,
            losses.largest_at.reshape([rows, 1]),
            pull,
            IndexingUpdateOp::Add,
        )
        .cast(dtype)
}
