//! The whole model: embedding, blocks, norm, head.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use rwkvx_kernels::KernelBackend;

use crate::block::{RwkvBlock, SparseBlock};
use crate::config::RwkvXConfig;
use crate::layers::{Embedding, LayerNorm, Projection};
use crate::names;
use crate::state::State;
use crate::threads::Awake;

/// The recurrent part: an RWKV-7 model of its own.
#[derive(Module, Debug)]
pub struct Rwkv7<B: Backend> {
    /// `[vocab, channels]`.
    pub emb: Embedding<B>,
    /// The recurrent blocks, in order.
    pub blocks: Vec<RwkvBlock<B>>,
    /// Norm before the head.
    pub ln_out: LayerNorm<B>,
    /// `[vocab, channels]`, not tied to the embedding.
    pub head: Projection<B>,
}

/// RWKV-X, and RWKV-7 where there are no sparse blocks. Fields are named as the published tensors.
#[derive(Module, Debug)]
pub struct RwkvX<B: Backend> {
    /// Embedding, recurrent blocks, head.
    pub rwkv: Rwkv7<B>,
    /// The sparse blocks, in order; one follows every L/M recurrent blocks.
    pub moba: Vec<SparseBlock<B>>,
    #[module(skip)]
    config: RwkvXConfig,
}

impl<B: Backend> RwkvX<B> {
    /// A model of this shape whose parameters have no values yet.
    pub(crate) fn unset(config: &RwkvXConfig, device: &B::Device) -> Self {
        let rwkv = Rwkv7 {
            emb: Embedding::unset(config.vocab_size, config.channels, device),
            blocks: (0..config.n_layer)
                .map(|layer| RwkvBlock::unset(config, layer, device))
                .collect(),
            ln_out: LayerNorm::unset(config.channels, device),
            head: Projection::unset(config.vocab_size, config.channels, device),
        };
        let moba = (0..config.n_sparse)
            .map(|_| SparseBlock::unset(config, device))
            .collect();
        Self::from_parts(rwkv, moba, config.clone())
    }

    /// Puts a model together; the parts must have the shapes of `config`.
    pub(crate) fn from_parts(
        rwkv: Rwkv7<B>,
        moba: Vec<SparseBlock<B>>,
        config: RwkvXConfig,
    ) -> Self {
        Self { rwkv, moba, config }
    }

    /// The sizes of this model.
    pub fn config(&self) -> &RwkvXConfig {
        &self.config
    }

    /// The recurrent part alone: an RWKV-7 of the same weights.
    pub fn without_sparse_blocks(&self) -> Self {
        let config = RwkvXConfig {
            n_sparse: 0,
            key_conv: 0,
            ..self.config.clone()
        };
        Self::from_parts(self.rwkv.clone(), Vec::new(), config)
    }

    /// The same model, whose gradients get that of `weight` times the loss of the choice of chunks added, see
    /// [`teach_choice`](rwkvx_kernels::teach_choice).
    #[must_use]
    pub fn teaching_choice(mut self, weight: f64) -> Self {
        for block in &mut self.moba {
            block.att.choice_weight = weight;
        }
        self
    }

    /// Bytes of the parameters as they are stored, without those of the embedding, of which a token needs one row: what a step reads at least.
    pub fn weight_bytes(&self) -> usize {
        names::parameters(self)
            .iter()
            .filter(|param| !param.name.ends_with("emb.weight"))
            .map(|param| param.bytes)
            .sum()
    }

    /// The device the parameters are on.
    pub fn device(&self) -> B::Device {
        self.rwkv.emb.weight.device()
    }
}

