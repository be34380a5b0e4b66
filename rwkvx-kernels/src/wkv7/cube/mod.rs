//! The recurrence as CubeCL kernels: CUDA, Vulkan, Metal, WebGPU.
//!
//! There are two kinds: [`tiled`] ones for tensor cores, and [`plain`] ones for everything else. Both save, on the way forward, only the states before every
//! span of tokens; on the way back a span's chunk states are computed again, into a buffer that all spans share.
//!
//! If there are too few heads to fill the device, the tiled kernels work on spans in parallel: first they find what each span does to any state, which
//! is an affine map, then the states between spans follow by a short recurrence, then every span is run from its state. The gradient
//! goes the same way.

mod plain;
#[cfg(all(test, feature = "vulkan"))]
mod tests;
mod tiled;

use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::ComputeClient;

use super::{Wkv7Gradient, Wkv7Grads, Wkv7Inputs, Wkv7Output};
use crate::cube::{CubeMemory, allocate, allocate_like, dense, multiprocessors, tensor};
use crate::padding::{cut_rows, cut_state, pad_rows, pad_state};
use tiled::Tiles;

/// What a forward kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writes {
    /// The output, the last state and the span states.
    Output,
    /// The chunk states of some spans, from the span states.
    ChunkStates,
    /// What each span does to a state. Tiled kernels only.
    SpanMaps,
    /// The output and the last state, from the span states. Tiled kernels only.
    SpanOutputs,
}

/// Chunks of a span that is worth a place of its own beside others: about what finding its map costs.
const MIN_PARALLEL_CHUNKS: usize = 16;

/// How sequences are cut into spans.
#[derive(Debug, Clone, Copy)]
struct Spans {
    /// Tokens of every span but the last, which may have less; a whole number of chunks.
    tokens: usize,
    /// How many spans run at a time; with one, one after another.
    parts: usize,
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

    /// Bytes that chunk states may take at a time; there is room for one span at least. Elsewhere than on CUDA buffers may be limited to 128 MiB.
    fn chunk_states_bytes(self) -> usize {
        match self {
            Self::Plain => 128 << 20,
            Self::Tiled(_) => 1 << 30,
        }
    }

    /// How to cut sequences into spans on a device of `processors` multiprocessors.
    fn spans(self, [batch, time, heads, size]: [usize; 4], processors: usize) -> Spans {
        let (chunk, dtype) = self.chunk(size);
        let sequences = batch * heads;
        let chunks = time.div_ceil(chunk);
        // Chunks that there is room for at a time.
        let room = (self.chunk_states_bytes() / (sequences * size * size * dtype.size())).max(1);
        if matches!(self, Self::Tiled(_)) && 2 * sequences <= processors {
            let wanted = (2 * processors).div_ceil(sequences);
            let of_span = chunks.div_ceil(wanted).max(MIN_PARALLEL_CHUNKS);
            let parts = (room / of_span).min(chunks.div_ceil(of_span));
            if parts > 1 {
                let tokens = of_span * chunk;
                return Spans { tokens, parts };
            }
        }
        let of_span = chunks.next_power_of_two().min(1 << room.ilog2());
        Spans {
            tokens: of_span * chunk,
            parts: 1,
        }
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
    /// How many spans run at a time.
    parts: usize,
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
        let receptance = row(inputs.receptance);
        let spans = kernels.spans(dims, multiprocessors::<B>(&device));
        Self {
            kernels,
            span: spans.tokens,
            parts: spans.parts,
            dims,
            dtype,
            receptance,
            log_decay: row(inputs.log_decay),
            key: row(inputs.key),
            value: row(inputs.value),
            removal: row(inputs.removal),
            replacement: row(inputs.replacement),
            state: state_buffer(inputs.state, [batch, heads, size, size], &device, unit),
        }
    }

