//! In f32 without matrix instructions: for every device and every float type.
//!
//! Some neighbouring units, `lanes`, share a row, of which each holds every `lanes`-th quad in registers; the rows that it is multiplied with
//! go through shared memory.

mod backward;
mod forward;
mod step;

pub(super) use backward::{d_keys, d_queries, deltas};
pub(super) use forward::forward;
pub(super) use step::step;

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::lists::{List, ListArrays};
use super::problem::{OwnTile, Problem};
use crate::cube::{Quad, sum_over_lanes};

/// Rows that the units of a cube hold: queries, or keys in the gradient of the keys.
pub(super) const TILE: usize = 64;

/// How kernels are cut; part of their identity, so that each combination is compiled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Quads of a row, a multiple of four.
    width: usize,
    /// Units that share a row.
    lanes: usize,
    /// Rows that go through shared memory together: two times them take 16 KiB.
    rows: usize,
}

impl Plan {
    fn new<R: CubeRuntime>(like: &CubeTensor<R>) -> Self {
        let width = like.meta.shape()[3] / 4;
        let features = &like.client.properties().features;
        Self {
            width,
            lanes: if features.plane.contains(Plane::Ops) {
                4
            } else {
                1
            },
            rows: (512 / width).max(1),
        }
    }

    fn units(self) -> CubeDim {
        CubeDim::new_1d((TILE * self.lanes) as u32)
    }
}

/// Reads row `row` of a buffer, each lane its part.
#[cube]
fn load_row<F: Float>(
    from: &Array<Vector<F, Const<4>>>,
    row: usize,
    #[comptime] plan: Plan,
) -> Array<Quad> {
    let quads = comptime!(plan.width / plan.lanes);
    let lane = UNIT_POS as usize % plan.lanes;
    let mut part = Array::<Quad>::new(quads);
    #[unroll]
    for j in 0..quads {
        part[j] = Quad::cast_from(from[row * plan.width + j * plan.lanes + lane]);
    }
    part
}

/// Writes what [`load_row`] reads, times `factor`.
#[cube]
fn store_row<F: Float>(
    part: &Array<Quad>,
    factor: f32,
    to: &mut Array<Vector<F, Const<4>>>,
    row: usize,
    #[comptime] plan: Plan,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let lane = UNIT_POS as usize % plan.lanes;
    #[unroll]
    for j in 0..quads {
        to[row * plan.width + j * plan.lanes + lane] =
            Vector::cast_from(part[j] * Quad::cast_from(factor));
    }
}

/// The product of a row in registers and one in shared memory, which each lane receives.
#[cube]
fn dot(part: &Array<Quad>, rows: &SharedMemory<Quad>, row: usize, #[comptime] plan: Plan) -> f32 {
    let quads = comptime!(plan.width / plan.lanes);
    let lane = UNIT_POS as usize % plan.lanes;
    let mut sum = Quad::new(0.0);
    #[unroll]
    for j in 0..quads {
        sum += part[j] * rows[row * plan.width + j * plan.lanes + lane];
    }
    sum_over_lanes(sum, plan.lanes)
}

/// Adds `factor` times a row in shared memory to one in registers.
#[cube]
fn add_row(
    part: &mut Array<Quad>,
    factor: f32,
    rows: &SharedMemory<Quad>,
    row: usize,
    #[comptime] plan: Plan,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let lane = UNIT_POS as usize % plan.lanes;
    #[unroll]
    for j in 0..quads {
        part[j] += Quad::cast_from(factor) * rows[row * plan.width + j * plan.lanes + lane];
    }
}

/// Keys and values in shared memory, `rows` of them at a time.
#[derive(CubeType)]
struct KeyBlock {
    keys: SharedMemory<Quad>,
    values: SharedMemory<Quad>,
}

#[cube]
impl KeyBlock {
    fn new(#[comptime] plan: Plan) -> KeyBlock {
        KeyBlock {
            keys: SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width)),
            values: SharedMemory::<Quad>::new(comptime!(plan.rows * plan.width)),
        }
    }

    /// Brings in those of times `first .. end`, once all units are done with the ones before.
    fn load<F: Float>(
        &mut self,
        key: &Array<Vector<F, Const<4>>>,
        value: &Array<Vector<F, Const<4>>>,
        problem: &Problem,
        first: usize,
        end: usize,
        #[comptime] plan: Plan,
    ) {
        let sequence = problem.sequence();
        sync_cube();
        let mut i = UNIT_POS as usize;
        while i < (end - first) * plan.width {
            let row = problem.key_row(sequence, first + i / plan.width);
            let at = row * plan.width + i % plan.width;
            self.keys[i] = Quad::cast_from(key[at]);
            self.values[i] = Quad::cast_from(value[at]);
            i += CUBE_DIM as usize;
        }
        sync_cube();
    }
}

#[cube]
fn zeros(#[comptime] quads: usize) -> Array<Quad> {
    let mut zeros = Array::<Quad>::new(quads);
    #[unroll]
    for j in 0..quads {
        zeros[j] = Quad::new(0.0);
    }
    zeros
}

/// The query that a unit works on.
#[derive(CubeType)]
struct Place {
    /// Its index; that of some query if there is none.
    query: usize,
    /// Its slot, if it is one of a list.
    slot: usize,
    /// Whether there is one.
    active: bool,
}

/// This unit's query of a tile of a list.
#[cube]
fn place_in_list(
    list: &List,
    lists: &ListArrays,
    problem: &Problem,
    #[comptime] plan: Plan,
) -> Place {
    let at = list.first + UNIT_POS as usize / plan.lanes;
    let active = at < list.end;
    let slot = lists.slot(select(active, at, list.first));
    Place {
        query: slot / problem.slots,
        slot,
        active,
    }
}

/// This unit's query of a tile of one chunk's.
#[cube]
fn place_in_own(tile: &OwnTile, problem: &Problem, #[comptime] plan: Plan) -> Place {
    let time = tile.first + UNIT_POS as usize / plan.lanes;
    let active = time >= problem.start && time < tile.end;
    Place {
        query: select(active, time - problem.start, 0usize.runtime()),
        slot: 0usize.runtime(),
        active,
    }
}
