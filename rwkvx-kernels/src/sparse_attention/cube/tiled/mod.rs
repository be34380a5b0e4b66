//! Tiles on tensor cores.
//!
//! A warp holds 16 or 32 rows of a tile in registers: queries, or in the gradient of the keys keys. The rows that they meet go through shared memory in
//! blocks of 64. What a product gives is at once, without exchange between units, an operand of the next; see [`Warp`](crate::cube::warp::Warp).

mod backward;
mod block;
mod choose;
mod forward;
mod rows;

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{Gradients, Inputs, Launch, Outputs, Partials};
use crate::cube::warp::{LANES, has_products};
use backward::{
    attention_chosen_d_queries_tiled, attention_d_keys_tiled, attention_own_d_queries_tiled,
};
use choose::attention_choose_tiled;
use forward::{attention_chosen_tiled, attention_own_tiled};

/// Warps of a cube.
const WARPS: usize = 4;

/// Rows that go through shared memory together.
const BLOCK: usize = 64;

/// How a kernel is cut; part of its identity, so that each combination is compiled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Head size, a multiple of 16.
    size: usize,
    /// Tiles of 16 rows per warp.
    row_tiles: usize,
    /// Whether the tensor cores are emulated, for tests.
    emulated: bool,
}

impl Plan {
    /// Rows of a cube.
    fn rows(self) -> usize {
        WARPS * 16 * self.row_tiles
    }
}

/// What the tiles are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Of the operands of the products.
    pub(super) dtype: DType,
    /// Whether the products are emulated.
    pub(super) emulated: bool,
}

impl Tiles {
    /// Tiles on tensor cores for rows of `size` numbers of `dtype`, if `client` has such. Not for f32, which would be rounded to TF32; and registers
    /// hold at most 128 numbers of a row.
    pub(super) fn native<R: CubeRuntime>(
        client: &ComputeClient<R>,
        dtype: DType,
        size: usize,
    ) -> Option<Self> {
        let halves = matches!(dtype, DType::BF16 | DType::F16);
        (halves && size <= 128 && has_products(client, dtype)).then_some(Self {
            dtype,
            emulated: false,
        })
    }

    /// Queries of a tile of a list.
    pub(super) fn queries(self, size: usize) -> usize {
        self.plan(size, 2).rows()
    }

    /// With `row_tiles` tiles of rows per warp, or one if rows are long.
    fn plan(self, size: usize, row_tiles: usize) -> Plan {
        Plan {
            size,
            row_tiles: if size <= 64 { row_tiles } else { 1 },
            emulated: self.emulated,
        }
    }
}

/// Whether [`choose`] is worth it: there are queries for its tiles.
pub(super) fn can_choose(queries: usize) -> bool {
    queries >= WARPS * LANES
}

/// Writes the choices of all queries into `saved`, as `attention_choose` does.
pub(super) fn choose<R: CubeRuntime>(
    inputs: &Inputs<R>,
    tiles: Tiles,
    means: &CubeTensor<R>,
    saved: &CubeTensor<R>,
) {
    let [sequences, chunks, size] = means.meta.shape().dims();
    let plan = Plan {
        size,
        row_tiles: 2,
        emulated: tiles.emulated,
    };
    let cubes = inputs.problem.queries.div_ceil(plan.rows());
    // SAFETY: as in `forward`.
    unsafe {
        attention_choose_tiled::launch_unchecked::<R>(
            &inputs.query.client,
            CubeCount::Static(cubes as u32, sequences as u32, 1),
            units(),
            inputs.query.clone().into_array_arg(),
            means.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            inputs.problem.launch(),
            chunks,
            inputs.problem.slots,
            plan,
            [inputs.query.dtype.into(), tiles.dtype.into()],
        );
    }
}

/// Outputs; as [`plain::forward`](super::plain::forward).
pub(super) fn forward<R: CubeRuntime>(
    launch: &Launch<R>,
    tiles: Tiles,
    partials: &Partials<R>,
    output: &CubeTensor<R>,
    saved: &CubeTensor<R>,
) {
    let inputs = launch.inputs;
    let lists = &launch.lists;
    let plan = tiles.plan(inputs.size(), 2);
    let client = &inputs.query.client;
    // SAFETY: the buffers are dense and have the sizes that the kernels' documentation gives, which bound their indices.
    unsafe {
        if lists.chunk_count > 0 {
            attention_chosen_tiled::launch_unchecked::<R>(
                client,
                launch.cubes(lists.tiles),
                units(),
                inputs.query.clone().into_array_arg(),
                inputs.key.clone().into_array_arg(),
                inputs.value.clone().into_array_arg(),
                lists.launch(),
                partials.rows.clone().into_array_arg(),
                partials.lse.clone().into_array_arg(),
                launch.problem.launch(),
                plan,
                [inputs.query.dtype.into(), tiles.dtype.into()],
            );
        }
        attention_own_tiled::launch_unchecked::<R>(
            client,
            launch.cubes(launch.problem.own_tiles(plan.rows())),
            units(),
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            partials.rows.clone().into_array_arg(),
            partials.lse.clone().into_array_arg(),
            output.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            launch.problem.launch(),
            plan,
            [inputs.query.dtype.into(), tiles.dtype.into()],
        );
    }
}

/// Gradients of the queries; as [`plain::d_queries`](super::plain::d_queries).
pub(super) fn d_queries<R: CubeRuntime>(
    launch: &Launch<R>,
    tiles: Tiles,
    outputs: &Outputs<R>,
    partial: &CubeTensor<R>,
    d_query: &CubeTensor<R>,
) {
    let inputs = launch.inputs;
    let lists = &launch.lists;
    let plan = tiles.plan(inputs.size(), 2);
    let client = &inputs.query.client;
    // SAFETY: as in `forward`.
    unsafe {
        if lists.chunk_count > 0 {
            attention_chosen_d_queries_tiled::launch_unchecked::<R>(
                client,
                launch.cubes(lists.tiles),
                units(),
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
                [inputs.query.dtype.into(), tiles.dtype.into()],
            );
        }
        attention_own_d_queries_tiled::launch_unchecked::<R>(
            client,
            launch.cubes(launch.problem.own_tiles(plan.rows())),
            units(),
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
            [inputs.query.dtype.into(), tiles.dtype.into()],
        );
    }
}

/// Gradients of keys and values.
pub(super) fn d_keys<R: CubeRuntime>(
    launch: &Launch<R>,
    tiles: Tiles,
    outputs: &Outputs<R>,
    to: &Gradients<R>,
) {
    let inputs = launch.inputs;
    let lists = &launch.lists;
    let plan = tiles.plan(inputs.size(), 1);
    // SAFETY: as in `forward`.
    unsafe {
        attention_d_keys_tiled::launch_unchecked::<R>(
            &inputs.query.client,
            launch.cubes(launch.problem.own_tiles(plan.rows())),
            units(),
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
            [inputs.query.dtype.into(), tiles.dtype.into()],
        );
    }
}

fn units() -> CubeDim {
    CubeDim::new_1d((WARPS * LANES) as u32)
}
