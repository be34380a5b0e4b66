//! The passes by hand for CPUs, a row at a time.

use burn::tensor::{DType, Int, Tensor, TensorData};
use pulp::{Arch, Simd, WithSimd};

use super::RowLosses;
use crate::cpu::simd::{exp, exp_one, vectors};
use crate::cpu::{Disjoint, HostMemory, for_each, map};

/// Multiply-adds that one logit costs, about.
const COST: usize = 16;

/// Logits that are looked at together, so that they are still in the nearest cache for their second look. A whole number of vectors.
const BLOCK: usize = 1024;

/// The body of [`KernelBackend::cross_entropy_rows`](crate::KernelBackend::cross_entropy_rows).
pub(crate) fn cross_entropy_rows<B: HostMemory>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> RowLosses<B> {
    let device = logits.device();
    let [rows, vocab] = logits.dims();
    let targets = indices(targets);
    for target in &targets {
        assert!(
            *target < vocab,
            "cross_entropy_rows: `targets` has {target}, the vocabulary is {vocab}"
        );
    }
    let logits = B::values(logits);
    let arch = Arch::new();
    let found = map(rows, rows * vocab * COST, |row| {
        let logits = &logits[row * vocab..][..vocab];
        let target = logits[targets[row]];
        (arch.dispatch(Summary { logits }), target)
    });

    let of = |value: fn(&Statistics, f32) -> f32| {
        let values = found.iter().map(|(row, target)| value(row, *target));
        B::tensor(values.collect(), [rows])
    };
    let largest_at: Vec<i64> = found.iter().map(|(row, _)| row.largest_at as i64).collect();
    RowLosses {
        nll: of(|row, target| row.log_sum + (row.largest - target)),
        largest: of(|row, _| row.largest),
        largest_at: Tensor::from_data(TensorData::new(largest_at, [rows]), &device),
        log_sum: of(|row, _| row.log_sum),
    }
}

/// The body of [`KernelBackend::cross_entropy_gradient`](crate::KernelBackend::cross_entropy_gradient).
pub(crate) fn cross_entropy_gradient<B: HostMemory>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    losses: RowLosses<B>,
    shares: Tensor<B, 1>,
    l2_wrap: f64,
) -> Tensor<B, 2> {
    let dtype = logits.dtype();
    let [rows, vocab] = logits.dims();
    let (targets, largest_at) = (indices(targets), indices(losses.largest_at));
    let [largest, log_sum, shares] = [losses.largest, losses.log_sum, shares].map(B::values);
    let change = |logits: &mut [f32]| {
        let logits = Disjoint::new(logits);
        let arch = Arch::new();
        for_each(rows, rows * vocab * COST, |row| {
            // SAFETY: each task has its own row.
            let logits = unsafe { logits.part(row * vocab, vocab) };
            let share = shares[row];
            arch.dispatch(Softmax {
                logits: &mut *logits,
                share,
                largest: largest[row],
                log_sum: log_sum[row],
            });
            logits[targets[row]] -= share;
            logits[largest_at[row]] += l2_wrap as f32 * largest[row];
        });
    };
    B::change(logits.cast(DType::F32), change).cast(dtype)
}

fn indices<B: HostMemory>(tensor: Tensor<B, 1, Int>) -> Vec<usize> {
    // A negative one becomes larger than any vocabulary.
    let data = tensor.into_data();
    data.iter::<i64>().map(|index| index as usize).collect()
}

struct Statistics {
    largest: f32,
    largest_at: usize,
    log_sum: f32,
}

/// One read of a row.
struct Summary<'a> {
    logits: &'a [f32],
}

impl WithSimd for Summary<'_> {
    type Output = Statistics;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Statistics {
        let mut block = [0.0; BLOCK];
        // The least finite number, as infinities have no difference.
        let (mut largest, mut largest_from, mut sum) = (f32::MIN, 0, 0.0);
        for (i, logits) in self.logits.chunks(BLOCK).enumerate() {
            block[..logits.len()].copy_from_slice(logits);
            block[logits.len()..].fill(f32::NEG_INFINITY);
            let mut top = simd.splat_f32s(f32::MIN);
            for &x in vectors(simd, &block) {
                top = simd.max_f32s(top, x);
            }
            let top = simd.reduce_max_f32s(top);
            if top > largest {
                sum *= (largest - top).exp();
                (largest, largest_from) = (top, i * BLOCK);
            }
            block.iter_mut().for_each(|x| *x -= largest);
            exp(simd, &mut block);
            let mut sums = simd.splat_f32s(0.0);
            for &x in vectors(simd, &block) {
                sums = simd.add_f32s(sums, x);
            }
            sum += simd.reduce_sum_f32s(sums);
        }
        let in_block = self.logits[largest_from..]
            .iter()
            .position(|&x| x == largest);
        Statistics {
            largest,
            largest_at: largest_from + in_block.unwrap_or(0),
            log_sum: sum.ln(),
        }
    }
}

/// Overwrites a row by `share softmax`.
struct Softmax<'a> {
    logits: &'a mut [f32],
    share: f32,
    largest: f32,
    log_sum: f32,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for x in self.logits {
            *x = exp_one(*x - self.largest - self.log_sum) * self.share;
        }
    }
}
