//! Chunks of 16 tokens as matrix products on tensor cores.
//!
//! The algebra is that of [`reference`](crate::wkv7::reference); `docs/kernels.md` walks through it. One cube works on a head, a warp per 16 rows of the
//! state. What crosses chunks, the state or its gradient, stays in the registers of the warp that owns its rows, as the sums of the products that
//! make it.

mod backward;
mod chunk;
mod forward;
mod spans;

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{Buffers, Gradients, Writes};
use crate::cube::warp::has_products;
use backward::wkv7_backward_tiled;
pub(super) use chunk::TOKENS;
use forward::wkv7_forward_tiled;
use spans::{JOINED_ROWS, wkv7_join_spans, wkv7_span_gradient_tiled};

/// How a kernel is cut; part of its identity, so that each combination is compiled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Head size, a multiple of 16.
    size: usize,
    /// Whether the tensor cores are emulated, for tests, with a size of 16 or 32.
    emulated: bool,
}

/// What the tiles are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Of the operands of the products.
    pub(super) dtype: DType,
    /// Whether the products are emulated.
    pub(super) emulated: bool,
}

impl Tiles {
    /// Tiles on tensor cores for sequences of `dtype`, if `client` has such.
    ///
    /// bf16 only: scaled rows reach 1.7e4 times the key, beyond f16, and f32 would be rounded to TF32.
    pub(super) fn native<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> Option<Self> {
        (dtype == DType::BF16 && has_products(client, dtype)).then_some(Self {
            dtype,
            emulated: false,
        })
    }
}

/// Launches the forward kernel with `parts` cubes per head; `to` is output, last state and states. `first` is that of the first span for
/// [`Writes::ChunkStates`] and else 0.
pub(super) fn forward<R: CubeRuntime>(
    buffers: &Buffers<R>,
    tiles: Tiles,
    state_before: &CubeTensor<R>,
    to: [&CubeTensor<R>; 3],
    first: usize,
    parts: usize,
    writes: Writes,
) {
    let [batch, time, heads, size] = buffers.dims;
    let [output, state_after, states] = to;
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        wkv7_forward_tiled::launch_unchecked::<R>(
            &buffers.receptance.client,
            CubeCount::Static(heads as u32, batch as u32, parts as u32),
            CubeDim::new_1d(2 * size as u32),
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
            tiles.plan(size),
            writes,
            [
                buffers.dtype.into(),
                tiles.dtype.into(),
                states.dtype.into(),
            ],
        );
    }
}

/// Launches the backward kernel for `parts` spans from token `first` on. If spans run in parallel, `d_state_after` has one per span.
pub(super) fn backward<R: CubeRuntime>(
    buffers: &Buffers<R>,
    tiles: Tiles,
    [chunk_states, d_output]: [&CubeTensor<R>; 2],
    [d_state_after, d_state_before]: [&CubeTensor<R>; 2],
    to: &Gradients<R>,
    first: usize,
    parts: usize,
) {
    let [batch, time, heads, size] = buffers.dims;
    // SAFETY: as in `forward`.
    unsafe {
        wkv7_backward_tiled::launch_unchecked::<R>(
            &buffers.receptance.client,
            CubeCount::Static(heads as u32, batch as u32, parts as u32),
            CubeDim::new_1d(2 * size as u32),
            buffers.receptance.clone().into_array_arg(),
            buffers.log_decay.clone().into_array_arg(),
            buffers.key.clone().into_array_arg(),
            buffers.value.clone().into_array_arg(),
            buffers.removal.clone().into_array_arg(),
            buffers.replacement.clone().into_array_arg(),
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
            tiles.plan(size),
            buffers.parts > 1,
            [buffers.dtype.into(), tiles.dtype.into()],
        );
    }
}

/// Launches the gradients of the spans' first states, if those of their last are zero.
pub(super) fn span_gradients<R: CubeRuntime>(
    buffers: &Buffers<R>,
    tiles: Tiles,
    d_output: &CubeTensor<R>,
    to: &CubeTensor<R>,
) {
    let [batch, time, heads, size] = buffers.dims;
    let spans = time.div_ceil(buffers.span);
    // SAFETY: as in `forward`.
    unsafe {
        wkv7_span_gradient_tiled::launch_unchecked::<R>(
            &buffers.receptance.client,
            CubeCount::Static(heads as u32, batch as u32, spans as u32),
            CubeDim::new_1d(2 * size as u32),
            buffers.receptance.clone().into_array_arg(),
            buffers.log_decay.clone().into_array_arg(),
            buffers.key.clone().into_array_arg(),
            buffers.value.clone().into_array_arg(),
            buffers.removal.clone().into_array_arg(),
            buffers.replacement.clone().into_array_arg(),
            d_output.clone().into_array_arg(),
            to.clone().into_array_arg(),
            time,
            heads,
            buffers.span,
            tiles.plan(size),
            [buffers.dtype.into(), tiles.dtype.into()],
        );
    }
}

/// Launches the recurrence over spans, on gradients of states `backwards`.
pub(super) fn join_spans<R: CubeRuntime>(
    buffers: &Buffers<R>,
    from: &CubeTensor<R>,
    maps: &CubeTensor<R>,
    added: &CubeTensor<R>,
    to: &CubeTensor<R>,
    backwards: bool,
) {
    let [batch, time, heads, size] = buffers.dims;
    let cubes = CubeCount::Static((size / JOINED_ROWS) as u32, (batch * heads) as u32, 1);
    // SAFETY: as in `forward`.
    unsafe {
        wkv7_join_spans::launch_unchecked::<R>(
            &from.client,
            cubes,
            CubeDim::new_1d(size as u32),
            from.clone().into_array_arg(),
            maps.clone().into_array_arg(),
            added.clone().into_array_arg(),
            to.clone().into_array_arg(),
            time.div_ceil(buffers.span),
            size,
            backwards,
        );
    }
}

impl Tiles {
    fn plan(self, size: usize) -> Plan {
        Plan {
            size,
            emulated: self.emulated,
        }
    }
}