impl<B: KernelBackend> RwkvX<B> {
    /// Logits of every position of whole texts: `[batch, time]` to `[batch, time, vocab]`. Differentiable.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.head(self.hidden(ids))
    }

    /// The stream after the last norm, `[batch, time, channels]`; the head turns it into logits.
    pub fn hidden(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.rwkv.ln_out.forward(self.run(ids, None))
    }

    /// The residual stream before the first layer: `[batch, time]` to `[batch, time, channels]`.
    pub fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        // Matrices may be stored in fewer bits; the stream has the type of the vectors.
        let stream = self.rwkv.ln_out.weight.dtype();
        self.rwkv.emb.forward(ids).cast(stream)
    }

    /// The residual stream `[batch, time, channels]` of whole texts after recurrent block `layer` and the sparse block behind it, if there is one.
    ///
    /// `value_first` is the value of layer 0, `[batch * time, channels]`: layer 0 sets it, the others need it.
    /// [`embed`](Self::embed), all layers and the last norm are what [`hidden`](Self::hidden) computes.
    pub fn layer(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        value_first: &mut Option<Tensor<B, 2>>,
    ) -> Tensor<B, 3> {
        self.run_layer(layer, x, value_first, None)
    }

    /// `hidden x head^T`: `[batch, time, channels]` to `[batch, time, vocab]`.
    pub fn head(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, time, channels] = hidden.dims();
        let logits = self
            .rwkv
            .head
            .forward(hidden.reshape([batch * time, channels]));
        logits.reshape([batch, time, self.config.vocab_size])
    }

    /// The state before the first token of `batch` texts.
    pub fn state(&self, batch: usize) -> State<B> {
        State::new(&self.config, batch, &self.device())
    }

    /// Reads the next piece of every text, `[batch, time]`, and gives the logits after its last token, `[batch, vocab]`.
    ///
    /// Any number of pieces of any length computes what [`forward`](Self::forward) computes on the whole.
    ///
    /// # Panics
    /// If the piece is empty or its batch is not the state's.
    pub fn prefill(&self, ids: Tensor<B, 2, Int>, state: &mut State<B>) -> Tensor<B, 2> {
        let x = self.run(ids, Some(state));
        let [batch, time, channels] = x.dims();
        let last = x
            .slice([0..batch, time - 1..time])
            .reshape([batch, channels]);
        self.rwkv.head.forward(self.rwkv.ln_out.forward(last))
    }

    /// Like [`prefill`](Self::prefill), with the logits of every position of the piece, `[batch, time, vocab]`.
    ///
    /// # Panics
    /// If the piece is empty or its batch is not the state's.
    pub fn prefill_all(&self, ids: Tensor<B, 2, Int>, state: &mut State<B>) -> Tensor<B, 3> {
        self.head(self.prefill_hidden(ids, state))
    }

    /// Like [`prefill`](Self::prefill), with the stream after the last norm at every position of the piece,
    /// `[batch, time, channels]`, for those who need the logits of a few positions only.
    ///
    /// # Panics
    /// If the piece is empty or its batch is not the state's.
    pub fn prefill_hidden(&self, ids: Tensor<B, 2, Int>, state: &mut State<B>) -> Tensor<B, 3> {
        self.rwkv.ln_out.forward(self.run(ids, Some(state)))
    }

    /// Reads one token of every text, `[batch]`, and gives the logits after it, `[batch, vocab]`.
    ///
    /// # Panics
    /// If the batch is not the state's.
    pub fn step(&self, ids: Tensor<B, 1, Int>, state: &mut State<B>) -> Tensor<B, 2> {
        let _awake = Awake::new();
        self.prefill(ids.unsqueeze_dim(1), state)
    }

    /// Embedding and blocks: the residual stream before the last norm, `[batch, time, channels]`.
    fn run(&self, ids: Tensor<B, 2, Int>, mut state: Option<&mut State<B>>) -> Tensor<B, 3> {
        let [batch, time] = ids.dims();
        assert!(time > 0, "a piece of text needs at least one token");
        if let Some(state) = state.as_deref_mut() {
            assert_eq!(batch, state.batch(), "batch of the ids and of the state");
            state.tokens += time;
        }
        let mut x = self.embed(ids);
        let mut value_first = None;
        for layer in 0..self.rwkv.blocks.len() {
            x = self.run_layer(layer, x, &mut value_first, state.as_deref_mut());
        }
        x
    }

    fn run_layer(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        value_first: &mut Option<Tensor<B, 2>>,
        mut state: Option<&mut State<B>>,
    ) -> Tensor<B, 3> {
        let block_state = state
            .as_deref_mut()
            .map(|state| &mut state.recurrent[layer]);
        let x = self.rwkv.blocks[layer].forward(x, value_first, block_state);
        let Some(sparse) = self.config.sparse_after(layer) else {
            return x;
        };
        let block_state = state.map(|state| &mut state.sparse[sparse]);
        self.moba[sparse].forward(x, &self.config, block_state)
    }
}
