//! The passes as CubeCL kernels.
//!
//! A cube takes a row, or several one after another; its units stride over the vocabulary, in vectors of four where that is a whole number of them. The units'
//! statistics are joined as a tree through shared memory, always in the same order.

use burn::tensor::{DType, Int as Integer, Tensor};
use cubecl::prelude::*;

use super::RowLosses;
use crate::cube::rows::Grid;
use crate::cube::{CubeMemory, allocate, allocate_like, dense, dense_int, tensor};

/// The body of [`KernelBackend::cross_entropy_rows`](crate::KernelBackend::cross_entropy_rows).
pub(crate) fn cross_entropy_rows<B: CubeMemory>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Integer>,
) -> RowLosses<B> {
    let dims @ [rows, _] = logits.dims();
    let (logits, targets) = (dense(logits), dense_int(targets));
    let grid = Grid::new(&logits, dims, 4);
    let [nll, largest, log_sum] = [(); 3].map(|()| allocate(&logits, [rows], DType::F32));
    let largest_at = allocate_like(&targets);
    let dtypes = [logits.dtype.into(), targets.dtype.into()];
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        cross_entropy_statistics::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            logits.into_array_arg(),
            targets.into_array_arg(),
            nll.clone().into_array_arg(),
            largest.clone().into_array_arg(),
            largest_at.clone().into_array_arg(),
            log_sum.clone().into_array_arg(),
            f32::INFINITY,
            rows,
            grid.columns,
            grid.units,
            dtypes,
        );
    }
    RowLosses {
        nll: tensor(nll),
        largest: tensor(largest),
        largest_at: Tensor::from_primitive(largest_at),
        log_sum: tensor(log_sum),
    }
}

/// The body of [`KernelBackend::cross_entropy_gradient`](crate::KernelBackend::cross_entropy_gradient).
pub(crate) fn cross_entropy_gradient<B: CubeMemory>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Integer>,
    losses: RowLosses<B>,
    shares: Tensor<B, 1>,
    l2_wrap: f64,
) -> Tensor<B, 2> {
    let dims @ [rows, _] = logits.dims();
    let (logits, targets) = (dense(logits), dense_int(targets));
    let largest_at = dense_int(losses.largest_at.cast(targets.dtype));
    let [largest, log_sum, shares] =
        [losses.largest, losses.log_sum, shares].map(|x| dense(x.cast(DType::F32)));
    let grid = Grid::new(&logits, dims, 4);
    let dtypes = [logits.dtype.into(), targets.dtype.into()];
    let (d_logits, target) = if logits.can_mut() {
        (logits.clone(), logits.as_tensor_alias(0).into_array_arg())
    } else {
        let d_logits = allocate_like(&logits);
        (d_logits.clone(), d_logits.into_array_arg())
    };
    // SAFETY: as in `cross_entropy_rows`; each unit reads a vector before it overwrites it, and no other.
    unsafe {
        cross_entropy_slope::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            logits.into_array_arg(),
            targets.into_array_arg(),
            largest.into_array_arg(),
            largest_at.into_array_arg(),
            log_sum.into_array_arg(),
            shares.into_array_arg(),
            target,
            l2_wrap as f32,
            rows,
            grid.columns,
            dtypes,
        );
    }
    tensor(d_logits)
}

