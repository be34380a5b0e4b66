//! The attention as CubeCL kernels: CUDA, Vulkan, Metal, WebGPU.
//!
//! Every query is attended for once per chunk that it sees. Mean keys are scored and each query's chunks chosen ([`choose`]); for each chunk the
//! queries that chose it are listed ([`lists`]); tiles of a list meet the keys of their chunk, and each leaves an output of that chunk alone in a place
//! of its own, its slot; at last each query meets its own chunk, where the slots are merged. Gradients of queries go the same way,
//! those of keys walk the list of their chunk. Nothing is summed in an order that depends on the run.

mod choose;
mod lists;
mod means;
mod plain;
mod problem;
#[cfg(all(test, feature = "vulkan"))]
mod tests;
mod tiled;

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::CubeCount;

use super::{AttentionGradient, AttentionGrads, AttentionInputs, CachedRows, ChunkTopK};
use crate::cube::{CubeMemory, allocate, allocate_like, dense, tensor};
use crate::padding::{cut_rows, pad_rows};
use lists::Lists;
use problem::Problem;
use tiled::Tiles;

/// Head sizes are padded to a multiple of this.
const SIZE_UNIT: usize = 16;

/// Bytes that the slots of the sequences of one launch may take; there is room for one sequence at least. Elsewhere than on CUDA buffers may be limited
/// to 128 MiB.
const SLOT_BYTES: usize = 128 << 20;

/// The score of what is not seen: less than any other, so that its weight is 0. The infinite cannot be written in CUDA's C++.
const NO_SCORE: f32 = f32::MIN;

/// Up to as many queries are attended for one by one.
const FEW: usize = 8;

/// Queries, keys and values as dense buffers of one type, with the head size padded.
struct Inputs<R: CubeRuntime> {
    kernels: Kernels,
    /// `[batch, time, heads, head_size]`
    query: CubeTensor<R>,
    key: CubeTensor<R>,
    value: CubeTensor<R>,
    /// `[sequence, chunk, head_size]`, f32, of all chunks that can be chosen and maybe more; `None` if nobody has them yet.
    means: Option<CubeTensor<R>>,
    problem: Problem,
    /// `batch * heads`
    sequences: usize,
}

/// Outputs of each slot's query over its chunk alone.
struct Partials<R: CubeRuntime> {
    /// `[sequence, slot, head_size]`
    rows: CubeTensor<R>,
    /// Logarithm of the sum of weights, `[sequence, slot]`.
    lse: CubeTensor<R>,
}

/// The kernels for some inputs.
#[derive(Debug, Clone, Copy)]
enum Kernels {
    Plain,
    Tiled(Tiles),
}

impl Kernels {
    /// The fastest for such rows on their device.
    fn of<R: CubeRuntime>(rows: &CubeTensor<R>) -> Self {
        let size = rows.meta.shape()[3];
        Tiles::native(&rows.client, rows.dtype, size).map_or(Self::Plain, Self::Tiled)
    }
}

/// Some sequences that are worked on together.
struct Launch<'a, R: CubeRuntime> {
    inputs: &'a Inputs<R>,
    /// With the first of the sequences.
    problem: Problem,
    sequences: usize,
    lists: Lists<R>,
}

impl<R: CubeRuntime> Launch<'_, R> {
    /// A cube per tile and sequence.
    fn cubes(&self, tiles: usize) -> CubeCount {
        CubeCount::Static(tiles as u32, self.sequences as u32, 1)
    }
}

/// What the backward pass knows of the forward pass and its gradient.
struct Outputs<R: CubeRuntime> {
    /// `[sequence, query, 1 + slots]`: log-sum-exp, then the chosen chunks.
    saved: CubeTensor<R>,
    /// `[batch, time, heads, head_size]`
    d_output: CubeTensor<R>,
    /// `output . d_output`, `[sequence, query]`.
    deltas: CubeTensor<R>,
}

/// Gradients of keys and values.
struct Gradients<R: CubeRuntime> {
    key: CubeTensor<R>,
    value: CubeTensor<R>,
}

impl<R: CubeRuntime> Inputs<R> {
    /// Of a whole sequence.
    fn sequence<B: CubeMemory<Runtime = R>>(inputs: &AttentionInputs<B>) -> Self {
        let [batch, time, heads, size] = inputs.query.dims();
        let dtype = inputs.query.dtype();
        let row = |tensor: &Tensor<B, 4>| dense(pad_rows(tensor.clone().cast(dtype), SIZE_UNIT));
        let query = row(&inputs.query);
        Self {
            kernels: Kernels::of(&query),
            query,
            key: row(&inputs.key),
            value: row(&inputs.value),
            means: None,
            problem: Problem {
                first: 0,
                heads,
                queries: time,
                start: 0,
                chunk_size: inputs.shape.chunk_size,
                slots: 0,
                scale: (size as f32).powf(-0.5),
                key_batch: time * heads,
                key_head: 1,
                key_time: heads,
            }
            .with_top_k(inputs.shape.top_k),
            sequences: batch * heads,
        }
    }

