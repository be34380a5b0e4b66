//! The two kinds of block: both are a mix over time and a mix over channels, each behind a norm and added to the stream.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::KernelBackend;

use crate::channel_mix::ChannelMix;
use crate::config::RwkvXConfig;
use crate::layers::LayerNorm;
use crate::sparse_attention::SparseAttention;
use crate::state::{RecurrentState, SparseState};
use crate::time_mix::TimeMix;

/// `x += time_mix(ln1 x); x += channel_mix(ln2 x)`.
#[derive(Module, Debug)]
pub struct RwkvBlock<B: Backend> {
    /// Norm of the embedding; only block 0 has it.
    pub ln0: Option<LayerNorm<B>>,
    /// Norm before the time mix.
    pub ln1: LayerNorm<B>,
    /// Norm before the channel mix.
    pub ln2: LayerNorm<B>,
    /// The recurrence.
    pub att: TimeMix<B>,
    /// The feed-forward.
    pub ffn: ChannelMix<B>,
}

impl<B: Backend> RwkvBlock<B> {
    pub(crate) fn unset(config: &RwkvXConfig, layer: usize, device: &B::Device) -> Self {
        let norm = || LayerNorm::unset(config.channels, device);
        Self {
            ln0: (layer == 0).then(norm),
            ln1: norm(),
            ln2: norm(),
            att: TimeMix::unset(config, layer, device),
            ffn: ChannelMix::unset(config, device),
        }
    }
}

impl<B: KernelBackend> RwkvBlock<B> {
    /// `x` is the residual stream, `[batch, time, channels]`; `value_first` as in [`TimeMix`].
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        value_first: &mut Option<Tensor<B, 2>>,
        state: Option<&mut RecurrentState<B>>,
    ) -> Tensor<B, 3> {
        let (time_mix, channel_carry) = match state {
            Some(state) => (Some(&mut state.time_mix), Some(&mut state.channel_carry)),
            None => (None, None),
        };
        let x = match &self.ln0 {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let x = self.att.forward(x, &self.ln1, value_first, time_mix);
        self.ffn.forward(x, &self.ln2, channel_carry)
    }
}

/// `x += sparse_attention(ln1 x); x += channel_mix(ln2 x)`. Layer 0's value passes it by.
#[derive(Module, Debug)]
pub struct SparseBlock<B: Backend> {
    /// Norm before the attention.
    pub ln1: LayerNorm<B>,
    /// Norm before the channel mix.
    pub ln2: LayerNorm<B>,
    /// The attention.
    pub att: SparseAttention<B>,
    /// The feed-forward.
    pub ffn: ChannelMix<B>,
}

impl<B: Backend> SparseBlock<B> {
    pub(crate) fn unset(config: &RwkvXConfig, device: &B::Device) -> Self {
        let norm = || LayerNorm::unset(config.channels, device);
        Self {
            ln1: norm(),
            ln2: norm(),
            att: SparseAttention::unset(config, device),
            ffn: ChannelMix::unset(config, device),
        }
    }
}

impl<B: KernelBackend> SparseBlock<B> {
    /// `x` is the residual stream, `[batch, time, channels]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        config: &RwkvXConfig,
        state: Option<&mut SparseState<B>>,
    ) -> Tensor<B, 3> {
        let (attention, channel_carry) = match state {
            Some(state) => (Some(&mut state.attention), Some(&mut state.channel_carry)),
            None => (None, None),
        };
        let (size, shape) = (config.head_size, config.attention());
        let x = self.att.forward(x, &self.ln1, size, shape, attention);
        self.ffn.forward(x, &self.ln2, channel_carry)
    }
}
