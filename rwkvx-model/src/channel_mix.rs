//! RWKV's channel mix: a squared-ReLU feed-forward behind a token shift.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{KernelBackend, Pointwise};

use crate::config::RwkvXConfig;
use crate::layers::{LayerNorm, Projection, unset};
use crate::token_shift::norm_and_shift;

/// `relu((x + d * x_k) K')^2 V'` with `d = x_{t-1} - x_t` and hidden size 4C.
#[derive(Module, Debug)]
pub struct ChannelMix<B: Backend> {
    /// Token-shift amount, `[channels]`.
    pub x_k: Param<Tensor<B, 1>>,
    /// `[4 channels, channels]`.
    pub key: Projection<B>,
    /// `[channels, 4 channels]`.
    pub value: Projection<B>,
}

impl<B: Backend> ChannelMix<B> {
    pub(crate) fn unset(config: &RwkvXConfig, device: &B::Device) -> Self {
        let (channels, hidden) = (config.channels, config.hidden());
        Self {
            x_k: unset([channels], device),
            key: Projection::unset(hidden, channels, device),
            value: Projection::unset(channels, hidden, device),
        }
    }
}

impl<B: KernelBackend> ChannelMix<B> {
    /// Adds the mix of the norm of `x` to `x`, the stream `[batch, time, channels]`. `carry`, `[batch, channels]`, holds the norm of the last token of
    /// the piece before and takes this one's.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        norm: &LayerNorm<B>,
        carry: Option<&mut Tensor<B, 2>>,
    ) -> Tensor<B, 3> {
        let bthc @ [batch, time, channels] = x.dims();
        let [x_k] = norm_and_shift(norm, x.clone(), carry, [&self.x_k]); // [rows, channels]
        let key = self.key.product(x_k).then(Pointwise::SquaredRelu).make(); // [rows, 4 channels]
        let x = x.reshape([batch * time, channels]);
        self.value.product(key).plus(x).make().reshape(bthc)
    }
}
