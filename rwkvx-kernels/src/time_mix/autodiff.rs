//! Hooks a backend's own backward passes into Burn's gradient graph; without them the definitions are differentiated.

use std::array;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, backend::Backend};

use super::{KeyInputs, Keys, OutputInputs, TimeMixBackward, ValueInputs, reference};
use crate::KernelBackend;
use crate::joint::{self, unwrap, wrap};

/// The body of [`KernelBackend::token_shift`] with gradients.
pub(crate) fn token_shift<B: KernelBackend, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 3>,
    carry: Option<Tensor<Autodiff<B, C>, 2>>,
    amounts: Vec<Tensor<Autodiff<B, C>, 1>>,
) -> Vec<Tensor<Autodiff<B, C>, 2>> {
    match (B::TIME_MIX_BACKWARD, &carry, amounts.len()) {
        (Some(by_hand), None, 1) => shift::<B, C, 2, 1>(by_hand, x, amounts),
        (Some(by_hand), None, 6) => shift::<B, C, 7, 6>(by_hand, x, amounts),
        _ => reference::token_shift(x, carry, amounts),
    }
}

/// `P` counts `x` and the `N` amounts.
fn shift<B: KernelBackend, C: CheckpointStrategy, const P: usize, const N: usize>(
    by_hand: TimeMixBackward<B>,
    x: Tensor<Autodiff<B, C>, 3>,
    amounts: Vec<Tensor<Autodiff<B, C>, 1>>,
) -> Vec<Tensor<Autodiff<B, C>, 2>> {
    let mixes = apply::<B, C, P, N>(
        "TokenShift",
        x_and_amounts(x, amounts),
        |inputs| {
            let (x, amounts) = split(inputs);
            from_vec(B::token_shift(x, None, amounts))
        },
        move |inputs, d_mixes| {
            let (x, amounts) = split::<B, P>(inputs);
            let [batch, time, channels] = x.dims();
            let rows = x.clone().reshape([batch * time, channels]);
            let d_mixes = or_zeros(d_mixes, &rows);
            let d = (by_hand.token_shift)(x, amounts, d_mixes.into());
            x_and_amounts(d.x, d.amounts)
        },
    );
    mixes.map(wrap).into()
}

fn x_and_amounts<B: Backend, const P: usize>(
    x: Tensor<B, 3>,
    amounts: Vec<Tensor<B, 1>>,
) -> [FloatTensor<B>; P] {
    let mut amounts = amounts.into_iter().map(unwrap);
    let mut x = Some(unwrap(x));
    array::from_fn(|_| {
        x.take()
            .or_else(|| amounts.next())
            .expect("an amount per mix")
    })
}

fn split<B: Backend, const P: usize>(
    inputs: [FloatTensor<B>; P],
) -> (Tensor<B, 3>, Vec<Tensor<B, 1>>) {
    let mut inputs = inputs.into_iter();
    let x = inputs.next().expect("x comes first");
    (wrap(x), inputs.map(wrap).collect())
}

fn from_vec<B: Backend, const N: usize>(mixes: Vec<Tensor<B, 2>>) -> [FloatTensor<B>; N] {
    let mut mixes = mixes.into_iter().map(unwrap);
    array::from_fn(|_| mixes.next().expect("a mix per amount"))
}

/// The body of [`KernelBackend::prepare_keys`] with gradients.
pub(crate) fn prepare_keys<B: KernelBackend, C: CheckpointStrategy>(
    inputs: KeyInputs<Autodiff<B, C>>,
) -> Keys<Autodiff<B, C>> {
    let Some(by_hand) = B::TIME_MIX_BACKWARD else {
        return reference::prepare_keys(inputs);
    };
    let head_size = inputs.head_size;
    let keys = apply::<B, C, 7, 4>(
        "PrepareKeys",
        from_key_inputs(inputs),
        |inputs| {
            let keys = B::prepare_keys(key_inputs(inputs, head_size));
            [keys.log_decay, keys.key, keys.removal, keys.replacement].map(unwrap)
        },
        move |inputs, d_keys| {
            let inputs = key_inputs::<B>(inputs, head_size);
            let d_keys = or_zeros(d_keys, &inputs.key);
            from_key_inputs((by_hand.prepare_keys)(inputs, keys_of(d_keys)))
        },
    );
    keys_of(keys.map(wrap))
}

fn keys_of<B: Backend>([log_decay, key, removal, replacement]: [Tensor<B, 2>; 4]) -> Keys<B> {
    Keys {
        log_decay,
        key,
        removal,
        replacement,
    }
}

fn from_key_inputs<B: Backend>(inputs: KeyInputs<B>) -> [FloatTensor<B>; 7] {
    [
        unwrap(inputs.decay),
        unwrap(inputs.rate),
        unwrap(inputs.key),
        unwrap(inputs.decay_bias),
        unwrap(inputs.rate_bias),
        unwrap(inputs.removal_scale),
        unwrap(inputs.rate_scale),
    ]
}

