//! The recurrence as CubeCL kernels: CUDA, Vulkan, Metal, WebGPU.
//!
//! There are two kinds: [`tiled`] ones for tensor cores, and [`plain`] ones for everything else. Both save, on the way forward, only the states before every
//! span of tokens; on the way back a span's chunk states are computed again, into a buffer that all spans share.

mod plain;
#[cfg(all(test, feature = "vulkan"))]
mod tests;
mod tiled;

use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::ComputeClient;

use super::{Wkv7Gradient, Wkv7Grads, Wkv7Inputs, Wkv7Output};
use crate::cube::{CubeMemory, allocate, allocate_like, dense, tensor};
use crate::padding::{cut_rows, cut_state, pad_rows, pad_state};
use tiled::Tiles;

/// Bytes that the chunk states of a span may take. A span has at least one chunk.
const CHUNK_STATES_BYTES: usize = 256 << 20;

/// What a forward kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writes {
    /// The output, the last state and the span states.
    Output,
    /// The chunk states of one span.
    ChunkStates,
}

/// The kernels for some inputs.
#[derive(Debug, Clone, Copy)]
enum Kernels {
    Plain,
    Tiled(Tiles),
}

impl Kernels {
    /// The fastest on this device for sequences of `time` tokens of `dtype`.
    fn for_sequences<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType, time: usize) -> Self {
        match Tiles::native(client, dtype) {
            Some(tiles) if time > 1 => Self::Tiled(tiles),
            _ => Self::Plain,
        }
    }

    /// Head sizes are padded to a multiple of this.
    fn size_unit(self) -> usize {
        match self {
            Self::Plain => 32,
            Self::Tiled(_) => 16,
        }
    }

    /// Tokens of a chunk and the type of its state.
    fn chunk(self, size: usize) -> (usize, DType) {
        match self {
            Self::Plain => (plain::chunk_tokens(size), DType::F32),
            Self::Tiled(tiles) => (tiled::TOKENS, tiles.dtype),
        }
    }

    /// How many tokens a span has: as many as [`CHUNK_STATES_BYTES`] allow, in chunks a power of two.
    fn span(self, [batch, time, heads, size]: [usize; 4]) -> usize {
        let (chunk, dtype) = self.chunk(size);
        let state_bytes = batch * heads * size * size * dtype.size();
        let most = (CHUNK_STATES_BYTES / state_bytes).max(1);
        time.div_ceil(chunk)
            .next_power_of_two()
            .min(1 << most.ilog2())
            * chunk
    }
}

/// The body of [`KernelBackend::wkv7`](crate::KernelBackend::wkv7).
pub(crate) fn wkv7<B: CubeMemory>(inputs: Wkv7Inputs<B>) -> Wkv7Output<B> {
    let [.., size] = inputs.receptance.dims();
    let [output, state, _] = Buffers::new(inputs).forward();
    outputs(output, state, size)
}

