//! The sizes of a model.

use std::path::Path;

use rwkvx_kernels::ChunkTopK;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Head size of all published models.
pub const HEAD_SIZE: usize = 64;
/// Tokens per attention chunk in the published models; checkpoints of others do not store it.
pub const CHUNK_SIZE: usize = 2048;
/// Chunks a query attends to in the published models, its own included.
pub const TOP_K: usize = 3;
/// Tokens in the RWKV World vocabulary, padded as the published models have it.
pub const WORLD_VOCAB_SIZE: usize = 65536;

/// All sizes that define an RWKV-X model; RWKV-7 is the case `n_sparse = 0`.
///
/// In JSON `vocab_size`, `channels` and `n_layer` are required. The others default to the published head size 64, no
/// sparse blocks, chunk size 2048, top-k 3, and ranks by RWKV-LM's current formula. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawConfig")]
pub struct RwkvXConfig {
    /// Number of token ids, V.
    pub vocab_size: usize,
    /// Width of the residual stream, C; a multiple of `head_size`.
    pub channels: usize,
    /// Channels per head, N.
    pub head_size: usize,
    /// Number of recurrent blocks, L.
    pub n_layer: usize,
    /// Number of sparse attention blocks, M; one follows every L/M recurrent blocks. Divides `n_layer`.
    pub n_sparse: usize,
    /// Tokens per attention chunk, B.
    pub chunk_size: usize,
    /// Chunks a query attends to: its own and the `top_k - 1` best earlier ones.
    pub top_k: usize,
    /// Keys that the convolution over the keys of a sparse block takes in, at least 2; 0 for none, as in the published models.
    #[serde(skip_serializing_if = "is_zero")]
    pub key_conv: usize,
    /// Rank of the decay's low-rank pair (w1, w2).
    pub decay_rank: usize,
    /// Rank of the in-context learning rate's pair (a1, a2).
    pub rate_rank: usize,
    /// Rank of the value residual's pair (v1, v2).
    pub value_rank: usize,
    /// Rank of the gate's pair (g1, g2).
    pub gate_rank: usize,
}

/// The configuration as JSON has it, before defaults and checks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    vocab_size: usize,
    channels: usize,
    head_size: Option<usize>,
    n_layer: usize,
    n_sparse: Option<usize>,
    chunk_size: Option<usize>,
    top_k: Option<usize>,
    key_conv: Option<usize>,
    decay_rank: Option<usize>,
    rate_rank: Option<usize>,
    value_rank: Option<usize>,
    gate_rank: Option<usize>,
}

impl TryFrom<RawConfig> for RwkvXConfig {
    type Error = Error;

    fn try_from(raw: RawConfig) -> Result<Self, Error> {
        let base = Self::rwkv7(raw.vocab_size, raw.channels, raw.n_layer);
        let config = Self {
            head_size: raw.head_size.unwrap_or(base.head_size),
            n_sparse: raw.n_sparse.unwrap_or(base.n_sparse),
            chunk_size: raw.chunk_size.unwrap_or(base.chunk_size),
            top_k: raw.top_k.unwrap_or(base.top_k),
            key_conv: raw.key_conv.unwrap_or(base.key_conv),
            decay_rank: raw.decay_rank.unwrap_or(base.decay_rank),
            rate_rank: raw.rate_rank.unwrap_or(base.rate_rank),
            value_rank: raw.value_rank.unwrap_or(base.value_rank),
            gate_rank: raw.gate_rank.unwrap_or(base.gate_rank),
            ..base
        };
        config.validate()?;
        Ok(config)
    }
}

impl RwkvXConfig {
    /// RWKV-7 of these sizes: head size 64, no sparse blocks, ranks by RWKV-LM's current formula
    /// (`2.5 sqrt C`, `2.5 sqrt C`, `1.7 sqrt C`, `5 sqrt C`, each rounded to a multiple of 32, at least 32).
    pub fn rwkv7(vocab_size: usize, channels: usize, n_layer: usize) -> Self {
        let rank = |factor: f64| {
            let multiples = (factor * (channels as f64).sqrt() / 32.0).round_ties_even() as usize;
            32 * multiples.max(1)
        };
        Self {
            vocab_size,
            channels,
            head_size: HEAD_SIZE,
            n_layer,
            n_sparse: 0,
            chunk_size: CHUNK_SIZE,
            top_k: TOP_K,
            key_conv: 0,
            decay_rank: rank(2.5),
            rate_rank: rank(2.5),
            value_rank: rank(1.7),
            gate_rank: rank(5.0),
        }
    }

    /// A model of about a million parameters that learns on a CPU: C 128, L 4, M 1, chunks of 64 tokens.
    pub fn tiny(vocab_size: usize) -> Self {
        Self {
            n_sparse: 1,
            chunk_size: 64,
            ..Self::rwkv7(vocab_size, 128, 4)
        }
    }

