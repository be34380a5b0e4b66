//! A tile: as many queries as two vectors have lanes, each lane with its own softmax.

use pulp::Simd;
use std::ops::Range;

use super::{KEYS, Problem};
use crate::cpu::simd::{Strided, exp, multiply_add, vectors, vectors_mut};

/// Queries of a tile.
#[inline(always)]
pub(super) const fn width<S: Simd>() -> usize {
    2 * S::F32_LANES
}

/// Copies rows into lanes: `rows[lane][n]` to `lanes[n][lane]`, zero where there is no row.
#[inline(always)]
pub(super) fn transpose_in<'a>(
    rows: impl Iterator<Item = &'a [f32]>,
    lanes: &mut [f32],
    width: usize,
) {
    lanes.fill(0.0);
    for (lane, row) in rows.enumerate() {
        for (n, &x) in row.iter().enumerate() {
            lanes[n * width + lane] = x;
        }
    }
}

/// Copies one lane out: `lanes[n][lane]` to `row[n]`.
#[inline(always)]
pub(super) fn transpose_out(lanes: &[f32], lane: usize, width: usize, row: &mut [f32]) {
    for (x, lanes) in row.iter_mut().zip(lanes.chunks_exact(width)) {
        *x = lanes[lane];
    }
}

/// Working memory of a tile; matrices have one row of `width` lanes per element of a head or per key.
pub(super) struct Tile {
    /// `[head_size, lane]`
    pub(super) query: Vec<f32>,
    /// Sum of weighted values so far, `[head_size, lane]`.
    pub(super) sum: Vec<f32>,
    /// Largest scaled score so far, `[lane]`.
    pub(super) largest: Vec<f32>,
    /// Sum of weights so far, `[lane]`.
    pub(super) weight: Vec<f32>,
    /// Scores, then weights, `[key, lane]`; or scores of chunks.
    pub(super) scores: Vec<f32>,
}

impl Tile {
    pub(super) fn new(size: usize, width: usize) -> Self {
        Self {
            query: vec![0.0; size * width],
            sum: vec![0.0; size * width],
            largest: vec![0.0; width],
            weight: vec![0.0; width],
            scores: vec![0.0; KEYS * width],
        }
    }

    /// Forgets what was attended to.
    pub(super) fn reset(&mut self) {
        self.sum.fill(0.0);
        self.largest.fill(f32::NEG_INFINITY);
        self.weight.fill(0.0);
    }

    /// Attends to the keys of times `range`. With `causal`, the time of lane 0's query, a lane does not see later keys than its
    /// own; then the first key of the range must be visible to all lanes.
    #[inline(always)]
    pub(super) fn absorb<S: Simd>(
        &mut self,
        simd: S,
        problem: &Problem<'_>,
        head: (usize, usize),
        range: Range<usize>,
        causal: Option<usize>,
    ) {
        let width = width::<S>();
        let size = problem.size;
        for first in range.clone().step_by(KEYS) {
            let keys = KEYS.min(range.end - first);
            let scores = &mut self.scores[..keys * width];
            score(simd, problem, head, first, &self.query, scores);
            if let Some(time) = causal {
                hide_later(scores, first, time, width, f32::NEG_INFINITY);
            }

            // New maxima; what was summed under the old ones shrinks by exp(old - new).
            let scale = simd.splat_f32s(problem.scale);
            let mut shrink = [0.0; 64];
            let shrink = &mut shrink[..width];
            for (v, shrink) in vectors_mut(simd, shrink).iter_mut().enumerate() {
                let old = vectors(simd, &self.largest)[v];
                let mut new = old;
                for row in vectors(simd, scores).chunks_exact(2) {
                    new = simd.max_f32s(new, simd.mul_f32s(row[v], scale));
                }
                vectors_mut(simd, &mut self.largest)[v] = new;
                *shrink = simd.sub_f32s(old, new);
                for row in vectors_mut(simd, scores).chunks_exact_mut(2) {
                    row[v] = simd.sub_f32s(simd.mul_f32s(row[v], scale), new);
                }
            }
            exp(simd, scores);
            if shrink.iter().any(|&x| x != 0.0) {
                exp(simd, shrink);
                for v in 0..2 {
                    let factor = vectors(simd, shrink)[v];
                    let weight = &mut vectors_mut(simd, &mut self.weight)[v];
                    *weight = simd.mul_f32s(*weight, factor);
                    for row in vectors_mut(simd, &mut self.sum).chunks_exact_mut(2) {
                        row[v] = simd.mul_f32s(row[v], factor);
                    }
                }
            }
            for v in 0..2 {
                let mut weight = vectors(simd, &self.weight)[v];
                for row in vectors(simd, scores).chunks_exact(2) {
                    weight = simd.add_f32s(weight, row[v]);
                }
                vectors_mut(simd, &mut self.weight)[v] = weight;
            }
            let values = Strided {
                values: problem.value.from(head, first),
                row_stride: 1,
                depth_stride: problem.value.time_stride,
            };
            multiply_add(
                simd,
                (&mut self.sum, width),
                values,
                (scores, width),
                size,
                keys,
            );
        }
    }
}

/// Products `[key, lane]` of the keys from time `first` on with the queries `[head_size, lane]`.
#[inline(always)]
pub(super) fn score<S: Simd>(
    simd: S,
    problem: &Problem<'_>,
    head: (usize, usize),
    first: usize,
    query: &[f32],
    scores: &mut [f32],
) {
    let width = width::<S>();
    scores.fill(0.0);
    let keys = Strided {
        values: problem.key.from(head, first),
        row_stride: problem.key.time_stride,
        depth_stride: 1,
    };
    let count = scores.len() / width;
    multiply_add(
        simd,
        (scores, width),
        keys,
        (query, width),
        count,
        problem.size,
    );
}

/// Puts `hidden` where key `first + k` is later than the query of lane `l`, of time `time + l`.
#[inline(always)]
pub(super) fn hide_later(scores: &mut [f32], first: usize, time: usize, width: usize, hidden: f32) {
    for (key, row) in scores.chunks_exact_mut(width).enumerate() {
        let lanes = (first + key).saturating_sub(time).min(width);
        row[..lanes].fill(hidden);
    }
}
