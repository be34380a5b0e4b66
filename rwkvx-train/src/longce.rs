//! LongCE: tokens that the far context helps to predict weigh more.
//!
//! The weight of token `i` is `min(exp(nll_short(i) - nll_full(i)), gamma)`. `nll_full` is the loss in the whole sequence,
//! `nll_short` the loss of the same model that sees only the tokens of a window before `i`. One run over a window of
//! `context + stride` tokens serves its last `stride` tokens. The weight carries no gradient.
//!
//! Sources: Fang et al., arXiv 2410.23771, and its code (`finetune/finetune.py:loss_weight`); RWKV-X
//! `pretrain/src/model.py:compute_longce_loss`.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::RwkvX;
use serde::{Deserialize, Serialize};

use crate::head_loss;
use crate::{Error, Result};

/// Settings of LongCE.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongCe {
    /// Least number of tokens before a token in the short pass (K).
    pub context: usize,
    /// Tokens that one short pass serves.
    pub stride: usize,
    /// Largest weight.
    pub gamma: f64,
    /// Where the first short pass starts: 0, or K to leave the first 2K tokens at weight 1.
    pub first: usize,
    /// Every how many-th short pass is made; the tokens of the others weigh 1. More than 1 makes LongCE cheaper.
    #[serde(default = "LongCe::all_passes")]
    pub every: usize,
}

impl LongCe {
    /// As the RWKV-X code runs it: K = stride = 4000, gamma 10, the first pass starting at K.
    pub const RWKV_X: Self = Self {
        context: 4000,
        stride: 4000,
        gamma: 10.0,
        first: 4000,
        every: 1,
    };

    /// As the LongCE paper and code have it: K = 4096, stride 1024, gamma 5, from the start.
    pub const PAPER: Self = Self {
        context: 4096,
        stride: 1024,
        gamma: 5.0,
        first: 0,
        every: 1,
    };

    fn all_passes() -> usize {
        1
    }

    /// Checks the values; `field` is where they stand in the configuration.
    ///
    /// # Errors
    ///
    /// If a size is 0 or gamma is not a positive number.
    pub fn validate(&self, field: &str) -> Result<()> {
        for (name, value) in [
            ("context", self.context),
            ("stride", self.stride),
            ("every", self.every),
        ] {
            if value == 0 {
                return Err(Error::field(
                    format!("{field}.{name}"),
                    "must be at least 1",
                ));
            }
        }
        if !(self.gamma.is_finite() && self.gamma > 0.0) {
            let reason = format!("is {}, must be a positive number", self.gamma);
            return Err(Error::field(format!("{field}.gamma"), reason));
        }
        Ok(())
    }

    /// First token whose weight may differ from 1.
    pub fn first_weighted(&self) -> usize {
        self.first + self.context
    }

    /// The short passes over a sequence of `tokens` inputs: tokens read, and the tokens among them that are served.
    /// With `every` 1 the served ranges are `first_weighted()..tokens`; there are none when the sequence is too short.
    pub fn windows(&self, tokens: usize) -> Vec<(Range<usize>, Range<usize>)> {
        (self.first..tokens.saturating_sub(self.context))
            .step_by(self.stride)
            .step_by(self.every)
            .map(|start| {
                let served = start + self.context;
                let end = (served + self.stride).min(tokens);
                (start..end, served..end)
            })
            .collect()
    }

    /// Tokens that the short passes over a sequence read, which is what they cost.
    pub fn tokens_read(&self, tokens: usize) -> usize {
        let windows = self.windows(tokens).into_iter();
        windows.map(|(read, _)| read.len()).sum()
    }

    /// Tokens that they serve.
    pub fn tokens_served(&self, tokens: usize) -> usize {
        let windows = self.windows(tokens).into_iter();
        windows.map(|(_, served)| served.len()).sum()
    }

