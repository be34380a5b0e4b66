//! The attention in tensor operations.
//!
//! Queries go in blocks that lie within one chunk. While a block can see no more than `top_k` chunks it attends densely; after
//! that it attends to its own chunk densely and to gathered copies of the chunks that each query chose. A block is as large
//! as [`GATHER_BUDGET`] lets the gathered keys be, so memory per block is `O(block * top_k * chunk_size)` rows and no
//! score is computed for a chunk that was not chosen.

use burn::tensor::{Bool, DType, Int, Tensor, backend::Backend};

use super::{CachedRows, ChunkTopK};

/// Bound on the elements of one block's gathered keys (and as many values): 64 MiB of f32.
const GATHER_BUDGET: usize = 1 << 24;

/// The definition of [`sparse_attention`](crate::sparse_attention()) in tensor operations; plain autodiff gives its gradients.
pub fn sparse_attention<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    let [batch, time, heads, head_size] = key.dims();
    let complete = time / shape.chunk_size;
    let missing = time.next_multiple_of(shape.chunk_size) - time;
    let rows = |sequence_bthn: Tensor<B, 4>| {
        let rows = sequence_bthn.swap_dims(1, 2);
        if missing == 0 {
            return rows;
        }
        let zeros = Tensor::zeros([batch, heads, missing, head_size], &rows.device());
        Tensor::cat(vec![rows, zeros], 2)
    };
    let keys = rows(key);
    let means = (complete > 0).then(|| {
        let complete_keys =
            keys.clone()
                .slice([0..batch, 0..heads, 0..complete * shape.chunk_size]);
        chunk_means(complete_keys.detach(), shape.chunk_size)
    });
    attend(
        query,
        0,
        &CachedRows {
            keys,
            values: rows(value),
            means,
        },
        shape,
    )
}

/// Writes `rows` `[batch, time, heads, head_size]` into `buffer` `[batch, heads, capacity, head_size]` at time `at`.
pub(crate) fn write_rows<B: Backend>(
    buffer: Tensor<B, 4>,
    at: usize,
    rows: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let [batch, time, heads, head_size] = rows.dims();
    buffer.slice_assign(
        [0..batch, 0..heads, at..at + time, 0..head_size],
        rows.swap_dims(1, 2),
    )
}

/// Means over whole chunks: `[batch, heads, chunks * chunk_size, head_size]` to `[batch, heads, chunks, head_size]`, in f32.
pub(crate) fn chunk_means<B: Backend>(keys: Tensor<B, 4>, chunk_size: usize) -> Tensor<B, 4> {
    let [batch, heads, time, head_size] = keys.dims();
    keys.cast(DType::F32)
        .reshape([batch, heads, time / chunk_size, chunk_size, head_size])
        .mean_dim(3)
        .squeeze_dim(3)
}

/// Attention of queries `[batch, T, heads, head_size]` at times `start..start + T` to rows that already hold theirs.
pub fn attend<B: Backend>(
    query: Tensor<B, 4>,
    start: usize,
    rows: &CachedRows<B>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    let [batch, time, heads, head_size] = query.dims();
    let query = query.swap_dims(1, 2) * (head_size as f64).powf(-0.5); // [batch, heads, T, head_size]
    let chosen_row = batch * heads * (shape.top_k - 1) * shape.chunk_size * head_size;
    let largest_block = (GATHER_BUDGET / chosen_row.max(1)).max(1);

    let mut outputs = Vec::new();
    let mut at = start;
    while at < start + time {
        let own = at / shape.chunk_size;
        let chunk_end = (own + 1) * shape.chunk_size;
        let dense = own < shape.top_k;
        let mut end = chunk_end.min(start + time);
        if !dense {
            end = end.min(at + largest_block);
        }
        let block = query
            .clone()
            .slice([0..batch, 0..heads, at - start..end - start]);
        outputs.push(match &rows.means {
            Some(means) if !dense => {
                let chosen = choose(block.clone().detach(), means, own, shape.top_k - 1);
                attend_chosen(block, at, rows, own, chosen, shape)
            }
            _ => attend_dense(block, at, rows),
        });
        at = end;
    }
    Tensor::cat(outputs, 2).swap_dims(1, 2)
}

/// Full causal attention of a block `[batch, heads, block, head_size]` whose first query is at time `at`.
fn attend_dense<B: Backend>(query: Tensor<B, 4>, at: usize, rows: &CachedRows<B>) -> Tensor<B, 4> {
    let end = at + query.dims()[2];
    let keys = time_range(&rows.keys, 0, end);
    let (weights, scale) = softmax_parts(causal(query.matmul(keys.swap_dims(2, 3)), at));
    weights.matmul(time_range(&rows.values, 0, end)) * scale
}

