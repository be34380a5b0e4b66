//! The norm and the token shift of a single token of each text.

use burn::tensor::Tensor;
use cubecl::prelude::*;

use super::shift::parameters;
use crate::KernelBackend;
use crate::cube::rows::Grid;
use crate::cube::{CubeMemory, allocate_like, allocate_together, arguments, dense, tensor};
use crate::layer_norm::cube::{UNITS, mean_and_inverse};
use crate::time_mix::{ShiftInputs, Shifted, reference};

/// The body of [`KernelBackend::norm_and_shift`].
pub(crate) fn norm_and_shift<B: CubeMemory + KernelBackend>(
    inputs: ShiftInputs<B, Vec<Tensor<B, 1>>>,
) -> Shifted<B, Vec<Tensor<B, 2>>> {
    let [batch, time, channels] = inputs.x.dims();
    let Some(carry) = &inputs.carry else {
        return reference::norm_and_shift(inputs);
    };
    if time > 1 {
        return reference::norm_and_shift(inputs);
    }
    let x = dense(inputs.x.reshape([batch, channels]));
    let carry = dense(carry.clone().cast(x.dtype));
    let norm = parameters([inputs.weight, inputs.bias].into());
    let [weight, bias] = &norm[..] else {
        unreachable!("there are two of them");
    };
    let amounts = parameters(inputs.amounts);
    let normal = allocate_like(&x);
    let mixes = allocate_together(&x, &vec![[batch, channels]; amounts.len()], x.dtype);
    let grid = Grid::new(&x, [batch, channels], 4).with_units(UNITS);
    let dtypes = [x.dtype.into(), weight.dtype.into(), amounts[0].dtype.into()];
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        norm_and_shift_step::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            x.into_array_arg(),
            weight.clone().into_array_arg(),
            bias.clone().into_array_arg(),
            carry.into_array_arg(),
            arguments(&amounts),
            normal.clone().into_array_arg(),
            arguments(&mixes),
            grid.rows,
            grid.columns,
            grid.units,
            dtypes,
        );
    }
    Shifted {
        mixes: mixes.into_iter().map(tensor).collect(),
        carry: Some(tensor(normal)),
    }
}

/// `x`, `carry`, `normal` and each of the mixes are `[rows, columns]` vectors, the parameters `[columns]`.
#[cube(launch_unchecked)]
fn norm_and_shift_step<F: Float, P: Float, A: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<P, N>>,
    bias: &Array<Vector<P, N>>,
    carry: &Array<Vector<F, N>>,
    amounts: &Sequence<Array<Vector<A, N>>>,
    normal: &mut Array<Vector<F, N>>,
    mixes: &mut Sequence<Array<Vector<F, N>>>,
    rows: usize,
    columns: usize,
    #[comptime] units: usize,
    #[define(F, P, A)] _dtypes: [StorageType; 3],
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let mut row = CUBE_POS;
    while row < rows {
        let first = row * columns;
        let (mean, inverse) = mean_and_inverse::<F, N>(x, first, columns, &mut shared, units);
        let mut column = UNIT_POS as usize;
        while column < columns {
            let at = first + column;
            let centered = Vector::<f32, N>::cast_from(x[at]) - Vector::new(mean);
            let weight = Vector::<f32, N>::cast_from(weight[column]);
            let bias = Vector::<f32, N>::cast_from(bias[column]);
            let here = Vector::<F, N>::cast_from(centered * Vector::new(inverse) * weight + bias);
            normal[at] = here;
            let here = Vector::<f32, N>::cast_from(here);
            let difference = Vector::<f32, N>::cast_from(carry[at]) - here;
            #[unroll]
            for i in 0..comptime!(amounts.len()) {
                let amount = Vector::<f32, N>::cast_from(amounts[i][column]);
                mixes.index_mut(i)[at] = Vector::cast_from(here + difference * amount);
            }
            column += units;
        }
        row += CUBE_COUNT;
    }
}
