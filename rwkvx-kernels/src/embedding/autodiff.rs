//! Hooks the lookup and its gradient into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::{Int, Tensor};

use crate::KernelBackend;
use crate::joint::{unwrap, wrap};

/// The body of [`KernelBackend::embedding`] with gradients.
pub(crate) fn embedding<B: KernelBackend, C: CheckpointStrategy>(
    weight: Tensor<Autodiff<B, C>, 2>,
    ids: Tensor<Autodiff<B, C>, 1, Int>,
) -> Tensor<Autodiff<B, C>, 2> {
    let [vocab, _] = weight.dims();
    let ids = ids.inner();
    let weight = unwrap(weight); // lives until the node is in the graph, see `joint`
    let rows = unwrap(<B as KernelBackend>::embedding(
        wrap(weight.primitive.clone()),
        ids.clone(),
    ));
    let lookup = Lookup.prepare::<C>([weight.node.clone()]);
    wrap(match lookup.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((vocab, ids), rows),
        OpsKind::UnTracked(prep) => prep.finish(rows),
    })
}

#[derive(Debug)]
struct Lookup;

impl<B: KernelBackend> Backward<B, 1> for Lookup {
    type State = (usize, Tensor<B, 1, Int>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (vocab, ids) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |d_rows| {
            unwrap(B::embedding_gradient(vocab, ids, wrap(d_rows)))
        });
    }
}
