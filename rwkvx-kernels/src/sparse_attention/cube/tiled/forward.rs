//! Outputs.

use cubecl::prelude::*;

use super::block::{KeyBlock, KeyPart, add_weighted, load_lefts, multiply_rows, store_rows};
use super::rows::{NO_ROW, Rows, list_rows, own_rows};
use super::{BLOCK, Plan, WARPS};
use crate::cube::warp::{Pair, Warp, fast_math, no_sums};
use crate::sparse_attention::cube::NO_SCORE;
use crate::sparse_attention::cube::lists::ListArrays;
use crate::sparse_attention::cube::problem::Problem;

/// Tiles of eight keys whose weights are in registers together.
const KEY_TILES: usize = 4;

/// The softmax of this lane's rows so far. Its sums of weights are over the keys that the lane has itself.
#[derive(CubeType)]
struct Softmax {
    largest: Array<f32>,
    weight: Array<f32>,
    /// Sums of weighted values, `m * size/8 + n`.
    sum: Array<Pair<f32>>,
}

#[cube]
impl Softmax {
    fn new(#[comptime] plan: Plan) -> Softmax {
        let mut largest = Array::<f32>::new(comptime!(2 * plan.row_tiles));
        let mut weight = Array::<f32>::new(comptime!(2 * plan.row_tiles));
        #[unroll]
        for r in 0..comptime!(2 * plan.row_tiles) {
            largest[r] = NO_SCORE;
            weight[r] = 0.0f32;
        }
        Softmax {
            largest,
            weight,
            sum: no_sums(comptime!(plan.row_tiles * plan.size / 8)),
        }
    }

    /// Makes `score` the largest of row `r`, if it is; what was summed shrinks.
    fn raise(&mut self, r: usize, score: f32, #[comptime] plan: Plan) {
        let channel_tiles = comptime!(plan.size / 8);
        let largest = max(self.largest[r], score);
        let shrink = (self.largest[r] - largest).exp();
        self.largest[r] = largest;
        self.weight[r] *= shrink;
        #[unroll(!plan.emulated)]
        for n in 0..channel_tiles {
            self.sum[2 * (r / 2 * channel_tiles + n) + r % 2] *= Pair::new(shrink);
        }
    }

    /// Turns scores, sums of [`KEY_TILES`] tiles, into weights.
    fn weigh(&mut self, scores: &mut Array<Pair<f32>>, scale: f32, #[comptime] plan: Plan) {
        #[unroll(!plan.emulated)]
        for r in 0..comptime!(2 * plan.row_tiles) {
            let first = r / 2 * comptime!(2 * KEY_TILES) + r % 2;
            let mut top = max(scores[first][0], scores[first][1]);
            #[unroll(!plan.emulated)]
            for n in 1..KEY_TILES {
                let pair = scores[first + 2 * n];
                top = max(top, max(pair[0], pair[1]));
            }
            top = max(top, plane_shuffle_xor(top, 1));
            top = max(top, plane_shuffle_xor(top, 2));
            // Hidden scores stay far below any other, scaled or not.
            self.raise(r, top * scale, plan);
            let largest = self.largest[r];
            let mut sum = Pair::<f32>::new(0.0);
            #[unroll(!plan.emulated)]
            for n in 0..KEY_TILES {
                let pair = scores[first + 2 * n];
                let weight = (pair * Pair::new(scale) - Pair::new(largest)).exp();
                scores[first + 2 * n] = weight;
                sum += weight;
            }
            self.weight[r] += sum[0] + sum[1];
        }
    }

    /// What the sums of each row are to be multiplied with, after which `weight` is over all keys.
    fn finish(&mut self, #[comptime] plan: Plan) -> Array<f32> {
        let mut factors = Array::<f32>::new(comptime!(2 * plan.row_tiles));
        #[unroll]
        for r in 0..comptime!(2 * plan.row_tiles) {
            let mut weight = self.weight[r];
            weight += plane_shuffle_xor(weight, 1);
            weight += plane_shuffle_xor(weight, 2);
            self.weight[r] = weight;
            factors[r] = 1.0 / weight;
        }
        factors
    }
}

/// Attends to the keys of the rows' chunk, of which row `r` sees those before `rows.seen[r]`. The first must be seen by all.
#[cube]
fn absorb<F: Float, E: Float>(
    softmax: &mut Softmax,
    warp: &mut Warp,
    queries: &Array<Pair<E>>,
    rows: &Rows,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    problem: &Problem,
    #[comptime] plan: Plan,
) {
    let mut first = rows.chunk * problem.chunk_size;
    let end = rows.end;
    let mut block = KeyBlock::<E>::new(plan.size);
    let mut next = KeyPart::<F>::new(plan.size);
    next.load(key, value, problem, first, end, plan.size);
    while first < end {
        sync_cube();
        block.put(&next, plan.size);
        next.load(key, value, problem, first + BLOCK, end, plan.size);
        sync_cube();
        #[unroll(!plan.emulated)]
        for part in 0..comptime!(BLOCK / 8 / KEY_TILES) {
            let start = first + part * comptime!(8 * KEY_TILES);
            if start < end {
                let mut scores = multiply_rows(warp, queries, &block.keys, part, KEY_TILES, plan);
                if start + comptime!(8 * KEY_TILES) > rows.all_see {
                    hide(&mut scores, warp, rows, start, plan);
                }
                softmax.weigh(&mut scores, problem.scale, plan);
                add_weighted(
                    warp,
                    &scores,
                    &block.values,
                    part,
                    &mut softmax.sum,
                    KEY_TILES,
                    plan,
                );
            }
        }
        first += BLOCK;
    }
}

