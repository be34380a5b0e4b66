//! The token shift.

use std::ops::Range;

use burn::tensor::Tensor;

use super::blocks::{self, Partials, Pass};
use crate::cpu::{Disjoint, HostMemory};
use crate::time_mix::ShiftGrads;

/// Multiply-adds per element and mix, about.
const COST: usize = 4;

/// The body of [`KernelBackend::token_shift`](crate::KernelBackend::token_shift).
pub(crate) fn token_shift<B: HostMemory>(
    x: Tensor<B, 3>,
    carry: Option<Tensor<B, 2>>,
    amounts: Vec<Tensor<B, 1>>,
) -> Vec<Tensor<B, 2>> {
    let [batch, time, channels] = x.dims();
    let dims @ [rows, _] = [batch * time, channels];
    let dtype = x.dtype();
    let x = B::values(x);
    let carry = carry.map(B::values);
    let amounts: Vec<_> = amounts.into_iter().map(B::values).collect();
    let mut mixes: Vec<_> = amounts.iter().map(|_| vec![0.0; x.len()]).collect();
    let pass = Forward {
        text: Text::new(&x, time, channels),
        carry: carry.as_deref(),
        amounts: amounts.iter().map(|values| &**values).collect(),
        mixes: mixes
            .iter_mut()
            .map(|values| Disjoint::new(values))
            .collect(),
    };
    blocks::run(&pass, rows, x.len() * amounts.len() * COST);
    let mixes = mixes.into_iter();
    mixes
        .map(|values| B::tensor(values, dims).cast(dtype))
        .collect()
}

/// The passes of [`TimeMixBackward::token_shift`](crate::TimeMixBackward::token_shift).
pub(super) fn backward<B: HostMemory>(
    x: Tensor<B, 3>,
    amounts: Vec<Tensor<B, 1>>,
    d_mixes: Vec<Tensor<B, 2>>,
) -> ShiftGrads<B> {
    let dims @ [batch, time, channels] = x.dims();
    let rows = batch * time;
    let (dtype, amount_dtype) = (x.dtype(), amounts[0].dtype());
    let x = B::values(x);
    let amounts: Vec<_> = amounts.into_iter().map(B::values).collect();
    let d_mixes: Vec<_> = d_mixes.into_iter().map(B::values).collect();
    let mut d_x = vec![0.0; x.len()];
    let mut partials = Partials::new([rows, channels], amounts.len());
    let pass = Backward {
        text: Text::new(&x, time, channels),
        amounts: amounts.iter().map(|values| &**values).collect(),
        d_mixes: d_mixes.iter().map(|values| &**values).collect(),
        d_x: Disjoint::new(&mut d_x),
        partials: partials.target(),
    };
    blocks::run(&pass, rows, x.len() * amounts.len() * 2 * COST);
    ShiftGrads {
        x: B::tensor(d_x, dims).cast(dtype),
        amounts: partials.sums(amount_dtype),
    }
}

/// A sequence `[batch, time, channels]`.
struct Text<'a> {
    x: &'a [f32],
    time: usize,
    channels: usize,
    /// What stands before the first token and after the last.
    zeros: Vec<f32>,
}

impl<'a> Text<'a> {
    fn new(x: &'a [f32], time: usize, channels: usize) -> Self {
        Self {
            x,
            time,
            channels,
            zeros: vec![0.0; channels],
        }
    }

    #[inline(always)]
    fn row<'b>(&self, sequence: &'b [f32], row: usize) -> &'b [f32] {
        &sequence[row * self.channels..][..self.channels]
    }

    /// The row before in the same text.
    #[inline(always)]
    fn before(&self, row: usize) -> &[f32] {
        if row.is_multiple_of(self.time) {
            &self.zeros
        } else {
            self.row(self.x, row - 1)
        }
    }

    /// The row of another sequence that is after this one in the same text.
    #[inline(always)]
    fn after<'b>(&'b self, sequence: &'b [f32], row: usize) -> &'b [f32] {
        if (row + 1).is_multiple_of(self.time) {
            &self.zeros
        } else {
            self.row(sequence, row + 1)
        }
    }
}

struct Forward<'a> {
    text: Text<'a>,
    carry: Option<&'a [f32]>,
    amounts: Vec<&'a [f32]>,
    mixes: Vec<Disjoint<'a>>,
}

impl Pass for Forward<'_> {
    #[inline(always)]
    fn block(&self, _: usize, rows: Range<usize>) {
        let Text {
            x, time, channels, ..
        } = self.text;
        for row in rows {
            let here = self.text.row(x, row);
            let before = match self.carry {
                Some(carry) if row.is_multiple_of(time) => self.text.row(carry, row / time),
                _ => self.text.before(row),
            };
            for (amount, mix) in self.amounts.iter().zip(&self.mixes) {
                let amount = self.text.row(amount, 0);
                // SAFETY: each block has its own rows.
                let mix = unsafe { mix.part(row * channels, channels) };
                each!(i, mix = here[i] + (before[i] - here[i]) * amount[i];);
            }
        }
    }
}

struct Backward<'a> {
    text: Text<'a>,
    amounts: Vec<&'a [f32]>,
    d_mixes: Vec<&'a [f32]>,
    d_x: Disjoint<'a>,
    partials: Disjoint<'a>,
}

impl Pass for Backward<'_> {
    #[inline(always)]
    fn block(&self, block: usize, rows: Range<usize>) {
        let Text { x, channels, .. } = self.text;
        let first_partial = block * self.amounts.len();
        for row in rows {
            let here = self.text.row(x, row);
            let before = self.text.before(row);
            // SAFETY: each block has its own rows.
            let d_x = unsafe { self.d_x.part(row * channels, channels) };
            for (i, (amount, d_mix)) in self.amounts.iter().zip(&self.d_mixes).enumerate() {
                let amount = self.text.row(amount, 0);
                let d_here = self.text.row(d_mix, row);
                let d_after = self.text.after(d_mix, row);
                each!(i, d_x += d_here[i] + (d_after[i] - d_here[i]) * amount[i];);
                // SAFETY: each block has its own partial sums.
                let d_amount =
                    unsafe { self.partials.part((first_partial + i) * channels, channels) };
                each!(i, d_amount += d_here[i] * (before[i] - here[i]););
            }
        }
    }
}