/// Attention of a block to its own chunk `own` and to `chosen` `[batch, heads, block, top_k - 1]` earlier ones.
fn attend_chosen<B: Backend>(
    query: Tensor<B, 4>,
    at: usize,
    rows: &CachedRows<B>,
    own: usize,
    chosen: Tensor<B, 4, Int>,
    shape: ChunkTopK,
) -> Tensor<B, 4> {
    let [batch, heads, block, head_size] = query.dims();
    let own_start = own * shape.chunk_size;
    let own_keys = time_range(&rows.keys, own_start, at + block);
    let own_values = time_range(&rows.values, own_start, at + block);
    let scores_own = causal(
        query.clone().matmul(own_keys.swap_dims(2, 3)),
        at - own_start,
    );
    if shape.top_k == 1 {
        let (weights, scale) = softmax_parts(scores_own);
        return weights.matmul(own_values) * scale;
    }

    // One row per (batch, head, block query): that query's chosen keys, chunk after chunk.
    let chosen_len = (shape.top_k - 1) * shape.chunk_size;
    let queries = batch * heads * block;
    let gather = |all: &Tensor<B, 4>| {
        let chunks = all.dims()[2] / shape.chunk_size;
        let first_of_head = Tensor::<B, 1, Int>::arange(0..(batch * heads) as i64, &all.device())
            .mul_scalar(chunks as i64)
            .reshape([batch, heads, 1, 1]);
        let row = (chosen.clone() + first_of_head).reshape([queries * (shape.top_k - 1)]);
        all.clone()
            .reshape([batch * heads * chunks, shape.chunk_size * head_size])
            .select(0, row)
            .reshape([queries, chosen_len, head_size])
    };
    let scores_chosen = query
        .reshape([queries, 1, head_size])
        .matmul(gather(&rows.keys).swap_dims(1, 2))
        .reshape([batch, heads, block, chosen_len]);

    let own_len = at + block - own_start;
    let (weights, scale) = softmax_parts(Tensor::cat(vec![scores_own, scores_chosen], 3));
    let own_weights = weights
        .clone()
        .slice([0..batch, 0..heads, 0..block, 0..own_len]);
    let chosen_weights =
        weights.slice([0..batch, 0..heads, 0..block, own_len..own_len + chosen_len]);
    let from_chosen = chosen_weights
        .reshape([queries, 1, chosen_len])
        .matmul(gather(&rows.values))
        .reshape([batch, heads, block, head_size]);
    (own_weights.matmul(own_values) + from_chosen) * scale
}

/// Softmax over the last axis as weights and the factor `[.., 1]` by which they are too large.
///
/// The factor is a power, not a quotient: NdArray's SIMD reciprocal, which the gradient of a quotient is made of, has an error of 2e-5.
fn softmax_parts<B: Backend>(scores: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let largest = scores.clone().detach().max_dim(3);
    let weights = (scores - largest).exp();
    let root = weights.clone().sum_dim(3).powf_scalar(-0.5);
    (weights, root.clone() * root)
}

/// For each query of a block `[batch, heads, block, head_size]` the `count` best of the first `candidates` chunks.
///
/// One arg max after another, since the order of equal scores in a sort differs between backends.
fn choose<B: Backend>(
    query: Tensor<B, 4>,
    means: &Tensor<B, 4>,
    candidates: usize,
    count: usize,
) -> Tensor<B, 4, Int> {
    let device = query.device();
    let [batch, heads, block, _] = query.dims();
    if count == 0 {
        return Tensor::zeros([batch, heads, block, 0], &device);
    }
    let means = time_range(means, 0, candidates);
    let mut scores = query.cast(DType::F32).matmul(means.swap_dims(2, 3)); // [batch, heads, block, candidates]
    let index =
        Tensor::<B, 1, Int>::arange(0..candidates as i64, &device).reshape([1, 1, 1, candidates]);
    let mut chosen = Vec::with_capacity(count);
    for _ in 0..count {
        let best = scores.clone().argmax(3);
        let taken = best.clone().equal(index.clone());
        scores = scores.mask_fill(taken, f32::NEG_INFINITY);
        chosen.push(best);
    }
    Tensor::cat(chosen, 3)
}

/// Hides from query i of the block the keys after `first + i`; `scores` is `[batch, heads, block, keys]`.
fn causal<B: Backend>(scores: Tensor<B, 4>, first: usize) -> Tensor<B, 4> {
    let [_, _, block, keys] = scores.dims();
    let visible = Tensor::<B, 2, Bool>::tril_mask([block, keys], first as i64, &scores.device());
    scores.mask_fill(visible.unsqueeze(), f32::NEG_INFINITY)
}

/// The rows of times `start..end` of `[batch, heads, time, head_size]`.
fn time_range<B: Backend>(rows: &Tensor<B, 4>, start: usize, end: usize) -> Tensor<B, 4> {
    let [batch, heads, _, head_size] = rows.dims();
    rows.clone()
        .slice([0..batch, 0..heads, start..end, 0..head_size])
}
