//! Blocks of rows on a device, for operators that also add up over rows.
//!
//! A unit owns a vector of neighbouring channels and walks down a block of rows, so that it reads the parameters once and adds up their
//! gradients in registers; a second kernel adds up the blocks, always in the same order. Vectors are four channels where heads are a whole
//! number of them, else one.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::client::ComputeClient;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::{allocate, arguments};

/// Units that fill a large device.
const UNITS: usize = 1 << 18;
/// Most blocks that rows are cut into, which bounds the traffic of their sums.
const BLOCKS: usize = 1024;
/// Units per cube, unless a head needs more.
const CUBE_UNITS: usize = 256;
/// Vectors of channels per cube of the second stage.
const SUM_COLUMNS: usize = 16;
/// Units that share a vector of channels there.
const SUM_LANES: usize = 16;

/// How heads lie on the units of a cube; part of a kernel's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Heads {
    /// Channels per head.
    pub(crate) size: usize,
    /// Units per head, neighbours.
    pub(crate) lanes: usize,
    /// Units per cube, a multiple of `lanes`.
    pub(crate) units: usize,
    /// Whether the units of a head lie in one plane that can exchange values.
    pub(crate) planes: bool,
}

/// How the work on a `[rows, channels]` sequence is cut.
pub(crate) struct Grid<R: CubeRuntime> {
    pub(crate) client: ComputeClient<R>,
    pub(crate) rows: usize,
    /// Channels per vector.
    pub(crate) vector: usize,
    /// Vectors per row.
    pub(crate) columns: usize,
    /// Blocks of rows.
    pub(crate) blocks: usize,
    pub(crate) heads: Heads,
}

impl<R: CubeRuntime> Grid<R> {
    /// For an operator that works on whole heads.
    pub(crate) fn of_heads(
        sequence: &CubeTensor<R>,
        [rows, channels]: [usize; 2],
        size: usize,
    ) -> Self {
        let vector = if size.is_multiple_of(4) { 4 } else { 1 };
        let lanes = size / vector;
        let client = sequence.client.clone();
        let device = client.properties();
        let most = device.hardware.max_units_per_cube as usize;
        assert!(
            lanes <= most,
            "time mix: a head of {size} channels needs {lanes} units, the device has {most} per cube"
        );
        let columns = channels / vector;
        let heads = channels / size;
        let heads_per_cube = largest_divisor(heads, CUBE_UNITS / lanes);
        let rows_per_block = rows.div_ceil(UNITS.div_ceil(columns).min(BLOCKS)).max(1);
        let planes = device.features.plane.contains(Plane::Ops)
            && lanes.is_power_of_two()
            && lanes <= device.hardware.plane_size_min as usize;
        Self {
            rows,
            vector,
            columns,
            blocks: rows.div_ceil(rows_per_block),
            heads: Heads {
                size,
                lanes,
                units: heads_per_cube * lanes,
                planes,
            },
            client,
        }
    }

    /// For an operator to which channels are independent.
    pub(crate) fn of_channels(sequence: &CubeTensor<R>, [rows, channels]: [usize; 2]) -> Self {
        let vector = if channels.is_multiple_of(4) { 4 } else { 1 };
        Self::of_heads(sequence, [rows, channels], vector)
    }

    pub(crate) fn cubes(&self) -> CubeCount {
        CubeCount::Static(
            (self.columns / self.heads.units) as u32,
            self.blocks as u32,
            1,
        )
    }

    pub(crate) fn units(&self) -> CubeDim {
        CubeDim::new_1d(self.heads.units as u32)
    }

    /// Room for a vector `[channels]` per parameter and block, `[parameters, blocks, channels]`.
    pub(crate) fn partials(&self, like: &CubeTensor<R>, parameters: usize) -> CubeTensor<R> {
        let channels = self.columns * self.vector;
        allocate(like, [parameters, self.blocks, channels], DType::F32)
    }
}

/// The largest divisor of `number` that is at most `bound`, or 1.
fn largest_divisor(number: usize, bound: usize) -> usize {
    (2..=bound.min(number))
        .rev()
        .find(|&divisor| number.is_multiple_of(divisor))
        .unwrap_or(1)
}

/// The part of a sequence that a unit works on.
#[derive(CubeType)]
pub(crate) struct Part {
    /// The vector of channels.
    pub(crate) column: usize,
    /// Vectors per row.
    pub(crate) columns: usize,
    /// The first row.
    pub(crate) first: usize,
    /// The row after the last.
    pub(crate) end: usize,
}

#[cube]
pub(crate) fn own_part(rows: usize) -> Part {
    let units = CUBE_DIM as usize;
    let rows_per_block = rows.div_ceil(CUBE_COUNT_Y as usize);
    let first = CUBE_POS_Y as usize * rows_per_block;
    Part {
        column: CUBE_POS_X as usize * units + UNIT_POS as usize,
        columns: CUBE_COUNT_X as usize * units,
        first,
        end: min(first + rows_per_block, rows),
    }
}

/// Where a unit leaves its sum for one of the parameters.
#[cube]
pub(crate) fn partial_at(part: &Part, parameter: usize) -> usize {
    let block = parameter * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    block * part.columns + part.column
}

/// Adds up what [`Grid::partials`] has room for into a buffer `[channels]` per parameter, all of one float type.
pub(crate) fn sum_blocks<R: CubeRuntime>(
    grid: &Grid<R>,
    partials: CubeTensor<R>,
    sums: &[CubeTensor<R>],
) {
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        sum_of_blocks::launch_unchecked::<R>(
            &grid.client,
            CubeCount::Static(
                grid.columns.div_ceil(SUM_COLUMNS) as u32,
                sums.len() as u32,
                1,
            ),
            CubeDim::new_2d(SUM_COLUMNS as u32, SUM_LANES as u32),
            grid.vector,
            partials.into_array_arg(),
            arguments(sums),
            grid.blocks,
            grid.columns,
            sums[0].dtype.into(),
        );
    }
}

/// One cube per (columns, parameter). `partials` is `[parameters, blocks, columns]` vectors, each of the sums `[columns]`.
#[cube(launch_unchecked)]
fn sum_of_blocks<P: Float, N: Size>(
    partials: &Array<Vector<f32, N>>,
    sums: &mut Sequence<Array<Vector<P, N>>>,
    blocks: usize,
    columns: usize,
    #[define(P)] _dtype: StorageType,
) {
    let column = CUBE_POS_X as usize * SUM_COLUMNS + UNIT_POS_X as usize;
    let parameter = CUBE_POS_Y as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    if column < columns {
        let mut block = UNIT_POS_Y as usize;
        while block < blocks {
            sum += partials[(parameter * blocks + block) * columns + column];
            block += SUM_LANES;
        }
    }
    let mut lanes = SharedMemory::<Vector<f32, N>>::new(comptime!(SUM_COLUMNS * SUM_LANES));
    lanes[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < columns {
        for lane in 1..SUM_LANES {
            sum += lanes[lane * SUM_COLUMNS + UNIT_POS_X as usize];
        }
        #[unroll]
        for i in 0..comptime!(sums.len()) {
            if parameter == i {
                sums.index_mut(i)[column] = Vector::cast_from(sum);
            }
        }
    }
}