    /// Output, last state, and what the backward pass needs: the states before spans `[batch * heads, span, value, key]`, or if spans run in
    /// parallel their maps `[batch * heads, 2 span, value, key]`.
    fn forward(&self) -> [CubeTensor<R>; 3] {
        let output = allocate_like(&self.receptance);
        let state = allocate_like(&self.state);
        let saved = match self.kernels {
            Kernels::Plain => {
                let span_states = self.states(self.spans(), DType::F32);
                let to = [&output, &state, &span_states];
                plain::forward(self, &self.state, to, 0, Writes::Output);
                span_states
            }
            Kernels::Tiled(tiles) if self.parts == 1 => {
                let span_states = self.states(self.spans(), DType::F32);
                let to = [&output, &state, &span_states];
                tiled::forward(self, tiles, &self.state, to, 0, 1, Writes::Output);
                span_states
            }
            Kernels::Tiled(tiles) => {
                let unused = self.unused();
                let maps = self.states(2 * self.spans(), DType::F32);
                let to = [&unused[0], &unused[1], &maps];
                let both = 2 * self.spans();
                tiled::forward(self, tiles, &self.state, to, 0, both, Writes::SpanMaps);
                let span_states = self.join(&self.state, &maps, &maps, false);
                let to = [&output, &state, &unused[0]];
                let spans = self.spans();
                tiled::forward(self, tiles, &span_states, to, 0, spans, Writes::SpanOutputs);
                maps
            }
        };
        [output, state, saved]
    }

    /// Gradients of the sequences and of the state, from what [`forward`](Self::forward) saved.
    fn backward(
        &self,
        saved: CubeTensor<R>,
        d_output: CubeTensor<R>,
        mut d_state: CubeTensor<R>,
    ) -> (Gradients<R>, CubeTensor<R>) {
        let [.., size] = self.dims;
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
        let chunk_states = self.states(self.parts * self.span / chunk, dtype);
        let unused = self.unused();
        let states_to = [&unused[0], &unused[1], &chunk_states];
        let writes = Writes::ChunkStates;
        let from = [&chunk_states, &d_output];
        match self.kernels {
            Kernels::Plain => {
                for first in (0..self.spans()).rev().map(|span| span * self.span) {
                    plain::forward(self, &saved, states_to, first, writes);
                    let before = allocate_like(&d_state);
                    plain::backward(self, from, [&d_state, &before], &to, first);
                    d_state = before;
                }
            }
            Kernels::Tiled(tiles) if self.parts == 1 => {
                for first in (0..self.spans()).rev().map(|span| span * self.span) {
                    tiled::forward(self, tiles, &saved, states_to, first, 1, writes);
                    let before = allocate_like(&d_state);
                    let d_states = [&d_state, &before];
                    tiled::backward(self, tiles, from, d_states, &to, first, 1);
                    d_state = before;
                }
            }
            Kernels::Tiled(tiles) => {
                let span_states = self.join(&self.state, &saved, &saved, false);
                let added = self.states(self.spans(), DType::F32);
                tiled::span_gradients(self, tiles, &d_output, &added);
                let d_span_states = self.join(&d_state, &saved, &added, true);
                let before = allocate_like(&d_state);
                for span in (0..self.spans()).step_by(self.parts) {
                    let (first, parts) = (span * self.span, self.parts.min(self.spans() - span));
                    tiled::forward(self, tiles, &span_states, states_to, first, parts, writes);
                    let d_states = [&d_span_states, &before];
                    tiled::backward(self, tiles, from, d_states, &to, first, parts);
                }
                d_state = before;
            }
        }
        (to, d_state)
    }

    fn spans(&self) -> usize {
        self.dims[1].div_ceil(self.span)
    }

    /// Room for `count` states per head.
    fn states(&self, count: usize, dtype: DType) -> CubeTensor<R> {
        let [batch, _, heads, size] = self.dims;
        allocate(&self.state, [batch * heads, count, size, size], dtype)
    }

    /// What is bound in the place of buffers that a launch does not write; no two may be the same.
    fn unused(&self) -> [CubeTensor<R>; 2] {
        [(); 2].map(|()| allocate(&self.state, [4], DType::F32))
    }

    /// The states between spans; see [`tiled::join_spans`].
    fn join(
        &self,
        from: &CubeTensor<R>,
        maps: &CubeTensor<R>,
        added: &CubeTensor<R>,
        backwards: bool,
    ) -> CubeTensor<R> {
        let states = self.states(self.spans(), DType::F32);
        tiled::join_spans(self, from, maps, added, &states, backwards);
        states
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
