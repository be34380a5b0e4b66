//! The norm as CubeCL kernels, with arithmetic in f32.
//!
//! A cube takes a row, or several one after another, and adds up its units' parts as a tree. The gradients of the parameters are sums over rows; for
//! them a unit owns a vector of channels and walks down a block of rows, as [`blocks`] says.

use burn::tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{EPSILON, LayerNormGrads};
use crate::cube::rows::{Grid, sum_over_cube};
use crate::cube::{CubeMemory, alike, allocate, allocate_like, blocks, dense, tensor};

/// Most units per row. More would wait for each other longer than they read.
pub(crate) const UNITS: usize = 64;

/// The body of [`KernelBackend::layer_norm`](crate::KernelBackend::layer_norm).
pub(crate) fn layer_norm<B: CubeMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let dims = x.dims();
    let (x, [weight, bias]) = (dense(x), alike([weight, bias]));
    let grid = Grid::new(&x, dims, 4).with_units(UNITS);
    let dtypes = [x.dtype.into(), weight.dtype.into()];
    let normal = allocate_like(&x);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        layer_norm_forward::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            x.into_array_arg(),
            weight.into_array_arg(),
            bias.into_array_arg(),
            normal.clone().into_array_arg(),
            grid.rows,
            grid.columns,
            grid.units,
            dtypes,
        );
    }
    tensor(normal)
}

/// The body of [`KernelBackend::layer_norm_backward`](crate::KernelBackend::layer_norm_backward).
pub(crate) fn backward<B: CubeMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    d_normal: Tensor<B, 2>,
) -> LayerNormGrads<B> {
    let dims @ [rows, _] = x.dims();
    let ([x, d_normal], weight) = (alike([x, d_normal]), dense(weight));
    let dtypes = [x.dtype.into(), weight.dtype.into()];
    let d_x = allocate_like(&x);
    let statistics = allocate(&x, [rows, 2], DType::F32);
    let grid = Grid::new(&x, dims, 4).with_units(UNITS);
    // SAFETY: as in `layer_norm`.
    unsafe {
        layer_norm_d_x::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            x.clone().into_array_arg(),
            weight.clone().into_array_arg(),
            d_normal.clone().into_array_arg(),
            d_x.clone().into_array_arg(),
            statistics.clone().into_array_arg(),
            grid.rows,
            grid.columns,
            grid.units,
            dtypes,
        );
    }
    let grid = blocks::Grid::of_channels(&x, dims);
    let partials = grid.partials(&x, 2);
    // SAFETY: as in `layer_norm`.
    unsafe {
        layer_norm_d_parameters::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            x.clone().into_array_arg(),
            statistics.into_array_arg(),
            d_normal.into_array_arg(),
            partials.clone().into_array_arg(),
            grid.rows,
            x.dtype.into(),
        );
    }
    let d_parameters = [(); 2].map(|()| allocate_like(&weight));
    blocks::sum_blocks(&grid, partials, &d_parameters);
    let [weight, bias] = d_parameters.map(tensor);
    LayerNormGrads {
        x: tensor(d_x),
        weight,
        bias,
    }
}

/// `x` and `normal` are `[rows, columns]` vectors, the parameters `[columns]`.
#[cube(launch_unchecked)]
fn layer_norm_forward<F: Float, P: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<P, N>>,
    bias: &Array<Vector<P, N>>,
    normal: &mut Array<Vector<F, N>>,
    rows: usize,
    columns: usize,
    #[comptime] units: usize,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let mut row = CUBE_POS;
    while row < rows {
        let first = row * columns;
        let (mean, inverse) = mean_and_inverse::<F, N>(x, first, columns, &mut shared, units);
        let mut column = UNIT_POS as usize;
        while column < columns {
            let x = Vector::<f32, N>::cast_from(x[first + column]);
            let scaled = (x - Vector::new(mean)) * Vector::new(inverse);
            let weight = Vector::<f32, N>::cast_from(weight[column]);
            let bias = Vector::<f32, N>::cast_from(bias[column]);
            normal[first + column] = Vector::cast_from(scaled * weight + bias);
            column += units;
        }
        row += CUBE_COUNT;
    }
}

