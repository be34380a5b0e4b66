//! What inference carries from one piece of text to the next.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{CacheBudget, KernelBackend, KvCache};

use crate::config::RwkvXConfig;
use crate::sparse_attention::AttentionState;
use crate::time_mix::TimeMixState;

/// The state of a batch of texts: constant in size for the recurrent blocks, growing by one key and one value per token
/// and sparse block for the others, up to their [`CacheBudget`] if they have one.
///
/// A clone is a branch: the two go on apart from each other, and share what they have until then.
#[derive(Debug, Clone)]
pub struct State<B: Backend> {
    pub(crate) recurrent: Vec<RecurrentState<B>>,
    pub(crate) sparse: Vec<SparseState<B>>,
    pub(crate) tokens: usize,
    batch: usize,
}

/// State of a recurrent block.
#[derive(Debug, Clone)]
pub(crate) struct RecurrentState<B: Backend> {
    pub(crate) time_mix: TimeMixState<B>,
    /// The channel mix's last normalised input, `[batch, channels]`.
    pub(crate) channel_carry: Tensor<B, 2>,
}

/// State of a sparse block.
#[derive(Debug, Clone)]
pub(crate) struct SparseState<B: Backend> {
    pub(crate) attention: AttentionState<B>,
    /// The channel mix's last normalised input, `[batch, channels]`.
    pub(crate) channel_carry: Tensor<B, 2>,
}

impl<B: KernelBackend> State<B> {
    /// The state before the first token of `batch` texts.
    ///
    /// # Panics
    /// If `batch` is 0 and there are sparse blocks.
    pub fn new(config: &RwkvXConfig, batch: usize, device: &B::Device) -> Self {
        let (heads, head_size) = (config.n_head(), config.head_size);
        let carry = || Tensor::zeros([batch, config.channels], device);
        let recurrent = || RecurrentState {
            time_mix: TimeMixState {
                carry: carry(),
                wkv: Tensor::zeros([batch, heads, head_size, head_size], device),
            },
            channel_carry: carry(),
        };
        let key_carry = |width: usize| Tensor::zeros([batch, width, config.channels], device);
        let sparse = || SparseState {
            attention: AttentionState {
                cache: KvCache::new(batch, heads, head_size, config.attention(), device),
                key_carry: config.key_conv.checked_sub(1).map(key_carry),
            },
            channel_carry: carry(),
        };
        Self {
            recurrent: (0..config.n_layer).map(|_| recurrent()).collect(),
            sparse: (0..config.n_sparse).map(|_| sparse()).collect(),
            tokens: 0,
            batch,
        }
    }

    /// The same state, whose caches will hold no more tokens than `budget` says; before the first token.
    ///
    /// # Panics
    /// If the budget is impossible, or tokens were seen.
    pub fn with_cache_budget(mut self, budget: CacheBudget) -> Self {
        let sparse = self.sparse.into_iter().map(|block| SparseState {
            attention: AttentionState {
                cache: block.attention.cache.with_budget(budget),
                ..block.attention
            },
            ..block
        });
        self.sparse = sparse.collect();
        self
    }

    /// What the caches may hold, if that is bounded.
    pub fn cache_budget(&self) -> Option<CacheBudget> {
        let first = self.sparse.first();
        first.and_then(|block| block.attention.cache.budget())
    }

    /// Makes room for texts of so many tokens in all, where that is known, so that no cache is moved as it grows.
    pub fn reserve(&mut self, tokens: usize) {
        for block in &mut self.sparse {
            block.attention.cache.reserve(tokens);
        }
    }

    /// Tokens seen so far, per text.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of texts.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Bytes of it that the next token reads and writes: the recurrent states twice, and the keys and values it may see.
    pub fn step_bytes(&self) -> usize {
        let recurrent = self
            .recurrent
            .iter()
            .map(|block| 2 * size_of::<f32>() * block.time_mix.wkv.shape().num_elements());
        let sparse = self.sparse.iter();
        let sparse = sparse.map(|block| block.attention.cache.step_bytes());
        recurrent.sum::<usize>() + sparse.sum::<usize>()
    }

    /// Bytes held on the device: recurrent states, token-shift carries and the caches of the sparse blocks.
    pub fn bytes(&self) -> usize {
        let float = size_of::<f32>();
        let recurrent = self.recurrent.iter().map(|block| {
            let time_mix = &block.time_mix;
            float
                * (time_mix.carry.shape().num_elements()
                    + time_mix.wkv.shape().num_elements()
                    + block.channel_carry.shape().num_elements())
        });
        let sparse = self.sparse.iter().map(|block| {
            let keys = block.attention.key_carry.as_ref();
            let keys = keys.map_or(0, |carry| carry.shape().num_elements());
            let carries = keys + block.channel_carry.shape().num_elements();
            block.attention.cache.bytes() + float * carries
        });
        recurrent.sum::<usize>() + sparse.sum::<usize>()
    }
}
