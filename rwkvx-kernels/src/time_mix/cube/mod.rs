//! The operators as CubeCL kernels.
//!
//! Most work down [blocks](crate::cube::blocks) of rows; [`norm_shift`] and [`heads`] are for a single token of each text. Arithmetic is f32.

mod heads;
mod keys;
mod norm_shift;
mod output;
mod shift;
mod value;

pub(crate) use heads::mix_heads;
pub(crate) use keys::prepare_keys;
pub(crate) use norm_shift::norm_and_shift;
pub(crate) use output::gate_output;
pub(crate) use shift::token_shift;
pub(crate) use value::mix_value;

use cubecl::prelude::*;

use super::TimeMixBackward;
use crate::cube::CubeMemory;
use crate::cube::blocks::Heads;

/// The passes for [`KernelBackend::TIME_MIX_BACKWARD`](crate::KernelBackend::TIME_MIX_BACKWARD).
pub(crate) const fn backward<B: CubeMemory>() -> TimeMixBackward<B> {
    TimeMixBackward {
        token_shift: shift::backward,
        prepare_keys: keys::backward,
        mix_value: value::backward,
        gate_output: output::backward,
    }
}

/// Room through which the units of a cube exchange values.
#[cube]
fn exchange(#[comptime] heads: Heads) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(if heads.planes { 1usize } else { heads.units }))
}

/// The sum over a head, which each of its units receives.
#[cube]
fn sum_over_head<N: Size>(
    values: Vector<f32, N>,
    shared: &mut SharedMemory<f32>,
    #[comptime] heads: Heads,
) -> f32 {
    let mut sum = f32::cast_from(values.vector_sum());
    if comptime!(heads.planes) {
        #[unroll]
        for bit in 0..comptime!(heads.lanes.trailing_zeros()) {
            sum += plane_shuffle_xor(sum, comptime!(1u32 << bit));
        }
    } else {
        let unit = UNIT_POS as usize;
        shared[unit] = sum;
        sync_cube();
        let first = unit - unit % heads.lanes;
        sum = 0.0;
        for lane in 0..heads.lanes {
            sum += shared[first + lane];
        }
        sync_cube();
    }
    sum
}

/// CubeCL cannot negate vectors on CUDA.
#[cube]
fn negative<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x * Vector::new(-1.0)
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    one / (one + negative(x).exp())
}
