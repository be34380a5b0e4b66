//! Mean keys of chunks.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::problem::Problem;
use crate::cube::Quad;

/// Units of a cube; some rows are summed by each, for a row's four neighbouring numbers.
const UNITS: usize = 256;

/// Writes the means of chunks `from ..` of `keys`, as many as `means` `[sequence, chunk, head_size]` has room for.
pub(super) fn launch<R: CubeRuntime>(
    keys: &CubeTensor<R>,
    means: &CubeTensor<R>,
    from: usize,
    problem: Problem,
) {
    let [sequences, chunks, size] = means.meta.shape().dims();
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        attention_means::launch_unchecked::<R>(
            &keys.client,
            CubeCount::Static(chunks as u32, sequences as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            keys.clone().into_array_arg(),
            means.clone().into_array_arg(),
            from,
            problem.launch(),
            size / 4,
            keys.dtype.into(),
        );
    }
}

/// One cube per (chunk, sequence). `means` is `[sequence, chunk, head_size/4]` quads, of chunks `from ..`.
#[cube(launch_unchecked)]
fn attention_means<F: Float>(
    keys: &Array<Vector<F, Const<4>>>,
    means: &mut Array<Quad>,
    from: usize,
    problem: Problem,
    #[comptime] width: usize,
    #[define(F)] _dtype: StorageType,
) {
    let groups = comptime!(UNITS / width);
    let unit = UNIT_POS as usize;
    let (quad, group) = (unit % width, unit / width);
    let sequence = problem.sequence();
    let first = (from + CUBE_POS_X as usize) * problem.chunk_size;
    let mut sums = SharedMemory::<Quad>::new(UNITS);
    let mut sum = Quad::new(0.0);
    let mut row = group;
    while row < problem.chunk_size && group < groups {
        let at = problem.key_row(sequence, first + row) * width + quad;
        sum += Quad::cast_from(keys[at]);
        row += groups;
    }
    sums[unit] = sum;
    sync_cube();
    if group == 0 {
        for other in 1..groups {
            sum += sums[other * width + quad];
        }
        let to = (CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * width + quad;
        means[to] = sum / Quad::cast_from(f32::cast_from(problem.chunk_size));
    }
}
