//! Rows in blocks, shared out to threads, with vectors of this processor.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use pulp::{Arch, Simd, WithSimd};

use crate::cpu::{Disjoint, HostMemory, for_each};

/// Rows per block, whatever the number of threads, so that the gradients of parameters are always the same sums.
const ROWS: usize = 32;

/// One pass over rows.
pub(super) trait Pass: Sync {
    /// Works on the rows of a block.
    ///
    /// To be `inline(always)`, as all that it calls: the instruction set is the caller's.
    fn block(&self, block: usize, rows: Range<usize>);
}

/// Runs a pass; `work` counts multiply-adds in all.
pub(super) fn run(pass: &impl Pass, rows: usize, work: usize) {
    let arch = Arch::new();
    for_each(rows.div_ceil(ROWS), work, |block| {
        let first = block * ROWS;
        let rows = first..rows.min(first + ROWS);
        arch.dispatch(Block { pass, block, rows });
    });
}

struct Block<'a, P> {
    pass: &'a P,
    block: usize,
    rows: Range<usize>,
}

impl<P: Pass> WithSimd for Block<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.pass.block(self.block, self.rows);
    }
}

/// Gradients of parameters, summed up block by block: `[blocks, parameters, channels]`.
pub(super) struct Partials {
    values: Vec<f32>,
    parameters: usize,
    channels: usize,
}

impl Partials {
    pub(super) fn new([rows, channels]: [usize; 2], parameters: usize) -> Self {
        Self {
            values: vec![0.0; rows.div_ceil(ROWS) * parameters * channels],
            parameters,
            channels,
        }
    }

    /// To be written by the blocks, each its own `[parameters, channels]`.
    pub(super) fn target(&mut self) -> Disjoint<'_> {
        Disjoint::new(&mut self.values)
    }

    /// The sums over all blocks, one per parameter.
    pub(super) fn sums<B: HostMemory>(self, dtype: DType) -> Vec<Tensor<B, 1>> {
        let mut sums = vec![vec![0.0; self.channels]; self.parameters];
        for (i, partial) in self.values.chunks_exact(self.channels).enumerate() {
            let sum = &mut sums[i % self.parameters];
            each!(i, sum += partial[i];);
        }
        let sums = sums.into_iter();
        sums.map(|sum| B::tensor(sum, [self.channels]).cast(dtype))
            .collect()
    }
}
