//! Outputs.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{
    KeyBlock, Plan, TILE, add_row, dot, load_row, place_in_list, place_in_own, store_row, zeros,
};
use crate::cube::Quad;
use crate::sparse_attention::cube::lists::ListArrays;
use crate::sparse_attention::cube::problem::Problem;
use crate::sparse_attention::cube::{Launch, NO_SCORE, Partials};

/// Outputs: through each chosen chunk into `partials`, then through the own chunk and all together.
pub(in super::super) fn forward<R: CubeRuntime>(
    launch: &Launch<R>,
    partials: &Partials<R>,
    output: &CubeTensor<R>,
    saved: &CubeTensor<R>,
) {
    let inputs = launch.inputs;
    let lists = &launch.lists;
    let plan = Plan::new(&inputs.query);
    let client = &inputs.query.client;
    // SAFETY: the buffers are dense and have the sizes that the kernels' documentation gives, which bound their indices.
    unsafe {
        if lists.chunk_count > 0 {
            attention_chosen::launch_unchecked::<R>(
                client,
                launch.cubes(lists.tiles),
                plan.units(),
                inputs.query.clone().into_array_arg(),
                inputs.key.clone().into_array_arg(),
                inputs.value.clone().into_array_arg(),
                lists.launch(),
                partials.rows.clone().into_array_arg(),
                partials.lse.clone().into_array_arg(),
                launch.problem.launch(),
                plan,
                inputs.query.dtype.into(),
            );
        }
        attention_own::launch_unchecked::<R>(
            client,
            launch.cubes(launch.problem.own_tiles(TILE)),
            plan.units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            partials.rows.clone().into_array_arg(),
            partials.lse.clone().into_array_arg(),
            output.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            launch.problem.launch(),
            plan,
            inputs.query.dtype.into(),
        );
    }
}

/// The softmax of one query so far.
#[derive(CubeType)]
pub(super) struct Softmax {
    /// Largest score.
    pub(super) largest: f32,
    /// Sum of weights.
    pub(super) weight: f32,
    /// This lane's part of the sum of weighted values.
    pub(super) sum: Array<Quad>,
}

#[cube]
impl Softmax {
    pub(super) fn new(#[comptime] quads: usize) -> Softmax {
        Softmax {
            largest: NO_SCORE.runtime(),
            weight: 0.0f32.runtime(),
            sum: zeros(quads),
        }
    }

    /// The weight of a value with this score. The first may not be [`NO_SCORE`].
    pub(super) fn weigh(&mut self, score: f32, #[comptime] quads: usize) -> f32 {
        if score > self.largest {
            let shrink = (self.largest - score).exp();
            self.largest = score;
            self.weight *= shrink;
            #[unroll]
            for j in 0..quads {
                self.sum[j] *= Quad::cast_from(shrink);
            }
        }
        let weight = (score - self.largest).exp();
        self.weight += weight;
        weight
    }
}

/// One cube of `TILE * lanes` units per (tile of the lists, sequence). Sequences are `[batch, time, heads, head_size/4]` quads; what lists are,
/// [`Lists`] says. `partial` `[sequence, slot, head_size/4]` receives the output of each slot's query over its chunk alone, `partial_lse`
/// `[sequence, slot]` the logarithm of the sum of its weights.
#[cube(launch_unchecked)]
fn attention_chosen<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    lists: &ListArrays,
    partial: &mut Array<Vector<F, Const<4>>>,
    partial_lse: &mut Array<f32>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let mut block = KeyBlock::new(plan);
    if lists.has_tile(TILE) {
        let list = lists.of_tile(TILE);
        let place = place_in_list(&list, lists, &problem, plan);
        let row = problem.query_row(problem.sequence(), place.query);
        let q = load_row(query, row, plan);
        let mut softmax = Softmax::new(quads);
        let mut first = list.chunk * problem.chunk_size;
        let end = first + problem.chunk_size;
        while first < end {
            let block_end = min(first + plan.rows, end);
            block.load(key, value, &problem, first, block_end, plan);
            for row in 0..block_end - first {
                let score = dot(&q, &block.keys, row, plan) * problem.scale;
                let weight = softmax.weigh(score, quads);
                add_row(&mut softmax.sum, weight, &block.values, row, plan);
            }
            first += plan.rows;
        }
        if place.active {
            let slot = problem.slot(place.slot);
            store_row(&softmax.sum, 1.0 / softmax.weight, partial, slot, plan);
            let lane = UNIT_POS as usize % plan.lanes;
            if lane == 0 {
                partial_lse[slot] = softmax.largest + softmax.weight.ln();
            }
        }
    }
}

/// One cube of `TILE * lanes` units per (tile of queries within a chunk, sequence). Reads what [`attention_chosen`] wrote; `saved` `[sequence, query,
/// 1 + slots]` has the choices and receives the logarithm of the sum of all weights.
#[cube(launch_unchecked)]
fn attention_own<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    partial: &Array<Vector<F, Const<4>>>,
    partial_lse: &Array<f32>,
    output: &mut Array<Vector<F, Const<4>>>,
    saved: &mut Array<f32>,
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
    let q_row = problem.query_row(sequence, place.query);
    let q = load_row(query, q_row, plan);
    let saved_at = problem.saved(problem.query(sequence, place.query));

    // A chosen chunk counts like one key whose score is the logarithm of the chunk's sum of weights.
    let mut softmax = Softmax::new(quads);
    for slot in 0..problem.slots {
        if saved[saved_at + 1 + slot] >= 0.0 {
            let at = problem.slot(place.query * problem.slots + slot);
            let weight = softmax.weigh(partial_lse[at], quads);
            let row = load_row(partial, at, plan);
            #[unroll]
            for j in 0..quads {
                softmax.sum[j] += Quad::cast_from(weight) * row[j];
            }
        }
    }
    let mut first = tile.chunk * problem.chunk_size;
    while first < tile.end {
        let block_end = min(first + plan.rows, tile.end);
        block.load(key, value, &problem, first, block_end, plan);
        for row in 0..block_end - first {
            let score = dot(&q, &block.keys, row, plan) * problem.scale;
            let visible = first + row <= time;
            let weight = softmax.weigh(select(visible, score, NO_SCORE), quads);
            add_row(&mut softmax.sum, weight, &block.values, row, plan);
        }
        first += plan.rows;
    }
    if place.active {
        store_row(&softmax.sum, 1.0 / softmax.weight, output, q_row, plan);
        let lane = UNIT_POS as usize % plan.lanes;
        if lane == 0 {
            saved[saved_at] = softmax.largest + softmax.weight.ln();
        }
    }
}
