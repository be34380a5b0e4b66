//! Products of many rows, by the `gemm` library.

use gemm::Parallelism;
use pulp::{Arch, Simd, WithSimd};
use rayon::current_num_threads;

use super::dot::Weights;
use super::{Product, WeightLayout};
use crate::cpu::{Disjoint, for_each};

/// Outputs whose weights a task widens at a time: 128 rows of 4096 f32 fill 2 MiB.
const BLOCK: usize = 128;

/// Multiply-adds from which on all cores work together.
const WORTH_THREADS: usize = 1 << 21;

/// Weights are f32.
pub(super) fn f32(product: Product<'_>, weights: &[f32], layout: WeightLayout, y: &mut [f32]) {
    let Product {
        rows,
        inputs,
        outputs,
        ..
    } = product;
    let parallel = rows * inputs * outputs >= WORTH_THREADS && current_num_threads() > 1;
    let threads = match parallel {
        true => Parallelism::Rayon(0),
        false => Parallelism::None,
    };
    multiply(product, weights, layout, (y, outputs), threads);
}

/// Weights `[out, in]` are to be widened.
pub(super) fn widened(product: Product<'_>, weights: impl Weights, y: &mut [f32]) {
    let Product {
        rows,
        inputs,
        outputs,
        ..
    } = product;
    let y = Disjoint::new(y);
    let arch = Arch::new();
    for_each(outputs.div_ceil(BLOCK), rows * inputs * outputs, |task| {
        let first = task * BLOCK;
        let block = BLOCK.min(outputs - first);
        let mut wide = vec![0.0; block * inputs];
        arch.dispatch(Widen {
            weights,
            at: first * inputs,
            wide: &mut wide,
        });
        let product = Product {
            outputs: block,
            ..product
        };
        let mut narrow = vec![0.0; rows * block];
        multiply(
            product,
            &wide,
            WeightLayout::OutIn,
            (&mut narrow, block),
            Parallelism::None,
        );
        for (row, narrow) in narrow.chunks_exact(block).enumerate() {
            // SAFETY: each task has its own outputs.
            unsafe { y.part(row * outputs + first, block) }.copy_from_slice(narrow);
        }
    });
}

/// All of a small matrix in f32.
pub(super) fn all_wide(weights: impl Weights, elements: usize) -> Vec<f32> {
    let mut wide = vec![0.0; elements];
    Arch::new().dispatch(Widen {
        weights,
        at: 0,
        wide: &mut wide,
    });
    wide
}

struct Widen<'a, W> {
    weights: W,
    at: usize,
    wide: &'a mut [f32],
}

impl<W: Weights> WithSimd for Widen<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.weights.widen(self.at, self.wide);
    }
}

/// `y = x weights`, rows of `y` `y_stride` apart.
fn multiply(
    product: Product<'_>,
    weights: &[f32],
    layout: WeightLayout,
    (y, y_stride): (&mut [f32], usize),
    threads: Parallelism,
) {
    let Product {
        x,
        rows,
        inputs,
        outputs,
    } = product;
    let (in_stride, out_stride) = match layout {
        WeightLayout::OutIn => (1, inputs),
        WeightLayout::InOut => (outputs, 1),
    };
    assert!(x.len() >= rows * inputs && weights.len() >= inputs * outputs);
    assert!(y_stride >= outputs && y.len() >= rows * y_stride);
    // SAFETY: by the assertions every element lies in its slice, and `y` overlaps nothing.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            y.as_mut_ptr(),
            1,
            y_stride as isize,
            false,
            x.as_ptr(),
            1,
            inputs as isize,
            weights.as_ptr(),
            out_stride as isize,
            in_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}