/// As [`layer_norm_forward`]; `statistics` receives mean and inverse deviation of each row.
#[cube(launch_unchecked)]
fn layer_norm_d_x<F: Float, P: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<P, N>>,
    d_normal: &Array<Vector<F, N>>,
    d_x: &mut Array<Vector<F, N>>,
    statistics: &mut Array<f32>,
    rows: usize,
    columns: usize,
    #[comptime] units: usize,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let width = x.vector_size();
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    let mut row = CUBE_POS;
    while row < rows {
        let first = row * columns;
        let (mean, inverse) = mean_and_inverse::<F, N>(x, first, columns, &mut shared, units);
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut along = Vector::<f32, N>::new(0.0);
        let mut column = unit;
        while column < columns {
            let normal = (Vector::<f32, N>::cast_from(x[first + column]) - Vector::new(mean))
                * Vector::new(inverse);
            let d = Vector::<f32, N>::cast_from(d_normal[first + column])
                * Vector::<f32, N>::cast_from(weight[column]);
            sum += d;
            along += d * normal;
            column += units;
        }
        let share = 1.0 / f32::cast_from(columns * width);
        let sum = f32::cast_from(sum.vector_sum());
        let d_mean = sum_over_cube(sum, &mut shared, units) * share;
        let along = f32::cast_from(along.vector_sum());
        let along = sum_over_cube(along, &mut shared, units) * share;
        let mut column = unit;
        while column < columns {
            let normal = (Vector::<f32, N>::cast_from(x[first + column]) - Vector::new(mean))
                * Vector::new(inverse);
            let d = Vector::<f32, N>::cast_from(d_normal[first + column])
                * Vector::<f32, N>::cast_from(weight[column]);
            let d_centered = d - Vector::new(d_mean) - normal * Vector::new(along);
            d_x[first + column] = Vector::cast_from(d_centered * Vector::new(inverse));
            column += units;
        }
        if unit == 0 {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = inverse;
        }
        row += CUBE_COUNT;
    }
}

/// One unit per (block of rows, vector of channels); `partials` is `[2, blocks, columns]`.
#[cube(launch_unchecked)]
fn layer_norm_d_parameters<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    statistics: &Array<f32>,
    d_normal: &Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: usize,
    #[define(F)] _dtype: StorageType,
) {
    let part = blocks::own_part(rows);
    let mut d_weight = Vector::<f32, N>::new(0.0);
    let mut d_bias = Vector::<f32, N>::new(0.0);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let mean = statistics[2 * row];
        let inverse = statistics[2 * row + 1];
        let normal =
            (Vector::<f32, N>::cast_from(x[at]) - Vector::new(mean)) * Vector::new(inverse);
        let d = Vector::<f32, N>::cast_from(d_normal[at]);
        d_weight += d * normal;
        d_bias += d;
    }
    partials[blocks::partial_at(&part, 0)] = d_weight;
    partials[blocks::partial_at(&part, 1)] = d_bias;
}

/// Of the row of `columns` vectors from `first`; all units receive them.
#[cube]
pub(crate) fn mean_and_inverse<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    first: usize,
    columns: usize,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: usize,
) -> (f32, f32) {
    let share = 1.0 / f32::cast_from(columns * x.vector_size());
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut column = UNIT_POS as usize;
    while column < columns {
        sum += Vector::cast_from(x[first + column]);
        column += units;
    }
    let sum = f32::cast_from(sum.vector_sum());
    let mean = sum_over_cube(sum, shared, units) * share;
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut column = UNIT_POS as usize;
    while column < columns {
        let centered = Vector::<f32, N>::cast_from(x[first + column]) - Vector::new(mean);
        squares += centered * centered;
        column += units;
    }
    let squares = f32::cast_from(squares.vector_sum());
    let variance = sum_over_cube(squares, shared, units) * share;
    (mean, (variance + EPSILON as f32).inverse_sqrt())
}
