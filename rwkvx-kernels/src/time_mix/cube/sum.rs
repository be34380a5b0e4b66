//! The second stage of the gradients of parameters.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{Grid, arguments};

/// Vectors of channels per cube.
const COLUMNS: usize = 16;
/// Units that share a vector of channels.
const LANES: usize = 16;

/// Adds up what [`Grid::partials`] has room for into a buffer `[channels]` per parameter, all of one float type.
pub(crate) fn sum_blocks<R: CubeRuntime>(
    grid: &Grid<R>,
    partials: CubeTensor<R>,
    sums: &[CubeTensor<R>],
) {
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        time_mix_sum::launch_unchecked::<R>(
            &grid.client,
            CubeCount::Static(grid.columns.div_ceil(COLUMNS) as u32, sums.len() as u32, 1),
            CubeDim::new_2d(COLUMNS as u32, LANES as u32),
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
fn time_mix_sum<P: Float, N: Size>(
    partials: &Array<Vector<f32, N>>,
    sums: &mut Sequence<Array<Vector<P, N>>>,
    blocks: usize,
    columns: usize,
    #[define(P)] _dtype: StorageType,
) {
    let column = CUBE_POS_X as usize * COLUMNS + UNIT_POS_X as usize;
    let parameter = CUBE_POS_Y as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    if column < columns {
        let mut block = UNIT_POS_Y as usize;
        while block < blocks {
            sum += partials[(parameter * blocks + block) * columns + column];
            block += LANES;
        }
    }
    let mut lanes = SharedMemory::<Vector<f32, N>>::new(comptime!(COLUMNS * LANES));
    lanes[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < columns {
        for lane in 1..LANES {
            sum += lanes[lane * COLUMNS + UNIT_POS_X as usize];
        }
        #[unroll]
        for i in 0..comptime!(sums.len()) {
            if parameter == i {
                sums.index_mut(i)[column] = Vector::cast_from(sum);
            }
        }
    }
}
