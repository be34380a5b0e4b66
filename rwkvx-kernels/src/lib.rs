//! The sequence operators of RWKV-X, generic over Burn backends:
//!
//! * [`wkv7`]: the RWKV-7 recurrence (a matrix-valued state with a decay and a rank-one correction per token);
//! * [`sparse_attention`](sparse_attention()): causal attention to the query's own chunk and its best earlier chunks, with [`KvCache`] for
//!   prefill in pieces and decoding;
//! * [`project`](project()): rows times weights of 32, 16 or 8 bits, and [`project_all`], several such products at once;
//! * [`embedding`](embedding()), the rows of a table, and [`layer_norm`](layer_norm()), the norm before every mix;
//! * [`token_shift`], [`prepare_keys`], [`mix_value`] and [`gate_output`]: what a time mix does around its recurrence; [`norm_and_shift`] and
//!   [`mix_heads`]: the same together with what is next to it;
//! * [`cross_entropy_rows`] and [`cross_entropy_gradient`]: loss and gradient of logits that are made a piece at a time, and
//!   [`with_gradient`], which hands gradients made that way to autodiff;
//! * [`sample`](sample()): from logits to tokens, with penalties, cuts and temperature;
//!
//! and the element-wise functions [`sigmoid`], [`tanh`] and [`squared_relu`].
//!
//! [`KernelBackend`] is the seam. Its method bodies are the definitions, written in tensor operations, so every backend
//! has them; backends replace them by hand-written forward and backward bodies, which
//! [`Autodiff`](burn::backend::Autodiff) hooks into the gradient graph.
//!
//! Axes are written as suffixes or comments in the order of the tensor: batch, time, heads, head_size for sequences and
//! batch, heads, value, key for states. Statistics, states and sums are f32.
#![deny(missing_docs)]

mod backend;
#[cfg(feature = "cpu")]
mod cpu;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
mod embedding;
#[cfg(feature = "fusion")]
mod fusion;
mod joint;
mod known_gradient;
mod layer_norm;
mod long_product;
#[cfg(any(feature = "cpu", feature = "cube"))]
mod padding;
mod pointwise;
mod project;
mod sample;
mod shapes;
mod sparse_attention;
mod time_mix;
mod wkv7;

pub use backend::{AllReduce, KernelBackend};
pub use cross_entropy::{RowLosses, cross_entropy_gradient, cross_entropy_rows};
pub use embedding::embedding;
pub use known_gradient::with_gradient;
pub use layer_norm::{LayerNormGrads, layer_norm};
pub use long_product::{long_product, long_product_transposed};
pub use pointwise::{Pointwise, sigmoid, squared_relu, tanh};
pub use project::{Product, WeightLayout, int8_group, int8_scheme, project, project_all};
pub use sample::{BANNED, Draw, NONE_LEFT, NOT_A_NUMBER, Sampled, sample, sample_row};
pub use sparse_attention::{
    AttentionBackward, AttentionForward, AttentionGradient, AttentionGrads, AttentionInputs,
    CacheBudget, CacheContents, CachedRows, ChunkTopK, KvCache, sparse_attention, teach_choice,
};
pub use time_mix::{
    HeadInputs, HeadOutputs, KeyInputs, Keys, OutputInputs, ShiftBackward, ShiftGrads, ShiftInputs,
    Shifted, TimeMixBackward, ValueInputs, Values, gate_output, mix_heads, mix_value,
    norm_and_shift, prepare_keys, token_shift,
};
pub use wkv7::{Wkv7Backward, Wkv7Forward, Wkv7Gradient, Wkv7Grads, Wkv7Inputs, Wkv7Output, wkv7};

/// The definitions in tensor operations, which the trait's default methods call.
///
/// Public so that a hand-written body can be compared with its definition on the same backend.
pub mod reference {
    pub use crate::cross_entropy::reference::{cross_entropy_gradient, cross_entropy_rows};
    pub use crate::embedding::reference::embedding;
    pub use crate::layer_norm::reference::layer_norm;
    pub use crate::project::reference::project;
    pub use crate::sample::reference::sample;
    pub use crate::sparse_attention::budget::most_observed;
    pub use crate::sparse_attention::reference::{attend as attend_cached, sparse_attention};
    pub use crate::time_mix::reference::{
        gate_output, mix_heads, mix_value, norm_and_shift, prepare_keys, token_shift,
    };
    pub use crate::wkv7::reference::wkv7;
}