    /// Short-context losses of a batch, or `None` when no token is far enough from the start.
    ///
    /// Windows of one length are read side by side, as many as read no more tokens at once than the batch has.
    ///
    /// `model` is the model without gradients; `ids` and `targets` are `[batch, time]`.
    pub fn short_losses<B: KernelBackend>(
        &self,
        model: &RwkvX<B>,
        ids: &Tensor<B, 2, Int>,
        targets: &Tensor<B, 2, Int>,
    ) -> Option<ShortLosses<B>> {
        let [batch, time] = ids.dims();
        let windows = self.windows(time);
        let mut nll = Tensor::zeros([batch, time], &ids.device());
        let mut served_at = vec![false; time];
        for windows in windows.chunk_by(|(left, _), (right, _)| left.len() == right.len()) {
            let length = windows[0].0.len();
            for windows in windows.chunks((time / length).max(1)) {
                let part = |all: &Tensor<B, 2, Int>, range: &Range<usize>| {
                    all.clone().slice_dim(1, range.clone())
                };
                let read = windows.iter().map(|(read, _)| part(ids, read));
                let aims = windows.iter().map(|(_, served)| part(targets, served));
                let losses = self.served_losses(
                    model,
                    Tensor::cat(read.collect(), 0),
                    Tensor::cat(aims.collect(), 0),
                );
                for (at, (_, served)) in windows.iter().enumerate() {
                    let losses = losses.clone().slice_dim(0, at * batch..(at + 1) * batch);
                    nll = nll.slice_assign([0..batch, served.clone()], losses);
                    served_at[served.clone()].fill(true);
                }
            }
        }
        let early = served_at
            .iter()
            .map(|served| !served)
            .collect::<Vec<bool>>();
        let early = Tensor::<B, 1, Bool>::from_data(TensorData::from(&early[..]), &ids.device());
        (!windows.is_empty()).then(|| ShortLosses {
            nll,
            early: early.unsqueeze::<2>().expand([batch, time]),
            gamma: self.gamma,
        })
    }

    /// Losses of the tokens that windows `[rows, window]` serve, which are the last ones; `[rows, served]` as `targets`.
    fn served_losses<B: KernelBackend>(
        &self,
        model: &RwkvX<B>,
        ids: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        let [_, window] = ids.dims();
        let hidden = model.hidden(ids).slice_dim(1, self.context..window); // [rows, served, channels]
        head_loss::token_losses(hidden, model.rwkv.head.weight.val(), targets)
    }
}

/// Losses of the short passes.
#[derive(Clone, Debug)]
pub struct ShortLosses<B: Backend> {
    /// Loss of each token in nats, `[batch, time]`.
    pub nll: Tensor<B, 2>,
    /// Tokens that no short pass served: their weight is 1. `[batch, time]`
    pub early: Tensor<B, 2, Bool>,
    /// Largest weight.
    pub gamma: f64,
}

impl<B: Backend> ShortLosses<B> {
    /// The weight of every token, given its loss in the whole sequence, of the same shape.
    pub fn weights(self, nll_full: Tensor<B, 2>) -> Tensor<B, 2> {
        (self.nll - nll_full)
            .exp()
            .clamp_max(self.gamma)
            .mask_fill(self.early, 1.0)
    }

    /// The same with one token per row, `[batch * time, 1]`.
    pub(crate) fn into_rows(self) -> Self {
        let [batch, time] = self.nll.dims();
        Self {
            nll: self.nll.reshape([batch * time, 1]),
            early: self.early.reshape([batch * time, 1]),
            gamma: self.gamma,
        }
    }

    /// Rows `start..end` of [`ShortLosses::into_rows`].
    pub(crate) fn rows(&self, start: usize, end: usize) -> Self {
        Self {
            nll: self.nll.clone().slice([start..end, 0..1]),
            early: self.early.clone().slice([start..end, 0..1]),
            gamma: self.gamma,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn served_ranges_tile_the_sequence_from_the_first_weighted_token() {
        let settings = [
            LongCe::RWKV_X,
            LongCe::PAPER,
            LongCe {
                context: 16,
                stride: 5,
                gamma: 10.0,
                first: 3,
                every: 1,
            },
        ];
        for longce in settings {
            for tokens in [1, 20, 90, 4_096, 4_097, 8_000, 8_001, 64_000] {
                let mut next = longce.first_weighted();
                for (read, served) in longce.windows(tokens) {
                    assert_eq!(served.start, next);
                    assert_eq!(served.end, read.end);
                    assert!(served.start - read.start == longce.context && !served.is_empty());
                    next = served.end;
                }
                assert_eq!(
                    next.max(tokens),
                    next.max(longce.first_weighted()),
                    "{tokens}"
                );
            }
        }
    }

    #[test]
    fn rwkv_x_runs_fourteen_passes_of_8000_tokens_at_64000() {
        let windows = LongCe::RWKV_X.windows(64_000);
        assert_eq!(windows.len(), 14);
        assert!(windows.iter().all(|(read, _)| read.len() == 8_000));
        assert_eq!(windows[0], (4_000..12_000, 8_000..12_000));
    }

    #[test]
    fn the_paper_starts_at_the_first_token_and_shortens_the_last_pass() {
        let windows = LongCe::PAPER.windows(4_096 + 1_500);
        assert_eq!(
            windows,
            [(0..5_120, 4_096..5_120), (1_024..5_596, 5_120..5_596)]
        );
    }
}
