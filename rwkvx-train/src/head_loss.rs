//! Output head and cross-entropy in one, so that the logits of a whole batch never exist.
//!
//! The rows (tokens) are taken in pieces whose logits fit [`LOGITS_PER_PIECE`]. Because the loss is a scalar, the gradient of
//! the logits is known while they are there: the forward pass computes the gradients of `hidden` and of the head's
//! weight at once, without autodiff, and hands autodiff a surrogate `sum(hidden * d_hidden) + sum(weight * d_weight)`
//! of the right gradient. The value is put right by adding a constant. No custom autodiff node is needed, so this runs
//! on every backend, and a gradient that comes in from outside scales everything, L2Wrap included.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::longce::ShortLosses;

/// Logits in memory at once: 2^24 f32 values, 64 MiB.
pub const LOGITS_PER_PIECE: usize = 1 << 24;

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
    /// `sum(share * weight * nll)`, differentiable. Its value carries the rounding of the surrogate.
    pub loss: Tensor<B, 1>,
    /// The same without gradient and without that rounding.
    pub value: Tensor<B::InnerBackend, 1>,
    /// Loss of each token in nats, `[batch, time]`, without gradient.
    pub nll: Tensor<B::InnerBackend, 2>,
}

/// Loss of `hidden` `[batch, time, channels]` through the head `weight` `[vocab, channels]`.
///
/// A weight that does not require a gradient (a frozen head) costs no weight gradient.
pub fn head_loss<B: AutodiffBackend>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    objective: Objective<B::InnerBackend>,
) -> HeadLoss<B> {
    let rows = rows_per_piece(weight.dims()[0]);
    head_loss_in_pieces(hidden, weight, objective, rows)
}

/// [`head_loss`] with the number of rows per piece given; the result does not depend on it beyond rounding.
pub fn head_loss_in_pieces<B: AutodiffBackend>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    objective: Objective<B::InnerBackend>,
    rows_per_piece: usize,
) -> HeadLoss<B> {
    let [batch, time, channels] = hidden.dims();
    let tokens = batch * time;
    let Objective {
        targets,
        shares,
        short,
        l2_wrap,
    } = objective;
    let train_weight = weight.is_require_grad();
    let rows_bc = hidden.clone().inner().reshape([tokens, channels]);
    let weight_vc = weight.clone().inner();
    let targets = targets.reshape([tokens, 1]);
    let shares = shares.reshape([tokens, 1]);
    let short = short.map(ShortLosses::into_rows);

    let mut value = Tensor::zeros([1], &rows_bc.device());
    let mut nll = Vec::new();
    let mut d_rows = Vec::new();
    let mut d_weight: Option<Tensor<B::InnerBackend, 2>> = None;
    for (start, end) in pieces(tokens, rows_per_piece) {
        let rows = rows_bc.clone().slice([start..end, 0..channels]);
        let targets = targets.clone().slice([start..end, 0..1]);
        let shares = shares.clone().slice([start..end, 0..1]);
        let logits = rows.clone().matmul(weight_vc.clone().transpose()); // [rows, vocab]
        let (top, top_at) = logits.clone().max_dim_with_indices(1); // [rows, 1]
        let exp = (logits.clone() - top.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        let picked = logits.gather(1, targets.clone());
        let piece = sum.clone().log() + top.clone() - picked;
        let shares = match &short {
            Some(short) => shares * short.rows(start, end).weights(piece.clone()),
            None => shares,
        };
        value = value + (piece.clone() * shares.clone()).sum();
        nll.push(piece);

        // d loss / d logits = share * (softmax - one hot), and L2Wrap's pull at the largest logit.
        let mut d_logits =
            (exp * (shares.clone() / sum)).scatter(1, targets, shares.neg(), IndexingUpdateOp::Add);
        if l2_wrap != 0.0 {
            d_logits = d_logits.scatter(1, top_at, top * l2_wrap, IndexingUpdateOp::Add);
        }
        d_rows.push(d_logits.clone().matmul(weight_vc.clone())); // [rows, channels]
        if train_weight {
            let part = d_logits.transpose().matmul(rows); // [vocab, channels]
            d_weight = Some(match d_weight {
                Some(sum) => sum + part,
                None => part,
            });
        }
    }

    let d_hidden = Tensor::cat(d_rows, 0).reshape([batch, time, channels]);
    let mut surrogate = (hidden * Tensor::from_inner(d_hidden)).sum();
    if let Some(d_weight) = d_weight {
        surrogate = surrogate + (weight * Tensor::from_inner(d_weight)).sum();
    }
    let correction = value.clone() - surrogate.clone().inner();
    HeadLoss {
        loss: surrogate + Tensor::from_inner(correction),
        value,
        nll: Tensor::cat(nll, 0).reshape([batch, time]),
    }
}

/// Loss of each token in nats, `[batch, time]`, without gradient. Shapes as in [`head_loss`].
pub fn token_losses<B: Backend>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 2, Int>,
) -> Tensor<B, 2> {
    let [batch, time, channels] = hidden.dims();
    let tokens = batch * time;
    let rows_bc = hidden.reshape([tokens, channels]);
    let targets = targets.reshape([tokens, 1]);
    let parts = pieces(tokens, rows_per_piece(weight.dims()[0]))
        .map(|(start, end)| {
            let rows = rows_bc.clone().slice([start..end, 0..channels]);
            let targets = targets.clone().slice([start..end, 0..1]);
            let logits = rows.matmul(weight.clone().transpose()); // [rows, vocab]
            let top = logits.clone().max_dim(1);
            let sum = (logits.clone() - top.clone()).exp().sum_dim(1);
            sum.log() + top - logits.gather(1, targets)
        })
        .collect();
    Tensor::cat(parts, 0).reshape([batch, time])
}

fn rows_per_piece(vocab_size: usize) -> usize {
    (LOGITS_PER_PIECE / vocab_size.max(1)).max(1)
}

fn pieces(tokens: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tokens)
        .step_by(rows.max(1))
        .map(move |start| (start, (start + rows).min(tokens)))
}
