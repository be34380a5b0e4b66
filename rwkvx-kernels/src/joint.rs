//! Hooks operators with a hand-written backward pass and any number of outputs into Burn's gradient graph.
//!
//! A node of the graph has one output. So there is a joint node, child of the inputs, which runs the backward pass, and a leaf
//! node per output, child of the joint node. A leaf leaves its gradient in a shared slot and wakes the joint node with a dummy
//! gradient; the graph visits the joint node after all its leaves.

use std::array;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Tensor, TensorPrimitive};

/// An operator from `P` tensors, its parents in the graph, to `M` tensors.
pub(crate) trait Operator<B: Backend, const P: usize, const M: usize>:
    Clone + Debug + Send + 'static
{
    /// What the backward pass needs beside the inputs.
    type Saved: Clone + Debug + Send + 'static;

    /// The outputs, where no gradient is asked for.
    fn outputs(self, inputs: [FloatTensor<B>; P]) -> [FloatTensor<B>; M];

    /// The outputs and what to save.
    fn forward(self, inputs: [FloatTensor<B>; P]) -> ([FloatTensor<B>; M], Self::Saved);

    /// The gradients of the inputs from those of the outputs; `None` is zero, but at least one is given.
    fn backward(
        self,
        inputs: [FloatTensor<B>; P],
        saved: Self::Saved,
        d_outputs: [Option<FloatTensor<B>>; M],
    ) -> [FloatTensor<B>; P];
}

/// Runs the operator, and records its backward pass if a parent is tracked.
pub(crate) fn apply<B, C, O, const P: usize, const M: usize>(
    operator: O,
    parents: [FloatTensor<Autodiff<B, C>>; P],
) -> [FloatTensor<Autodiff<B, C>>; M]
where
    B: Backend,
    C: CheckpointStrategy,
    O: Operator<B, P, M>,
{
    let nodes = parents.each_ref().map(|parent| parent.node.clone());
    let joint = Joint::<O, M>(operator.clone());
    match joint.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(_) => operator
            .outputs(parents.map(|parent| parent.primitive))
            .map(<Autodiff<B, C> as AutodiffBackend>::from_inner),
        OpsKind::Tracked(mut prep) => {
            let device = B::float_device(&parents[0].primitive);
            let inputs = parents.each_ref().map(|parent| prep.checkpoint(parent));
            let (outputs, saved) = operator.forward(parents.map(|parent| parent.primitive));
            let slot: Slot<B, M> = Arc::new(Mutex::new(array::from_fn(|_| None)));
            let state = JointState {
                slot: slot.clone(),
                inputs,
                saved,
            };
            let joint = prep.finish(state, dummy::<B>(&device));
            let mut index = 0..M;
            outputs.map(|output| {
                let leaf = Leaf::<M>(index.next().expect("one index per output"));
                let state = LeafState {
                    slot: slot.clone(),
                    device: device.clone(),
                };
                let prep = leaf.prepare::<C>([joint.node.clone()]);
                match prep.compute_bound().stateful() {
                    OpsKind::Tracked(prep) => prep.finish(state, output),
                    OpsKind::UnTracked(prep) => prep.finish(output),
                }
            })
        }
    }
}

/// Where the leaves leave the gradients of their outputs.
type Slot<B, const M: usize> = Arc<Mutex<[Option<FloatTensor<B>>; M]>>;

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The node that runs the backward pass for all outputs.
#[derive(Debug)]
struct Joint<O, const M: usize>(O);

#[derive(Debug, Clone)]
struct JointState<B: Backend, S, const P: usize, const M: usize> {
    slot: Slot<B, M>,
    inputs: [NodeId; P],
    saved: S,
}

impl<B, O, const P: usize, const M: usize> Backward<B, P> for Joint<O, M>
where
    B: Backend,
    O: Operator<B, P, M>,
{
    type State = JointState<B, O::Saved, P, M>;

    fn backward(
        self,
        ops: Ops<Self::State, P>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        grads.consume::<B>(&ops.node); // the dummy
        let state = ops.state;
        let inputs = state
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let d_outputs = std::mem::replace(&mut *lock(&state.slot), array::from_fn(|_| None));
        let d_inputs = self.0.backward(inputs, state.saved, d_outputs);
        for (parent, gradient) in ops.parents.iter().zip(d_inputs) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// The node of one output.
#[derive(Debug)]
struct Leaf<const M: usize>(usize);

#[derive(Debug, Clone)]
struct LeafState<B: Backend, const M: usize> {
    slot: Slot<B, M>,
    device: B::Device,
}

impl<B: Backend, const M: usize> Backward<B, 1> for Leaf<M> {
    type State = LeafState<B, M>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let mut slot = lock(&ops.state.slot);
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

/// The tensor of a primitive.
pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// The primitive of a tensor.
pub(crate) fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
