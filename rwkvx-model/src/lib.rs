//! RWKV-X: RWKV-7 recurrent blocks with top-k chunk sparse attention between them, generic over Burn backends.
//!
//! | module | step |
//! | --- | --- |
//! | [`config`] | the sizes of a model, their checks, the published shapes |
//! | [`tokens`] | token ids become a tensor, the one bridge from plain data |
//! | [`model`] | embedding, blocks, head; `forward` for training, `prefill` and `step` for inference |
//! | [`state`] | what inference carries from one piece of text to the next |
//! | [`names`] | published name, id, shape and role of every parameter |
//! | [`init`] | the first value of every parameter |
//! | [`expand()`] | sparse blocks grown into a trained RWKV-7 |
//! | [`checkpoint`] | `.pth` and `.safetensors` |
//! | [`sample`], [`Session`], [`generate()`], [`greedy()`] | from logits to tokens; batches, saved states |
//! | [`score()`] | how likely the ends of texts are |
//! | [`backend`] | the backends compiled in by features, for programs that let their user choose |
//!
//! ```
//! use burn::tensor::{Int, Tensor};
//! use rwkvx_model::RwkvXConfig;
//! type B = burn::backend::Flex;
//!
//! let device = Default::default();
//! let model = RwkvXConfig::tiny(257).init::<B>(&device);
//! let ids = rwkvx_model::tokens::ids_tensor::<B>(&[&[5, 6, 7]], 257, &device)?;
//! let logits = model.forward(ids); // [batch, time, vocab]
//! assert_eq!(logits.dims(), [1, 3, 257]);
//! # Ok::<(), rwkvx_model::Error>(())
//! ```

#![deny(missing_docs)]

#[cfg(any(
    feature = "cuda",
    feature = "vulkan",
    feature = "wgpu",
    feature = "flex",
    feature = "ndarray"
))]
pub mod backend;
mod block;
mod channel_mix;
pub mod checkpoint;
pub mod config;
mod error;
mod expand;
mod files;
pub mod init;
mod key_conv;
mod layers;
pub mod model;
pub mod names;
mod process;
pub mod sample;
mod score;
mod session;
mod sparse_attention;
pub mod state;
mod state_file;
mod threads;
mod time_mix;
mod token_shift;
pub mod tokens;

pub use block::{RwkvBlock, SparseBlock};
pub use channel_mix::ChannelMix;
pub use config::RwkvXConfig;
pub use error::Error;
pub use expand::{SparseStart, expand};
pub use files::write_beside;
pub use layers::{Embedding, LayerNorm, Projection};
pub use model::{Rwkv7, RwkvX};
pub use process::{most_resident_bytes, resident_bytes};
pub use score::{Score, ScoredText, score};
pub use session::{GenerateOptions, Made, PREFILL_PIECE, Session, generate, greedy};
pub use sparse_attention::SparseAttention;
pub use state::State;
pub use threads::compute_on_this_thread;
pub use time_mix::TimeMix;

pub use rwkvx_kernels::CacheBudget;