    /// Queries from time `start` on, and rows of a cache.
    fn cached<B: CubeMemory<Runtime = R>>(
        query: Tensor<B, 4>,
        start: usize,
        rows: &CachedRows<B>,
        shape: ChunkTopK,
    ) -> Self {
        let [batch, time, heads, size] = query.dims();
        let [.., capacity, _] = rows.keys.dims();
        // Unusual head sizes are padded at each call, the whole cache with them.
        let row = |tensor: &Tensor<B, 4>| pad_rows(tensor.clone(), SIZE_UNIT);
        let query = dense(row(&query.cast(rows.keys.dtype())));
        let means = rows.means.as_ref().map(|means| {
            let means = row(means);
            let [.., room, padded] = means.dims();
            dense(means.reshape([batch * heads, room, padded]))
        });
        Self {
            kernels: Kernels::of(&query),
            query,
            key: dense(row(&rows.keys)),
            value: dense(row(&rows.values)),
            means,
            problem: Problem {
                first: 0,
                heads,
                queries: time,
                start,
                chunk_size: shape.chunk_size,
                slots: 0,
                scale: (size as f32).powf(-0.5),
                key_batch: heads * capacity,
                key_head: capacity,
                key_time: 1,
            }
            .with_top_k(shape.top_k),
            sequences: batch * heads,
        }
    }

    /// Padded head size.
    fn size(&self) -> usize {
        self.query.meta.shape()[3]
    }

    /// Groups of sequences, and the lists of their choices in `saved`.
    fn launches(&self, saved: &CubeTensor<R>) -> impl Iterator<Item = Launch<'_, R>> {
        let slots_bytes =
            self.problem.queries * self.problem.slots * self.size() * self.query.dtype.size();
        let most = (SLOT_BYTES / slots_bytes.max(1)).clamp(1, self.sequences);
        let tile = match self.kernels {
            Kernels::Plain => plain::TILE,
            Kernels::Tiled(tiles) => tiles.queries(self.size()),
        };
        (0..self.sequences).step_by(most).map(move |first| {
            let problem = Problem {
                first,
                ..self.problem
            };
            let sequences = most.min(self.sequences - first);
            Launch {
                inputs: self,
                problem,
                sequences,
                lists: Lists::new(saved, problem, sequences, tile),
            }
        })
    }

    /// Room for a row per slot.
    fn slot_rows(&self, sequences: usize) -> CubeTensor<R> {
        let slots = (self.problem.queries * self.problem.slots).max(1);
        let rows = [sequences, slots, self.size()];
        allocate(&self.query, rows, self.query.dtype)
    }

    /// The output alone.
    fn output(&self) -> CubeTensor<R> {
        if self.problem.queries > FEW {
            let [output, _] = self.forward();
            return output;
        }
        let output = allocate_like(&self.query);
        plain::step(self, &output, &self.choices());
        output
    }

    /// The choices of each query, `[sequence, query, 1 + slots]`, with room for one number before them.
    fn choices(&self) -> CubeTensor<R> {
        let row = [self.sequences, self.problem.queries, 1 + self.problem.slots];
        let choices = allocate(&self.query, row, DType::F32);
        if self.problem.slots > 0 {
            let means = self.means.clone().unwrap_or_else(|| self.mean_keys());
            match self.kernels {
                Kernels::Tiled(tiles) if tiled::can_choose(self.problem.queries) => {
                    tiled::choose(self, tiles, &means, &choices);
                }
                _ => choose::launch(&self.query, &means, &choices, self.problem),
            }
        }
        choices
    }

    /// The means of all chunks that can be chosen.
    fn mean_keys(&self) -> CubeTensor<R> {
        let shape = [self.sequences, self.problem.last_chunk(), self.size()];
        let means = allocate(&self.key, shape, DType::F32);
        means::launch(&self.key, &means, 0, self.problem);
        means
    }

    /// The output, and what the backward pass needs, `[sequence, query, 1 + slots]`.
    fn forward(&self) -> [CubeTensor<R>; 2] {
        let output = allocate_like(&self.query);
        let saved = self.choices();
        for launch in self.launches(&saved) {
            let rows = self.slot_rows(launch.sequences);
            let lse = [launch.sequences, rows.meta.shape()[1]];
            let partials = Partials {
                lse: allocate(&rows, lse, DType::F32),
                rows,
            };
            match self.kernels {
                Kernels::Plain => plain::forward(&launch, &partials, &output, &saved),
                Kernels::Tiled(tiles) => {
                    tiled::forward(&launch, tiles, &partials, &output, &saved);
                }
            }
        }
        [output, saved]
    }

    /// Gradients of query, key and value.
    fn backward(
        &self,
        output: CubeTensor<R>,
        saved: CubeTensor<R>,
        d_output: CubeTensor<R>,
    ) -> [CubeTensor<R>; 3] {
        let deltas = plain::deltas(self, self.problem, &output, &d_output);
        let outputs = Outputs {
            saved,
            d_output,
            deltas,
        };
        let d_query = allocate_like(&self.query);
        let to = Gradients {
            key: allocate_like(&self.query),
            value: allocate_like(&self.query),
        };
        for launch in self.launches(&outputs.saved) {
            let partial = self.slot_rows(launch.sequences);
            match self.kernels {
                Kernels::Plain => {
                    plain::d_queries(&launch, &outputs, &partial, &d_query);
                    plain::d_keys(&launch, &outputs, &to);
                }
                Kernels::Tiled(tiles) => {
                    tiled::d_queries(&launch, tiles, &outputs, &partial, &d_query);
                    tiled::d_keys(&launch, tiles, &outputs, &to);
                }
            }
        }
        [d_query, to.key, to.value]
    }
}

