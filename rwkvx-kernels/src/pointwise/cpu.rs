//! The functions by hand for CPUs: plain arithmetic that the compiler turns into vectors.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};
use pulp::{Arch, Simd, WithSimd};

use super::Pointwise;
use crate::cpu::simd::{sigmoid, tanh};
use crate::cpu::{Disjoint, HostMemory, for_each};

/// Elements per task.
const PIECE: usize = 1 << 14;

/// Multiply-adds that one element costs, about.
const COST: usize = 16;

/// The body of [`KernelBackend::pointwise`](crate::KernelBackend::pointwise).
pub(crate) fn forward<B: HostMemory>(function: Pointwise, x: FloatTensor<B>) -> FloatTensor<B> {
    map::<B>(function, x, None)
}

/// The body of [`KernelBackend::pointwise_backward`](crate::KernelBackend::pointwise_backward).
pub(crate) fn backward<B: HostMemory>(
    function: Pointwise,
    y: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    map::<B>(function, y, Some(dy))
}

/// The function of `x`, or with a gradient the slope where the function is `x`, times the gradient.
fn map<B: HostMemory>(
    function: Pointwise,
    x: FloatTensor<B>,
    gradient: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let flat = |x: FloatTensor<B>| {
        let elements = x.shape().num_elements();
        B::values(Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(
            B::float_reshape(x, [elements].into()),
        )))
    };
    let (x, gradient) = (flat(x), gradient.map(flat));
    let mut result = vec![0.0; x.len()];
    let target = Disjoint::new(&mut result);
    let arch = Arch::new();
    for_each(x.len().div_ceil(PIECE), x.len() * COST, |piece| {
        let from = piece * PIECE;
        let len = PIECE.min(x.len() - from);
        arch.dispatch(Piece {
            function,
            x: &x[from..][..len],
            gradient: gradient.as_ref().map(|gradient| &gradient[from..][..len]),
            // SAFETY: each task has its own piece.
            result: unsafe { target.part(from, len) },
        });
    });
    let elements = result.len();
    let result = B::tensor(result, [elements])
        .cast(dtype)
        .into_primitive()
        .tensor();
    B::float_reshape(result, shape)
}

struct Piece<'a> {
    function: Pointwise,
    x: &'a [f32],
    gradient: Option<&'a [f32]>,
    result: &'a mut [f32],
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self {
            function,
            x,
            gradient,
            result,
        } = self;
        let elements = result.iter_mut().zip(x);
        match (function, gradient) {
            (Pointwise::Sigmoid, None) => elements.for_each(|(result, &x)| *result = sigmoid(x)),
            (Pointwise::Tanh, None) => elements.for_each(|(result, &x)| *result = tanh(x)),
            (Pointwise::SquaredRelu, None) => elements.for_each(|(result, &x)| {
                let positive = if x < 0.0 { 0.0 } else { x }; // no number stays none
                *result = positive * positive;
            }),
            (Pointwise::Sigmoid, Some(dy)) => {
                elements
                    .zip(dy)
                    .for_each(|((result, &y), &dy)| *result = dy * y * (1.0 - y));
            }
            (Pointwise::Tanh, Some(dy)) => {
                elements
                    .zip(dy)
                    .for_each(|((result, &y), &dy)| *result = dy * (1.0 - y * y));
            }
            (Pointwise::SquaredRelu, Some(dy)) => {
                elements
                    .zip(dy)
                    .for_each(|((result, &y), &dy)| *result = 2.0 * dy * y.sqrt());
            }
        }
    }
}