/// `logits` is `[rows, columns]` vectors, all others are `[rows]`. `loss_outside`, that of a target outside the vocabulary, is an argument as CUDA has no literal for it.
#[cube(launch_unchecked)]
fn cross_entropy_statistics<F: Float, I: Int, N: Size>(
    logits: &Array<Vector<F, N>>,
    targets: &Array<I>,
    nll: &mut Array<f32>,
    largest: &mut Array<f32>,
    largest_at: &mut Array<I>,
    log_sum: &mut Array<f32>,
    loss_outside: f32,
    rows: usize,
    columns: usize,
    #[comptime] units: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let width = logits.vector_size();
    let unit = UNIT_POS as usize;
    let mut shared = Shared {
        top: SharedMemory::<f32>::new(units),
        top_at: SharedMemory::<u32>::new(units),
        sum: SharedMemory::<f32>::new(units),
    };
    let mut row = CUBE_POS;
    while row < rows {
        let first = row * columns;
        let mut top = f32::min_value();
        let mut top_at = 0u32;
        let mut sum = 0.0f32;
        let mut column = unit;
        while column < columns {
            let x = Vector::<f32, N>::cast_from(logits[first + column]);
            let before = top;
            #[unroll]
            for i in 0..width {
                if x[i] > top {
                    top = x[i];
                    top_at = (column * width + i) as u32;
                }
            }
            let exp = (x - Vector::new(top)).exp();
            sum = sum * (before - top).exp() + f32::cast_from(exp.vector_sum());
            column += units;
        }
        shared.top[unit] = top;
        shared.top_at[unit] = top_at;
        shared.sum[unit] = sum;
        sync_cube();
        let mut reach = comptime!(units / 2).runtime();
        while reach > 0 {
            if unit < reach {
                shared.join(unit, unit + reach);
            }
            sync_cube();
            reach /= 2;
        }
        // No other unit touches the first element before the next wait.
        if unit == 0 {
            let top = shared.top[0];
            let log = shared.sum[0].ln();
            let target = usize::cast_from(targets[row]);
            let mut loss = loss_outside;
            if target < columns * width {
                let x = Vector::<f32, N>::cast_from(logits[first + target / width]);
                #[unroll]
                for i in 0..width {
                    if target % width == i {
                        loss = log + (top - x[i]);
                    }
                }
            }
            nll[row] = loss;
            largest[row] = top;
            largest_at[row] = I::cast_from(shared.top_at[0]);
            log_sum[row] = log;
        }
        row += CUBE_COUNT;
    }
}

/// The statistics of each unit's part of a row.
#[derive(CubeType)]
struct Shared {
    /// The largest logit.
    top: SharedMemory<f32>,
    /// Where it is.
    top_at: SharedMemory<u32>,
    /// `sum exp(logit - top)`
    sum: SharedMemory<f32>,
}

#[cube]
impl Shared {
    /// Joins the statistics at `other` to those at `unit`.
    fn join(&mut self, unit: usize, other: usize) {
        let (mine, theirs) = (self.top[unit], self.top[other]);
        let (my_place, their_place) = (self.top_at[unit], self.top_at[other]);
        let top = max(mine, theirs);
        let is_theirs = theirs > mine || (theirs == mine && their_place < my_place);
        self.sum[unit] =
            self.sum[unit] * (mine - top).exp() + self.sum[other] * (theirs - top).exp();
        self.top[unit] = top;
        self.top_at[unit] = select(is_theirs, their_place, my_place);
    }
}

/// `logits` and `d_logits`, which may be the same, are `[rows, columns]` vectors, all others are `[rows]`.
#[cube(launch_unchecked)]
fn cross_entropy_slope<F: Float, I: Int, N: Size>(
    logits: &Array<Vector<F, N>>,
    targets: &Array<I>,
    largest: &Array<f32>,
    largest_at: &Array<I>,
    log_sum: &Array<f32>,
    shares: &Array<f32>,
    d_logits: &mut Array<Vector<F, N>>,
    l2_wrap: f32,
    rows: usize,
    columns: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let width = logits.vector_size();
    let units = CUBE_DIM as usize;
    let mut row = CUBE_POS;
    while row < rows {
        let target = usize::cast_from(targets[row]);
        let top_at = usize::cast_from(largest_at[row]);
        let top = largest[row];
        let log = Vector::<f32, N>::new(log_sum[row]);
        let share = shares[row];
        let mut column = UNIT_POS as usize;
        while column < columns {
            let at = row * columns + column;
            let x = Vector::<f32, N>::cast_from(logits[at]);
            let mut slope = (x - Vector::new(top) - log).exp() * Vector::new(share);
            #[unroll]
            for i in 0..width {
                if column * width + i == target {
                    slope[i] -= share;
                }
                if column * width + i == top_at {
                    slope[i] += l2_wrap * top;
                }
            }
            d_logits[at] = Vector::cast_from(slope);
            column += units;
        }
        row += CUBE_COUNT;
    }
}
