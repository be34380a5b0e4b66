//! The recurrence as CubeCL kernels: CUDA, Vulkan, Metal, WebGPU.

mod backward;
mod forward;

use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::{Wkv7Gradient, Wkv7Grads, Wkv7Inputs, Wkv7Output};
use crate::cube::{CubeMemory, allocate, allocate_like, dense, tensor};
use crate::padding::{cut_rows, cut_state, pad_rows, pad_state};
use forward::ForwardPlan;

/// Head sizes are padded to a multiple of this.
const UNIT: usize = 32;

/// The body of [`KernelBackend::wkv7`](crate::KernelBackend::wkv7).
pub(crate) fn wkv7<B: CubeMemory>(inputs: Wkv7Inputs<B>) -> Wkv7Output<B> {
    let [.., size] = inputs.receptance.dims();
    let [output, state, _] = forward(&Buffers::new(inputs), 0);
    outputs(output, state, size)
}

/// The passes for [`KernelBackend::WKV7_GRADIENT`](crate::KernelBackend::WKV7_GRADIENT).
pub(crate) const fn gradient<B: CubeMemory>() -> Wkv7Gradient<B> {
    Wkv7Gradient {
        forward: forward_saving,
        backward,
    }
}

/// Tokens per chunk of the backward pass, bounded by shared memory: eight tiles of `size * tokens` numbers within 32 KiB.
fn chunk_tokens(size: usize) -> usize {
    if size <= 64 { 8 } else { 4 }
}

/// Whether loops over the head size are written out, which keeps local arrays in registers. Compilers of SPIR-V and WGSL do that by
/// themselves where it pays, and some take minutes over long straight code.
fn unrolled<R: CubeRuntime>(buffer: &CubeTensor<R>) -> bool {
    matches!(R::name(&buffer.client), "cuda" | "hip")
}

/// The inputs as dense buffers of one type, with the head size padded.
struct Buffers<B: CubeMemory> {
    /// Of the padded sequences: `[batch, time, heads, head_size]`.
    dims: [usize; 4],
    dtype: DType,
    receptance: CubeTensor<B::Runtime>,
    log_decay: CubeTensor<B::Runtime>,
    key: CubeTensor<B::Runtime>,
    value: CubeTensor<B::Runtime>,
    removal: CubeTensor<B::Runtime>,
    replacement: CubeTensor<B::Runtime>,
    /// f32
    state: CubeTensor<B::Runtime>,
}

impl<B: CubeMemory> Buffers<B> {
    fn new(inputs: Wkv7Inputs<B>) -> Self {
        let [batch, time, heads, size] = inputs.receptance.dims();
        let device = inputs.receptance.device();
        let dtype = inputs.receptance.dtype();
        let row = |sequence| sequence_buffer(sequence, dtype);
        Self {
            dims: [batch, time, heads, size.next_multiple_of(UNIT)],
            dtype,
            receptance: row(inputs.receptance),
            log_decay: row(inputs.log_decay),
            key: row(inputs.key),
            value: row(inputs.value),
            removal: row(inputs.removal),
            replacement: row(inputs.replacement),
            state: state_buffer(inputs.state, [batch, heads, size, size], &device),
        }
    }
}

fn sequence_buffer<B: CubeMemory>(sequence: Tensor<B, 4>, dtype: DType) -> CubeTensor<B::Runtime> {
    dense(pad_rows(sequence.cast(dtype), UNIT))
}

/// A state in f32; zeros if there is none.
fn state_buffer<B: CubeMemory>(
    state: Option<Tensor<B, 4>>,
    dims: [usize; 4],
    device: &B::Device,
) -> CubeTensor<B::Runtime> {
    let state = match state {
        Some(state) => state.cast(DType::F32),
        None => Tensor::zeros(dims, (device, DType::F32)),
    };
    dense(pad_state(state, UNIT))
}

fn outputs<B: CubeMemory>(
    output: CubeTensor<B::Runtime>,
    state: CubeTensor<B::Runtime>,
    size: usize,
) -> Wkv7Output<B> {
    Wkv7Output {
        output: cut_rows(tensor(output), size),
        state: cut_state(tensor(state), size),
    }
}

fn forward_saving<B: CubeMemory>(inputs: Wkv7Inputs<B>) -> (Wkv7Output<B>, Tensor<B, 4>) {
    let [.., size] = inputs.receptance.dims();
    let buffers = Buffers::new(inputs);
    let [output, state, saved] = forward(&buffers, chunk_tokens(buffers.dims[3]));
    (outputs(output, state, size), tensor(saved))
}

