//! The value residual.

use burn::tensor::Tensor;
use cubecl::prelude::*;

use super::sigmoid;
use crate::cube::blocks::{Grid, own_part, partial_at, sum_blocks};
use crate::cube::{CubeMemory, alike, allocate_like, dense, tensor};
use crate::time_mix::ValueInputs;

/// The body of [`KernelBackend::mix_value`](crate::KernelBackend::mix_value).
pub(crate) fn mix_value<B: CubeMemory>(inputs: ValueInputs<B>) -> Tensor<B, 2> {
    let dims = inputs.value.dims();
    let [value, first, amount] = alike([inputs.value, inputs.first, inputs.amount]);
    let amount_bias = dense(inputs.amount_bias);
    let mixed = allocate_like(&value);
    let grid = Grid::of_channels(&value, dims);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        time_mix_value::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            value.into_array_arg(),
            first.into_array_arg(),
            amount.into_array_arg(),
            amount_bias.clone().into_array_arg(),
            mixed.clone().into_array_arg(),
            grid.rows,
            [mixed.dtype.into(), amount_bias.dtype.into()],
        );
    }
    tensor(mixed)
}

/// The passes of [`TimeMixBackward::mix_value`](crate::TimeMixBackward::mix_value).
pub(super) fn backward<B: CubeMemory>(
    inputs: ValueInputs<B>,
    d_mixed: Tensor<B, 2>,
) -> ValueInputs<B> {
    let dims = inputs.value.dims();
    let [value, first, amount, d_mixed] =
        alike([inputs.value, inputs.first, inputs.amount, d_mixed]);
    let amount_bias = dense(inputs.amount_bias);
    let [d_value, d_first, d_amount] = std::array::from_fn(|_| allocate_like(&value));
    let grid = Grid::of_channels(&value, dims);
    let d_amount_bias = allocate_like(&amount_bias);
    let partials = grid.partials(&value, 1);
    // SAFETY: as in `mix_value`.
    unsafe {
        time_mix_value_backward::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            value.into_array_arg(),
            first.into_array_arg(),
            amount.into_array_arg(),
            d_mixed.into_array_arg(),
            amount_bias.into_array_arg(),
            d_value.clone().into_array_arg(),
            d_first.clone().into_array_arg(),
            d_amount.clone().into_array_arg(),
            partials.clone().into_array_arg(),
            grid.rows,
            [d_value.dtype.into(), d_amount_bias.dtype.into()],
        );
    }
    sum_blocks(&grid, partials, std::slice::from_ref(&d_amount_bias));
    ValueInputs {
        value: tensor(d_value),
        first: tensor(d_first),
        amount: tensor(d_amount),
        amount_bias: tensor(d_amount_bias),
    }
}

/// One unit per (block of rows, vector of channels). Sequences are `[rows, columns]` vectors, the parameter is `[columns]`.
#[cube(launch_unchecked)]
fn time_mix_value<F: Float, P: Float, N: Size>(
    value: &Array<Vector<F, N>>,
    first: &Array<Vector<F, N>>,
    amount: &Array<Vector<F, N>>,
    amount_bias: &Array<Vector<P, N>>,
    mixed: &mut Array<Vector<F, N>>,
    rows: usize,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let bias = Vector::<f32, N>::cast_from(amount_bias[part.column]);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let v = Vector::<f32, N>::cast_from(value[at]);
        let v_first = Vector::<f32, N>::cast_from(first[at]);
        let share = sigmoid(Vector::<f32, N>::cast_from(amount[at]) + bias);
        mixed[at] = Vector::cast_from(v + (v_first - v) * share);
    }
}

/// As [`time_mix_value`]; `partials` is `[1, blocks, columns]`.
#[cube(launch_unchecked)]
fn time_mix_value_backward<F: Float, P: Float, N: Size>(
    value: &Array<Vector<F, N>>,
    first: &Array<Vector<F, N>>,
    amount: &Array<Vector<F, N>>,
    d_mixed: &Array<Vector<F, N>>,
    amount_bias: &Array<Vector<P, N>>,
    d_value: &mut Array<Vector<F, N>>,
    d_first: &mut Array<Vector<F, N>>,
    d_amount: &mut Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: usize,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let one = Vector::<f32, N>::new(1.0);
    let bias = Vector::<f32, N>::cast_from(amount_bias[part.column]);
    let mut d_bias = Vector::<f32, N>::new(0.0);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let v = Vector::<f32, N>::cast_from(value[at]);
        let v_first = Vector::<f32, N>::cast_from(first[at]);
        let d = Vector::<f32, N>::cast_from(d_mixed[at]);
        let share = sigmoid(Vector::<f32, N>::cast_from(amount[at]) + bias);
        let d_share = d * (v_first - v) * share * (one - share);
        d_value[at] = Vector::cast_from(d * (one - share));
        d_first[at] = Vector::cast_from(d * share);
        d_amount[at] = Vector::cast_from(d_share);
        d_bias += d_share;
    }
    partials[partial_at(&part, 0)] = d_bias;
}
