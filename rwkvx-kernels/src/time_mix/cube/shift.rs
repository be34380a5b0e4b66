//! The token shift.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::blocks::{Grid, own_part, partial_at, sum_blocks};
use crate::cube::{CubeMemory, allocate, allocate_like, arguments, dense, tensor};
use crate::time_mix::ShiftGrads;

/// The body of [`KernelBackend::token_shift`](crate::KernelBackend::token_shift).
pub(crate) fn token_shift<B: CubeMemory>(
    x: Tensor<B, 3>,
    carry: Option<Tensor<B, 2>>,
    amounts: Vec<Tensor<B, 1>>,
) -> Vec<Tensor<B, 2>> {
    let [batch, time, channels] = x.dims();
    let dims = [batch * time, channels];
    let dtype = x.dtype();
    let x = dense(x);
    let has_carry = carry.is_some();
    let carry = carry.map_or_else(|| x.clone(), |carry| dense(carry.cast(dtype)));
    let amounts = parameters(amounts);
    let mixes: Vec<_> = amounts.iter().map(|_| allocate(&x, dims, dtype)).collect();
    let grid = Grid::of_channels(&x, dims);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        time_mix_shift::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            x.into_array_arg(),
            carry.into_array_arg(),
            arguments(&amounts),
            arguments(&mixes),
            grid.rows,
            time,
            has_carry,
            [dtype.into(), amounts[0].dtype.into()],
        );
    }
    mixes.into_iter().map(tensor).collect()
}

/// The passes of [`TimeMixBackward::token_shift`](crate::TimeMixBackward::token_shift).
pub(super) fn backward<B: CubeMemory>(
    x: Tensor<B, 3>,
    amounts: Vec<Tensor<B, 1>>,
    d_mixes: Vec<Tensor<B, 2>>,
) -> ShiftGrads<B> {
    let [batch, time, channels] = x.dims();
    let dtype = x.dtype();
    let x = dense(x);
    let amounts = parameters(amounts);
    let d_mixes: Vec<_> = d_mixes.into_iter().map(|d| dense(d.cast(dtype))).collect();
    let d_x = allocate_like(&x);
    let grid = Grid::of_channels(&x, [batch * time, channels]);
    let d_amounts: Vec<_> = amounts.iter().map(allocate_like).collect();
    let partials = grid.partials(&x, amounts.len());
    // SAFETY: as in `token_shift`.
    unsafe {
        time_mix_shift_backward::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            x.into_array_arg(),
            arguments(&amounts),
            arguments(&d_mixes),
            d_x.clone().into_array_arg(),
            partials.clone().into_array_arg(),
            grid.rows,
            time,
            [dtype.into(), amounts[0].dtype.into()],
        );
    }
    sum_blocks(&grid, partials, &d_amounts);
    ShiftGrads {
        x: tensor(d_x),
        amounts: d_amounts.into_iter().map(tensor).collect(),
    }
}

/// Parameters as dense buffers of the float type of the first.
pub(super) fn parameters<B: CubeMemory>(vectors: Vec<Tensor<B, 1>>) -> Vec<CubeTensor<B::Runtime>> {
    let dtype = vectors[0].dtype();
    vectors
        .into_iter()
        .map(|vector| dense(vector.cast(dtype)))
        .collect()
}

/// One unit per (block of rows, vector of channels). `x` is `[batch, time, columns]` vectors, as is each of the mixes; `carry` is
/// `[batch, columns]`, each of the amounts `[columns]`.
#[cube(launch_unchecked)]
fn time_mix_shift<F: Float, P: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    carry: &Array<Vector<F, N>>,
    amounts: &Sequence<Array<Vector<P, N>>>,
    mixes: &mut Sequence<Array<Vector<F, N>>>,
    rows: usize,
    time: usize,
    #[comptime] has_carry: bool,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let count = comptime!(amounts.len());
    let mut shares = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        shares[i] = Vector::cast_from(amounts[i][part.column]);
    }
    let mut before = Vector::<f32, N>::new(0.0);
    if part.first > 0 {
        before = Vector::cast_from(x[(part.first - 1) * part.columns + part.column]);
    }
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        if row.is_multiple_of(time) {
            before = Vector::new(0.0);
            if comptime!(has_carry) {
                before = Vector::cast_from(carry[row / time * part.columns + part.column]);
            }
        }
        let here = Vector::<f32, N>::cast_from(x[at]);
        #[unroll]
        for i in 0..count {
            mixes.index_mut(i)[at] = Vector::cast_from(here + (before - here) * shares[i]);
        }
        before = here;
    }
}

/// As [`time_mix_shift`] without carry, from the last row to the first; `partials` is `[amounts, blocks, columns]`.
#[cube(launch_unchecked)]
fn time_mix_shift_backward<F: Float, P: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    amounts: &Sequence<Array<Vector<P, N>>>,
    d_mixes: &Sequence<Array<Vector<F, N>>>,
    d_x: &mut Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: usize,
    time: usize,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let count = comptime!(amounts.len());
    let zero = Vector::<f32, N>::new(0.0);
    let mut shares = Array::<Vector<f32, N>>::new(count);
    let mut d_shares = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        shares[i] = Vector::cast_from(amounts[i][part.column]);
        d_shares[i] = zero;
    }
    // What the row after gives to this one.
    let mut from_after = zero;
    if !part.end.is_multiple_of(time) {
        let at = part.end * part.columns + part.column;
        #[unroll]
        for i in 0..count {
            from_after += Vector::cast_from(d_mixes[i][at]) * shares[i];
        }
    }
    let mut here = Vector::<f32, N>::cast_from(x[(part.end - 1) * part.columns + part.column]);
    for back in 0..part.end - part.first {
        let row = part.end - 1 - back;
        let at = row * part.columns + part.column;
        let mut before = zero;
        if row > 0 {
            before = Vector::cast_from(x[at - part.columns]);
        }
        let is_first = row.is_multiple_of(time);
        let difference = select(is_first, zero, before) - here;
        let mut total = zero;
        let mut to_before = zero;
        #[unroll]
        for i in 0..count {
            let d = Vector::<f32, N>::cast_from(d_mixes[i][at]);
            d_shares[i] += d * difference;
            total += d;
            to_before += d * shares[i];
        }
        d_x[at] = Vector::cast_from(total - to_before + from_after);
        from_after = select(is_first, zero, to_before);
        here = before;
    }
    #[unroll]
    for i in 0..count {
        partials[partial_at(&part, i)] = d_shares[i];
    }
}