/// Takes the scores of keys away from rows that do not see them; the first key is that of time `start`.
#[cube]
fn hide(
    scores: &mut Array<Pair<f32>>,
    warp: &Warp,
    rows: &Rows,
    start: usize,
    #[comptime] plan: Plan,
) {
    #[unroll(!plan.emulated)]
    for i in 0..comptime!(2 * plan.row_tiles * KEY_TILES) {
        let seen = rows.seen[i / comptime!(2 * KEY_TILES) * 2 + i % 2] as usize;
        let time = start + i / 2 % KEY_TILES * 8 + 2 * warp.member;
        let pair = scores[i];
        let mut kept = Pair::<f32>::empty();
        kept[0] = select(time < seen, pair[0], NO_SCORE);
        kept[1] = select(time + 1 < seen, pair[1], NO_SCORE);
        scores[i] = kept;
    }
}

/// One cube of [`WARPS`] warps per (tile of the lists, sequence). What is read and written is as in the plain kernel `attention_chosen`.
#[cube(
    launch_unchecked,
    fast_math = fast_math(plan.emulated)
)]
pub(super) fn attention_chosen_tiled<F: Float, E: Float>(
    query: &Array<Pair<F>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    lists: &ListArrays,
    partial: &mut Array<Pair<F>>,
    partial_lse: &mut Array<f32>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let mut warp = Warp::new(WARPS, plan.emulated);
    if lists.has_tile(comptime!(plan.rows())) {
        let rows = list_rows(&warp, lists, &problem, plan);
        let queries = load_lefts::<F, E>(&warp, query, &rows.rows, plan);
        let mut softmax = Softmax::new(plan);
        absorb::<F, E>(
            &mut softmax,
            &mut warp,
            &queries,
            &rows,
            key,
            value,
            &problem,
            plan,
        );
        let factors = softmax.finish(plan);
        store_rows::<F>(&warp, &softmax.sum, &factors, partial, &rows.slots, plan);
        #[unroll]
        for r in 0..comptime!(2 * plan.row_tiles) {
            if rows.slots[r] != NO_ROW && warp.member == 0 {
                let slot = rows.slots[r] as usize;
                partial_lse[slot] = softmax.largest[r] + softmax.weight[r].ln();
            }
        }
    }
}

/// One cube of [`WARPS`] warps per (tile of queries within a chunk, sequence). What is read and written is as in the plain kernel
/// `attention_own`.
#[cube(
    launch_unchecked,
    fast_math = fast_math(plan.emulated)
)]
pub(super) fn attention_own_tiled<F: Float, E: Float>(
    query: &Array<Pair<F>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    partial: &Array<Pair<F>>,
    partial_lse: &Array<f32>,
    output: &mut Array<Pair<F>>,
    saved: &mut Array<f32>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let channel_tiles = comptime!(plan.size / 8);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let rows = own_rows(&warp, &problem, plan);
    let queries = load_lefts::<F, E>(&warp, query, &rows.rows, plan);
    let mut softmax = Softmax::new(plan);
    absorb::<F, E>(
        &mut softmax,
        &mut warp,
        &queries,
        &rows,
        key,
        value,
        &problem,
        plan,
    );
    // A chosen chunk counts like one key whose score is the logarithm of the chunk's sum of weights.
    #[unroll(!plan.emulated)]
    for r in 0..comptime!(2 * plan.row_tiles) {
        if rows.slots[r] != NO_ROW {
            let own = rows.slots[r] as usize;
            let first = problem.query(problem.first, 0);
            for slot in 0..problem.slots {
                if saved[problem.saved(own) + 1 + slot] >= 0.0 {
                    let at = (own - first) * problem.slots + slot;
                    let lse = partial_lse[at];
                    softmax.raise(r, lse, plan);
                    let weight = (lse - softmax.largest[r]).exp();
                    if warp.member == 0 {
                        softmax.weight[r] += weight;
                    }
                    let row = at * comptime!(plan.size / 2) + warp.member;
                    #[unroll(!plan.emulated)]
                    for n in 0..channel_tiles {
                        softmax.sum[2 * (r / 2 * channel_tiles + n) + r % 2] +=
                            Pair::<f32>::cast_from(partial[row + 4 * n]) * Pair::new(weight);
                    }
                }
            }
        }
    }
    let factors = softmax.finish(plan);
    store_rows::<F>(&warp, &softmax.sum, &factors, output, &rows.rows, plan);
    #[unroll]
    for r in 0..comptime!(2 * plan.row_tiles) {
        if rows.slots[r] != NO_ROW && warp.member == 0 {
            let own = rows.slots[r] as usize;
            saved[problem.saved(own)] = softmax.largest[r] + softmax.weight[r].ln();
        }
    }
}
