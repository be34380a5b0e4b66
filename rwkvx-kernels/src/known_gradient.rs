//! A number whose gradient somebody has computed already.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};

use crate::{KernelBackend, shapes};

/// `value` `[1]` as a function of `x` that has the gradient `gradient`, of the shape of `x`. Both count as constants.
///
/// For losses that make their gradient on the way and let go of what it was made of. The backward pass multiplies `gradient` by the one that comes in, in
/// place where it can, and holds nothing else. The sum of two such numbers is a function of both their arguments.
///
/// # Panics
/// If `value` is not one number or `gradient` has another shape than `x`.
pub fn with_gradient<B: KernelBackend, const D: usize>(
    value: Tensor<B, 1>,
    x: Tensor<B, D>,
    gradient: Tensor<B, D>,
) -> Tensor<B, 1> {
    shapes::expect("with_gradient", "value", "[1]", &value, [1]);
    let axes = "the shape of `x`";
    shapes::expect("with_gradient", "gradient", axes, &gradient, x.dims());
    B::with_gradient(value, x, gradient)
}

/// The definition: `sum(x gradient)` has that gradient, and a constant brings its value right.
pub(crate) fn reference<B: Backend, const D: usize>(
    value: Tensor<B, 1>,
    x: Tensor<B, D>,
    gradient: Tensor<B, D>,
) -> Tensor<B, 1> {
    let linear = (x * gradient.detach()).sum();
    linear.clone() + (value - linear).detach()
}

/// The body under autodiff.
pub(crate) fn autodiff<B: Backend, C: CheckpointStrategy, const D: usize>(
    value: Tensor<Autodiff<B, C>, 1>,
    x: Tensor<Autodiff<B, C>, D>,
    gradient: Tensor<Autodiff<B, C>, D>,
) -> Tensor<Autodiff<B, C>, 1> {
    let value = value.inner().into_primitive().tensor();
    let x = x.into_primitive().tensor(); // lives until the node is in the graph, see `joint`
    let known = Known::<D>.prepare::<C>([x.node.clone()]);
    let number = match known.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(gradient.inner(), value),
        OpsKind::UnTracked(prep) => prep.finish(value),
    };
    Tensor::from_primitive(TensorPrimitive::Float(number))
}

#[derive(Debug)]
struct Known<const D: usize>;

impl<B: Backend, const D: usize> Backward<B, 1> for Known<D> {
    type State = Tensor<B, D>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |d_value| {
            let d_value = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(d_value));
            let d_value = d_value.cast(gradient.dtype()).reshape([1; D]);
            (gradient * d_value).into_primitive().tensor()
        });
    }
}
