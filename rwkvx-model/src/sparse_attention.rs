//! The projections around top-k chunk attention.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{ChunkTopK, KernelBackend, KvCache, sparse_attention};

use crate::config::RwkvXConfig;
use crate::layers::Projection;

/// Causal attention of every query to its own chunk and its `top_k - 1` best earlier ones. No bias, no positional
/// encoding, scale `head_size^-1/2`; the query projection is published as `receptance`.
#[derive(Module, Debug)]
pub struct SparseAttention<B: Backend> {
    /// The queries, `[channels, channels]`.
    pub receptance: Projection<B>,
    /// `[channels, channels]`.
    pub key: Projection<B>,
    /// `[channels, channels]`.
    pub value: Projection<B>,
    /// `[channels, channels]`.
    pub output: Projection<B>,
}

impl<B: Backend> SparseAttention<B> {
    pub(crate) fn unset(config: &RwkvXConfig, device: &B::Device) -> Self {
        let square = || Projection::unset(config.channels, config.channels, device);
        Self {
            receptance: square(),
            key: square(),
            value: square(),
            output: square(),
        }
    }
}

impl<B: KernelBackend> SparseAttention<B> {
    /// `x` is the normalised input, `[batch, time, channels]`, and so is the result. With a `cache` the text goes on from
    /// what it holds; without, it starts here.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        head_size: usize,
        shape: ChunkTopK,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let [batch, time, channels] = x.dims();
        let bthn = [batch, time, channels / head_size, head_size];
        let x = x.reshape([batch * time, channels]);
        let query = self.receptance.forward(x.clone()).reshape(bthn);
        let key = self.key.forward(x.clone()).reshape(bthn);
        let value = self.value.forward(x).reshape(bthn);
        let output = match cache {
            Some(cache) => cache.attend(query, key, value),
            None => sparse_attention(query, key, value, shape),
        };
        self.output
            .forward(output.reshape([batch * time, channels]))
            .reshape([batch, time, channels])
    }
}