    /// RWKV-7 World 0.1B, the base of the published 0.22B model: 191,034,624 parameters.
    pub fn world_0_1b() -> Self {
        Self::rwkv7(WORLD_VOCAB_SIZE, 768, 12).with_ranks(64, 64, 32, 128)
    }

    /// RWKV-7 World 2.9B, the base of the published 3.6B model: 2,947,735,040 parameters.
    pub fn world_2_9b() -> Self {
        Self::rwkv7(WORLD_VOCAB_SIZE, 2560, 32).with_ranks(96, 96, 64, 320)
    }

    /// The published RWKV-X 0.22B: 219,361,536 parameters.
    pub fn rwkvx_0_22b() -> Self {
        Self {
            n_sparse: 4,
            ..Self::world_0_1b()
        }
    }

    /// The published RWKV-X 3.6B: 3,576,983,040 parameters.
    pub fn rwkvx_3_6b() -> Self {
        Self {
            n_sparse: 8,
            ..Self::world_2_9b()
        }
    }

    fn with_ranks(
        self,
        decay_rank: usize,
        rate_rank: usize,
        value_rank: usize,
        gate_rank: usize,
    ) -> Self {
        Self {
            decay_rank,
            rate_rank,
            value_rank,
            gate_rank,
            ..self
        }
    }

    /// Reads a configuration from a JSON file.
    ///
    /// # Errors
    /// If the file cannot be read, is not the JSON of a configuration, or fails [`validate`](Self::validate).
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::Io {
            path: path.to_owned(),
            error,
        })?;
        serde_json::from_str(&text).map_err(|error| Error::Format {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Number of heads, C/N.
    pub fn n_head(&self) -> usize {
        self.channels / self.head_size
    }

    /// Width inside the channel mix, 4C.
    pub fn hidden(&self) -> usize {
        4 * self.channels
    }

    /// Chunk size and top-k as the attention kernel takes them.
    pub fn attention(&self) -> ChunkTopK {
        ChunkTopK {
            chunk_size: self.chunk_size,
            top_k: self.top_k,
        }
    }

    /// Recurrent blocks between two sparse ones, L/M; `None` for RWKV-7.
    pub fn interval(&self) -> Option<usize> {
        self.n_layer.checked_div(self.n_sparse)
    }

    /// The sparse block that follows recurrent block `layer`, if one does: block j follows block (j+1)L/M - 1.
    pub fn sparse_after(&self, layer: usize) -> Option<usize> {
        let interval = self.interval()?;
        (layer + 1)
            .is_multiple_of(interval)
            .then(|| layer / interval)
    }

    /// Number of parameters of the model, as published checkpoints count them (without the unused v0, v1, v2 of layer 0).
    pub fn parameters(&self) -> usize {
        let (c, v) = (self.channels, self.vocab_size);
        let ranks = self.decay_rank + self.rate_rank + self.value_rank + self.gate_rank;
        let recurrent = 19 * c + 12 * c * c + 2 * c * ranks;
        let sparse = 5 * c + 12 * c * c + self.key_conv * c;
        let unused = c + 2 * c * self.value_rank;
        2 * v * c + 4 * c + self.n_layer * recurrent - unused + self.n_sparse * sparse
    }

    /// Checks every size and their combinations.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first field that cannot be.
    pub fn validate(&self) -> Result<(), Error> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("channels", self.channels),
            ("head_size", self.head_size),
            ("n_layer", self.n_layer),
            ("chunk_size", self.chunk_size),
            ("top_k", self.top_k),
            ("decay_rank", self.decay_rank),
            ("rate_rank", self.rate_rank),
            ("value_rank", self.value_rank),
            ("gate_rank", self.gate_rank),
        ];
        for (name, value) in sizes {
            if value == 0 {
                return Err(Error::Config(format!("{name} is 0, it must be at least 1")));
            }
            if value > MAX_SIZE {
                return Err(Error::Config(format!(
                    "{name} is {value}, it must be at most {MAX_SIZE}"
                )));
            }
        }
        if self.key_conv == 1 || self.key_conv > MAX_KEY_CONV {
            return Err(Error::Config(format!(
                "key_conv is {}, it must be 0 for none, or 2 to {MAX_KEY_CONV}",
                self.key_conv
            )));
        }
        if !self.channels.is_multiple_of(self.head_size) {
            return Err(Error::Config(format!(
                "channels {} is not a multiple of head_size {}",
                self.channels, self.head_size
            )));
        }
        if self.n_sparse > 0 && !self.n_layer.is_multiple_of(self.n_sparse) {
            return Err(Error::Config(format!(
                "n_layer {} is not a multiple of n_sparse {}; every sparse block follows the same number of recurrent ones",
                self.n_layer, self.n_sparse
            )));
        }
        Ok(())
    }
}

/// The convolution is short: it is computed key by key.
const MAX_KEY_CONV: usize = 16;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// No size passes this, so that the products of two sizes the crate computes cannot overflow.
const MAX_SIZE: usize = 1 << 24;
