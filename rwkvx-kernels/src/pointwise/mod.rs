//! Functions applied to each element. Burn's CPU backends call the scalar mathematics library for them, and its gradient graph keeps more than it needs.

pub(crate) mod autodiff;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
pub(crate) mod reference;

use burn::tensor::{Tensor, TensorPrimitive};

use crate::KernelBackend;

/// A function of one element whose slope is a function of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pointwise {
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh x`
    Tanh,
    /// `max(x, 0)^2`, the channel mix's
    SquaredRelu,
}

/// `1 / (1 + exp(-x))` of each element, of any shape; differentiable.
pub fn sigmoid<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    apply(Pointwise::Sigmoid, x)
}

/// `tanh` of each element, of any shape; differentiable.
pub fn tanh<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    apply(Pointwise::Tanh, x)
}

/// `max(x, 0)^2` of each element, of any shape; differentiable, and keeps for that nothing but its result.
pub fn squared_relu<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    apply(Pointwise::SquaredRelu, x)
}

/// One of the functions of each element, of any shape; differentiable.
pub(crate) fn apply<B: KernelBackend, const D: usize>(
    function: Pointwise,
    x: Tensor<B, D>,
) -> Tensor<B, D> {
    let y = B::pointwise(function, x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(y))
}
