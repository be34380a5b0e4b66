//! Hooks operators with a hand-written backward pass and any number of outputs into Burn's gradient graph.
//!
//! A node of the graph has one output. So there is a joint node, child of the inputs, which runs the backward pass, and a leaf
//! node per output, child of the joint node. A leaf leaves its gradient in a shared slot and wakes the joint node with a dummy
//! gradient; the graph visits the joint node after all its leaves.
//!
//! After every backward pass Burn frees nodes, those of other threads too, that nothing refers to. So an operator refers to its parents until its own
//! node is in the graph; their gradients would be lost otherwise where another thread ends a pass meanwhile.

use std::array;
use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Tensor, TensorPrimitive};

/// Runs an operator from `P` tensors, its parents in the graph, to `M` tensors, and records it if a parent is tracked.
///
/// `outputs` gives the outputs alone, `forward` also what to save; one of them is called. `backward` takes the inputs, what was saved
/// and the gradients of the outputs (`None` is zero, but at least one is given), and gives the gradients of the inputs.
pub(crate) fn apply<B, C, S, const P: usize, const M: usize>(
    name: &'static str,
    parents: [FloatTensor<Autodiff<B, C>>; P],
    outputs: impl FnOnce([FloatTensor<B>; P]) -> [FloatTensor<B>; M],
    forward: impl FnOnce([FloatTensor<B>; P]) -> ([FloatTensor<B>; M], S),
    backward: impl BackwardPass<B, S, P, M>,
) -> [FloatTensor<Autodiff<B, C>>; M]
where
    B: Backend,
    C: CheckpointStrategy,
    S: Saved,
{
    let nodes = parents.each_ref().map(|parent| parent.node.clone());
    let _references = parents.each_ref().map(|parent| parent.rc.clone());
    let joint = Joint::<_, S, M> {
        name,
        backward,
        saved: PhantomData,
    };
    match joint.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(_) => outputs(parents.map(|parent| parent.primitive))
            .map(<Autodiff<B, C> as AutodiffBackend>::from_inner),
        OpsKind::Tracked(mut prep) => {
            let device = B::float_device(&parents[0].primitive);
            let inputs = parents.each_ref().map(|parent| prep.checkpoint(parent));
            let (outputs, saved) = forward(parents.map(|parent| parent.primitive));
            let slot: Slot<B, M> = Arc::new(Mutex::new(array::from_fn(|_| None)));
            let state = JointState {
                slot: slot.clone(),
                inputs,
                saved,
            };
            let joint = prep.finish(state, dummy::<B>(&device));
            let mut indices = 0..M;
            outputs.map(|output| {
                let leaf = Leaf::<M>(indices.next().expect("one per output"));
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

/// What a backward pass needs beside the inputs.
pub(crate) trait Saved: Clone + Debug + Send + 'static {}

impl<S: Clone + Debug + Send + 'static> Saved for S {}

/// From inputs, saved and gradients of the outputs to gradients of the inputs.
pub(crate) trait BackwardPass<B: Backend, S, const P: usize, const M: usize>:
    FnOnce([FloatTensor<B>; P], S, [Option<FloatTensor<B>>; M]) -> [FloatTensor<B>; P]
    + Send
    + 'static
{
}

impl<F, B: Backend, S, const P: usize, const M: usize> BackwardPass<B, S, P, M> for F where
    F: FnOnce([FloatTensor<B>; P], S, [Option<FloatTensor<B>>; M]) -> [FloatTensor<B>; P]
        + Send
        + 'static
{
}

/// Where the leaves leave the gradients of their outputs.
type Slot<B, const M: usize> = Arc<Mutex<[Option<FloatTensor<B>>; M]>>;

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The node that runs the backward pass for all outputs.
struct Joint<F, S, const M: usize> {
    name: &'static str,
    backward: F,
    saved: PhantomData<S>,
}

impl<F, S, const M: usize> Debug for Joint<F, S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Debug, Clone)]
struct JointState<B: Backend, S, const P: usize, const M: usize> {
    slot: Slot<B, M>,
    inputs: [NodeId; P],
    saved: S,
}

impl<B, F, S, const P: usize, const M: usize> Backward<B, P> for Joint<F, S, M>
where
    B: Backend,
    F: BackwardPass<B, S, P, M>,
    S: Saved,
{
    type State = JointState<B, S, P, M>;

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
        let d_inputs = (self.backward)(inputs, state.saved, d_outputs);
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