/// The passes for [`KernelBackend::WKV7_GRADIENT`](crate::KernelBackend::WKV7_GRADIENT).
pub(crate) const fn gradient<B: CubeMemory>() -> Wkv7Gradient<B> {
    Wkv7Gradient {
        forward: |inputs| {
            let [.., size] = inputs.receptance.dims();
            let [output, state, span_states] = Buffers::new(inputs).forward();
            (outputs(output, state, size), tensor(span_states))
        },
        backward,
    }
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

fn backward<B: CubeMemory>(
    inputs: Wkv7Inputs<B>,
    span_states: Tensor<B, 4>,
    d_output: Option<Tensor<B, 4>>,
    d_state: Option<Tensor<B, 4>>,
) -> Wkv7Grads<B> {
    let dims @ [batch, _, heads, size] = inputs.receptance.dims();
    let device = inputs.receptance.device();
    let buffers = Buffers::new(inputs);
    let d_output = d_output.unwrap_or_else(|| Tensor::zeros(dims, (&device, buffers.dtype)));
    let unit = buffers.kernels.size_unit();
    let d_output = sequence_buffer(d_output, buffers.dtype, unit);
    let d_state = state_buffer(d_state, [batch, heads, size, size], &device, unit);
    let (to, d_state) = buffers.backward(dense(span_states), d_output, d_state);
    let row = |gradient| cut_rows(tensor(gradient), size);
    Wkv7Grads {
        receptance: row(to.receptance),
        log_decay: row(to.log_decay),
        key: row(to.key),
        value: row(to.value),
        removal: row(to.removal),
        replacement: row(to.replacement),
        state: cut_state(tensor(d_state), size),
    }
}

/// The inputs as dense buffers of one type, with the head size padded.
struct Buffers<R: CubeRuntime> {
    kernels: Kernels,
    /// Tokens of a span.
    span: usize,
    /// Of the padded sequences: `[batch, time, heads, head_size]`.
    dims: [usize; 4],
    dtype: DType,
    receptance: CubeTensor<R>,
    log_decay: CubeTensor<R>,
    key: CubeTensor<R>,
    value: CubeTensor<R>,
    removal: CubeTensor<R>,
    replacement: CubeTensor<R>,
    /// f32
    state: CubeTensor<R>,
}

/// Buffers for the gradients of the sequences.
struct Gradients<R: CubeRuntime> {
    receptance: CubeTensor<R>,
    log_decay: CubeTensor<R>,
    key: CubeTensor<R>,
    value: CubeTensor<R>,
    removal: CubeTensor<R>,
    replacement: CubeTensor<R>,
}

impl<R: CubeRuntime> Buffers<R> {
    fn new<B: CubeMemory<Runtime = R>>(inputs: Wkv7Inputs<B>) -> Self {
        let [_, time, _, _] = inputs.receptance.dims();
        let client = inputs.receptance.clone().into_primitive().tensor().client;
        let kernels = Kernels::for_sequences(&client, inputs.receptance.dtype(), time);
        Self::with_kernels(inputs, kernels)
    }

    fn with_kernels<B: CubeMemory<Runtime = R>>(inputs: Wkv7Inputs<B>, kernels: Kernels) -> Self {
        let [batch, time, heads, size] = inputs.receptance.dims();
        let unit = kernels.size_unit();
        let dims = [batch, time, heads, size.next_multiple_of(unit)];
        let device = inputs.receptance.device();
        let dtype = inputs.receptance.dtype();
        let row = |sequence| sequence_buffer(sequence, dtype, unit);
        Self {
            kernels,
            span: kernels.span(dims),
            dims,
            dtype,
            receptance: row(inputs.receptance),
            log_decay: row(inputs.log_decay),
            key: row(inputs.key),
            value: row(inputs.value),
            removal: row(inputs.removal),
            replacement: row(inputs.replacement),
            state: state_buffer(inputs.state, [batch, heads, size, size], &device, unit),
        }
    }

    /// Output, last state, and span states `[batch * heads, span, value, key]`.
    fn forward(&self) -> [CubeTensor<R>; 3] {
        let [batch, time, heads, size] = self.dims;
        let spans = [batch * heads, time.div_ceil(self.span), size, size];
        let output = allocate_like(&self.receptance);
        let state = allocate_like(&self.state);
        let span_states = allocate(&state, spans, DType::F32);
        let to = [&output, &state, &span_states];
        self.launch_forward(&self.state, to, 0, Writes::Output);
        [output, state, span_states]
    }

    /// Gradients of the sequences and of the state.
    fn backward(
        &self,
        span_states: CubeTensor<R>,
        d_output: CubeTensor<R>,
        mut d_state: CubeTensor<R>,
    ) -> (Gradients<R>, CubeTensor<R>) {
        let [batch, time, heads, size] = self.dims;
        let gradient = || allocate_like(&self.receptance);
        let to = Gradients {
            receptance: gradient(),
            log_decay: gradient(),
            key: gradient(),
            value: gradient(),
            removal: gradient(),
            replacement: gradient(),
        };
        let (chunk, dtype) = self.kernels.chunk(size);
        let chunks = [batch * heads, self.span / chunk, size, size];
        let chunk_states = allocate(&d_state, chunks, dtype);
        let unused = [(); 2].map(|()| allocate(&d_state, [4], DType::F32));
        for first in (0..time).step_by(self.span).rev() {
            let states_to = [&unused[0], &unused[1], &chunk_states];
            self.launch_forward(&span_states, states_to, first, Writes::ChunkStates);
            let before = allocate_like(&d_state);
            match self.kernels {
                Kernels::Plain => {
                    plain::backward(
                        self,
                        &chunk_states,
                        &d_output,
                        &d_state,
                        &to,
                        &before,
                        first,
                    );
                }
                Kernels::Tiled(tiles) => {
                    tiled::backward(
                        self,
                        tiles,
                        &chunk_states,
                        &d_output,
                        &d_state,
                        &to,
                        &before,
                        first,
                    );
                }
            }
            d_state = before;
        }
        (to, d_state)
    }

    fn launch_forward(
        &self,
        state_before: &CubeTensor<R>,
        to: [&CubeTensor<R>; 3],
        first: usize,
        writes: Writes,
    ) {
        match self.kernels {
            Kernels::Plain => plain::forward(self, state_before, to, first, writes),
            Kernels::Tiled(tiles) => tiled::forward(self, tiles, state_before, to, first, writes),
        }
    }
}

fn sequence_buffer<B: CubeMemory>(
    sequence: Tensor<B, 4>,
    dtype: DType,
    unit: usize,
) -> CubeTensor<B::Runtime> {
    dense(pad_rows(sequence.cast(dtype), unit))
}

/// A state in f32; zeros if there is none.
fn state_buffer<B: CubeMemory>(
    state: Option<Tensor<B, 4>>,
    dims: [usize; 4],
    device: &B::Device,
    unit: usize,
) -> CubeTensor<B::Runtime> {
    let state = match state {
        Some(state) => state.cast(DType::F32),
        None => Tensor::zeros(dims, (device, DType::F32)),
    };
    dense(pad_state(state, unit))
}
