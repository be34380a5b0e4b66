//! The operators by hand for CPUs: one pass over the rows, which threads share out in blocks.
//!
//! Plain loops that the compiler turns into vectors. Each writes to one slice, because the compiler gives up where it would have to
//! check many slices for overlap. What several loops need is kept in scratch, or in outputs that are not written yet.

/// `each!(i, x = a[i]; y += b[i];)`: each element of `x`, then each of `y`.
///
/// A macro, because not every closure would be inlined, and to a call there is no vector form.
macro_rules! each {
    ($i:ident, $($target:ident $assign:tt $value:expr;)+) => {$(
        #[allow(clippy::needless_range_loop)]
        for $i in 0..$target.len() {
            $target[$i] $assign $value;
        }
    )+};
}

mod blocks;
mod keys;
mod output;
pub(crate) mod rows;
mod shift;
mod value;

pub(crate) use keys::prepare_keys;
pub(crate) use output::gate_output;
pub(crate) use shift::token_shift;
pub(crate) use value::mix_value;

use super::TimeMixBackward;
use crate::cpu::HostMemory;

/// The passes for [`KernelBackend::TIME_MIX_BACKWARD`](crate::KernelBackend::TIME_MIX_BACKWARD).
pub(crate) const fn backward<B: HostMemory>() -> TimeMixBackward<B> {
    TimeMixBackward {
        token_shift: shift::backward,
        prepare_keys: keys::backward,
        mix_value: value::backward,
        gate_output: output::backward,
    }
}

/// Replaces every head, of `size` elements, by a function of its sum.
#[inline(always)]
fn spread_sums(row: &mut [f32], size: usize, function: impl Fn(f32) -> f32) {
    for head in row.chunks_exact_mut(size) {
        let value = function(sum(head));
        head.fill(value);
    }
}

/// The sum of some elements, in the order of vectors of 16.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    let vectors = values.chunks_exact(lanes.len());
    let rest = vectors.remainder();
    for vector in vectors {
        for (lane, value) in lanes.iter_mut().zip(vector) {
            *lane += value;
        }
    }
    let mut half = lanes.len() / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0] + rest.iter().sum::<f32>()
}
