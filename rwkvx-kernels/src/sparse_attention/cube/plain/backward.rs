//! Gradients, from the log-sum-exp of each query.
//!
//! With p the weights, `delta = output . d_output` and `ds = p (d_output . value - delta)`: `d_query = scale sum ds key`, `d_key = scale sum ds query`,
//! `d_value = sum p d_output`.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{
    OwnTile, Plan, TILE, add_row, dot, load_keys, load_row, own_tile, place_in_list, place_in_own,
    store_row, zeros,
};
use crate::cube::warp::Pair;
use crate::cube::{Quad, allocate, sum_over_lanes};
use crate::sparse_attention::cube::sizes::Sizes;
use crate::sparse_attention::cube::{Gradients, Inputs, Launch, Outputs};
use burn::tensor::DType;

/// `output . d_output` of each query, `[sequence, query]`, f32.
pub(in super::super) fn deltas<R: CubeRuntime>(
    inputs: &Inputs<R>,
    sizes: Sizes,
    output: &CubeTensor<R>,
    d_output: &CubeTensor<R>,
) -> CubeTensor<R> {
    let plan = Plan::new(&inputs.query);
    let deltas = allocate(output, [inputs.sequences, sizes.queries], DType::F32);
    let tiles = sizes.queries.div_ceil(TILE);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        attention_deltas::launch_unchecked::<R>(
            &output.client,
            CubeCount::Static(tiles as u32, inputs.sequences as u32, 1),
            plan.units(),
            output.clone().into_array_arg(),
            d_output.clone().into_array_arg(),
            deltas.clone().into_array_arg(),
            sizes.launch(),
            plan,
            output.dtype.into(),
        );
    }
    deltas
}

/// Gradients of the queries: through each chosen chunk into `partial` `[sequence, slot, head_size]`, then through the own chunk and all together.
pub(in super::super) fn d_queries<R: CubeRuntime>(
    launch: &Launch<R>,
    outputs: &Outputs<R>,
    partial: &CubeTensor<R>,
    d_query: &CubeTensor<R>,
) {
    let inputs = launch.inputs;
    let lists = &launch.lists;
    let plan = Plan::new(&inputs.query);
    let client = &inputs.query.client;
    // SAFETY: as in `deltas`.
    unsafe {
        if lists.chunk_count > 0 {
            attention_chosen_d_queries::launch_unchecked::<R>(
                client,
                launch.cubes(lists.tiles),
                plan.units(),
                inputs.query.clone().into_array_arg(),
                inputs.key.clone().into_array_arg(),
                inputs.value.clone().into_array_arg(),
                outputs.d_output.clone().into_array_arg(),
                outputs.saved.clone().into_array_arg(),
                outputs.deltas.clone().into_array_arg(),
                lists.slots.clone().into_array_arg(),
                lists.starts.clone().into_array_arg(),
                lists.lengths.clone().into_array_arg(),
                lists.chunks.clone().into_array_arg(),
                partial.clone().into_array_arg(),
                launch.sizes.launch(),
                lists.chunk_count,
                inputs.slots,
                inputs.scale,
                plan,
                inputs.query.dtype.into(),
            );
        }
        attention_own_d_queries::launch_unchecked::<R>(
            client,
            launch.cubes(launch.sizes.own_tiles(TILE)),
            plan.units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            outputs.d_output.clone().into_array_arg(),
            outputs.saved.clone().into_array_arg(),
            outputs.deltas.clone().into_array_arg(),
            partial.clone().into_array_arg(),
            d_query.clone().into_array_arg(),
            launch.sizes.launch(),
            inputs.slots,
            inputs.scale,
            plan,
            inputs.query.dtype.into(),
        );
    }
}

/// Gradients of keys and values.
pub(in super::super) fn d_keys<R: CubeRuntime>(
    launch: &Launch<R>,
    outputs: &Outputs<R>,
    to: &Gradients<R>,
) {
    let inputs = launch.inputs;
    let lists = &launch.lists;
    let plan = Plan::new(&inputs.query);
    // SAFETY: as in `deltas`.
    unsafe {
        attention_d_keys::launch_unchecked::<R>(
            &inputs.query.client,
            launch.cubes(launch.sizes.own_tiles(TILE)),
            plan.units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            outputs.d_output.clone().into_array_arg(),
            outputs.saved.clone().into_array_arg(),
            outputs.deltas.clone().into_array_arg(),
            lists.slots.clone().into_array_arg(),
            lists.starts.clone().into_array_arg(),
            lists.lengths.clone().into_array_arg(),
            to.key.clone().into_array_arg(),
            to.value.clone().into_array_arg(),
            launch.sizes.launch(),
            lists.chunk_count,
            lists.room,
            inputs.slots,
            inputs.scale,
            plan,
            inputs.query.dtype.into(),
        );
    }
}

