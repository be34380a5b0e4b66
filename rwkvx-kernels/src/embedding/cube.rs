//! The gradient of the table as a CubeCL kernel.
//!
//! A cube owns some neighbouring rows of the table and looks through all ids for them, as many at a time as it has units. Ids are few bytes beside
//! the rows they stand for, so reading them once per cube costs less than to sort them. Nothing is added up by two units, so that the sums are
//! the same in each run.

use burn::tensor::{Int as Integer, Tensor};
use cubecl::prelude::*;

use crate::cube::rows::CUBES;
use crate::cube::{CubeMemory, allocate, dense, dense_int, tensor};

/// Units per cube.
const UNITS: usize = 64;
/// Sums that a cube holds: 16 KiB, what every device has room for, less the ids.
const SUMS: usize = 3840;

/// The body of [`KernelBackend::embedding_gradient`](crate::KernelBackend::embedding_gradient).
pub(crate) fn gradient<B: CubeMemory>(
    vocab: usize,
    ids: Tensor<B, 1, Integer>,
    d_rows: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let [rows, channels] = d_rows.dims();
    let (ids, d_rows) = (dense_int(ids), dense(d_rows));
    let vector = if channels.is_multiple_of(4) { 4 } else { 1 };
    // Wider tables are summed a part of their columns at a time.
    let columns = channels / vector;
    let part = columns.min(SUMS / vector);
    let group = SUMS / vector / part;
    let blocks = vocab.div_ceil(group);
    let d_weight = allocate(&d_rows, [vocab, channels], d_rows.dtype);
    let dtypes = [d_rows.dtype.into(), ids.dtype.into()];
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        embedding_sums::launch_unchecked::<B::Runtime>(
            &d_rows.client.clone(),
            CubeCount::Static(blocks.min(CUBES) as u32, columns.div_ceil(part) as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            vector,
            ids.into_array_arg(),
            d_rows.into_array_arg(),
            d_weight.clone().into_array_arg(),
            rows,
            vocab,
            columns,
            part,
            group,
            dtypes,
        );
    }
    tensor(d_weight)
}

/// `ids` is `[rows]`, `d_rows` `[rows, columns]` vectors and `d_weight` `[vocab, columns]`. Cubes are counted by groups of `group` rows of the table
/// and by parts of `part` columns.
#[cube(launch_unchecked)]
fn embedding_sums<F: Float, I: Int, N: Size>(
    ids: &Array<I>,
    d_rows: &Array<Vector<F, N>>,
    d_weight: &mut Array<Vector<F, N>>,
    rows: usize,
    vocab: usize,
    columns: usize,
    #[comptime] part: usize,
    #[comptime] group: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let unit = UNIT_POS as usize;
    let first_column = CUBE_POS_Y as usize * part;
    let own_columns = min(part.runtime(), columns - first_column);
    let mut sums = SharedMemory::<Vector<f32, N>>::new(comptime!(group * part));
    // Of some neighbouring ids, which row of the group each names; `group` is none of them.
    let mut places = SharedMemory::<u32>::new(UNITS);
    // Whether one of the ids, and one of those looked through next, is of the group.
    let mut found = SharedMemory::<u32>::new(2usize);
    if unit < 2 {
        found[unit] = 0;
    }
    sync_cube();

    let mut first = CUBE_POS_X as usize * group;
    while first < vocab {
        for row in 0..group {
            let mut column = unit;
            while column < own_columns {
                sums[row * part + column] = Vector::new(0.0);
                column += UNITS;
            }
        }
        let mut turn = 0usize;
        let mut start = 0usize;
        while start < rows {
            let mut place = comptime!(group as u32).runtime();
            if start + unit < rows {
                let id = usize::cast_from(ids[start + unit]);
                if id >= first && id < first + group {
                    place = (id - first) as u32;
                    found[turn] = 1;
                }
            }
            places[unit] = place;
            sync_cube();
            if found[turn] == 1 {
                for i in 0..UNITS {
                    let place = places[i] as usize;
                    if place < group {
                        let mut column = unit;
                        while column < own_columns {
                            let at = (start + i) * columns + first_column + column;
                            sums[place * part + column] += Vector::cast_from(d_rows[at]);
                            column += UNITS;
                        }
                    }
                }
            }
            sync_cube();
            // Nobody touches it in the next turn.
            if unit == 0 {
                found[turn] = 0;
            }
            turn = 1 - turn;
            start += UNITS;
        }
        for row in 0..group {
            if first + row < vocab {
                let mut column = unit;
                while column < own_columns {
                    let at = (first + row) * columns + first_column + column;
                    d_weight[at] = Vector::cast_from(sums[row * part + column]);
                    column += UNITS;
                }
            }
        }
        // The last turn's answer is gone before the next group's first turn.
        sync_cube();
        first += CUBE_COUNT_X as usize * group;
    }
}
