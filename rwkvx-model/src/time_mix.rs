//! RWKV-7's time mix: a linear recurrence whose state forgets, and rewrites what it removes.
//!
//! Notation of the RWKV-7 paper, with our names: `removal` is `-kk`, `replacement` is `kk * a`, `log_decay` is `ln w`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_kernels::{
    KernelBackend, KeyInputs, OutputInputs, ValueInputs, WeightLayout, Wkv7Inputs, gate_output,
    mix_value, prepare_keys, project, sigmoid, tanh, wkv7,
};

use crate::config::RwkvXConfig;
use crate::layers::{GroupNorm, Projection, unset};
use crate::token_shift::token_shift;

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
    /// `x` is the normalised input, `[batch, time, channels]`, and so is the result.
    ///
    /// `value_first` is the value of layer 0, `[batch * time, channels]`: layer 0 sets it, later layers mix it in.
    /// Without `state` the text starts here.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        value_first: &mut Option<Tensor<B, 2>>,
        state: Option<&mut TimeMixState<B>>,
    ) -> Tensor<B, 3> {
        let bthc @ [batch, time, _] = x.dims();
        let [heads, head_size] = self.r_k.dims();
        let bthn = [batch, time, heads, head_size];
        let (carry, wkv_state) = match state {
            Some(state) => (Some(&mut state.carry), Some(&mut state.wkv)),
            None => (None, None),
        };

        let amounts = [
            &self.x_r, &self.x_w, &self.x_k, &self.x_v, &self.x_a, &self.x_g,
        ];
        let [x_r, x_w, x_k, x_v, x_a, x_g] = token_shift(x, carry, amounts); // [rows, channels], as all below
        let receptance = self.receptance.forward(x_r);
        let value = self.value_with_residual(x_v, value_first);
        let gate = low_rank(x_g, &self.g1, &self.g2, sigmoid);
        let keys = prepare_keys(KeyInputs {
            decay: low_rank(x_w, &self.w1, &self.w2, tanh),
            rate: low_rank(x_a, &self.a1, &self.a2, |h| h),
            key: self.key.forward(x_k),
            decay_bias: self.w0.val(),
            rate_bias: self.a0.val(),
            removal_scale: self.k_k.val(),
            rate_scale: self.k_a.val(),
            head_size,
        });

        let recurrence = wkv7(Wkv7Inputs {
            receptance: receptance.clone().reshape(bthn),
            log_decay: keys.log_decay.reshape(bthn),
            key: keys.key.clone().reshape(bthn),
            value: value.clone().reshape(bthn),
            removal: keys.removal.reshape(bthn),
            replacement: keys.replacement.reshape(bthn),
            state: wkv_state.as_ref().map(|state| (**state).clone()),
        });
        if let Some(state) = wkv_state {
            *state = recurrence.state;
        }

        let gated = gate_output(OutputInputs {
            output: recurrence.output.reshape(value.dims()),
            receptance,
            key: keys.key,
            value,
            gate,
            weight: self.ln_x.weight.val(),
            bias: self.ln_x.bias.val(),
            bonus: self.r_k.val(),
        });
        self.output.forward(gated).reshape(bthc)
    }

    /// The value of `x_v`, moved towards layer 0's where there is one; layer 0 leaves its own for the others.
    fn value_with_residual(
        &self,
        x_v: Tensor<B, 2>,
        value_first: &mut Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let value = self.value.forward(x_v.clone());
        match (&self.v0, &self.v1, &self.v2, value_first) {
            (Some(v0), Some(v1), Some(v2), Some(first)) => mix_value(ValueInputs {
                value,
                first: first.clone(),
                amount: low_rank(x_v, v1, v2, |h| h),
                amount_bias: v0.val(),
            }),
            (.., first) => {
                *first = Some(value.clone());
                value
            }
        }
    }
}

/// `between(x down) up`: `[rows, channels]` through `[rows, rank]` back to `[rows, channels]`.
fn low_rank<B: KernelBackend>(
    x: Tensor<B, 2>,
    down: &Param<Tensor<B, 2>>,
    up: &Param<Tensor<B, 2>>,
    between: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    let hidden = between(project(x, down.val(), WeightLayout::InOut)); // [rows, rank]
    project(hidden, up.val(), WeightLayout::InOut)
}