fn key_inputs<B: Backend>(inputs: [FloatTensor<B>; 7], head_size: usize) -> KeyInputs<B> {
    let [
        decay,
        rate,
        key,
        decay_bias,
        rate_bias,
        removal_scale,
        rate_scale,
    ] = inputs;
    KeyInputs {
        decay: wrap(decay),
        rate: wrap(rate),
        key: wrap(key),
        decay_bias: wrap(decay_bias),
        rate_bias: wrap(rate_bias),
        removal_scale: wrap(removal_scale),
        rate_scale: wrap(rate_scale),
        head_size,
    }
}

/// The body of [`KernelBackend::mix_value`] with gradients.
pub(crate) fn mix_value<B: KernelBackend, C: CheckpointStrategy>(
    inputs: ValueInputs<Autodiff<B, C>>,
) -> Tensor<Autodiff<B, C>, 2> {
    let Some(by_hand) = B::TIME_MIX_BACKWARD else {
        return reference::mix_value(inputs);
    };
    let [mixed] = apply::<B, C, 4, 1>(
        "MixValue",
        from_value_inputs(inputs),
        |inputs| [unwrap(B::mix_value(value_inputs(inputs)))],
        move |inputs, d_mixed| {
            let inputs = value_inputs::<B>(inputs);
            let [d_mixed] = or_zeros(d_mixed, &inputs.value);
            from_value_inputs((by_hand.mix_value)(inputs, d_mixed))
        },
    );
    wrap(mixed)
}

fn from_value_inputs<B: Backend>(inputs: ValueInputs<B>) -> [FloatTensor<B>; 4] {
    [
        unwrap(inputs.value),
        unwrap(inputs.first),
        unwrap(inputs.amount),
        unwrap(inputs.amount_bias),
    ]
}

fn value_inputs<B: Backend>(
    [value, first, amount, amount_bias]: [FloatTensor<B>; 4],
) -> ValueInputs<B> {
    ValueInputs {
        value: wrap(value),
        first: wrap(first),
        amount: wrap(amount),
        amount_bias: wrap(amount_bias),
    }
}

/// The body of [`KernelBackend::gate_output`] with gradients.
pub(crate) fn gate_output<B: KernelBackend, C: CheckpointStrategy>(
    inputs: OutputInputs<Autodiff<B, C>>,
) -> Tensor<Autodiff<B, C>, 2> {
    let Some(by_hand) = B::TIME_MIX_BACKWARD else {
        return reference::gate_output(inputs);
    };
    let [gated] = apply::<B, C, 8, 1>(
        "GateOutput",
        from_output_inputs(inputs),
        |inputs| [unwrap(B::gate_output(output_inputs(inputs)))],
        move |inputs, d_gated| {
            let inputs = output_inputs::<B>(inputs);
            let [d_gated] = or_zeros(d_gated, &inputs.output);
            from_output_inputs((by_hand.gate_output)(inputs, d_gated))
        },
    );
    wrap(gated)
}

fn from_output_inputs<B: Backend>(inputs: OutputInputs<B>) -> [FloatTensor<B>; 8] {
    [
        unwrap(inputs.output),
        unwrap(inputs.receptance),
        unwrap(inputs.key),
        unwrap(inputs.value),
        unwrap(inputs.gate),
        unwrap(inputs.weight),
        unwrap(inputs.bias),
        unwrap(inputs.bonus),
    ]
}

fn output_inputs<B: Backend>(inputs: [FloatTensor<B>; 8]) -> OutputInputs<B> {
    let [output, receptance, key, value, gate, weight, bias, bonus] = inputs;
    OutputInputs {
        output: wrap(output),
        receptance: wrap(receptance),
        key: wrap(key),
        value: wrap(value),
        gate: wrap(gate),
        weight: wrap(weight),
        bias: wrap(bias),
        bonus: wrap(bonus),
    }
}

/// [`joint::apply`] of an operator that saves nothing but its inputs.
fn apply<B: KernelBackend, C: CheckpointStrategy, const P: usize, const M: usize>(
    name: &'static str,
    parents: [FloatTensor<Autodiff<B, C>>; P],
    outputs: impl Fn([FloatTensor<B>; P]) -> [FloatTensor<B>; M],
    backward: impl FnOnce([FloatTensor<B>; P], [Option<FloatTensor<B>>; M]) -> [FloatTensor<B>; P]
    + Send
    + 'static,
) -> [FloatTensor<Autodiff<B, C>>; M] {
    joint::apply::<B, C, (), P, M>(
        name,
        parents,
        &outputs,
        |inputs| (outputs(inputs), ()),
        move |inputs, (), d_outputs| backward(inputs, d_outputs),
    )
}

/// Gradients of sequences like `like`; no gradient is zero.
fn or_zeros<B: Backend, const M: usize>(
    gradients: [Option<FloatTensor<B>>; M],
    like: &Tensor<B, 2>,
) -> [Tensor<B, 2>; M] {
    gradients.map(|gradient| gradient.map_or_else(|| like.zeros_like(), wrap))
}
