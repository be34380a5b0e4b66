//! The projections around top-k chunk attention.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{
    ChunkTopK, KernelBackend, KvCache, project_all, sparse_attention, teach_choice,
};

use crate::config::RwkvXConfig;
use crate::key_conv::convolve;
use crate::layers::{LayerNorm, Projection, each, unset};

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
    /// Weights of the convolution over the keys, `[key_conv, channels]`; published models have none.
    pub key_conv: Option<Param<Tensor<B, 2>>>,
    /// How much the attention teaches the choice of chunks, see [`teach_choice`].
    #[module(skip)]
    pub(crate) choice_weight: f64,
}

/// What a sparse attention carries from one piece of text to the next.
#[derive(Debug, Clone)]
pub(crate) struct AttentionState<B: Backend> {
    pub(crate) cache: KvCache<B>,
    /// The last keys before the convolution, `[batch, key_conv - 1, channels]`, where there is one.
    pub(crate) key_carry: Option<Tensor<B, 3>>,
}

impl<B: Backend> SparseAttention<B> {
    pub(crate) fn unset(config: &RwkvXConfig, device: &B::Device) -> Self {
        let square = || Projection::unset(config.channels, config.channels, device);
        Self {
            receptance: square(),
            key: square(),
            value: square(),
            output: square(),
            key_conv: (config.key_conv > 0)
                .then(|| unset([config.key_conv, config.channels], device)),
            choice_weight: 0.0,
        }
    }
}

impl<B: KernelBackend> SparseAttention<B> {
    /// Adds the attention of the norm of `x` to `x`, the stream `[batch, time, channels]`. With a `state` the text goes on from
    /// what it holds; without, it starts here.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        norm: &LayerNorm<B>,
        head_size: usize,
        shape: ChunkTopK,
        state: Option<&mut AttentionState<B>>,
    ) -> Tensor<B, 3> {
        let bthc @ [batch, time, channels] = x.dims();
        let bthn = [batch, time, channels / head_size, head_size];
        let (cache, carry) = match state {
            Some(state) => (Some(&mut state.cache), state.key_carry.as_mut()),
            None => (None, None),
        };
        let x = x.reshape([batch * time, channels]);
        let normal = norm.forward(x.clone()); // [rows, channels]
        let projections = [&self.receptance, &self.key, &self.value];
        let products = projections.map(|projection| projection.product(normal.clone()));
        let [query, mut key, value] = each(project_all(products.into()));
        if let Some(weight) = &self.key_conv {
            key = convolve(key.reshape(bthc), weight.val(), carry).reshape([-1, channels as i64]);
        }
        let [mut query, mut key, value] = [query, key, value].map(|rows| rows.reshape(bthn));
        if self.choice_weight > 0.0 {
            [query, key] = teach_choice(query, key, shape.chunk_size, self.choice_weight);
        }
        let output = match cache {
            Some(cache) => cache.attend(query, key, value),
            None => sparse_attention(query, key, value, shape),
        };
        let output = output.reshape([batch * time, channels]);
        self.output.product(output).plus(x).make().reshape(bthc)
    }
}
