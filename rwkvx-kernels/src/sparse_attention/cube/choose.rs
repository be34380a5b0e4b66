//! Which earlier chunks each query sees.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::NO_SCORE;
use super::problem::Problem;
use crate::cube::Quad;

/// Units of a cube.
const UNITS: usize = 256;

/// Units that fill a large device.
const MANY_UNITS: usize = 1 << 17;

/// How the kernel is cut; part of its identity, so that each combination is compiled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Quads of a row.
    width: usize,
    /// Chunks that a query chooses.
    slots: usize,
    /// Units that share a query, a power of two.
    lanes: usize,
}

/// Writes the choices of all queries into `saved`; see [`attention_choose`]. `means` is `[sequence, chunk, head_size]`.
pub(super) fn launch<R: CubeRuntime>(
    query: &CubeTensor<R>,
    means: &CubeTensor<R>,
    saved: &CubeTensor<R>,
    problem: Problem,
) {
    let [sequences, chunks, size] = means.meta.shape().dims();
    let queries = problem.queries;
    let wanted = MANY_UNITS / (sequences * queries);
    let plan = Plan {
        width: size / 4,
        slots: problem.slots,
        lanes: wanted.min(chunks).clamp(1, UNITS).next_power_of_two(),
    };
    let per_cube = UNITS / plan.lanes;
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        attention_choose::launch_unchecked::<R>(
            &query.client,
            CubeCount::Static(queries.div_ceil(per_cube) as u32, sequences as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            query.clone().into_array_arg(),
            means.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            problem.launch(),
            chunks,
            plan,
            query.dtype.into(),
        );
    }
}

/// The lowest score of a chunk.
const LOWEST: f32 = f32::MIN / 2.0;

/// One cube per (queries, sequence). `means` is `[sequence, chunk, head_size/4]` quads; `saved` is `[sequence, query, 1 + slots]` and receives after the
/// first number of each row the chunks that the query chose, best first, then -1 for each that it has no choice for.
///
/// Of equal scores the earlier chunk comes first; a score that is not a number is the lowest.
#[cube(launch_unchecked)]
fn attention_choose<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    means: &Array<Quad>,
    saved: &mut Array<f32>,
    problem: Problem,
    chunks: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let width = comptime!(plan.width);
    let slots = comptime!(plan.slots);
    let lanes = comptime!(plan.lanes);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let sequence = problem.sequence();
    let index = CUBE_POS_X as usize * comptime!(UNITS / plan.lanes) + unit / lanes;
    let active = index < problem.queries;
    let own = select(
        active,
        (problem.start + index) / problem.chunk_size,
        0usize.runtime(),
    );

    let mut row = Array::<Quad>::new(width);
    if active {
        let at = problem.query_row(sequence, index) * width;
        for j in 0..width {
            row[j] = Quad::cast_from(query[at + j]);
        }
    }
    let mut best = Ranking::new(slots);
    let mut chunk = lane;
    while chunk < own {
        let at = (sequence * chunks + chunk) * width;
        let mut sum = Quad::new(0.0);
        for j in 0..width {
            sum += row[j] * means[at + j];
        }
        let score = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        best.offer(score, chunk as u32, slots);
        chunk += lanes;
    }

    let to = problem.saved(problem.query(sequence, index)) + 1;
    if comptime!(lanes == 1) {
        if active {
            best.write(saved, to, slots);
        }
    } else {
        // The best of all lanes' first, which its lane then drops, slot after slot.
        let mut scores = SharedMemory::<f32>::new(UNITS);
        let mut numbers = SharedMemory::<u32>::new(UNITS);
        for slot in 0..slots {
            scores[unit] = best.scores[0];
            numbers[unit] = best.chunks[0];
            sync_cube();
            let mut half = comptime!(lanes / 2).runtime();
            while half > 0 {
                if lane < half {
                    let (mine, other) = (scores[unit], scores[unit + half]);
                    let earlier = numbers[unit + half] < numbers[unit];
                    if other > mine || (other == mine && earlier) {
                        scores[unit] = other;
                        numbers[unit] = numbers[unit + half];
                    }
                }
                sync_cube();
                half /= 2;
            }
            let winner = numbers[unit - lane];
            if winner == best.chunks[0] {
                best.drop_first(slots);
            }
            if active && lane == 0 {
                saved[to + slot] = written(winner);
            }
            sync_cube();
        }
    }
}

/// In the place of a chunk.
const NONE: u32 = u32::MAX;

#[cube]
fn written(chunk: u32) -> f32 {
    select(chunk == NONE, -1.0f32, f32::cast_from(chunk))
}

/// The best chunks so far, best first.
#[derive(CubeType)]
pub(super) struct Ranking {
    scores: Array<f32>,
    chunks: Array<u32>,
}

#[cube]
impl Ranking {
    pub(super) fn new(#[comptime] slots: usize) -> Ranking {
        let mut scores = Array::<f32>::new(slots);
        let mut chunks = Array::<u32>::new(slots);
        for slot in 0..slots {
            scores[slot] = NO_SCORE;
            chunks[slot] = NONE;
        }
        Ranking { scores, chunks }
    }

    /// Takes `chunk` in if it is among the best. Chunks come in rising order.
    pub(super) fn offer(&mut self, score: f32, chunk: u32, #[comptime] slots: usize) {
        let score = select(score >= LOWEST, score, LOWEST);
        if score > self.scores[slots - 1] {
            let mut score = score;
            let mut chunk = chunk;
            // From its place on everything moves down by one.
            let mut placed = false;
            for slot in 0..slots {
                let held_score = self.scores[slot];
                let held_chunk = self.chunks[slot];
                placed = placed || score > held_score;
                self.scores[slot] = select(placed, score, held_score);
                self.chunks[slot] = select(placed, chunk, held_chunk);
                score = select(placed, held_score, score);
                chunk = select(placed, held_chunk, chunk);
            }
        }
    }

    /// Writes the chunks to `saved` from `to` on.
    pub(super) fn write(&self, saved: &mut Array<f32>, to: usize, #[comptime] slots: usize) {
        for slot in 0..slots {
            saved[to + slot] = written(self.chunks[slot]);
        }
    }

    fn drop_first(&mut self, #[comptime] slots: usize) {
        for slot in 1..slots {
            self.scores[slot - 1] = self.scores[slot];
            self.chunks[slot - 1] = self.chunks[slot];
        }
        self.scores[slots - 1] = NO_SCORE;
        self.chunks[slots - 1] = NONE;
    }
}
