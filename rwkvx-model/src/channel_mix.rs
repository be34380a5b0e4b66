//! RWKV's channel mix: a squared-ReLU feed-forward behind a token shift.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{KernelBackend, squared_relu};

use crate::config::RwkvXConfig;
use crate::layers::{Projection, unset};
use crate::token_shift::token_shift;

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
    /// `x` is the normalised input, `[batch, time, channels]`, and so is the result. `carry`, `[batch, channels]`, holds
    /// the last input of the piece before and takes this one's.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        carry: Option<&mut Tensor<B, 2>>,
    ) -> Tensor<B, 3> {
        let bthc = x.dims();
        let [x_k] = token_shift(x, carry, [&self.x_k]); // [rows, channels]
        let key = squared_relu(self.key.forward(x_k)); // [rows, 4 channels]
        self.value.forward(key).reshape(bthc)
    }
}
