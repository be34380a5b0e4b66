//! Output head and cross-entropy in one, so that the logits of a whole batch never exist.
//!
//! The rows (tokens) are taken in pieces whose logits fit [`LOGITS_BYTES`]. Because the loss is a scalar, the gradient of the logits is known while they
//! are there: the forward pass computes the gradients of `hidden` and of the head's weight at once, without autodiff, and hands them to autodiff with
//! the loss ([`with_gradient`]). A gradient that comes in from outside scales everything, L2Wrap included.
//!
//! A piece costs a matrix product for the logits, one read of them, one read and write that makes them their own gradient, and two matrix products.
//! Beyond the activations, the weight and the gradients of both, the memory stays below 256 MiB up to 65536 tokens, a vocabulary of 65536 and 768 channels, in f32 and in
//! bf16; `docs/kernels.md` counts it.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};
use rwkvx_kernels::{
    KernelBackend, cross_entropy_gradient, cross_entropy_rows, long_product, with_gradient,
};

use crate::longce::ShortLosses;

/// Logits in memory at once.
pub const LOGITS_BYTES: usize = 64 << 20;

/// The largest block of the weight's gradient, in f32, to which a piece is added at once.
const BLOCK_BYTES: usize = 48 << 20;

/// How strongly L2Wrap pulls the largest logit of each token towards 0, before the division by the number of tokens.
/// Source: RWKV-LM's `L2Wrap`.
pub const L2_WRAP: f64 = 1e-4;

/// What a batch is to be trained on.
#[derive(Clone, Debug)]
pub struct Objective<B: Backend> {
    /// Token to predict at each position, `[batch, time]`.
    pub targets: Tensor<B, 2, Int>,
    /// Share of each token in the loss, `[batch, time]`: `1 / tokens` for the plain mean. Shares of one step sum to 1 over
    /// all its micro-batches.
    pub shares: Tensor<B, 2>,
    /// LongCE's short-context losses; `None` leaves all weights at 1.
    pub short: Option<ShortLosses<B>>,
    /// Gradient of L2Wrap per unit of the largest logit: [`L2_WRAP`] divided by the tokens of the step, or 0 for none.
    pub l2_wrap: f64,
}

/// A loss and the losses of the tokens it is made of.
#[derive(Debug)]
pub struct HeadLoss<B: AutodiffBackend> {
    /// `sum(share * weight * nll)`, differentiable.
    pub loss: Tensor<B, 1>,
    /// The same without gradient.
    pub value: Tensor<B::InnerBackend, 1>,
    /// Loss of each token in nats, `[batch, time]`, without gradient.
    pub nll: Tensor<B::InnerBackend, 2>,
}

/// Loss of `hidden` `[batch, time, channels]` through the head `weight` `[vocab, channels]`.
///
/// A weight that does not require a gradient (a frozen head) costs no weight gradient.
pub fn head_loss<B>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    objective: Objective<B::InnerBackend>,
) -> HeadLoss<B>
where
    B: AutodiffBackend + KernelBackend,
    B::InnerBackend: KernelBackend,
{
    let rows = rows_per_piece(&weight);
    head_loss_in_pieces(hidden, weight, objective, rows)
}

