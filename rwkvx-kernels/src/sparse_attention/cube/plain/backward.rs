//! Gradients, from the log-sum-exp of each query.
//!
//! With p the weights, `delta = output . d_output` and `ds = p (d_output . value - delta)`: `d_query = scale sum ds key`, `d_key = scale sum ds query`,
//! `d_value = sum p d_output`.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{
    KeyBlock, Plan, TILE, add_row, dot, load_row, place_in_list, place_in_own, store_row, zeros,
};
use crate::cube::warp::Pair;
use crate::cube::{Quad, allocate, sum_over_lanes};
use crate::sparse_attention::cube::lists::ListArrays;
use crate::sparse_attention::cube::problem::Problem;
use crate::sparse_attention::cube::{Gradients, Inputs, Launch, Outputs};
use burn::tensor::DType;

/// `output . d_output` of each query, `[sequence, query]`, f32.
pub(in super::super) fn deltas<R: CubeRuntime>(
    inputs: &Inputs<R>,
    problem: Problem,
    output: &CubeTensor<R>,
    d_output: &CubeTensor<R>,
) -> CubeTensor<R> {
    let plan = Plan::new(&inputs.query);
    let deltas = allocate(output, [inputs.sequences, problem.queries], DType::F32);
    let tiles = problem.queries.div_ceil(TILE);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        attention_deltas::launch_unchecked::<R>(
            &output.client,
            CubeCount::Static(tiles as u32, inputs.sequences as u32, 1),
            plan.units(),
            output.clone().into_array_arg(),
            d_output.clone().into_array_arg(),
            deltas.clone().into_array_arg(),
            problem.launch(),
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
                lists.launch(),
                partial.clone().into_array_arg(),
                launch.problem.launch(),
                plan,
                inputs.query.dtype.into(),
            );
        }
        attention_own_d_queries::launch_unchecked::<R>(
            client,
            launch.cubes(launch.problem.own_tiles(TILE)),
            plan.units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            outputs.d_output.clone().into_array_arg(),
            outputs.saved.clone().into_array_arg(),
            outputs.deltas.clone().into_array_arg(),
            partial.clone().into_array_arg(),
            d_query.clone().into_array_arg(),
            launch.problem.launch(),
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
            launch.cubes(launch.problem.own_tiles(TILE)),
            plan.units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            outputs.d_output.clone().into_array_arg(),
            outputs.saved.clone().into_array_arg(),
            outputs.deltas.clone().into_array_arg(),
            lists.launch(),
            to.key.clone().into_array_arg(),
            to.value.clone().into_array_arg(),
            launch.problem.launch(),
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
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let sequence = problem.sequence();
    let index = CUBE_POS_X as usize * TILE + UNIT_POS as usize / plan.lanes;
    let active = index < problem.queries;
    let row = problem.query_row(sequence, select(active, index, 0usize.runtime()));
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
        deltas[problem.query(sequence, index)] = delta;
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
    problem: &Problem,
    index: usize,
    #[comptime] plan: Plan,
) -> Query {
    let sequence = problem.sequence();
    let row = problem.query_row(sequence, index);
    let number = problem.query(sequence, index);
    Query {
        q: load_row(query, row, plan),
        d_output: load_row(d_output, row, plan),
        lse: saved[problem.saved(number)],
        delta: deltas[number],
        gradient: zeros(comptime!(plan.width / plan.lanes)),
    }
}

