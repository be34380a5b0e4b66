//! Products of few rows.

use std::array;

use pulp::{Arch, Simd, WithSimd};

use super::Product;
use super::dot::{Sums, Weights, multiply_add, total};
use crate::cpu::{Disjoint, for_each};

/// Outputs per task.
const BLOCK: usize = 64;

/// Rows of `x` that go together.
const ROWS: usize = 4;

/// Rows of weights that go together with several rows of `x`. With two the compiler takes vectors across them, at half the speed.
const OUTPUTS: usize = 4;

/// Weights are `[out, in]`.
pub(super) fn out_in(product: Product<'_>, weights: impl Weights, y: &mut [f32]) {
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
        arch.dispatch(Outputs {
            product,
            weights,
            first,
            last: outputs.min(first + BLOCK),
            y: &y,
        });
    });
}

/// Some outputs of all rows.
struct Outputs<'a, W> {
    product: Product<'a>,
    weights: W,
    first: usize,
    last: usize,
    y: &'a Disjoint<'a>,
}

impl<W: Weights> WithSimd for Outputs<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Product {
            x, rows, inputs, ..
        } = self.product;
        let mut output = self.first;
        if rows < ROWS {
            for output in output..self.last {
                for (row, x) in x.chunks_exact(inputs).enumerate() {
                    self.put(row, output, [self.weights.dot::<S>(x, output * inputs)]);
                }
            }
            return;
        }
        while output + OUTPUTS <= self.last {
            self.all_rows::<S, OUTPUTS>(output);
            output += OUTPUTS;
        }
        while output < self.last {
            self.all_rows::<S, 1>(output);
            output += 1;
        }
    }
}

impl<W: Weights> Outputs<'_, W> {
    #[inline(always)]
    fn all_rows<S: Simd, const N: usize>(&self, output: usize) {
        let mut row = 0;
        while row + ROWS <= self.product.rows {
            self.tile::<S, ROWS, N>(row, output);
            row += ROWS;
        }
        while row < self.product.rows {
            self.tile::<S, 1, N>(row, output);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(&self, row: usize, output: usize) {
        let Product { x, inputs, .. } = self.product;
        let mut sums: Sums<R, N> = [[Default::default(); N]; R];
        self.weights.add_products::<S, R, N>(
            array::from_fn(|r| &x[(row + r) * inputs..][..inputs]),
            array::from_fn(|n| (output + n) * inputs),
            &mut sums,
        );
        for (r, sums) in sums.into_iter().enumerate() {
            self.put(row + r, output, sums.map(total));
        }
    }

    /// Writes consecutive outputs of a row, which are of this task.
    #[inline(always)]
    fn put<const N: usize>(&self, row: usize, output: usize, values: [f32; N]) {
        // SAFETY: each task has its own outputs.
        let y = unsafe { self.y.part(row * self.product.outputs + output, N) };
        y.copy_from_slice(&values);
    }
}

/// Weights are `[in, out]`.
pub(super) fn in_out(product: Product<'_>, weights: impl Weights, y: &mut [f32]) {
    Arch::new().dispatch(Columns {
        product,
        weights,
        y,
    });
}

struct Columns<'a, W> {
    product: Product<'a>,
    weights: W,
    y: &'a mut [f32],
}

impl<W: Weights> WithSimd for Columns<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Product {
            x, inputs, outputs, ..
        } = self.product;
        assert!(self.weights.len() >= inputs * outputs);
        for (x, y) in x.chunks_exact(inputs).zip(self.y.chunks_exact_mut(outputs)) {
            y.fill(0.0);
            let mut input = 0;
            while input + INPUTS <= inputs {
                add_rows::<S, W, INPUTS>(self.weights, x, input, y);
                input += INPUTS;
            }
            while input < inputs {
                add_rows::<S, W, 1>(self.weights, x, input, y);
                input += 1;
            }
        }
    }
}

/// Rows of weights `[in, out]` that go together: they lie one after the other, so that memory is read in its order, and each output is loaded
/// and stored once for all of them.
const INPUTS: usize = 8;

/// Adds to `y` the products of `N` inputs, in their order.
#[inline(always)]
fn add_rows<S: Simd, W: Weights, const N: usize>(
    weights: W,
    x: &[f32],
    input: usize,
    y: &mut [f32],
) {
    let outputs = y.len();
    let x: [f32; N] = array::from_fn(|n| x[input + n]);
    for (output, y) in y.iter_mut().enumerate() {
        let mut sum = *y;
        for (n, &x) in x.iter().enumerate() {
            // SAFETY: the weights have a row for each input.
            let weight = unsafe { weights.wide((input + n) * outputs + output) };
            sum = multiply_add::<S>(x, weight, sum);
        }
        *y = sum;
    }
}
