//! The definitions in tensor operations.

use burn::tensor::{Tensor, backend::Backend};

use super::{
    HeadInputs, HeadOutputs, KeyInputs, Keys, OutputInputs, ShiftInputs, Shifted, ValueInputs,
    Values,
};
use crate::{KernelBackend, Wkv7Inputs, sigmoid};

/// `-exp(-1/2)`: the logarithm of the strongest decay.
pub(super) const LOG_DECAY_FLOOR: f64 = -0.606_530_659_712_633_4;
/// Squared norm below which a removal key counts as zero, `(1e-12)^2`.
pub(super) const MIN_SQUARED_NORM: f64 = 1e-24;
/// Epsilon of the norm of the output, `1e-5 * 8^2`.
pub(super) const NORM_EPSILON: f64 = 64e-5;

/// The body of [`KernelBackend::token_shift`].
pub fn token_shift<B: Backend>(
    x: Tensor<B, 3>,
    carry: Option<Tensor<B, 2>>,
    amounts: Vec<Tensor<B, 1>>,
) -> Vec<Tensor<B, 2>> {
    let [batch, time, channels] = x.dims();
    let first = match carry {
        Some(carry) => carry.reshape([batch, 1, channels]),
        None => Tensor::zeros([batch, 1, channels], (&x.device(), x.dtype())),
    };
    let previous = match time {
        1 => first,
        _ => Tensor::cat(vec![first, x.clone().slice([0..batch, 0..time - 1])], 1),
    };
    let rows = [batch * time, channels];
    let d = (previous - x.clone()).reshape(rows);
    let x = x.reshape(rows);
    let mix = |amount| d.clone() * row(amount, &x) + x.clone();
    amounts.into_iter().map(mix).collect()
}

/// The body of [`KernelBackend::prepare_keys`].
pub fn prepare_keys<B: KernelBackend>(inputs: KeyInputs<B>) -> Keys<B> {
    let KeyInputs {
        decay, rate, key, ..
    } = inputs;
    let rows @ [_, channels] = key.dims();
    let per_head = [rows[0] * channels / inputs.head_size, inputs.head_size];
    let [decay_bias, rate_bias, removal_scale, rate_scale] = [
        inputs.decay_bias,
        inputs.rate_bias,
        inputs.removal_scale,
        inputs.rate_scale,
    ]
    .map(|vector| row(vector, &key));

    let log_decay = sigmoid(decay + decay_bias) * LOG_DECAY_FLOOR;
    let rate = sigmoid(rate + rate_bias);
    let kk = unit_rows((key.clone() * removal_scale).reshape(per_head)).reshape(rows);
    Keys {
        log_decay,
        key: (rate.clone() * rate_scale.clone() + (-rate_scale + 1.0)) * key,
        removal: -kk.clone(),
        replacement: kk * rate,
    }
}

/// The body of [`KernelBackend::mix_value`].
pub fn mix_value<B: KernelBackend>(inputs: ValueInputs<B>) -> Tensor<B, 2> {
    let value = inputs.value;
    let amount = inputs.amount + row(inputs.amount_bias, &value);
    (inputs.first - value.clone()) * sigmoid(amount) + value
}

/// The body of [`KernelBackend::gate_output`].
pub fn gate_output<B: Backend>(inputs: OutputInputs<B>) -> Tensor<B, 2> {
    let rows = inputs.output.dims();
    let [heads, head_size] = inputs.bonus.dims();
    let per_head = [rows[0] * heads, head_size];
    let value = inputs.value;
    let r_k = row(inputs.bonus.reshape([heads * head_size]), &value);
    let bonus = inputs.receptance * inputs.key * r_k;
    let bonus = bonus.reshape(per_head).sum_dim(1); // [rows * heads, 1]
    let [weight, bias] = [inputs.weight, inputs.bias].map(|vector| row(vector, &value));
    let bonus = (value.reshape(per_head) * bonus).reshape(rows);
    let normal = normal(inputs.output.reshape(per_head)).reshape(rows);
    (normal * weight + bias + bonus) * inputs.gate
}

/// The body of [`KernelBackend::norm_and_shift`], by the backend's own operators.
pub fn norm_and_shift<B: KernelBackend>(
    inputs: ShiftInputs<B, Vec<Tensor<B, 1>>>,
) -> Shifted<B, Vec<Tensor<B, 2>>> {
    let dims @ [batch, time, channels] = inputs.x.dims();
    let rows = inputs.x.reshape([batch * time, channels]);
    let normal = <B as KernelBackend>::layer_norm(rows, inputs.weight, inputs.bias).reshape(dims);
    let carry = inputs.carry.as_ref().map(|_| {
        let last = normal.clone().slice([0..batch, time - 1..time]);
        last.reshape([batch, channels])
    });
    Shifted {
        mixes: B::token_shift(normal, inputs.carry, inputs.amounts),
        carry,
    }
}

/// The body of [`KernelBackend::mix_heads`], by the backend's own operators.
pub fn mix_heads<B: KernelBackend>(inputs: HeadInputs<B>) -> HeadOutputs<B> {
    let rows_channels @ [rows, _] = inputs.receptance.dims();
    let [heads, size] = inputs.bonus.dims();
    let sequence = [inputs.batch, rows / inputs.batch, heads, size];
    let value = match inputs.values {
        Values::Projected(value) => value,
        Values::Mixed(values) => B::mix_value(values),
    };
    let keys = B::prepare_keys(inputs.keys);
    let recurrence = B::wkv7(Wkv7Inputs {
        receptance: inputs.receptance.clone().reshape(sequence),
        log_decay: keys.log_decay.reshape(sequence),
        key: keys.key.clone().reshape(sequence),
        value: value.clone().reshape(sequence),
        removal: keys.removal.reshape(sequence),
        replacement: keys.replacement.reshape(sequence),
        state: inputs.state,
    });
    let gated = B::gate_output(OutputInputs {
        output: recurrence.output.reshape(rows_channels),
        receptance: inputs.receptance,
        key: keys.key,
        value,
        gate: inputs.gate,
        weight: inputs.weight,
        bias: inputs.bias,
        bonus: inputs.bonus,
    });
    HeadOutputs {
        gated,
        state: recurrence.state,
    }
}

/// A vector `[channels]` as `[1, channels]` in the float type of the sequence.
fn row<B: Backend>(vector: Tensor<B, 1>, sequence: &Tensor<B, 2>) -> Tensor<B, 2> {
    vector.cast(sequence.dtype()).unsqueeze()
}

/// Every row divided by its length. The clamp stands before the root, so that a zero row has a gradient that is no NaN.
///
/// Here and in `normal` a power stands for a root and a division: Burn's NdArray takes reciprocals, also in the gradient of a
/// division, by an instruction that is right to 12 bits only.
fn unit_rows<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let squared = (x.clone() * x.clone()).sum_dim(1); // [rows, 1]
    x * squared.clamp_min(MIN_SQUARED_NORM).powf_scalar(-0.5)
}

/// Every row with mean 0 and variance 1.
fn normal<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let centered = x.clone() - x.mean_dim(1);
    let variance = (centered.clone() * centered.clone()).mean_dim(1);
    centered * (variance + NORM_EPSILON).powf_scalar(-0.5)
}