/// [`head_loss`] with the number of rows per piece given; the result does not depend on it beyond rounding.
pub fn head_loss_in_pieces<B>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    objective: Objective<B::InnerBackend>,
    rows_per_piece: usize,
) -> HeadLoss<B>
where
    B: AutodiffBackend + KernelBackend,
    B::InnerBackend: KernelBackend,
{
    let [batch, time, channels] = hidden.dims();
    let tokens = batch * time;
    let Objective {
        targets,
        shares,
        short,
        l2_wrap,
    } = objective;
    let rows_bc = hidden.clone().inner().reshape([tokens, channels]);
    let weight_vc = weight.clone().inner();
    let targets = targets.reshape([tokens]);
    let shares = shares.reshape([tokens]);
    let short = short.map(ShortLosses::into_rows);

    let mut value = Tensor::zeros([1], &rows_bc.device());
    let mut nll = Vec::new();
    let mut d_rows = Vec::new();
    let mut d_weight = weight
        .is_require_grad()
        .then(|| WeightGradient::zeros(&weight_vc));
    for (start, end) in pieces(tokens, rows_per_piece) {
        let rows = rows_bc.clone().slice_dim(0, start..end); // [rows, channels]
        let targets = targets.clone().slice_dim(0, start..end); // [rows]
        let shares = shares.clone().slice_dim(0, start..end); // [rows]
        let logits = rows.clone().matmul(weight_vc.clone().transpose()); // [rows, vocab]
        let losses = cross_entropy_rows(logits.clone(), targets.clone());
        nll.push(losses.nll.clone());
        let shares = match &short {
            Some(short) => {
                let nll = losses.nll.clone().reshape([end - start, 1]);
                let weights = short.rows(start, end).weights(nll); // [rows, 1]
                shares * weights.reshape([end - start])
            }
            None => shares,
        };
        value = value + (losses.nll.clone() * shares.clone()).sum();

        let d_logits = cross_entropy_gradient(logits, targets, losses, shares, l2_wrap); // [rows, vocab]
        d_rows.push(long_product(d_logits.clone(), weight_vc.clone())); // [rows, channels]
        if let Some(d_weight) = &mut d_weight {
            d_weight.add(&d_logits, &rows);
        }
    }

    let d_hidden = Tensor::cat(d_rows, 0).reshape([batch, time, channels]);
    let mut loss = with_gradient(
        Tensor::from_inner(value.clone()),
        hidden,
        Tensor::from_inner(d_hidden),
    );
    if let Some(d_weight) = d_weight {
        let d_weight = d_weight.whole(weight_vc.dtype()); // [vocab, channels]
        let nothing = Tensor::from_inner(value.zeros_like());
        loss = loss + with_gradient(nothing, weight, Tensor::from_inner(d_weight));
    }
    HeadLoss {
        loss,
        value,
        nll: Tensor::cat(nll, 0).reshape([batch, time]),
    }
}

/// The gradient of the head's weight while pieces are added to it: f32 blocks of the vocabulary, so that what is added is never as large as the whole.
struct WeightGradient<B: Backend> {
    /// `[words, channels]` each; together the vocabulary.
    blocks: Vec<Tensor<B, 2>>,
}

impl<B: Backend> WeightGradient<B> {
    fn zeros(weight: &Tensor<B, 2>) -> Self {
        let [vocab, channels] = weight.dims();
        let words = BLOCK_BYTES / (channels * DType::F32.size());
        let options = (&weight.device(), DType::F32);
        let blocks = pieces(vocab, words)
            .map(|(start, end)| Tensor::zeros([end - start, channels], options));
        Self {
            blocks: blocks.collect(),
        }
    }

    /// Adds `d_logits^T rows`, of `[rows, vocab]` and `[rows, channels]`.
    fn add(&mut self, d_logits: &Tensor<B, 2>, rows: &Tensor<B, 2>) {
        let mut start = 0;
        let sums = std::mem::take(&mut self.blocks).into_iter();
        let sums = sums.map(|sum| {
            let words = sum.dims()[0];
            let d_logits = d_logits.clone().slice_dim(1, start..start + words); // [rows, words]
            start += words;
            sum + d_logits.transpose().matmul(rows.clone()).cast(DType::F32)
        });
        self.blocks = sums.collect();
    }

    /// `[vocab, channels]`
    fn whole(self, dtype: DType) -> Tensor<B, 2> {
        let blocks = self.blocks.into_iter().map(|block| block.cast(dtype));
        Tensor::cat(blocks.collect(), 0)
    }
}

/// Loss of each token in nats, `[batch, time]`, without gradient. Shapes as in [`head_loss`].
pub fn token_losses<B: KernelBackend>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 2, Int>,
) -> Tensor<B, 2> {
    let [batch, time, channels] = hidden.dims();
    let tokens = batch * time;
    let rows_bc = hidden.reshape([tokens, channels]);
    let targets = targets.reshape([tokens]);
    let parts = pieces(tokens, rows_per_piece(&weight))
        .map(|(start, end)| {
            let rows = rows_bc.clone().slice_dim(0, start..end); // [rows, channels]
            let targets = targets.clone().slice_dim(0, start..end); // [rows]
            let logits = rows.matmul(weight.clone().transpose()); // [rows, vocab]
            cross_entropy_rows(logits, targets).nll
        })
        .collect();
    Tensor::cat(parts, 0).reshape([batch, time])
}

fn rows_per_piece<B: Backend>(weight: &Tensor<B, 2>) -> usize {
    let row = weight.dims()[0] * weight.dtype().size();
    (LOGITS_BYTES / row).max(1)
}

/// Ranges of `size`, the last maybe shorter, that cover `total`.
fn pieces(total: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = size.max(1);
    (0..total)
        .step_by(size)
        .map(move |start| (start, (start + size).min(total)))
}