/// The body of [`KernelBackend::sparse_attention`](crate::KernelBackend::sparse_attention).
pub(crate) fn sparse_attention<B: CubeMemory>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    let [.., size] = query.dims();
    let inputs = AttentionInputs {
        query,
        key,
        value,
        shape,
    };
    cut_rows(tensor(Inputs::sequence(&inputs).output()), size)
}

/// The passes for [`KernelBackend::ATTENTION_GRADIENT`](crate::KernelBackend::ATTENTION_GRADIENT).
pub(crate) const fn gradient<B: CubeMemory>() -> AttentionGradient<B> {
    AttentionGradient { forward, backward }
}

fn forward<B: CubeMemory>(inputs: &AttentionInputs<B>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [batch, time, heads, size] = inputs.query.dims();
    let all = Inputs::sequence(inputs);
    let [output, saved] = all.forward();
    let saved = tensor::<B, 3>(saved).reshape([batch, heads, time, 1 + all.problem.slots]);
    (cut_rows(tensor(output), size), saved)
}

fn backward<B: CubeMemory>(
    inputs: &AttentionInputs<B>,
    output: Tensor<B, 4>,
    saved: Tensor<B, 4>,
    d_output: Tensor<B, 4>,
) -> AttentionGrads<B> {
    let [batch, heads, time, row] = saved.dims();
    let [.., size] = inputs.query.dims();
    let dtype = inputs.query.dtype();
    let all = Inputs::sequence(inputs);
    let saved = dense(saved.reshape([batch * heads, time, row]));
    let [output, d_output] =
        [output, d_output].map(|tensor| dense(pad_rows(tensor.cast(dtype), SIZE_UNIT)));
    let gradients = all.backward(output, saved, d_output);
    let [query, key, value] = gradients.map(|gradient| cut_rows(tensor(gradient), size));
    AttentionGrads { query, key, value }
}

/// The body of [`KernelBackend::mean_rows`](crate::KernelBackend::mean_rows).
pub(crate) fn mean_rows<B: CubeMemory>(
    buffer: &Tensor<B, 4>,
    chunks: Range<usize>,
    chunk_size: usize,
) -> Tensor<B, 4> {
    let [batch, heads, capacity, size] = buffer.dims();
    let keys = dense(pad_rows(buffer.clone(), 4));
    let padded = keys.meta.shape()[3];
    let means = allocate(&keys, [batch * heads, chunks.len(), padded], DType::F32);
    let problem = Problem {
        first: 0,
        heads,
        queries: 0,
        start: 0,
        chunk_size,
        slots: 0,
        scale: 1.0,
        key_batch: heads * capacity,
        key_head: capacity,
        key_time: 1,
    };
    means::launch(&keys, &means, chunks.start, problem);
    let means = tensor::<B, 3>(means).reshape([batch, heads, chunks.len(), padded]);
    cut_rows(means, size)
}

/// The body of [`KernelBackend::attend_cached`](crate::KernelBackend::attend_cached).
pub(crate) fn attend_cached<B: CubeMemory>(
    query: Tensor<B, 4>,
    start: usize,
    rows: &CachedRows<B>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    let [.., size] = query.dims();
    let dtype = query.dtype();
    let output = Inputs::cached(query, start, rows, shape).output();
    cut_rows(tensor::<B, 4>(output).cast(dtype), size)
}
