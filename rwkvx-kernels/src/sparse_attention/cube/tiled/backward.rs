//! Gradients; the algebra is that of the plain kernels.

use cubecl::prelude::*;

use super::block::{Block, KeyBlock, KeyPart, add_weighted, load_lefts, multiply_rows, store_rows};
use super::rows::{NO_ROW, Rows, list_rows, own_rows, row_in_tile};
use super::{BLOCK, Plan, WARPS};
use crate::cube::warp::{Pair, Warp, fast_math, no_sums};
use crate::sparse_attention::cube::lists::ListArrays;
use crate::sparse_attention::cube::problem::Problem;

/// Tiles of eight rows of a block whose weights are in registers together.
const TILES: usize = 2;

/// This lane's queries and what their gradients need.
#[derive(CubeType)]
struct Queries<E: Float> {
    queries: Array<Pair<E>>,
    d_outputs: Array<Pair<E>>,
    lse: Array<f32>,
    deltas: Array<f32>,
    /// Sums of `ds key`, `m * size/8 + n`.
    gradients: Array<Pair<f32>>,
}

/// Adds the gradients through the keys of the rows' chunk.
#[cube]
fn add_gradients<F: Float, E: Float>(
    queries: &mut Queries<E>,
    warp: &mut Warp,
    rows: &Rows,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    problem: &Problem,
    #[comptime] plan: Plan,
) {
    let mut first = rows.chunk * problem.chunk_size;
    let end = rows.end;
    let mut block = KeyBlock::<E>::new(plan.size);
    while first < end {
        let mut part = KeyPart::<F>::new(plan.size);
        part.load(key, value, problem, first, end, plan.size);
        sync_cube();
        block.put(&part, plan.size);
        sync_cube();
        for part in 0..comptime!(BLOCK / 8 / TILES) {
            let start = first + part * comptime!(8 * TILES);
            if start < end {
                let scores = multiply_rows(warp, &queries.queries, &block.keys, part, TILES, plan);
                let mut d_weights =
                    multiply_rows(warp, &queries.d_outputs, &block.values, part, TILES, plan);
                #[unroll(!plan.emulated)]
                for i in 0..comptime!(2 * plan.row_tiles * TILES) {
                    let r = i / comptime!(2 * TILES) * 2 + i % 2;
                    let time = start + i / 2 % TILES * 8 + 2 * warp.member;
                    let lse = Pair::new(queries.lse[r]);
                    let weight = (scores[i] * Pair::new(problem.scale) - lse).exp();
                    let d_score = weight * (d_weights[i] - Pair::new(queries.deltas[r]));
                    let seen = rows.seen[r] as usize;
                    let mut kept = Pair::<f32>::empty();
                    kept[0] = select(time < seen, d_score[0], 0.0f32);
                    kept[1] = select(time + 1 < seen, d_score[1], 0.0f32);
                    d_weights[i] = kept;
                }
                add_weighted(
                    warp,
                    &d_weights,
                    &block.keys,
                    part,
                    &mut queries.gradients,
                    TILES,
                    plan,
                );
            }
        }
        first += BLOCK;
    }
}

#[cube]
fn load_queries<F: Float, E: Float>(
    warp: &Warp,
    query: &Array<Pair<F>>,
    d_output: &Array<Pair<F>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    rows: &Array<u32>,
    numbers: &Array<u32>,
    problem: &Problem,
    #[comptime] plan: Plan,
) -> Queries<E> {
    let count = comptime!(2 * plan.row_tiles);
    let mut lse = Array::<f32>::new(count);
    let mut own_deltas = Array::<f32>::new(count);
    #[unroll]
    for r in 0..count {
        let number = numbers[r];
        let at = select(number == NO_ROW, 0u32, number) as usize;
        lse[r] = saved[problem.saved(at)];
        own_deltas[r] = deltas[at];
    }
    Queries::<E> {
        queries: load_lefts::<F, E>(warp, query, rows, plan),
        d_outputs: load_lefts::<F, E>(warp, d_output, rows, plan),
        lse,
        deltas: own_deltas,
        gradients: no_sums(comptime!(plan.row_tiles * plan.size / 8)),
    }
}