/// One cube of `TILE * lanes` units per (tile of queries, sequence).
#[cube(launch_unchecked)]
fn attention_deltas<F: Float>(
    output: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Vector<F, Const<4>>>,
    deltas: &mut Array<f32>,
    sizes: Sizes,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let sequence = sizes.sequence();
    let index = CUBE_POS_X as usize * TILE + UNIT_POS as usize / plan.lanes;
    let active = index < sizes.queries;
    let row = sizes.query_row(sequence, select(active, index, 0usize.runtime()));
    let o = load_row(output, row, plan);
    let d_o = load_row(d_output, row, plan);
    let mut sum = Quad::new(0.0);
    #[unroll]
    for j in 0..comptime!(plan.width / plan.lanes) {
        sum += o[j] * d_o[j];
    }
    let delta = sum_over_lanes(sum, plan.lanes);
    let lane = UNIT_POS as usize % plan.lanes;
    if active && lane == 0 {
        deltas[sequence * sizes.queries + index] = delta;
    }
}

/// A query and what its gradient needs.
#[derive(CubeType)]
struct Query {
    q: Array<Quad>,
    d_output: Array<Quad>,
    lse: f32,
    delta: f32,
    /// Sum of `ds key`.
    gradient: Array<Quad>,
}

#[cube]
fn load_query<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    sizes: &Sizes,
    index: usize,
    slots: usize,
    #[comptime] plan: Plan,
) -> Query {
    let sequence = sizes.sequence();
    let row = sizes.query_row(sequence, index);
    let in_sequence = sequence * sizes.queries + index;
    Query {
        q: load_row(query, row, plan),
        d_output: load_row(d_output, row, plan),
        lse: saved[in_sequence * (slots + 1)],
        delta: deltas[in_sequence],
        gradient: zeros(comptime!(plan.width / plan.lanes)),
    }
}

#[cube]
impl Query {
    /// Adds the gradient through one key.
    fn add(
        &mut self,
        keys: &SharedMemory<Quad>,
        values: &SharedMemory<Quad>,
        row: usize,
        visible: bool,
        scale: f32,
        #[comptime] plan: Plan,
    ) {
        let score = dot(&self.q, keys, row, plan) * scale;
        let d_weight = dot(&self.d_output, values, row, plan);
        let weight = select(visible, (score - self.lse).exp(), 0.0f32.runtime());
        let d_score = weight * (d_weight - self.delta);
        add_row(&mut self.gradient, d_score, keys, row, plan);
    }
}

/// One cube of `TILE * lanes` units per (tile of the lists, sequence). `partial` `[sequence, slot, head_size/4]` receives the gradient of each slot's query
/// through its chunk.
#[cube(launch_unchecked)]
fn attention_chosen_d_queries<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    lists: &Array<u32>,
    starts: &Array<u32>,
    lengths: &Array<u32>,
    tile_chunks: &Array<u32>,
    partial: &mut Array<Vector<F, Const<4>>>,
    sizes: Sizes,
    chunks: usize,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let sequence = sizes.sequence();
    let mut keys = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let mut values = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let tiles_end = starts[CUBE_POS_Y as usize * (chunks + 1) + chunks] as usize;
    if CUBE_POS_X as usize * TILE < tiles_end {
        let tile = place_in_list(lists, starts, lengths, tile_chunks, chunks, slots, plan);
        let place = tile.place;
        let mut own = load_query(
            query,
            d_output,
            saved,
            deltas,
            &sizes,
            place.query,
            slots,
            plan,
        );
        let end = (tile.chunk + 1) * sizes.chunk_size;
        let mut first = tile.chunk * sizes.chunk_size;
        while first < end {
            let block_end = min(first + plan.rows, end);
            sync_cube();
            load_keys(key, &mut keys, &sizes, sequence, first, block_end, plan);
            load_keys(value, &mut values, &sizes, sequence, first, block_end, plan);
            sync_cube();
            for row in 0..block_end - first {
                own.add(&keys, &values, row, true, scale, plan);
            }
            first += plan.rows;
        }
        if place.active {
            let slot = CUBE_POS_Y as usize * (sizes.queries * slots) + place.slot;
            store_row(&own.gradient, scale, partial, slot, plan);
        }
    }
}

