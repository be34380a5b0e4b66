//! The small layers: projection, embedding, layer norm, group norm. Their fields carry the published names.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use rwkvx_kernels::{KernelBackend, Product, WeightLayout, embedding, layer_norm};

/// A parameter that has its shape but no value yet. It holds zeros if it is ever read before it is given one.
pub(crate) fn unset<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| Tensor::zeros(shape, device).set_require_grad(require_grad),
        device.clone(),
        true,
        shape.into(),
    )
}

/// A linear map without bias, stored `[out, in]` as PyTorch does, so that loading transposes nothing.
#[derive(Module, Debug)]
pub struct Projection<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Projection<B> {
    pub(crate) fn unset(output: usize, input: usize, device: &B::Device) -> Self {
        Self {
            weight: unset([output, input], device),
        }
    }
}

impl<B: KernelBackend> Projection<B> {
    /// `x W^T`, `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.product(x).make()
    }

    /// The same, to be made with others or with something done to it.
    pub(crate) fn product(&self, x: Tensor<B, 2>) -> Product<B> {
        Product::new(x, self.weight.val(), WeightLayout::OutIn)
    }
}

/// The results of N products.
pub(crate) fn each<B: Backend, const N: usize>(made: Vec<Tensor<B, 2>>) -> [Tensor<B, 2>; N] {
    made.try_into().expect("a result per product")
}

/// One row per token id.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocab, channels]`.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Embedding<B> {
    pub(crate) fn unset(vocab_size: usize, channels: usize, device: &B::Device) -> Self {
        Self {
            weight: unset([vocab_size, channels], device),
        }
    }
}

impl<B: KernelBackend> Embedding<B> {
    /// `[batch, time]` to `[batch, time, channels]`.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, time] = ids.dims();
        let rows = embedding(self.weight.val(), ids.reshape([batch * time])); // [rows, channels]
        rows.reshape([batch as i64, time as i64, -1])
    }
}

/// Layer norm over the channels, epsilon 1e-5.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[channels]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> LayerNorm<B> {
    pub(crate) fn unset(channels: usize, device: &B::Device) -> Self {
        Self {
            weight: unset([channels], device),
            bias: unset([channels], device),
        }
    }
}

impl<B: KernelBackend> LayerNorm<B> {
    /// Normalises the last axis.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let dims = x.dims();
        let [channels] = self.weight.dims();
        let rows = x.reshape([-1, channels as i64]);
        layer_norm(rows, self.weight.val(), self.bias.val()).reshape(dims)
    }
}

/// The parameters of a group norm with one group per head, which [`gate_output`](rwkvx_kernels::gate_output) applies.
#[derive(Module, Debug)]
pub struct GroupNorm<B: Backend> {
    /// `[channels]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> GroupNorm<B> {
    pub(crate) fn unset(channels: usize, device: &B::Device) -> Self {
        Self {
            weight: unset([channels], device),
            bias: unset([channels], device),
        }
    }
}
