//! Outputs.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{
    OwnTile, Plan, TILE, add_row, dot, load_keys, load_row, own_tile, place_in_list, place_in_own,
    store_row, zeros,
};
use crate::cube::Quad;
use crate::sparse_attention::cube::sizes::Sizes;
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
                lists.slots.clone().into_array_arg(),
                lists.starts.clone().into_array_arg(),
                lists.lengths.clone().into_array_arg(),
                lists.chunks.clone().into_array_arg(),
                partials.rows.clone().into_array_arg(),
                partials.lse.clone().into_array_arg(),
                launch.sizes.launch(),
                lists.chunk_count,
                inputs.slots,
                inputs.scale,
                plan,
                inputs.query.dtype.into(),
            );
        }
        attention_own::launch_unchecked::<R>(
            client,
            launch.cubes(launch.sizes.own_tiles(TILE)),
            plan.units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            partials.rows.clone().into_array_arg(),
            partials.lse.clone().into_array_arg(),
            output.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            launch.sizes.launch(),
            inputs.slots,
            inputs.scale,
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
    lists: &Array<u32>,
    starts: &Array<u32>,
    lengths: &Array<u32>,
    tile_chunks: &Array<u32>,
    partial: &mut Array<Vector<F, Const<4>>>,
    partial_lse: &mut Array<f32>,
    sizes: Sizes,
    chunks: usize,
    slots: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let sequence = sizes.sequence();
    let mut keys = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let mut values = SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width));
    let tiles_end = starts[CUBE_POS_Y as usize * (chunks + 1) + chunks] as usize;
    if CUBE_POS_X as usize * TILE < tiles_end {
        let tile = place_in_list(lists, starts, lengths, tile_chunks, chunks, slots, plan);
        let q = load_row(query, sizes.query_row(sequence, tile.place.query), plan);
        let mut softmax = Softmax::new(quads);
        let end = (tile.chunk + 1) * sizes.chunk_size;
        let mut first = tile.chunk * sizes.chunk_size;
        while first < end {
            let block_end = min(first + plan.rows, end);
            sync_cube();
            load_keys(key, &mut keys, &sizes, sequence, first, block_end, plan);
            load_keys(value, &mut values, &sizes, sequence, first, block_end, plan);
            sync_cube();
            for row in 0..block_end - first {
                let score = dot(&q, &keys, row, plan) * scale;
                let weight = softmax.weigh(score, quads);
                add_row(&mut softmax.sum, weight, &values, row, plan);
            }
            first += plan.rows;
        }
        if tile.place.active {
            let slot = CUBE_POS_Y as usize * (sizes.queries * slots) + tile.place.slot;
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
    let q_row = sizes.query_row(sequence, place.query);
    let q = load_row(query, q_row, plan);
    let saved_row = (sequence * sizes.queries + place.query) * (slots + 1);

    // A chosen chunk counts like one key whose score is the logarithm of the chunk's sum of weights.
    let mut softmax = Softmax::new(quads);
    for slot in 0..slots {
        if saved[saved_row + 1 + slot] >= 0.0 {
            let at = (CUBE_POS_Y as usize * sizes.queries + place.query) * slots + slot;
            let weight = softmax.weigh(partial_lse[at], quads);
            let row = load_row(partial, at, plan);
            #[unroll]
            for j in 0..quads {
                softmax.sum[j] += Quad::cast_from(weight) * row[j];
            }
        }
    }
    let mut first = tile.chunk * sizes.chunk_size;
    while first < tile.end {
        let block_end = min(first + plan.rows, tile.end);
        sync_cube();
        load_keys(key, &mut keys, &sizes, sequence, first, block_end, plan);
        load_keys(value, &mut values, &sizes, sequence, first, block_end, plan);
        sync_cube();
        for row in 0..block_end - first {
            let score = dot(&q, &keys, row, plan) * scale;
            let visible = first + row <= time;
            let weight = softmax.weigh(select(visible, score, NO_SCORE), quads);
            add_row(&mut softmax.sum, weight, &values, row, plan);
        }
        first += plan.rows;
    }
    if place.active {
        store_row(&softmax.sum, 1.0 / softmax.weight, output, q_row, plan);
        let lane = UNIT_POS as usize % plan.lanes;
        if lane == 0 {
            saved[saved_row] = softmax.largest + softmax.weight.ln();
        }
    }
}
