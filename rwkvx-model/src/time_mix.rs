//! RWKV-7's time mix: a linear recurrence whose state forgets, and rewrites what it removes.
//!
//! Notation of the RWKV-7 paper, with our names: `removal` is `-kk`, `replacement` is `kk * a`, `log_decay` is `ln w`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{
    HeadInputs, KernelBackend, KeyInputs, Pointwise, Product, ValueInputs, Values, WeightLayout,
    mix_heads, project_all,
};

use crate::config::RwkvXConfig;
use crate::layers::{GroupNorm, LayerNorm, Projection, each, unset};
use crate::token_shift::norm_and_shift;

/// The parameters of one time mix, C channels in H heads of size N, under their published names.
#[derive(Module, Debug)]
pub struct TimeMix<B: Backend> {
    /// Token-shift amount of the receptance, `[channels]`.
    pub x_r: Param<Tensor<B, 1>>,
    /// Token-shift amount of the decay, `[channels]`.
    pub x_w: Param<Tensor<B, 1>>,
    /// Token-shift amount of the key, `[channels]`.
    pub x_k: Param<Tensor<B, 1>>,
    /// Token-shift amount of the value, `[channels]`.
    pub x_v: Param<Tensor<B, 1>>,
    /// Token-shift amount of the in-context learning rate, `[channels]`.
    pub x_a: Param<Tensor<B, 1>>,
    /// Token-shift amount of the gate, `[channels]`.
    pub x_g: Param<Tensor<B, 1>>,
    /// Bias of the decay, `[channels]`.
    pub w0: Param<Tensor<B, 1>>,
    /// `[channels, decay_rank]`.
    pub w1: Param<Tensor<B, 2>>,
    /// `[decay_rank, channels]`.
    pub w2: Param<Tensor<B, 2>>,
    /// Bias of the in-context learning rate, `[channels]`.
    pub a0: Param<Tensor<B, 1>>,
    /// `[channels, rate_rank]`.
    pub a1: Param<Tensor<B, 2>>,
    /// `[rate_rank, channels]`.
    pub a2: Param<Tensor<B, 2>>,
    /// Bias of the value residual, `[channels]`; absent in layer 0, whose value is the one the others mix in.
    pub v0: Option<Param<Tensor<B, 1>>>,
    /// `[channels, value_rank]`; absent in layer 0.
    pub v1: Option<Param<Tensor<B, 2>>>,
    /// `[value_rank, channels]`; absent in layer 0.
    pub v2: Option<Param<Tensor<B, 2>>>,
    /// `[channels, gate_rank]`.
    pub g1: Param<Tensor<B, 2>>,
    /// `[gate_rank, channels]`.
    pub g2: Param<Tensor<B, 2>>,
    /// Scale from key to removal key, `[channels]`.
    pub k_k: Param<Tensor<B, 1>>,
    /// How far the in-context learning rate scales the key, `[channels]`.
    pub k_a: Param<Tensor<B, 1>>,
    /// Weight of the current token's own bonus, `[heads, head_size]`.
    pub r_k: Param<Tensor<B, 2>>,
    /// `[channels, channels]`.
    pub receptance: Projection<B>,
    /// `[channels, channels]`.
    pub key: Projection<B>,
    /// `[channels, channels]`.
    pub value: Projection<B>,
    /// `[channels, channels]`.
    pub output: Projection<B>,
    /// Norm of every head's output.
    pub ln_x: GroupNorm<B>,
}

/// What a time mix carries from one piece of text to the next.
#[derive(Debug, Clone)]
pub(crate) struct TimeMixState<B: Backend> {
    /// The last normalised input, `[batch, channels]`.
    pub(crate) carry: Tensor<B, 2>,
    /// `[batch, heads, value, key]`.
    pub(crate) wkv: Tensor<B, 4>,
}

