//! Hooks a backend's own passes into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

use super::{AttentionBackward, AttentionGradient, AttentionInputs, ChunkTopK};
use crate::KernelBackend;

/// Runs `gradient.forward` and records `gradient.backward`.
pub(crate) fn sparse_attention<B: KernelBackend, C: CheckpointStrategy>(
    gradient: AttentionGradient<B>,
    query: Tensor<Autodiff<B, C>, 4>,
    key: Tensor<Autodiff<B, C>, 4>,
    value: Tensor<Autodiff<B, C>, 4>,
    shape: ChunkTopK,
) -> Tensor<Autodiff<B, C>, 4> {
    let parents = [query, key, value].map(|tensor| tensor.into_primitive().tensor());
    let nodes = parents.each_ref().map(|tensor| tensor.node.clone());
    let _references = parents.each_ref().map(|tensor| tensor.rc.clone()); // as in `joint`
    let backward = Attention(gradient.backward);
    match backward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(_) => {
            let [query, key, value] = parents.map(|tensor| wrap(tensor.primitive));
            Tensor::from_inner(B::sparse_attention(query, key, value, shape))
        }
        OpsKind::Tracked(mut prep) => {
            let saved_inputs = parents.each_ref().map(|tensor| prep.checkpoint(tensor));
            let inputs = inputs(parents.map(|tensor| tensor.primitive), shape);
            let (output, saved) = (gradient.forward)(&inputs);
            let output: FloatTensor<B> = output.into_primitive().tensor();
            let state = State {
                shape,
                inputs: saved_inputs,
                output: output.clone(),
                saved: saved.into_primitive().tensor(),
            };
            wrap(prep.finish(state, output))
        }
    }
}

/// The node that runs the backward pass.
struct Attention<B: Backend>(AttentionBackward<B>);

impl<B: Backend> std::fmt::Debug for Attention<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SparseAttention")
    }
}

#[derive(Debug)]
struct State<B: Backend> {
    shape: ChunkTopK,
    inputs: [NodeId; 3],
    output: FloatTensor<B>,
    saved: FloatTensor<B>,
}

impl<B: Backend> Clone for State<B> {
    fn clone(&self) -> Self {
        Self {
            shape: self.shape,
            inputs: self.inputs,
            output: self.output.clone(),
            saved: self.saved.clone(),
        }
    }
}

impl<B: Backend> Backward<B, 3> for Attention<B> {
    type State = State<B>;

    fn backward(
        self,
        ops: Ops<State<B>, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let d_output = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let primitives = state
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let inputs = inputs(primitives, state.shape);
        let d = (self.0)(
            &inputs,
            wrap(state.output),
            wrap(state.saved),
            wrap(d_output),
        );
        for (parent, gradient) in ops.parents.iter().zip([d.query, d.key, d.value]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient.into_primitive().tensor());
            }
        }
    }
}

fn wrap<B: Backend>(tensor: FloatTensor<B>) -> Tensor<B, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

fn inputs<B: Backend>(primitives: [FloatTensor<B>; 3], shape: ChunkTopK) -> AttentionInputs<B> {
    let [query, key, value] = primitives.map(wrap);
    AttentionInputs {
        query,
        key,
        value,
        shape,
    }
}