#[cube]
fn filled(value: f32, #[comptime] count: usize) -> Array<f32> {
    let mut array = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        array[i] = value;
    }
    array
}

/// One cube of [`WARPS`] warps per (tile of the lists, sequence). What is read and written is as in the plain kernel
/// `attention_chosen_d_queries`.
#[cube(
    launch_unchecked,
    fast_math = fast_math(plan.emulated)
)]
pub(super) fn attention_chosen_d_queries_tiled<F: Float, E: Float>(
    query: &Array<Pair<F>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Pair<F>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    lists: &ListArrays,
    partial: &mut Array<Pair<F>>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(2 * plan.row_tiles);
    let mut warp = Warp::new(WARPS, plan.emulated);
    if lists.has_tile(comptime!(plan.rows())) {
        let rows = list_rows(&warp, lists, &problem, plan);
        let first = problem.query(problem.first, 0) as u32;
        let mut numbers = Array::<u32>::new(count);
        #[unroll]
        for r in 0..count {
            let slot = rows.slots[r];
            let number = slot / problem.slots as u32 + first;
            numbers[r] = select(slot == NO_ROW, NO_ROW, number);
        }
        let mut own = load_queries::<F, E>(
            &warp, query, d_output, saved, deltas, &rows.rows, &numbers, &problem, plan,
        );
        add_gradients::<F, E>(&mut own, &mut warp, &rows, key, value, &problem, plan);
        let factors = filled(problem.scale, count);
        store_rows::<F>(&warp, &own.gradients, &factors, partial, &rows.slots, plan);
    }
}

/// One cube of [`WARPS`] warps per (tile of queries within a chunk, sequence). What is read and written is as in the plain kernel
/// `attention_own_d_queries`.
#[cube(
    launch_unchecked,
    fast_math = fast_math(plan.emulated)
)]
pub(super) fn attention_own_d_queries_tiled<F: Float, E: Float>(
    query: &Array<Pair<F>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Pair<F>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    partial: &Array<Pair<F>>,
    d_query: &mut Array<Pair<F>>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(2 * plan.row_tiles);
    let channel_tiles = comptime!(plan.size / 8);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let rows = own_rows(&warp, &problem, plan);
    let mut own = load_queries::<F, E>(
        &warp,
        query,
        d_output,
        saved,
        deltas,
        &rows.rows,
        &rows.slots,
        &problem,
        plan,
    );
    add_gradients::<F, E>(&mut own, &mut warp, &rows, key, value, &problem, plan);
    #[unroll(!plan.emulated)]
    for i in 0..comptime!(2 * plan.row_tiles * plan.size / 8) {
        own.gradients[i] *= Pair::new(problem.scale);
    }
    #[unroll(!plan.emulated)]
    for r in 0..count {
        if rows.slots[r] != NO_ROW {
            let number = rows.slots[r] as usize;
            let first = problem.query(problem.first, 0);
            for slot in 0..problem.slots {
                if saved[problem.saved(number) + 1 + slot] >= 0.0 {
                    let at = (number - first) * problem.slots + slot;
                    let row = at * comptime!(plan.size / 2) + warp.member;
                    #[unroll(!plan.emulated)]
                    for n in 0..channel_tiles {
                        own.gradients[2 * (r / 2 * channel_tiles + n) + r % 2] +=
                            Pair::<f32>::cast_from(partial[row + 4 * n]);
                    }
                }
            }
        }
    }
    let factors = filled(1.0f32, count);
    store_rows::<F>(&warp, &own.gradients, &factors, d_query, &rows.rows, plan);
}

/// A log-sum-exp that makes any weight 0.
const NO_WEIGHT: f32 = f32::MAX;