impl<B: Backend> TimeMix<B> {
    pub(crate) fn unset(config: &RwkvXConfig, layer: usize, device: &B::Device) -> Self {
        let c = config.channels;
        let vector = || unset([c], device);
        let square = || Projection::unset(c, c, device);
        let has_value_residual = layer > 0;
        Self {
            x_r: vector(),
            x_w: vector(),
            x_k: vector(),
            x_v: vector(),
            x_a: vector(),
            x_g: vector(),
            w0: vector(),
            w1: unset([c, config.decay_rank], device),
            w2: unset([config.decay_rank, c], device),
            a0: vector(),
            a1: unset([c, config.rate_rank], device),
            a2: unset([config.rate_rank, c], device),
            v0: has_value_residual.then(vector),
            v1: has_value_residual.then(|| unset([c, config.value_rank], device)),
            v2: has_value_residual.then(|| unset([config.value_rank, c], device)),
            g1: unset([c, config.gate_rank], device),
            g2: unset([config.gate_rank, c], device),
            k_k: vector(),
            k_a: vector(),
            r_k: unset([config.n_head(), config.head_size], device),
            receptance: square(),
            key: square(),
            value: square(),
            output: square(),
            ln_x: GroupNorm::unset(c, device),
        }
    }
}

impl<B: KernelBackend> TimeMix<B> {
    /// Adds the mix of the norm of `x` to `x`, the stream `[batch, time, channels]`.
    ///
    /// `value_first` is the value of layer 0, `[batch * time, channels]`: layer 0 sets it, later layers mix it in.
    /// Without `state` the text starts here.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        norm: &LayerNorm<B>,
        value_first: &mut Option<Tensor<B, 2>>,
        state: Option<&mut TimeMixState<B>>,
    ) -> Tensor<B, 3> {
        let bthc @ [batch, time, channels] = x.dims();
        let [_, head_size] = self.r_k.dims();
        let (carry, wkv_state) = match state {
            Some(state) => (Some(&mut state.carry), Some(&mut state.wkv)),
            None => (None, None),
        };

        let amounts = [
            &self.x_r, &self.x_w, &self.x_k, &self.x_v, &self.x_a, &self.x_g,
        ];
        let [x_r, x_w, x_k, x_v, x_a, x_g] = norm_and_shift(norm, x.clone(), carry, amounts); // [rows, channels], as all below
        let mut products = vec![
            self.receptance.product(x_r),
            self.key.product(x_k),
            self.value.product(x_v.clone()),
            low_rank(x_w, &self.w1).then(Pointwise::Tanh),
            low_rank(x_a, &self.a1),
            low_rank(x_g, &self.g1).then(Pointwise::Sigmoid),
        ];
        products.extend(self.v1.as_ref().map(|v1| low_rank(x_v, v1)));
        let mut projected = project_all(products);
        let hidden = projected.drain(3..); // [rows, rank] each
        let up = [&self.w2, &self.a2, &self.g2].into_iter().chain(&self.v2);
        let mut low_ranks = project_all(hidden.zip(up).map(|(h, up)| low_rank(h, up)).collect());
        let amount = low_ranks.drain(3..).next();
        let [receptance, key, value] = each(projected);
        let [decay, rate, gate] = each(low_ranks);

        let mixed = mix_heads(HeadInputs {
            receptance,
            keys: KeyInputs {
                decay,
                rate,
                key,
                decay_bias: self.w0.val(),
                rate_bias: self.a0.val(),
                removal_scale: self.k_k.val(),
                rate_scale: self.k_a.val(),
                head_size,
            },
            values: self.values(value, amount, value_first),
            gate,
            weight: self.ln_x.weight.val(),
            bias: self.ln_x.bias.val(),
            bonus: self.r_k.val(),
            state: wkv_state.as_ref().map(|state| (**state).clone()),
            batch,
        });
        if let Some(state) = wkv_state {
            *state = mixed.state;
        }
        let x = x.reshape([batch * time, channels]);
        let output = self.output.product(mixed.gated).plus(x).make();
        output.reshape(bthc)
    }

    /// The value, to be moved towards layer 0's where there is one; layer 0 leaves its own for the others.
    fn values(
        &self,
        value: Tensor<B, 2>,
        amount: Option<Tensor<B, 2>>,
        value_first: &mut Option<Tensor<B, 2>>,
    ) -> Values<B> {
        match (&self.v0, amount, value_first) {
            (Some(v0), Some(amount), Some(first)) => Values::Mixed(ValueInputs {
                value,
                first: first.clone(),
                amount,
                amount_bias: v0.val(),
            }),
            (.., first) => {
                *first = Some(value.clone());
                Values::Projected(value)
            }
        }
    }
}

/// The product with a low-rank matrix, which is stored `[in, out]`.
fn low_rank<B: Backend>(x: Tensor<B, 2>, weight: &Param<Tensor<B, 2>>) -> Product<B> {
    Product::new(x, weight.val(), WeightLayout::InOut)
}
