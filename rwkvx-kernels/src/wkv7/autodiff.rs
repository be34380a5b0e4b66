//! Hooks a backend's own passes into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{Wkv7Backward, Wkv7Forward, Wkv7Gradient, Wkv7Inputs, Wkv7Output};
use crate::KernelBackend;
use crate::joint::{self, Operator, unwrap, wrap};

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
    let operator = Recurrence {
        forward: gradient.forward,
        backward: gradient.backward,
    };
    let [output, state] = joint::apply::<B, C, _, _, _>(operator, parents.map(unwrap)).map(wrap);
    Wkv7Output { output, state }
}

/// The recurrence with the passes that its backend brings.
#[derive(Debug, Clone)]
struct Recurrence<B: Backend> {
    forward: Wkv7Forward<B>,
    backward: Wkv7Backward<B>,
}

impl<B: KernelBackend> Operator<B, 7, 2> for Recurrence<B> {
    type Saved = FloatTensor<B>;

    fn outputs(self, inputs: [FloatTensor<B>; 7]) -> [FloatTensor<B>; 2] {
        let Wkv7Output { output, state } = B::wkv7(from_array(inputs));
        [output, state].map(unwrap)
    }

    fn forward(self, inputs: [FloatTensor<B>; 7]) -> ([FloatTensor<B>; 2], Self::Saved) {
        let (Wkv7Output { output, state }, saved) = (self.forward)(from_array(inputs));
        ([output, state].map(unwrap), unwrap(saved))
    }

    fn backward(
        self,
        inputs: [FloatTensor<B>; 7],
        saved: Self::Saved,
        [d_output, d_state]: [Option<FloatTensor<B>>; 2],
    ) -> [FloatTensor<B>; 7] {
        let d = (self.backward)(
            from_array(inputs),
            wrap(saved),
            d_output.map(wrap),
            d_state.map(wrap),
        );
        [
            d.receptance,
            d.log_decay,
            d.key,
            d.value,
            d.removal,
            d.replacement,
            d.state,
        ]
        .map(unwrap)
    }
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
