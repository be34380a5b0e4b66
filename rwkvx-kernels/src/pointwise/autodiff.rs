//! Hooks function and gradient into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::ops::FloatTensor;

use super::Pointwise;
use crate::KernelBackend;

/// Runs the function and records its gradient, which keeps the result.
pub(crate) fn apply<B: KernelBackend, C: CheckpointStrategy>(
    function: Pointwise,
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    match Slope(function)
        .prepare::<C>([x.node.clone()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let y = B::pointwise(function, x.primitive);
            prep.finish(y.clone(), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::pointwise(function, x.primitive)),
    }
}

#[derive(Debug)]
struct Slope(Pointwise);

impl<B: KernelBackend> Backward<B, 1> for Slope {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let y = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| {
            B::pointwise_backward(self.0, y, dy)
        });
    }
}
