//! The attention by hand for CPUs, in f32.
//!
//! Queries are the lanes: a tile is as many queries as two vectors hold, transposed, and the keys and values of a chunk are
//! broadcast to it, so nothing else is transposed and softmax statistics are plain vectors. First each tile of neighbours attends to
//! its own chunk and chooses its others; then, chunk by chunk, the queries of a block that chose the chunk are gathered into tiles
//! and attend to it with online softmax. A tile with fewer than [`FEW`] queries goes query by query instead. All orders are
//! fixed, so results are the same on any number of threads of one instruction set, forward at least; and a query's choice does not
//! depend on how the sequence was cut into pieces.

mod backward;
mod choices;
mod choose;
mod few;
mod forward;
mod tile;

use burn::tensor::{DType, Tensor};
use std::ops::Range;

use super::{AttentionGradient, AttentionGrads, AttentionInputs, CachedRows, ChunkTopK};
use crate::cpu::{Disjoint, HostMemory, for_each};
use crate::padding::{cut_rows, pad_rows};
use crate::sparse_attention::reference;

/// Head sizes are padded to a multiple of this, two vectors of the widest instruction set.
const UNIT: usize = 32;

/// Keys that go through a tile's softmax together: their scores fill 4 KiB with 8-lane vectors.
const KEYS: usize = 64;

/// Tiles with fewer queries than this waste so many lanes that single queries are faster.
const FEW: usize = 4;

/// Rows of tensors `[batch, time, heads, head_size]` or `[batch, heads, time, head_size]`.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    batch_stride: usize,
    head_stride: usize,
    time_stride: usize,
    size: usize,
}

impl<'a> Rows<'a> {
    /// Of `[batch, time, heads, head_size]`.
    fn sequence(values: &'a [f32], time: usize, heads: usize, size: usize) -> Self {
        Self {
            values,
            batch_stride: time * heads * size,
            head_stride: size,
            time_stride: heads * size,
            size,
        }
    }

    /// Of `[batch, heads, time, head_size]`.
    fn buffer(values: &'a [f32], heads: usize, time: usize, size: usize) -> Self {
        Self {
            values,
            batch_stride: heads * time * size,
            head_stride: time * size,
            time_stride: size,
            size,
        }
    }

    #[inline(always)]
    fn start(&self, (batch, head): (usize, usize), time: usize) -> usize {
        batch * self.batch_stride + head * self.head_stride + time * self.time_stride
    }

    /// The row of one time.
    #[inline(always)]
    fn row(&self, head: (usize, usize), time: usize) -> &'a [f32] {
        &self.values[self.start(head, time)..][..self.size]
    }

    /// Everything from the row of one time on.
    #[inline(always)]
    fn from(&self, head: (usize, usize), time: usize) -> &'a [f32] {
        &self.values[self.start(head, time)..]
    }
}

/// One call: sizes and the tensors every pass reads.
#[derive(Clone, Copy)]
struct Problem<'a> {
    batch: usize,
    heads: usize,
    /// Padded head size.
    size: usize,
    /// Queries are those of times `start..end`; keys and values those of `0..end`.
    start: usize,
    end: usize,
    shape: ChunkTopK,
    /// Of the scores: true head size^-1/2.
    scale: f32,
    query: Rows<'a>,
    key: Rows<'a>,
    value: Rows<'a>,
    /// Mean keys of all complete chunks as rows of "time" chunk.
    means: Rows<'a>,
}

impl<'a> Problem<'a> {
    /// The row of the query of an absolute time.
    #[inline(always)]
    fn query(&self, head: (usize, usize), time: usize) -> &'a [f32] {
        self.query.row(head, time - self.start)
    }

    /// Elements of one row of what the forward pass saves per query: log-sum-exp, then the chosen chunks.
    fn saved_row(&self) -> usize {
        self.shape.top_k
    }

    /// Multiply-adds of two products of the queries with what they see.
    fn work(&self) -> usize {
        let seen = self.end.min(self.shape.top_k * self.shape.chunk_size);
        2 * self.batch * self.heads * self.size * (self.end - self.start) * seen
    }
}

/// Whole-sequence inputs in memory.
struct Loaded<B: HostMemory> {
    dims: [usize; 4],
    /// Before padding.
    size: usize,
    shape: ChunkTopK,
    query: B::Values,
    key: B::Values,
    value: B::Values,
    means: Vec<f32>,
}

impl<B: HostMemory> Loaded<B> {
    fn new(inputs: &AttentionInputs<B>) -> Self {
        let load = |tensor: &Tensor<B, 4>| B::values(pad_rows(tensor.clone(), UNIT));
        let [batch, time, heads, size] = inputs.query.dims();
        let padded = size.next_multiple_of(UNIT);
        let key = load(&inputs.key);
        let rows = Rows::sequence(&key, time, heads, padded);
        // While all chunks are seen nobody asks for means.
        let needed = time > inputs.shape.top_k * inputs.shape.chunk_size;
        let complete = if needed {
            time / inputs.shape.chunk_size
        } else {
            0
        };
        let means = chunk_means(rows, (batch, heads), 0..complete, inputs.shape.chunk_size);
        Self {
            dims: [batch, time, heads, padded],
            size,
            shape: inputs.shape,
            query: load(&inputs.query),
            key,
            value: load(&inputs.value),
            means,
        }
    }

    fn problem(&self) -> Problem<'_> {
        let [batch, time, heads, size] = self.dims;
        let chunks = self.means.len() / (batch * heads * size);
        Problem {
            batch,
            heads,
            size,
            start: 0,
            end: time,
            shape: self.shape,
            scale: (self.size as f32).powf(-0.5),
            query: Rows::sequence(&self.query, time, heads, size),
            key: Rows::sequence(&self.key, time, heads, size),
            value: Rows::sequence(&self.value, time, heads, size),
            means: Rows::buffer(&self.means, heads, chunks, size),
        }
    }
}

