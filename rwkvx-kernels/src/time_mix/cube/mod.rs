//! The operators as CubeCL kernels.
//!
//! A unit owns a vector of neighbouring channels and walks down a block of rows, so that it reads the parameters once and adds up their
//! gradients in registers; a second kernel adds up the blocks, always in the same order. Arithmetic is f32. Vectors are four channels
//! where heads are a whole number of them, else one.

mod keys;
mod output;
mod shift;
mod sum;
mod value;

pub(crate) use keys::prepare_keys;
pub(crate) use output::gate_output;
pub(crate) use shift::token_shift;
pub(crate) use sum::sum_blocks;
pub(crate) use value::mix_value;

use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::client::ComputeClient;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::TimeMixBackward;
use crate::cube::{CubeMemory, allocate, dense};

/// The passes for [`KernelBackend::TIME_MIX_BACKWARD`](crate::KernelBackend::TIME_MIX_BACKWARD).
pub(crate) const fn backward<B: CubeMemory>() -> TimeMixBackward<B> {
    TimeMixBackward {
        token_shift: shift::backward,
        prepare_keys: keys::backward,
        mix_value: value::backward,
        gate_output: output::backward,
    }
}

/// Units that fill a large device.
const UNITS: usize = 1 << 18;
/// Most blocks that rows are cut into, which bounds the traffic of their sums.
const BLOCKS: usize = 1024;
/// Units per cube, unless a head needs more.
const CUBE_UNITS: usize = 256;

/// How heads lie on the units of a cube; part of a kernel's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Heads {
    /// Channels per head.
    size: usize,
    /// Units per head, neighbours.
    lanes: usize,
    /// Units per cube, a multiple of `lanes`.
    units: usize,
    /// Whether the units of a head lie in one plane that can exchange values.
    planes: bool,
}

/// How the work on a `[rows, channels]` sequence is cut.
pub(crate) struct Grid<R: CubeRuntime> {
    pub(crate) client: ComputeClient<R>,
    pub(crate) rows: usize,
    /// Channels per vector.
    pub(crate) vector: usize,
    /// Vectors per row.
    columns: usize,
    /// Blocks of rows.
    blocks: usize,
    heads: Heads,
}

impl<R: CubeRuntime> Grid<R> {
    /// For an operator that works on whole heads.
    fn of_heads(sequence: &CubeTensor<R>, [rows, channels]: [usize; 2], size: usize) -> Self {
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

/// Dense buffers of the float type of the first.
fn alike<B: CubeMemory, const D: usize, const N: usize>(
    tensors: [Tensor<B, D>; N],
) -> [CubeTensor<B::Runtime>; N] {
    let dtype = tensors[0].dtype();
    tensors.map(|tensor| dense(tensor.cast(dtype)))
}

/// Any number of buffers as one argument.
fn arguments<R: CubeRuntime, C: CubePrimitive>(
    buffers: &[CubeTensor<R>],
) -> SequenceArg<R, Array<C>> {
    let arguments = buffers.iter().map(|buffer| buffer.clone().into_array_arg());
    arguments.collect()
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
