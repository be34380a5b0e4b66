//! Rows of logits on a device: a cube takes a row, or several one after another, and its units stride over the vocabulary.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::client::ComputeClient;
use cubecl::prelude::*;

/// Most units that share a row; a power of two. A large device needs this many, as a piece of logits has only some hundred rows.
const UNITS: usize = 1024;
/// Fewest units: those of a plane.
const FEWEST_UNITS: usize = 32;
/// Cubes that every device can count along an axis.
const CUBES: usize = 65535;

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

    pub(crate) fn cubes(&self) -> CubeCount {
        CubeCount::Static(self.rows.min(CUBES) as u32, 1, 1)
    }

    pub(crate) fn units(&self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}
