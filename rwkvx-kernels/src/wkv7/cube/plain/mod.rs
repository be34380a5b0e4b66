//! In f32 without matrix instructions: for every device and every float type.

mod backward;
mod forward;

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::{Buffers, Gradients, Writes};
use backward::wkv7_backward;
use forward::{ForwardPlan, wkv7_forward};

/// Tokens per chunk of the backward pass, bounded by shared memory: eight tiles of `size * tokens` numbers within 32 KiB.
pub(super) fn chunk_tokens(size: usize) -> usize {
    if size <= 64 { 8 } else { 4 }
}

/// Launches the forward kernel; `to` is output, last state and states. `first` is the span's for [`Writes::ChunkStates`] and else 0.
pub(super) fn forward<R: CubeRuntime>(
    buffers: &Buffers<R>,
    state_before: &CubeTensor<R>,
    to: [&CubeTensor<R>; 3],
    first: usize,
    writes: Writes,
) {
    let [batch, time, heads, size] = buffers.dims;
    let client = &buffers.receptance.client;
    let has_planes = client.properties().features.plane.contains(Plane::Ops);
    let plan = ForwardPlan {
        size,
        rows: 32,
        lanes: if has_planes { 4 } else { 1 },
        tile: if size <= 64 { 16 } else { 8 },
        chunk: chunk_tokens(size),
        writes,
    };
    let [output, state_after, states] = to;
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        wkv7_forward::launch_unchecked::<R>(
            client,
            CubeCount::Static((size / plan.rows) as u32, heads as u32, batch as u32),
            CubeDim::new_1d((plan.rows * plan.lanes) as u32),
            buffers.receptance.clone().into_array_arg(),
            buffers.log_decay.clone().into_array_arg(),
            buffers.key.clone().into_array_arg(),
            buffers.value.clone().into_array_arg(),
            buffers.removal.clone().into_array_arg(),
            buffers.replacement.clone().into_array_arg(),
            state_before.clone().into_array_arg(),
            output.clone().into_array_arg(),
            state_after.clone().into_array_arg(),
            states.clone().into_array_arg(),
            time,
            heads,
            first,
            buffers.span,
            plan,
            buffers.dtype.into(),
        );
    }
}

/// Launches the backward kernel for the span from token `first`.
pub(super) fn backward<R: CubeRuntime>(
    buffers: &Buffers<R>,
    [chunk_states, d_output]: [&CubeTensor<R>; 2],
    [d_state_after, d_state_before]: [&CubeTensor<R>; 2],
    to: &Gradients<R>,
    first: usize,
) {
    let [batch, time, heads, size] = buffers.dims;
    // SAFETY: as in `forward`.
    unsafe {
        wkv7_backward::launch_unchecked::<R>(
            &buffers.receptance.client,
            CubeCount::Static(heads as u32, batch as u32, 1),
            CubeDim::new_1d(2 * size as u32),
            buffers.receptance.clone().into_array_arg(),
            buffers.log_decay.clone().into_array_arg(),
            buffers.key.clone().into_array_arg(),
            buffers.value.clone().into_array_arg(),
            buffers.removal.clone().into_array_arg(),
            buffers.replacement.clone().into_array_arg(),
            chunk_states.clone().into_array_arg(),
            chunk_states.clone().into_array_arg(),
            d_output.clone().into_array_arg(),
            d_state_after.clone().into_array_arg(),
            to.receptance.clone().into_array_arg(),
            to.log_decay.clone().into_array_arg(),
            to.key.clone().into_array_arg(),
            to.value.clone().into_array_arg(),
            to.removal.clone().into_array_arg(),
            to.replacement.clone().into_array_arg(),
            d_state_before.clone().into_array_arg(),
            time,
            heads,
            first,
            buffers.span,
            size,
            chunk_tokens(size),
            unrolled(&buffers.receptance),
            buffers.dtype.into(),
        );
    }
}

/// Whether loops over the head size are written out, which keeps local arrays in registers. Compilers of SPIR-V and WGSL do that by
/// themselves where it pays, and some take minutes over long straight code.
fn unrolled<R: CubeRuntime>(buffer: &CubeTensor<R>) -> bool {
    matches!(R::name(&buffer.client), "cuda" | "hip")
}
