//! Gradients; the algebra is that of the plain kernels.

use cubecl::prelude::*;

use super::block::{Block, add_weighted, load_lefts, multiply_rows, store_rows};
use super::rows::{NO_ROW, Rows, list_rows, own_rows, row_in_tile};
use super::{BLOCK, Plan, WARPS};
use crate::cube::warp::{Pair, Warp, no_sums};
use crate::sparse_attention::cube::sizes::Sizes;

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

/// Adds the gradients through the keys of times `first .. end`.
#[cube]
fn add_gradients<F: Float, E: Float>(
    queries: &mut Queries<E>,
    warp: &mut Warp,
    rows: &Rows,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    keys: &mut Block<E>,
    values: &mut Block<E>,
    sizes: &Sizes,
    first: usize,
    end: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.size / 4);
    let stride = sizes.key_time * width;
    let sequence = sizes.sequence();
    let mut first = first;
    while first < end {
        let at = sizes.key_row(sequence, first) * width;
        sync_cube();
        keys.load::<F>(key, at, stride, end - first, plan.size);
        values.load::<F>(value, at, stride, end - first, plan.size);
        sync_cube();
        for part in 0..comptime!(BLOCK / 8 / TILES) {
            let start = first + part * comptime!(8 * TILES);
            if start < end {
                let scores = multiply_rows(warp, &queries.queries, keys, part, TILES, plan);
                let mut d_weights =
                    multiply_rows(warp, &queries.d_outputs, values, part, TILES, plan);
                #[unroll(!plan.emulated)]
                for i in 0..comptime!(2 * plan.row_tiles * TILES) {
                    let r = i / comptime!(2 * TILES) * 2 + i % 2;
                    let time = start + i / 2 % TILES * 8 + 2 * warp.member;
                    let lse = Pair::new(queries.lse[r]);
                    let weight = (scores[i] * Pair::new(scale) - lse).exp();
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
                    keys,
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
    in_sequences: &Array<u32>,
    slots: usize,
    #[comptime] plan: Plan,
) -> Queries<E> {
    let count = comptime!(2 * plan.row_tiles);
    let mut lse = Array::<f32>::new(count);
    let mut own_deltas = Array::<f32>::new(count);
    #[unroll]
    for r in 0..count {
        let number = in_sequences[r];
        let at = select(number == NO_ROW, 0u32, number) as usize;
        lse[r] = saved[at * (slots + 1)];
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
    fast_math = plan.fast_math()
)]
pub(super) fn attention_chosen_d_queries_tiled<F: Float, E: Float>(
    query: &Array<Pair<F>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Pair<F>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    lists: &Array<u32>,
    starts: &Array<u32>,
    lengths: &Array<u32>,
    tile_chunks: &Array<u32>,
    partial: &mut Array<Pair<F>>,
    sizes: Sizes,
    chunks: usize,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(2 * plan.row_tiles);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let mut keys = Block::<E>::new(plan.size, [true, true]);
    let mut values = Block::<E>::new(plan.size, [true, false]);
    let tiles_end = starts[CUBE_POS_Y as usize * (chunks + 1) + chunks] as usize;
    if CUBE_POS_X as usize * comptime!(plan.rows()) < tiles_end {
        let rows = list_rows(
            &warp,
            lists,
            starts,
            lengths,
            tile_chunks,
            &sizes,
            chunks,
            slots,
            plan,
        );
        let mut in_sequences = Array::<u32>::new(count);
        #[unroll]
        for r in 0..count {
            let first = (sizes.first * sizes.queries) as u32;
            let slot = rows.slots[r];
            in_sequences[r] = select(slot == NO_ROW, slot, slot / slots as u32 + first);
        }
        let mut own = load_queries::<F, E>(
            &warp,
            query,
            d_output,
            saved,
            deltas,
            &rows.rows,
            &in_sequences,
            slots,
            plan,
        );
        add_gradients::<F, E>(
            &mut own,
            &mut warp,
            &rows,
            key,
            value,
            &mut keys,
            &mut values,
            &sizes,
            rows.chunk * sizes.chunk_size,
            rows.end,
            scale,
            plan,
        );
        let factors = filled(scale, count);
        store_rows::<F>(&warp, &own.gradients, &factors, partial, &rows.slots, plan);
    }
}

/// One cube of [`WARPS`] warps per (tile of queries within a chunk, sequence). What is read and written is as in the plain kernel
/// `attention_own_d_queries`.
#[cube(
    launch_unchecked,
    fast_math = plan.fast_math()
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
    sizes: Sizes,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(2 * plan.row_tiles);
    let channel_tiles = comptime!(plan.size / 8);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let mut keys = Block::<E>::new(plan.size, [true, true]);
    let mut values = Block::<E>::new(plan.size, [true, false]);
    let rows = own_rows(&warp, &sizes, plan);
    let mut own = load_queries::<F, E>(
        &warp,
        query,
        d_output,
        saved,
        deltas,
        &rows.rows,
        &rows.slots,
        slots,
        plan,
    );
    add_gradients::<F, E>(
        &mut own,
        &mut warp,
        &rows,
        key,
        value,
        &mut keys,
        &mut values,
        &sizes,
        rows.chunk * sizes.chunk_size,
        rows.end,
        scale,
        plan,
    );
    #[unroll(!plan.emulated)]
    for i in 0..comptime!(2 * plan.row_tiles * plan.size / 8) {
        own.gradients[i] *= Pair::new(scale);
    }
    #[unroll(!plan.emulated)]
    for r in 0..count {
        if rows.slots[r] != NO_ROW {
            let in_sequence = rows.slots[r] as usize;
            for slot in 0..slots {
                if saved[in_sequence * (slots + 1) + 1 + slot] >= 0.0 {
                    let at = (in_sequence - sizes.first * sizes.queries) * slots + slot;
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
    fast_math = plan.fast_math()
)]
pub(super) fn attention_d_keys_tiled<F: Float, E: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Pair<F>>,
    value: &Array<Pair<F>>,
    d_output: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    lists: &Array<u32>,
    starts: &Array<u32>,
    lengths: &Array<u32>,
    d_key: &mut Array<Pair<F>>,
    d_value: &mut Array<Pair<F>>,
    sizes: Sizes,
    chunks: usize,
    room: usize,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let count_r = comptime!(2 * plan.row_tiles);
    let mut warp = Warp::new(WARPS, plan.emulated);
    let unit = UNIT_POS as usize;
    let sequence = sizes.sequence();
    let mut queries = Block::<E>::new(plan.size, [true, true]);
    let mut d_outputs = Block::<E>::new(plan.size, [true, true]);
    // Of the queries of a block: row, log-sum-exp, delta.
    let mut query_rows = SharedMemory::<u32>::new(BLOCK);
    let mut lse = SharedMemory::<f32>::new(BLOCK);
    let mut own_deltas = SharedMemory::<f32>::new(BLOCK);
    // In training keys are where queries are.
    let rows = own_rows(&warp, &sizes, plan);
    let key_lefts = load_lefts::<F, E>(&warp, key, &rows.rows, plan);
    let value_lefts = load_lefts::<F, E>(&warp, value, &rows.rows, plan);
    let mut d_keys = no_sums(comptime!(plan.row_tiles * plan.size / 8));
    let mut d_values = no_sums(comptime!(plan.row_tiles * plan.size / 8));

    let mut list = 0usize.runtime();
    let mut listed = 0usize.runtime();
    if rows.chunk < chunks {
        let local = CUBE_POS_Y as usize;
        list = local * room + starts[local * (chunks + 1) + rows.chunk] as usize;
        listed = lengths[local * chunks + rows.chunk] as usize;
    }
    // The first key's time.
    let tile = rows.all_see - 1;
    let chunk_end = min((rows.chunk + 1) * sizes.chunk_size, sizes.queries);
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
                    time = lists[list + index] as usize / slots;
                }
                let in_sequence = sequence * sizes.queries + time;
                query_rows[unit] = sizes.query_row(sequence, time) as u32;
                row_lse = saved[in_sequence * (slots + 1)];
                row_delta = deltas[in_sequence];
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
                        let exponent = score[j] * scale - lse[column + j];
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
    let factors = filled(scale, count_r);
    store_rows::<F>(&warp, &d_keys, &factors, d_key, &rows.rows, plan);
    let factors = filled(1.0f32, count_r);
    store_rows::<F>(&warp, &d_values, &factors, d_value, &rows.rows, plan);
}
