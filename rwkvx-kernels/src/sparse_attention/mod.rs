//! Chunk top-k sparse attention.
//!
//! Time is cut into chunks of `chunk_size` tokens. Per head, a query attends to
//!
//! * its own chunk, up to and including itself, and
//! * the `top_k - 1` earlier chunks with the largest `query . mean(keys of the chunk)`; of equal ones the earlier.
//!
//! One softmax, scaled by `head_size^-1/2`, runs over the union. There is no positional encoding, and the choice carries no
//! gradient. Up to `chunk_size * top_k` tokens this is full causal attention.

pub(crate) mod autodiff;
pub(crate) mod budget;
mod cache;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;
pub(crate) mod teach;

pub use budget::CacheBudget;
pub use cache::{CacheContents, CachedRows, KvCache};
pub use teach::teach_choice;

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// What a query may see: chunks of `chunk_size` tokens, `top_k` of them, its own included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkTopK {
    /// Tokens per chunk, at least 1.
    pub chunk_size: usize,
    /// Chunks per query, at least 1, which is its own alone.
    pub top_k: usize,
}

impl ChunkTopK {
    /// Panics on a zero, naming it.
    fn check(self) {
        assert!(
            self.chunk_size > 0,
            "sparse_attention: `chunk_size` must be at least 1, found 0"
        );
        assert!(
            self.top_k > 0,
            "sparse_attention: `top_k` must be at least 1, found 0"
        );
    }
}

/// Inputs of the attention over a whole sequence; three sequences `[batch, time, heads, head_size]`.
#[derive(Debug, Clone)]
pub struct AttentionInputs<B: Backend> {
    /// What each token looks for.
    pub query: Tensor<B, 4>,
    /// What each token is found by.
    pub key: Tensor<B, 4>,
    /// What each token gives.
    pub value: Tensor<B, 4>,
    /// What a query may see.
    pub shape: ChunkTopK,
}

/// Gradients of a loss with respect to the sequences of [`AttentionInputs`].
#[derive(Debug, Clone)]
pub struct AttentionGrads<B: Backend> {
    /// With respect to `query`.
    pub query: Tensor<B, 4>,
    /// With respect to `key`.
    pub key: Tensor<B, 4>,
    /// With respect to `value`.
    pub value: Tensor<B, 4>,
}

/// Computes the output and what else the backward pass needs: a tensor in the backend's own layout.
pub type AttentionForward<B> = fn(&AttentionInputs<B>) -> (Tensor<B, 4>, Tensor<B, 4>);

/// From the inputs, both results of the forward pass and the gradient of the output, the gradients of the inputs.
pub type AttentionBackward<B> = fn(
    inputs: &AttentionInputs<B>,
    output: Tensor<B, 4>,
    saved: Tensor<B, 4>,
    d_output: Tensor<B, 4>,
) -> AttentionGrads<B>;

/// A backend's own training passes, hooked into the gradient graph by `Autodiff`.
#[derive(Debug)]
pub struct AttentionGradient<B: Backend> {
    /// The forward pass.
    pub forward: AttentionForward<B>,
    /// The backward pass.
    pub backward: AttentionBackward<B>,
}

/// Attends over a whole sequence; `query`, `key`, `value` and the result are `[batch, time, heads, head_size]`.
///
/// Differentiable in all three. Any number of tokens, a whole number of chunks or not.
///
/// # Panics
/// If the three differ in shape or have an empty axis, or `shape` holds a zero.
pub fn sparse_attention<B: KernelBackend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    shape.check();
    check_sequences(
        "sparse_attention",
        &query,
        &[("key", &key), ("value", &value)],
    );
    B::sparse_attention(query, key, value, shape)
}

/// Panics if `query` has an empty axis, or one of the others, each with its name, another shape.
fn check_sequences<B: Backend>(
    operator: &str,
    query: &Tensor<B, 4>,
    others: &[(&str, &Tensor<B, 4>)],
) {
    let axes = "[batch, time, heads, head_size]";
    let dims = query.dims();
    assert!(
        dims.iter().all(|&size| size > 0),
        "{operator}: `query` must be {axes} with no axis empty, found {dims:?}"
    );
    for (name, tensor) in others {
        shapes::expect(operator, name, axes, tensor, dims);
    }
}