/// One cube of `TILE * lanes` units per (tile of queries within a chunk, sequence).
#[cube(launch_unchecked)]
fn attention_own_d_queries<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    partial: &Array<Vector<F, Const<4>>>,
    d_query: &mut Array<Vector<F, Const<4>>>,
    sizes: Sizes,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let sequence = sizes.sequence();
    let mut keys = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let mut values = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let tile: OwnTile = own_tile(&sizes);
    let place = place_in_own(&tile, &sizes, plan);
    let time = tile.first + UNIT_POS as usize / plan.lanes;
    let mut own = load_query(
        query,
        d_output,
        saved,
        deltas,
        &sizes,
        place.query,
        slots,
        plan,
    );
    let mut first = tile.chunk * sizes.chunk_size;
    while first < tile.end {
        let block_end = min(first + plan.rows, tile.end);
        sync_cube();
        load_keys(key, &mut keys, &sizes, sequence, first, block_end, plan);
        load_keys(value, &mut values, &sizes, sequence, first, block_end, plan);
        sync_cube();
        for row in 0..block_end - first {
            own.add(&keys, &values, row, first + row <= time, scale, plan);
        }
        first += plan.rows;
    }
    if place.active {
        let mut sum = zeros(quads);
        let in_sequence = sequence * sizes.queries + place.query;
        for slot in 0..slots {
            if saved[in_sequence * (slots + 1) + 1 + slot] >= 0.0 {
                let at = (CUBE_POS_Y as usize * sizes.queries + place.query) * slots + slot;
                let row = load_row(partial, at, plan);
                #[unroll]
                for j in 0..quads {
                    sum[j] += row[j];
                }
            }
        }
        #[unroll]
        for j in 0..quads {
            sum[j] += own.gradient[j] * Quad::cast_from(scale);
        }
        let row = sizes.query_row(sequence, place.query);
        store_row(&sum, 1.0f32.runtime(), d_query, row, plan);
    }
}

/// One cube of `TILE * lanes` units per (tile of keys within a chunk, sequence): first the queries that chose the chunk, then the chunk's own from the
/// tile's first key on.
#[cube(launch_unchecked)]
fn attention_d_keys<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    deltas: &Array<f32>,
    lists: &Array<u32>,
    starts: &Array<u32>,
    lengths: &Array<u32>,
    d_key: &mut Array<Vector<F, Const<4>>>,
    d_value: &mut Array<Vector<F, Const<4>>>,
    sizes: Sizes,
    chunks: usize,
    room: usize,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let sequence = sizes.sequence();
    let mut queries = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let mut d_outputs = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    // Log-sum-exp and delta.
    let mut numbers = SharedMemory::<Pair<f32>>::new(plan.rows);
    let tile: OwnTile = own_tile(&sizes);
    let place = place_in_own(&tile, &sizes, plan);
    let own = UNIT_POS as usize / plan.lanes;
    let key_row = sizes.key_row(sequence, place.query);
    let k = load_row(key, key_row, plan);
    let v = load_row(value, key_row, plan);
    let mut d_k = zeros(quads);
    let mut d_v = zeros(quads);

    let mut list = 0usize.runtime();
    let mut listed = 0usize.runtime();
    if tile.chunk < chunks {
        let local = CUBE_POS_Y as usize;
        list = local * room + starts[local * (chunks + 1) + tile.chunk] as usize;
        listed = lengths[local * chunks + tile.chunk] as usize;
    }
    let chunk_end = min((tile.chunk + 1) * sizes.chunk_size, sizes.queries);
    let mut count = listed;
    if tile.first < chunk_end {
        count += chunk_end - tile.first;
    }
    let mut first = 0usize.runtime();
    while first < count {
        let here = min(plan.rows.runtime(), count - first);
        sync_cube();
        let mut i = UNIT_POS as usize;
        while i < here * plan.width {
            let index = first + i / plan.width;
            let mut query_time = tile.first + index - listed;
            if index < listed {
                query_time = lists[list + index] as usize / slots;
            }
            let quad = i % plan.width;
            let row = sizes.query_row(sequence, query_time) * plan.width + quad;
            queries[i] = Quad::cast_from(query[row]);
            d_outputs[i] = Quad::cast_from(d_output[row]);
            if quad == 0 {
                let in_sequence = sequence * sizes.queries + query_time;
                let mut pair = Pair::<f32>::empty();
                pair[0] = saved[in_sequence * (slots + 1)];
                pair[1] = deltas[in_sequence];
                numbers[i / plan.width] = pair;
            }
            i += CUBE_DIM as usize;
        }
        sync_cube();
        for row in 0..here {
            let score = dot(&k, &queries, row, plan) * scale;
            let d_weight = dot(&v, &d_outputs, row, plan);
            let index = first + row;
            let visible = index < listed || index >= listed + own;
            let pair = numbers[row];
            let weight = select(visible, (score - pair[0]).exp(), 0.0f32.runtime());
            let d_score = weight * (d_weight - pair[1]);
            add_row(&mut d_v, weight, &d_outputs, row, plan);
            add_row(&mut d_k, d_score, &queries, row, plan);
        }
        first += plan.rows;
    }
    if place.active {
        store_row(&d_k, scale, d_key, key_row, plan);
        store_row(&d_v, 1.0f32.runtime(), d_value, key_row, plan);
    }
}
