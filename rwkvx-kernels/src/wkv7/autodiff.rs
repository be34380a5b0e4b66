//! Hooks a backend's own passes into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{Wkv7Gradient, Wkv7Inputs, Wkv7Output};
use crate::KernelBackend;
use crate::joint::{self, unwrap, wrap};

/// Runs `gradient.forward` and records `gradient.backward`.
pub(crate) fn wkv7<B: KernelBackend, C: CheckpointStrategy>(
    gradient: Wkv7Gradient<B>,
    inputs: Wkv7Inputs<Autodiff<B, C>>,
) -> Wkv7Output<Autodiff<B, C>> {
    let [batch, _, heads, head_size] = inputs.receptance.dims();
    let device = inputs.receptance.device();
    let state = inputs
        .state
        .unwrap_or_else(|| Tensor::zeros([batch, heads, head_size, head_size], &device));
    let parents = [
        inputs.receptance,
        inputs.log_decay,
        inputs.key,
        inputs.value,
        inputs.removal,
        inputs.replacement,
        state,
    ];
    let Wkv7Gradient { forward, backward } = gradient;
    let [output, state] = joint::apply::<B, C, _, _, _>(
        "Wkv7",
        parents.map(unwrap),
        |inputs| outputs(B::wkv7(from_array(inputs))),
        move |inputs| {
            let (results, saved) = forward(from_array(inputs));
            (outputs(results), unwrap(saved))
        },
        move |inputs, saved: FloatTensor<B>, [d_output, d_state]| {
            let inputs = from_array(inputs);
            let d = backward(inputs, wrap(saved), d_output.map(wrap), d_state.map(wrap));
            let d = [
                d.receptance,
                d.log_decay,
                d.key,
                d.value,
                d.removal,
                d.replacement,
                d.state,
            ];
            d.map(unwrap)
        },
    )
    .map(wrap);
    Wkv7Output { output, state }
}

fn outputs<B: Backend>(results: Wkv7Output<B>) -> [FloatTensor<B>; 2] {
    [results.output, results.state].map(unwrap)
}

fn from_array<B: Backend>(tensors: [FloatTensor<B>; 7]) -> Wkv7Inputs<B> {
    let [
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state,
    ] = tensors.map(wrap);
    Wkv7Inputs {
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state: Some(state),
    }
}
