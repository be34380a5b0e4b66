//! Cross-entropy of rows of logits, with the gradient in closed form: what a head needs besides its matrix products.
//!
//! [`cross_entropy_rows`] reads the logits once and keeps four numbers per row; [`cross_entropy_gradient`] reads them once more and, where nothing else
//! shares them, overwrites them by their gradient. So the logits are the only tensor of their size. Both work below autodiff: a
//! caller that makes logits, loss and gradient at once never has to keep them; see [`with_gradient`](crate::with_gradient).
//!
//! Statistics are f32 whatever the type of the logits.

#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// What [`cross_entropy_rows`] finds in each row; all are `[rows]`, and f32 but for the index.
#[derive(Debug, Clone)]
pub struct RowLosses<B: Backend> {
    /// Loss in nats: minus the logarithm of the target's probability.
    pub nll: Tensor<B, 1>,
    /// The largest logit.
    pub largest: Tensor<B, 1>,
    /// Where it is: of equal ones the first.
    pub largest_at: Tensor<B, 1, Int>,
    /// `ln sum exp(logit - largest)`: kept apart from `largest`, next to which its digits would be lost.
    pub log_sum: Tensor<B, 1>,
}

impl<B: Backend> RowLosses<B> {
    /// `ln sum exp(logit)`, `[rows]`.
    pub fn log_sum_exp(&self) -> Tensor<B, 1> {
        self.largest.clone() + self.log_sum.clone()
    }
}

/// The loss of each row of `logits` `[rows, vocab]` for `targets` `[rows]`, without gradient.
///
/// By hand it is one pass over the logits. A target outside the vocabulary panics on CPUs; on a device its loss is infinite.
///
/// # Panics
/// If the shapes are not these, or an axis is empty.
pub fn cross_entropy_rows<B: KernelBackend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> RowLosses<B> {
    const NAME: &str = "cross_entropy_rows";
    let rows = checked_rows(NAME, &logits);
    shapes::expect(NAME, "targets", "[rows]", &targets, [rows]);
    B::cross_entropy_rows(logits, targets)
}

/// The gradient of `sum(shares nll) + l2_wrap / 2 sum(largest^2)` for `logits` `[rows, vocab]`, in their shape and type:
///
/// ```text
/// share (softmax - one hot of the target) + l2_wrap largest, the latter at the largest logit alone
/// ```
///
/// `losses` is what [`cross_entropy_rows`] gave for the same logits and targets, `shares` is `[rows]` in f32. By hand it is one pass over the logits, which are overwritten if
/// nothing else shares their memory.
///
/// # Panics
/// If the shapes are not these, or an axis is empty.
pub fn cross_entropy_gradient<B: KernelBackend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    losses: RowLosses<B>,
    shares: Tensor<B, 1>,
    l2_wrap: f64,
) -> Tensor<B, 2> {
    const NAME: &str = "cross_entropy_gradient";
    let rows = checked_rows(NAME, &logits);
    shapes::expect(NAME, "targets", "[rows]", &targets, [rows]);
    shapes::expect(NAME, "shares", "[rows]", &shares, [rows]);
    for (name, statistic) in [
        ("losses.nll", &losses.nll),
        ("losses.largest", &losses.largest),
        ("losses.log_sum", &losses.log_sum),
    ] {
        shapes::expect(NAME, name, "[rows]", statistic, [rows]);
    }
    let at = &losses.largest_at;
    shapes::expect(NAME, "losses.largest_at", "[rows]", at, [rows]);
    B::cross_entropy_gradient(logits, targets, losses, shares, l2_wrap)
}

fn checked_rows<B: Backend>(operator: &str, logits: &Tensor<B, 2>) -> usize {
    let found @ [rows, vocab] = logits.dims();
    assert!(
        rows > 0 && vocab > 0,
        "{operator}: `logits` must be [rows, vocab] with no axis empty, found {found:?}"
    );
    rows
}
