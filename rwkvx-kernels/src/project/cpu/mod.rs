//! The product by hand for CPUs.
//!
//! Few rows: every weight is read once, widened in a register and multiplied with all rows, several rows of weights at a time; this runs
//! as fast as memory delivers. Many rows: the `gemm` library's product, half-precision and quantised weights a block at a time widened to f32.

mod dot;
mod few;
mod many;

use burn::tensor::Tensor;

use self::dot::Weights;
use super::WeightLayout;
use crate::cpu::HostMemory;
use crate::cpu::memory::Matrix;

pub(crate) use dot::Int8;

/// Up to so many rows go through [`few`]; from there on packing pays.
const FEW: usize = 12;

/// The body of [`KernelBackend::project`](crate::KernelBackend::project).
pub(crate) fn project<B: HostMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    layout: WeightLayout,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let [rows, _] = x.dims();
    let [inputs, outputs] = layout.in_out(weight.dims());
    // Groups of quantised weights run along the inputs.
    let weight = match layout {
        WeightLayout::OutIn => weight,
        WeightLayout::InOut => weight.dequantize(),
    };
    let x = B::values(x);
    let mut y = vec![0.0; rows * outputs];
    let product = Product {
        x: &x,
        rows,
        inputs,
        outputs,
    };
    B::read_matrix(weight, |weight| match weight {
        Matrix::F32(weights) if rows > FEW => many::f32(product, weights, layout, &mut y),
        Matrix::F32(weights) => product.run(weights, layout, &mut y),
        Matrix::Bf16(weights) => product.run(weights, layout, &mut y),
        Matrix::F16(weights) => product.run(weights, layout, &mut y),
        Matrix::Int8(weights) => product.run(weights, layout, &mut y),
    });
    B::tensor(y, [rows, outputs]).cast(dtype)
}

/// Rows and the sizes of one product.
#[derive(Clone, Copy)]
struct Product<'a> {
    /// `[rows, inputs]`
    x: &'a [f32],
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Product<'_> {
    fn run(self, weights: impl Weights, layout: WeightLayout, y: &mut [f32]) {
        match layout {
            WeightLayout::OutIn if self.rows > FEW => many::widened(self, weights, y),
            WeightLayout::OutIn => few::out_in(self, weights, y),
            WeightLayout::InOut if self.rows > FEW => {
                let wide = many::all_wide(weights, self.inputs * self.outputs);
                many::f32(self, &wide, layout, y);
            }
            WeightLayout::InOut => few::in_out(self, weights, y),
        }
    }
}