/// Mean rows of chunks, `[batch, heads, chunk, head_size]`.
fn chunk_means(
    rows: Rows<'_>,
    (batch, heads): (usize, usize),
    chunks: Range<usize>,
    chunk_size: usize,
) -> Vec<f32> {
    let size = rows.size;
    let mut means = vec![0.0; batch * heads * chunks.len() * size];
    let target = Disjoint::new(&mut means);
    let tasks = batch * heads * chunks.len();
    for_each(tasks, tasks * chunk_size * size, |task| {
        let (head, chunk) = (task / chunks.len(), chunks.start + task % chunks.len());
        // SAFETY: each task has its own mean.
        let mean = unsafe { target.part(task * size, size) };
        for time in chunk * chunk_size..(chunk + 1) * chunk_size {
            let row = rows.row((head / heads, head % heads), time);
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum /= chunk_size as f32);
    });
    means
}

/// The body of [`KernelBackend::sparse_attention`](crate::KernelBackend::sparse_attention).
pub(crate) fn sparse_attention<B: HostMemory>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    forward_saving(&AttentionInputs {
        query,
        key,
        value,
        shape,
    })
    .0
}

/// The passes for [`KernelBackend::ATTENTION_GRADIENT`](crate::KernelBackend::ATTENTION_GRADIENT).
pub(crate) const fn gradient<B: HostMemory>() -> AttentionGradient<B> {
    AttentionGradient {
        forward: forward_saving,
        backward,
    }
}

fn forward_saving<B: HostMemory>(inputs: &AttentionInputs<B>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let loaded = Loaded::new(inputs);
    let [batch, time, heads, _] = loaded.dims;
    let (output, saved) = forward::run(&loaded.problem());
    let output = cut_rows(B::tensor(output, loaded.dims), loaded.size);
    let saved = B::tensor(saved, [batch, time, heads, inputs.shape.top_k]);
    (output.cast(inputs.query.dtype()), saved)
}

fn backward<B: HostMemory>(
    inputs: &AttentionInputs<B>,
    output: Tensor<B, 4>,
    saved: Tensor<B, 4>,
    d_output: Tensor<B, 4>,
) -> AttentionGrads<B> {
    let loaded = Loaded::new(inputs);
    let [output, d_output] = [output, d_output].map(|tensor| B::values(pad_rows(tensor, UNIT)));
    let gradients = backward::run(&loaded.problem(), &output, &B::values(saved), &d_output);
    let [query, key, value] = gradients.map(|gradient| {
        cut_rows(B::tensor(gradient, loaded.dims), loaded.size).cast(inputs.query.dtype())
    });
    AttentionGrads { query, key, value }
}

/// The body of [`KernelBackend::write_rows`](crate::KernelBackend::write_rows).
pub(crate) fn write_rows<B: HostMemory>(
    buffer: Tensor<B, 4>,
    at: usize,
    rows: Tensor<B, 4>,
) -> Tensor<B, 4> {
    if buffer.dtype() != DType::F32 {
        return reference::write_rows(buffer, at, rows);
    }
    let [_, _, capacity, size] = buffer.dims();
    let [_, time, heads, _] = rows.dims();
    let rows = B::values(rows);
    B::change(buffer, |buffer| {
        for (index, row) in rows.chunks_exact(size).enumerate() {
            let (batch, t, head) = (index / heads / time, index / heads % time, index % heads);
            let target = ((batch * heads + head) * capacity + at + t) * size;
            buffer[target..][..size].copy_from_slice(row);
        }
    })
}

/// The body of [`KernelBackend::mean_rows`](crate::KernelBackend::mean_rows).
pub(crate) fn mean_rows<B: HostMemory>(
    buffer: &Tensor<B, 4>,
    chunks: Range<usize>,
    chunk_size: usize,
) -> Tensor<B, 4> {
    let [batch, heads, capacity, size] = buffer.dims();
    let values = B::values(buffer.clone());
    let rows = Rows::buffer(&values, heads, capacity, size);
    let means = chunk_means(rows, (batch, heads), chunks.clone(), chunk_size);
    B::tensor(means, [batch, heads, chunks.len(), size])
}

/// The body of [`KernelBackend::attend_cached`](crate::KernelBackend::attend_cached).
pub(crate) fn attend_cached<B: HostMemory>(
    query: Tensor<B, 4>,
    start: usize,
    rows: &CachedRows<B>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    let [batch, time, heads, size] = query.dims();
    if !size.is_multiple_of(UNIT) {
        // Padding the whole cache at each call would cost more than the attention.
        return reference::attend(query, start, rows, shape);
    }
    let dtype = query.dtype();
    let capacity = rows.keys.dims()[2];
    let query = B::values(query);
    let (key, value) = (B::values(rows.keys.clone()), B::values(rows.values.clone()));
    let means = rows
        .means
        .clone()
        .map(|means| (means.dims()[2], B::values(means)));
    let means = means
        .as_ref()
        .map_or(Rows::buffer(&[], heads, 0, size), |(chunks, means)| {
            Rows::buffer(means, heads, *chunks, size)
        });
    let (output, _) = forward::run(&Problem {
        batch,
        heads,
        size,
        start,
        end: start + time,
        shape,
        scale: (size as f32).powf(-0.5),
        query: Rows::sequence(&query, time, heads, size),
        key: Rows::buffer(&key, heads, capacity, size),
        value: Rows::buffer(&value, heads, capacity, size),
        means,
    });
    B::tensor(output, [batch, time, heads, size]).cast(dtype)
}
