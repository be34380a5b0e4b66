//! Long rows on a device: a cube takes a row, or several one after another, and its units stride over it.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::client::ComputeClient;
use cubecl::prelude::*;

/// Most units that share a row; a power of two. A large device needs this many, as a piece of logits has only some hundred rows.
const UNITS: usize = 1024;
/// Fewest units: those of a plane.
const FEWEST_UNITS: usize = 32;
/// Cubes that every device can count along an axis.
pub(crate) const CUBES: usize = 65535;

/// How `[rows, vocab]` is cut.
pub(crate) struct Grid<R: CubeRuntime> {
    pub(crate) client: ComputeClient<R>,
    pub(crate) rows: usize,
    /// Logits per vector: as many as asked for where rows are a whole number of vectors, else one.
    pub(crate) vector: usize,
    /// Vectors per row.
    pub(crate) columns: usize,
    /// Units per cube, a power of two.
    pub(crate) units: usize,
}

impl<R: CubeRuntime> Grid<R> {
    pub(crate) fn new(logits: &CubeTensor<R>, [rows, vocab]: [usize; 2], vector: usize) -> Self {
        let vector = if vocab.is_multiple_of(vector) {
            vector
        } else {
            1
        };
        let columns = vocab / vector;
        let client = logits.client.clone();
        let most = client.properties().hardware.max_units_per_cube as usize;
        let most = UNITS.min(1 << most.ilog2());
        Self {
            rows,
            vector,
            columns,
            units: columns.next_power_of_two().clamp(FEWEST_UNITS, most),
            client,
        }
    }

    /// With at most `most` units per cube, a power of two.
    pub(crate) fn with_units(self, most: usize) -> Self {
        let units = self.units.min(most);
        Self { units, ..self }
    }

    pub(crate) fn cubes(&self) -> CubeCount {
        CubeCount::Static(self.rows.min(CUBES) as u32, 1, 1)
    }

    pub(crate) fn units(&self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

/// The sum of the `units` of a cube, a power of two, which each of them receives. `shared` has a place for each.
#[cube]
pub(crate) fn sum_over_cube(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: usize,
) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut reach = comptime!(units / 2).runtime();
    while reach > 0 {
        if unit < reach {
            let other = shared[unit + reach];
            shared[unit] += other;
        }
        sync_cube();
        reach /= 2;
    }
    let sum = shared[0];
    sync_cube();
    sum
}