/// One cube of [`WARPS`] warps per (tile of keys within a chunk, sequence). What is read and written is as in the plain kernel
/// `attention_d_keys`.
#[cube(
    launch_unchecked,
    fast_math = fast_math(plan.emulated)
)]
pub(super) fn attention_d_keys_tiled<F: Float, E: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Pair<F>>,
    value: &Array<Pair<F>>,
    d_output: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    lists: &ListArrays,
    d_key: &mut Array<Pair<F>>,
    d_value: &mut Array<Pair<F>>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let count_r = comptime!(2 * plan.row_tiles);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let unit = UNIT_POS as usize;
    let sequence = problem.sequence();
    let mut queries = Block::<E>::new(plan.size);
    let mut d_outputs = Block::<E>::new(plan.size);
    // Of the queries of a block: row, log-sum-exp, delta.
    let mut query_rows = SharedMemory::<u32>::new(BLOCK);
    let mut lse = SharedMemory::<f32>::new(BLOCK);
    let mut own_deltas = SharedMemory::<f32>::new(BLOCK);
    // In training keys are where queries are.
    let rows = own_rows(&warp, &problem, plan);
    let key_lefts = load_lefts::<F, E>(&warp, key, &rows.rows, plan);
    let value_lefts = load_lefts::<F, E>(&warp, value, &rows.rows, plan);
    let mut d_keys = no_sums(comptime!(plan.row_tiles * plan.size / 8));
    let mut d_values = no_sums(comptime!(plan.row_tiles * plan.size / 8));

    let list = lists.of_chunk(rows.chunk);
    let listed = list.end - list.first;
    // The first key's time.
    let tile = rows.all_see - 1;
    let chunk_end = min((rows.chunk + 1) * problem.chunk_size, problem.queries);
    let mut count = listed;
    if tile < chunk_end {
        count += chunk_end - tile;
    }
    let mut first = 0usize.runtime();
    while first < count {
        sync_cube();
        if unit < BLOCK {
            let index = first + unit;
            let mut row_lse = NO_WEIGHT.runtime();
            let mut row_delta = 0.0f32.runtime();
            if index < count {
                let mut time = tile + index - listed;
                if index < listed {
                    time = lists.slot(list.first + index) / problem.slots;
                }
                let number = problem.query(sequence, time);
                query_rows[unit] = problem.query_row(sequence, time) as u32;
                row_lse = saved[problem.saved(number)];
                row_delta = deltas[number];
            }
            lse[unit] = row_lse;
            own_deltas[unit] = row_delta;
        }
        sync_cube();
        queries.gather::<F>(query, &query_rows, count - first, plan.size);
        d_outputs.gather::<F>(d_output, &query_rows, count - first, plan.size);
        sync_cube();
        for part in 0..comptime!(BLOCK / 8 / TILES) {
            let start = part * comptime!(8 * TILES);
            if first + start < count {
                let mut weights = multiply_rows(&mut warp, &key_lefts, &queries, part, TILES, plan);
                let mut d_scores =
                    multiply_rows(&mut warp, &value_lefts, &d_outputs, part, TILES, plan);
                #[unroll(!plan.emulated)]
                for i in 0..comptime!(2 * plan.row_tiles * TILES) {
                    let r = i / comptime!(2 * TILES) * 2 + i % 2;
                    let column = start + i / 2 % TILES * 8 + 2 * warp.member;
                    // Of the chunk's own queries a key is seen by those from its own on.
                    let seen_from = listed + row_in_tile(&warp, r, plan);
                    let score = weights[i];
                    let d_weight = d_scores[i];
                    let mut weight = Pair::<f32>::empty();
                    let mut d_score = Pair::<f32>::empty();
                    #[unroll]
                    for j in 0..2usize {
                        let index = first + column + j;
                        let visible = index < listed || index >= seen_from;
                        let exponent = score[j] * problem.scale - lse[column + j];
                        let w = select(visible, exponent.exp(), 0.0f32);
                        weight[j] = w;
                        d_score[j] = w * (d_weight[j] - own_deltas[column + j]);
                    }
                    weights[i] = weight;
                    d_scores[i] = d_score;
                }
                add_weighted(
                    &mut warp,
                    &weights,
                    &d_outputs,
                    part,
                    &mut d_values,
                    TILES,
                    plan,
                );
                add_weighted(
                    &mut warp,
                    &d_scores,
                    &queries,
                    part,
                    &mut d_keys,
                    TILES,
                    plan,
                );
            }
        }
        first += BLOCK;
    }
    let factors = filled(problem.scale, count_r);
    store_rows::<F>(&warp, &d_keys, &factors, d_key, &rows.rows, plan);
    let factors = filled(1.0f32, count_r);
    store_rows::<F>(&warp, &d_values, &factors, d_value, &rows.rows, plan);
}