/// Output, last state, and the states before every `spacing`-th token, `[batch * heads, chunk, key/4, value * 4]`; none with a
/// spacing of 0.
fn forward<B: CubeMemory>(buffers: &Buffers<B>, spacing: usize) -> [CubeTensor<B::Runtime>; 3] {
    let [batch, time, heads, size] = buffers.dims;
    let client = &buffers.receptance.client;
    let output = allocate_like(&buffers.receptance);
    let state = allocate_like(&buffers.state);
    let saved = match spacing {
        0 => allocate(&state, [1, 1, 1, 4], DType::F32), // bound, not written
        _ => {
            let chunks = time.div_ceil(spacing);
            allocate(&state, [batch * heads, chunks, size / 4, size * 4], DType::F32)
        }
    };
    let has_planes = client.properties().features.plane.contains(Plane::Ops);
    let plan = ForwardPlan {
        size,
        rows: 32,
        lanes: if has_planes { 4 } else { 1 },
        tile: if size <= 64 { 16 } else { 8 },
        spacing,
    };
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        forward::wkv7_forward::launch_unchecked::<B::Runtime>(
            client,
            CubeCount::Static((size / plan.rows) as u32, heads as u32, batch as u32),
            CubeDim::new_1d((plan.rows * plan.lanes) as u32),
            buffers.receptance.clone().into_array_arg(),
            buffers.log_decay.clone().into_array_arg(),
            buffers.key.clone().into_array_arg(),
            buffers.value.clone().into_array_arg(),
            buffers.removal.clone().into_array_arg(),
            buffers.replacement.clone().into_array_arg(),
            buffers.state.clone().into_array_arg(),
            output.clone().into_array_arg(),
            state.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            time,
            heads,
            plan,
            buffers.dtype.into(),
        );
    }
    [output, state, saved]
}

fn backward<B: CubeMemory>(
    inputs: Wkv7Inputs<B>,
    saved: Tensor<B, 4>,
    d_output: Option<Tensor<B, 4>>,
    d_state: Option<Tensor<B, 4>>,
) -> Wkv7Grads<B> {
    let dims @ [batch, _, heads, cut] = inputs.receptance.dims();
    let device = inputs.receptance.device();
    let buffers = Buffers::new(inputs);
    let [_, time, _, size] = buffers.dims;
    let dtype = buffers.dtype;
    let d_output = d_output.unwrap_or_else(|| Tensor::zeros(dims, (&device, dtype)));
    let d_output = sequence_buffer(d_output, dtype);
    let d_state_after = state_buffer(d_state, [batch, heads, cut, cut], &device);
    let saved = dense(saved);
    let gradient = || allocate_like(&buffers.receptance);
    let [receptance, log_decay, key, value, removal, replacement] = std::array::from_fn(|_| gradient());
    let state = allocate_like(&d_state_after);
    // SAFETY: as in `forward`.
    unsafe {
        backward::wkv7_backward::launch_unchecked::<B::Runtime>(
            &buffers.receptance.client,
            CubeCount::Static(heads as u32, batch as u32, 1),
            CubeDim::new_1d(2 * size as u32),
            buffers.receptance.clone().into_array_arg(),
            buffers.log_decay.clone().into_array_arg(),
            buffers.key.clone().into_array_arg(),
            buffers.value.clone().into_array_arg(),
            buffers.removal.clone().into_array_arg(),
            buffers.replacement.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            saved.into_array_arg(),
            d_output.into_array_arg(),
            d_state_after.into_array_arg(),
            receptance.clone().into_array_arg(),
            log_decay.clone().into_array_arg(),
            key.clone().into_array_arg(),
            value.clone().into_array_arg(),
            removal.clone().into_array_arg(),
            replacement.clone().into_array_arg(),
            state.clone().into_array_arg(),
            time,
            heads,
            size,
            chunk_tokens(size),
            unrolled::<B::Runtime>(&buffers.receptance),
            dtype.into(),
        );
    }
    let row = |gradient| cut_rows(tensor(gradient), cut);
    Wkv7Grads {
        receptance: row(receptance),
        log_decay: row(log_decay),
        key: row(key),
        value: row(value),
        removal: row(removal),
        replacement: row(replacement),
        state: cut_state(tensor(state), cut),
    }
}