#[cube]
impl Query {
    /// Adds the gradient through one key of a block.
    fn add(
        &mut self,
        block: &KeyBlock,
        row: usize,
        visible: bool,
        scale: f32,
        #[comptime] plan: Plan,
    ) {
        let score = dot(&self.q, &block.keys, row, plan) * scale;
        let d_weight = dot(&self.d_output, &block.values, row, plan);
        let weight = select(visible, (score - self.lse).exp(), 0.0f32.runtime());
        let d_score = weight * (d_weight - self.delta);
        add_row(&mut self.gradient, d_score, &block.keys, row, plan);
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
    lists: &ListArrays,
    partial: &mut Array<Vector<F, Const<4>>>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let mut block = KeyBlock::new(plan);
    if lists.has_tile(TILE) {
        let list = lists.of_tile(TILE);
        let place = place_in_list(&list, lists, &problem, plan);
        let mut own = load_query(query, d_output, saved, deltas, &problem, place.query, plan);
        let mut first = list.chunk * problem.chunk_size;
        let end = first + problem.chunk_size;
        while first < end {
            let block_end = min(first + plan.rows, end);
            block.load(key, value, &problem, first, block_end, plan);
            for row in 0..block_end - first {
                own.add(&block, row, true, problem.scale, plan);
            }
            first += plan.rows;
        }
        if place.active {
            let slot = problem.slot(place.slot);
            store_row(&own.gradient, problem.scale, partial, slot, plan);
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
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let sequence = problem.sequence();
    let mut block = KeyBlock::new(plan);
    let tile = problem.own_tile(TILE);
    let place = place_in_own(&tile, &problem, plan);
    let time = tile.first + UNIT_POS as usize / plan.lanes;
    let mut own = load_query(query, d_output, saved, deltas, &problem, place.query, plan);
    let mut first = tile.chunk * problem.chunk_size;
    while first < tile.end {
        let block_end = min(first + plan.rows, tile.end);
        block.load(key, value, &problem, first, block_end, plan);
        for row in 0..block_end - first {
            own.add(&block, row, first + row <= time, problem.scale, plan);
        }
        first += plan.rows;
    }
    if place.active {
        let mut sum = zeros(quads);
        let saved_at = problem.saved(problem.query(sequence, place.query));
        for slot in 0..problem.slots {
            if saved[saved_at + 1 + slot] >= 0.0 {
                let at = problem.slot(place.query * problem.slots + slot);
                let row = load_row(partial, at, plan);
                #[unroll]
                for j in 0..quads {
                    sum[j] += row[j];
                }
            }
        }
        #[unroll]
        for j in 0..quads {
            sum[j] += own.gradient[j] * Quad::cast_from(problem.scale);
        }
        let row = problem.query_row(sequence, place.query);
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
    lists: &ListArrays,
    d_key: &mut Array<Vector<F, Const<4>>>,
    d_value: &mut Array<Vector<F, Const<4>>>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let sequence = problem.sequence();
    let mut queries = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let mut d_outputs = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    // Log-sum-exp and delta.
    let mut numbers = SharedMemory::<Pair<f32>>::new(plan.rows);
    let tile = problem.own_tile(TILE);
    let place = place_in_own(&tile, &problem, plan);
    let own = UNIT_POS as usize / plan.lanes;
    let key_row = problem.key_row(sequence, place.query);
    let k = load_row(key, key_row, plan);
    let v = load_row(value, key_row, plan);
    let mut d_k = zeros(quads);
    let mut d_v = zeros(quads);

    let list = lists.of_chunk(tile.chunk);
    let listed = list.end - list.first;
    let chunk_end = min((tile.chunk + 1) * problem.chunk_size, problem.queries);
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
                query_time = lists.slot(list.first + index) / problem.slots;
            }
            let quad = i % plan.width;
            let row = problem.query_row(sequence, query_time) * plan.width + quad;
            queries[i] = Quad::cast_from(query[row]);
            d_outputs[i] = Quad::cast_from(d_output[row]);
            if quad == 0 {
                let number = problem.query(sequence, query_time);
                let mut pair = Pair::<f32>::empty();
                pair[0] = saved[problem.saved(number)];
                pair[1] = deltas[number];
                numbers[i / plan.width] = pair;
            }
            i += CUBE_DIM as usize;
        }
        sync_cube();
        for row in 0..here {
            let score = dot(&k, &queries, row, plan) * problem.scale;
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
        store_row(&d_k, problem.scale, d_key, key_row, plan);
        store_row(&d_v, 1.0f32.runtime(), d_value, key_row, plan);
    }
}
