//! Block expansion (LLaMA Pro): sparse blocks grown into a trained RWKV-7.

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::ChunkTopK;

use crate::Error;
use crate::block::{RwkvBlock, SparseBlock};
use crate::channel_mix::ChannelMix;
use crate::config::RwkvXConfig;
use crate::init;
use crate::layers::{LayerNorm, Projection};
use crate::model::RwkvX;
use crate::sparse_attention::SparseAttention;

/// How a new sparse block starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SparseStart {
    /// As the recurrent block before it, but what it writes into the residual stream is zero: the expanded model computes exactly what the
    /// base did (the paper).
    #[default]
    Zero,
    /// As the recurrent block before it, the output projections included (the published code).
    Copy,
    /// Random, as in a new model, but for queries that equal the keys: tokens in like contexts attend to one another. It writes nothing at first. Seed the backend
    /// before, as for [`init`](RwkvXConfig::init).
    Fresh,
}

/// Grows `n_sparse` sparse blocks into `base`, whose own parameters keep their values and ids.
///
/// Sparse block j stands after recurrent block (j+1)L/M - 1 and starts from it, unless `start` is [`Fresh`](SparseStart::Fresh): receptance, key and value
/// projections and the channel mix (`x_k`, `key`) are copies; the norms are fresh. With `key_conv` above 0 its keys are convolved: half of their channels start as
/// those of the token before, with a little of all keys in reach.
///
/// # Errors
/// [`Error::Config`] if `base` has sparse blocks already, `n_sparse` is 0 or does not divide its number of layers, or
/// `shape` is impossible.
pub fn expand<B: Backend>(
    base: RwkvX<B>,
    n_sparse: usize,
    shape: ChunkTopK,
    key_conv: usize,
    start: SparseStart,
) -> Result<RwkvX<B>, Error> {
    if base.config().n_sparse > 0 {
        return Err(Error::Config(format!(
            "the model to expand has {} sparse blocks already; start from an RWKV-7 checkpoint",
            base.config().n_sparse
        )));
    }
    let config = RwkvXConfig {
        n_sparse,
        chunk_size: shape.chunk_size,
        top_k: shape.top_k,
        key_conv,
        ..base.config().clone()
    };
    config.validate()?;
    let Some(interval) = config.interval() else {
        return Err(Error::Config(
            "n_sparse is 0; expansion needs at least one sparse block".to_owned(),
        ));
    };
    let moba = base.rwkv.blocks.iter().skip(interval - 1).step_by(interval);
    let moba = moba
        .map(|block| sparse_from(block, key_conv, start))
        .collect();
    Ok(RwkvX::from_parts(base.rwkv, moba, config))
}

fn sparse_from<B: Backend>(
    block: &RwkvBlock<B>,
    key_conv: usize,
    start: SparseStart,
) -> SparseBlock<B> {
    let channels = block.ln1.weight.val().dims()[0];
    let device = block.ln1.weight.device();
    let data = |data| Tensor::from_data(data, &device);
    let read = |projection: &Projection<B>| match start {
        SparseStart::Zero | SparseStart::Copy => copied_projection(projection),
        SparseStart::Fresh => Projection {
            weight: fresh(data(init::orthogonal::<B>(
                &projection.weight.dims(),
                1.0,
                &device,
            ))),
        },
    };
    let written = |projection: &Projection<B>| match start {
        SparseStart::Copy => copied_projection(projection),
        SparseStart::Zero | SparseStart::Fresh => Projection {
            weight: fresh(projection.weight.val().detach().zeros_like()),
        },
    };
    let norm = || LayerNorm {
        weight: fresh(Tensor::ones([channels], &device)),
        bias: fresh(Tensor::zeros([channels], &device)),
    };
    let key = read(&block.att.key);
    let receptance = match start {
        SparseStart::Zero | SparseStart::Copy => copied_projection(&block.att.receptance),
        SparseStart::Fresh => copied_projection(&key),
    };
    SparseBlock {
        ln1: norm(),
        ln2: norm(),
        att: SparseAttention {
            receptance,
            key,
            value: read(&block.att.value),
            output: written(&block.att.output),
            key_conv: (key_conv > 0).then(|| fresh(data(init::key_conv(key_conv, channels)))),
            choice_weight: 0.0,
        },
        ffn: ChannelMix {
            x_k: copied(&block.ffn.x_k),
            key: read(&block.ffn.key),
            value: written(&block.ffn.value),
        },
    }
}

fn copied_projection<B: Backend>(projection: &Projection<B>) -> Projection<B> {
    Projection {
        weight: copied(&projection.weight),
    }
}

/// A parameter of its own with the value of another: a new id, and no edge to the other in the autodiff graph.
fn copied<B: Backend, const D: usize>(param: &Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
    fresh(param.val().detach())
}

fn fresh<B: Backend, const D: usize>(value: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::initialized(ParamId::new(), value.require_grad())
}
