//! Hooks a backend's own passes into Burn's gradient graph.
//!
//! A node of the graph has one output, and the recurrence has two. So there is a joint node, which runs the backward
//! pass, and a leaf node per output, child of the joint node. A leaf leaves its gradient in a shared slot and wakes the joint
//! node with a dummy gradient; the graph visits the joint node after all its leaves.

use std::sync::{Arc, Mutex};

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Tensor, TensorPrimitive};

use super::{Wkv7Backward, Wkv7Gradient, Wkv7Inputs, Wkv7Output};
use crate::KernelBackend;

/// Where the two leaves leave the gradients of output and last state.
type Slot<B> = Arc<Mutex<[Option<FloatTensor<B>>; 2]>>;

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
    ]
    .map(|tensor| tensor.into_primitive().tensor());

    let nodes = parents.each_ref().map(|tensor| tensor.node.clone());
    let backward = Joint(gradient.backward);
    match backward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(_) => {
            let outputs = B::wkv7(from_array(parents.map(|tensor| wrap(tensor.primitive))));
            Wkv7Output {
                output: Tensor::from_inner(outputs.output),
                state: Tensor::from_inner(outputs.state),
            }
        }
        OpsKind::Tracked(mut prep) => {
            let saved_inputs = parents.each_ref().map(|tensor| prep.checkpoint(tensor));
            let inputs = from_array(parents.map(|tensor| wrap(tensor.primitive)));
            let (outputs, saved) = (gradient.forward)(inputs);
            let slot = Slot::<B>::default();
            let joint_state = JointState {
                slot: slot.clone(),
                inputs: saved_inputs,
                saved: unwrap(saved),
            };
            let joint = prep.finish(joint_state, dummy::<B>(&device));
            let leaf = |index, output: Tensor<B, 4>| {
                let state = LeafState {
                    slot: slot.clone(),
                    device: device.clone(),
                };
                let prep = Leaf(index)
                    .prepare::<C>([joint.node.clone()])
                    .compute_bound()
                    .stateful();
                wrap(match prep {
                    OpsKind::Tracked(prep) => prep.finish(state, unwrap(output)),
                    OpsKind::UnTracked(prep) => prep.finish(unwrap(output)),
                })
            };
            Wkv7Output {
                output: leaf(0, outputs.output),
                state: leaf(1, outputs.state),
            }
        }
    }
}

/// The node that runs the backward pass for both outputs.
struct Joint<B: Backend>(Wkv7Backward<B>);

impl<B: Backend> std::fmt::Debug for Joint<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wkv7")
    }
}

#[derive(Debug)]
struct JointState<B: Backend> {
    slot: Slot<B>,
    inputs: [NodeId; 7],
    saved: FloatTensor<B>,
}

impl<B: Backend> Clone for JointState<B> {
    fn clone(&self) -> Self {
        Self {
            slot: self.slot.clone(),
            inputs: self.inputs,
            saved: self.saved.clone(),
        }
    }
}

impl<B: Backend> Backward<B, 7> for Joint<B> {
    type State = JointState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        grads.consume::<B>(&ops.node); // the dummy
        let inputs = ops
            .state
            .inputs
            .map(|id| wrap::<B>(checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));
        let mut slot = ops
            .state
            .slot
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let [d_output, d_state] = std::mem::take(&mut *slot);
        let d = (self.0)(
            from_array(inputs),
            wrap(ops.state.saved),
            d_output.map(wrap),
            d_state.map(wrap),
        );
        let gradients = [
            d.receptance,
            d.log_decay,
            d.key,
            d.value,
            d.removal,
            d.replacement,
            d.state,
        ];
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, unwrap(gradient));
            }
        }
    }
}

/// The node of one output.
#[derive(Debug)]
struct Leaf(usize);

#[derive(Debug)]
struct LeafState<B: Backend> {
    slot: Slot<B>,
    device: B::Device,
}

impl<B: Backend> Clone for LeafState<B> {
    fn clone(&self) -> Self {
        Self {
            slot: self.slot.clone(),
            device: self.device.clone(),
        }
    }
}

impl<B: Backend> Backward<B, 1> for Leaf {
    type State = LeafState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let mut slot = ops
            .state
            .slot
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let first = slot.iter().all(Option::is_none);
        slot[self.0] = Some(gradient);
        if let (true, Some(joint)) = (first, &ops.parents[0]) {
            grads.register::<B>(joint.id, dummy::<B>(&ops.state.device));
        }
    }
}

fn dummy<B: Backend>(device: &B::Device) -> FloatTensor<B> {
    B::float_empty([1].into(), device, FloatDType::F32)
}

fn wrap<B: Backend>(tensor: FloatTensor<B>) -> Tensor<B, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

fn unwrap<B: Backend>(tensor: Tensor<B, 4>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn from_array<B: Backend>(tensors: [Tensor<B, 4>; 7]) -> Wkv7Inputs<B> {
    let [
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state,
    ] = tensors;
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
