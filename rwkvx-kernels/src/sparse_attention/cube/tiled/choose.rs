//! Which earlier chunks each query sees.
//!
//! Mean keys are split in two, the rounded ones and the rest, so that their products with the queries are about as exact as in f32.

use cubecl::prelude::*;

use super::block::{Block, add_products, load_lefts, multiply_rows};
use super::rows::{NO_ROW, row_in_tile};
use super::{BLOCK, Plan, WARPS};
use crate::cube::Quad;
use crate::cube::warp::{LANES, Pair, Warp};
use crate::sparse_attention::cube::choose::Ranking;
use crate::sparse_attention::cube::problem::Problem;

/// Tiles of eight chunks whose scores a warp has together.
const TILES: usize = 2;

/// Numbers between the rows of a warp's scores `[query, chunk]`, a query per lane.
const STRIDE: usize = 8 * TILES + 1;

/// One cube of [`WARPS`] warps per (tile of queries, sequence), two tiles of 16 rows per warp. What is read and written is as in `attention_choose`.
#[cube(launch_unchecked)]
pub(super) fn attention_choose_tiled<F: Float, E: Float>(
    query: &Array<Pair<F>>,
    means: &Array<Quad>,
    saved: &mut Array<f32>,
    problem: Problem,
    chunks: usize,
    #[comptime] slots: usize,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let lane_rows = comptime!(2 * plan.row_tiles);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let sequence = problem.sequence();
    let mut rounded = Block::<E>::new(plan.size);
    let mut rests = Block::<E>::new(plan.size);
    let mut scores = SharedMemory::<f32>::new(comptime!(WARPS * LANES * STRIDE));
    let tile = CUBE_POS_X as usize * comptime!(plan.rows());
    let mut rows = Array::<u32>::new(lane_rows);
    #[unroll]
    for r in 0..lane_rows {
        let index = tile + row_in_tile(&warp, r, plan);
        let row = problem.query_row(sequence, index) as u32;
        rows[r] = select(index < problem.queries, row, NO_ROW);
    }
    let queries = load_lefts::<F, E>(&warp, query, &rows, plan);

    // A lane ranks for one query.
    let index = tile + warp.index * LANES + warp.lane;
    let active = index < problem.queries;
    let own = (problem.start + index) / problem.chunk_size;
    let own = select(active, own, 0usize.runtime());
    let last = min(tile + comptime!(plan.rows()), problem.queries) - 1;
    let end = (problem.start + last) / problem.chunk_size;
    let mut best = Ranking::new(slots);
    let mut first = 0usize.runtime();
    while first < end {
        let width = comptime!(plan.size / 4);
        let at = (sequence * chunks + first) * width;
        let count = end - first;
        sync_cube();
        rounded.load::<f32>(means, at, width, count, false, plan.size);
        rests.load::<f32>(means, at, width, count, true, plan.size);
        sync_cube();
        for part in 0..comptime!(BLOCK / 8 / TILES) {
            let start = first + part * comptime!(8 * TILES);
            if start < end {
                let mut sums = multiply_rows(&mut warp, &queries, &rounded, part, TILES, plan);
                add_products(&mut warp, &queries, &rests, part, &mut sums, TILES, plan);
                #[unroll(!plan.emulated)]
                for i in 0..comptime!(lane_rows * TILES) {
                    let row = i / comptime!(2 * TILES) * 16 + i % 2 * 8 + warp.group;
                    let to = (warp.index * LANES + row) * STRIDE;
                    let column = i / 2 % TILES * 8 + 2 * warp.member;
                    scores[to + column] = sums[i][0];
                    scores[to + column + 1] = sums[i][1];
                }
                warp.sync();
                for column in 0..comptime!(8 * TILES) {
                    if start + column < own {
                        let from = (warp.index * LANES + warp.lane) * STRIDE;
                        best.offer(scores[from + column], (start + column) as u32, slots);
                    }
                }
                warp.sync();
            }
        }
        first += BLOCK;
    }
    if active {
        let to = problem.saved(problem.query(sequence, index)) + 1;
        best.write(saved, to, slots);
    }
}
