//! Between Burn's tensors on CubeCL devices and our kernels.
//!
//! Kernels index their arguments as dense row-major buffers. Inputs are made contiguous on the way in; outputs are allocated
//! dense here, because Burn's own allocation pads rows on CUDA.

pub(crate) mod blocks;
pub(crate) mod devices;
pub(crate) mod rows;
pub(crate) mod warp;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Shape, Tensor, TensorMetadata, TensorPrimitive};
use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, kernel::into_contiguous,
    tensor::CubeTensor,
};
use cubecl::prelude::*;
use cubecl::server::{MemoryLayoutDescriptor, MemoryLayoutStrategy};

/// Four values that are loaded, computed and stored together.
pub(crate) type Quad = Vector<f32, Const<4>>;

/// A backend whose tensors are buffers of a CubeCL runtime.
pub(crate) trait CubeMemory:
    Backend<
        Device = <Self::Runtime as Runtime>::Device,
        FloatTensorPrimitive = CubeTensor<Self::Runtime>,
        IntTensorPrimitive = CubeTensor<Self::Runtime>,
    >
{
    /// CUDA, Vulkan, ...
    type Runtime: CubeRuntime;
}

impl<R, F, I, BT> CubeMemory for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<
            Device = R::Device,
            FloatTensorPrimitive = CubeTensor<R>,
            IntTensorPrimitive = CubeTensor<R>,
        >,
{
    type Runtime = R;
}

/// Bytes that the device's memory pools hold.
pub(crate) fn bytes_reserved<B: CubeMemory>(device: &B::Device) -> Option<u64> {
    let usage = B::Runtime::client(device).memory_usage().ok()?;
    Some(usage.bytes_reserved)
}

/// Of the device, or 0 where that is not known.
pub(crate) fn multiprocessors<B: CubeMemory>(device: &B::Device) -> usize {
    let client = B::Runtime::client(device);
    let hardware = &client.properties().hardware;
    hardware.num_streaming_multiprocessors.unwrap_or(0) as usize
}

/// The tensor's buffer, dense and row-major.
pub(crate) fn dense<B: CubeMemory, const D: usize>(tensor: Tensor<B, D>) -> CubeTensor<B::Runtime> {
    into_contiguous(tensor.into_primitive().tensor())
}

/// As [`dense`], of a tensor of integers.
pub(crate) fn dense_int<B: CubeMemory, const D: usize>(
    tensor: Tensor<B, D, Int>,
) -> CubeTensor<B::Runtime> {
    into_contiguous(tensor.into_primitive())
}

/// Dense buffers of the float type of the first.
pub(crate) fn alike<B: CubeMemory, const D: usize, const N: usize>(
    tensors: [Tensor<B, D>; N],
) -> [CubeTensor<B::Runtime>; N] {
    let dtype = tensors[0].dtype();
    tensors.map(|tensor| dense(tensor.cast(dtype)))
}

/// Any number of buffers as one argument.
pub(crate) fn arguments<R: CubeRuntime, C: CubePrimitive>(
    buffers: &[CubeTensor<R>],
) -> SequenceArg<R, Array<C>> {
    let arguments = buffers.iter().map(|buffer| buffer.clone().into_array_arg());
    arguments.collect()
}

/// The tensor that owns a buffer.
pub(crate) fn tensor<B: CubeMemory, const D: usize>(
    buffer: CubeTensor<B::Runtime>,
) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(buffer))
}

/// A new buffer on the device of `like`; its contents are undefined.
pub(crate) fn allocate<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let shape = shape.into();
    let bytes = shape.num_elements() * dtype.size();
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        shape,
        like.client.empty(bytes),
        dtype,
    )
}

/// New buffers that lie side by side in one allocation, which is let go of with the last of them. A device's memory is managed by a thread that a
/// decoding step keeps waiting otherwise.
pub(crate) fn allocate_together<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shapes: &[[usize; D]],
    dtype: DType,
) -> Vec<CubeTensor<R>> {
    let bytes = |shape: &[usize; D]| shape.iter().product::<usize>() * dtype.size();
    let descriptor = |shape| {
        let layout = MemoryLayoutStrategy::Contiguous;
        MemoryLayoutDescriptor::new(layout, [bytes(shape)].into(), 1)
    };
    let buffers = like
        .client
        .empty_tensors(shapes.iter().map(descriptor).collect());
    let buffers = buffers.into_iter().zip(shapes).map(|(buffer, shape)| {
        let (client, device) = (like.client.clone(), like.device.clone());
        CubeTensor::new_contiguous(client, device, (*shape).into(), buffer.memory, dtype)
    });
    buffers.collect()
}

/// A new buffer of the shape and type of `like`; its contents are undefined.
pub(crate) fn allocate_like<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    allocate(like, like.shape(), like.dtype())
}

/// The sum of all values of `lanes` neighbouring units, which each of them receives.
#[cube]
pub(crate) fn sum_over_lanes(quad: Quad, #[comptime] lanes: usize) -> f32 {
    let mut sum = (quad[0] + quad[1]) + (quad[2] + quad[3]);
    if comptime!(lanes > 1) {
        sum += plane_shuffle_xor(sum, 1);
    }
    if comptime!(lanes > 2) {
        sum += plane_shuffle_xor(sum, 2);
    }
    sum
}
