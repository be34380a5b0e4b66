//! Single queries, for decoding and for chunks that hardly any query of a block chose: keys are rows of vectors.

use pulp::Simd;
use std::ops::Range;

use super::{KEYS, Problem};
use crate::cpu::simd::{dot, exp, vectors, vectors_mut};

/// A query and its softmax so far.
pub(super) struct Query<'a> {
    pub(super) row: &'a [f32],
    /// Sum of weighted values.
    pub(super) sum: &'a mut [f32],
    /// Largest scaled score.
    pub(super) largest: &'a mut f32,
    /// Sum of weights.
    pub(super) weight: &'a mut f32,
}

impl Query<'_> {
    /// Attends to the keys of times `range`, all of them visible.
    #[inline(always)]
    pub(super) fn absorb<S: Simd>(
        self,
        simd: S,
        problem: &Problem<'_>,
        head: (usize, usize),
        range: Range<usize>,
    ) {
        let mut scores = [0.0; KEYS];
        for first in range.clone().step_by(KEYS) {
            let keys = KEYS.min(range.end - first);
            let scores = &mut scores[..keys];
            let old = *self.largest;
            let mut new = old;
            for (k, score) in scores.iter_mut().enumerate() {
                *score = dot(simd, self.row, problem.key.row(head, first + k)) * problem.scale;
                new = new.max(*score);
            }
            let mut shrink = [old - new];
            exp(simd, &mut shrink);
            scores.iter_mut().for_each(|score| *score -= new);
            exp(simd, scores);
            *self.largest = new;
            *self.weight = *self.weight * shrink[0] + scores.iter().sum::<f32>();
            add_values(simd, problem, head, first, scores, shrink[0], self.sum);
        }
    }
}

/// `sum = sum * shrink + weights values`, four vectors of the sum at a time held in registers.
#[inline(always)]
fn add_values<S: Simd>(
    simd: S,
    problem: &Problem<'_>,
    head: (usize, usize),
    first: usize,
    weights: &[f32],
    shrink: f32,
    sum: &mut [f32],
) {
    let shrink = simd.splat_f32s(shrink);
    let mut at = 0;
    for sums in vectors_mut(simd, sum).chunks_mut(4) {
        let mut held = [simd.splat_f32s(0.0); 4];
        for (held, &sum) in held.iter_mut().zip(sums.iter()) {
            *held = simd.mul_f32s(sum, shrink);
        }
        for (k, &weight) in weights.iter().enumerate() {
            let weight = simd.splat_f32s(weight);
            let row = &vectors(simd, problem.value.row(head, first + k))[at..];
            for (held, &value) in held.iter_mut().zip(row) {
                *held = simd.mul_add_e_f32s(weight, value, *held);
            }
        }
        at += sums.len();
        sums.copy_from_slice(&held[..sums.len()]);
    }
}
