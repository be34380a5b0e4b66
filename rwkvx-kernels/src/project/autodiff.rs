//! Hooks the product into Burn's gradient graph, with gradients of weights that are cut along the rows where those are many.

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{DType, Tensor};

use super::{WeightLayout, reference};
use crate::joint::{unwrap, wrap};
use crate::{KernelBackend, long_product_transposed};

/// The body of [`KernelBackend::project`] with gradients; quantised weights have none.
pub(crate) fn project<B: KernelBackend, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 2>,
    weight: Tensor<Autodiff<B, C>, 2>,
    layout: WeightLayout,
) -> Tensor<Autodiff<B, C>, 2> {
    let weight = weight.dequantize();
    let dtype = weight.dtype();
    let (x, weight) = (unwrap(x), unwrap(weight));
    let [x_inner, weight_inner] = [&x, &weight].map(|tensor| wrap(tensor.primitive.clone()));
    let output = unwrap(reference::project::<B>(x_inner, weight_inner, layout));
    let product = Product { layout, dtype };
    let nodes = [x.node.clone(), weight.node.clone()];
    wrap(
        match product.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                // Each for the other's gradient.
                let kept = Kept {
                    x: weight.is_tracked().then(|| prep.checkpoint(&x)),
                    weight: x.is_tracked().then(|| prep.checkpoint(&weight)),
                };
                prep.finish(kept, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        },
    )
}

/// The node of a product.
#[derive(Debug)]
struct Product {
    layout: WeightLayout,
    /// Of the weights.
    dtype: DType,
}

#[derive(Debug, Clone)]
struct Kept {
    x: Option<NodeId>,
    weight: Option<NodeId>,
}

impl<B: KernelBackend> Backward<B, 2> for Product {
    type State = Kept;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let mut retrieve = |id| wrap(checkpointer.retrieve_node_output(id));
        let x = ops.state.x.map(&mut retrieve); // [rows, in]
        let weight = ops.state.weight.map(&mut retrieve);
        let d_output: Tensor<B, 2> = wrap(grads.consume::<B>(&ops.node)); // [rows, out]
        let [x_node, weight_node] = ops.parents;
        if let (Some(node), Some(weight)) = (x_node, weight) {
            let d_x = reference::project(d_output.clone(), weight, self.layout.transposed());
            grads.register::<B>(node.id, unwrap(d_x));
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let (x, d_output) = (x.cast(self.dtype), d_output.cast(self.dtype));
            let d_weight = match self.layout {
                WeightLayout::OutIn => long_product_transposed(d_output, x),
                WeightLayout::InOut => long_product_transposed(x, d_output),
            };
            grads.register::<B>(node.id, unwrap(d_weight));
        }
    }
}
