//! Teaches the choice of chunks by the attention itself.
//!
//! A chunk is chosen by the mean of its keys, and the choice has no gradient: nothing makes the mean of a chunk stand out whose token
//! the query attends to. So, for some queries, full attention over everything before them says how much of it falls on each earlier
//! chunk, `p`, and the choice would share it out as `s = softmax(sqrt(chunk_size) head_size^-1/2 query . mean)`. The cross-entropy of the
//! two is added to the loss, by its gradient alone; `p` is constant in it. (As the indexer of DeepSeek-V3.2 is trained, which has
//! parameters of its own.)

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, backend::Backend};

use super::reference::chunk_means;
use crate::KernelBackend;
use crate::joint::{self, unwrap, wrap};

/// Scores of full attention that are computed at once, and of one head over one text: of all queries up to 1448 tokens, of 32 in 65536.
/// There are some ten tensors of so many numbers at a time, 80 MiB.
const SCORES: usize = 1 << 21;

/// `query` and `key` `[batch, time, heads, head_size]` as they are. Their gradients get that of `weight` times the cross-entropy added,
/// which is summed over the batch, and averaged over heads and over the queries looked at.
///
/// # Panics
/// If the two differ in shape or have an empty axis, or `chunk_size` is 0.
pub fn teach_choice<B: KernelBackend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    chunk_size: usize,
    weight: f64,
) -> [Tensor<B, 4>; 2] {
    assert!(
        chunk_size > 0,
        "teach_choice: `chunk_size` must be at least 1, found 0"
    );
    super::check_sequences("teach_choice", &query, &[("key", &key)]);
    if query.dims()[1] <= chunk_size {
        return [query, key]; // There is no chunk to choose.
    }
    B::teach_choice(query, key, chunk_size, weight)
}

/// The body of [`KernelBackend::teach_choice`] with gradients.
pub(crate) fn autodiff<B: KernelBackend, C: CheckpointStrategy>(
    query: Tensor<Autodiff<B, C>, 4>,
    key: Tensor<Autodiff<B, C>, 4>,
    chunk_size: usize,
    weight: f64,
) -> [Tensor<Autodiff<B, C>, 4>; 2] {
    joint::apply::<B, C, (), 2, 2>(
        "TeachChoice",
        [unwrap(query), unwrap(key)],
        |inputs| inputs,
        |inputs| (inputs, ()),
        move |inputs, (), d_outputs| {
            let [query, key] = inputs.map(wrap::<B, 4>);
            let [of_query, of_key] = gradient(query, key, chunk_size, weight);
            let [d_query, d_key] = d_outputs;
            [(d_query, of_query), (d_key, of_key)].map(|(d_output, added)| {
                unwrap(match d_output {
                    Some(d_output) => wrap(d_output) + added,
                    None => added,
                })
            })
        },
    )
    .map(wrap)
}

/// The gradient of the cross-entropy with respect to `query` and `key`, texts of more than a chunk, in their type.
fn gradient<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    chunk_size: usize,
    weight: f64,
) -> [Tensor<B, 4>; 2] {
    let [batch, time, heads, head_size] = query.dims();
    let dtype = query.dtype();
    let [query, key] = [query, key].map(|sequence| {
        let rows = sequence.swap_dims(1, 2).cast(DType::F32);
        rows.reshape([batch * heads, time, head_size])
    });
    let looked_at = looked_at(time, chunk_size);
    let at_once = (SCORES / (looked_at.len() * time)).max(1);
    let mut d_queries = Vec::new();
    let mut d_keys = Vec::new();
    for start in (0..batch * heads).step_by(at_once) {
        let rows = start..(start + at_once).min(batch * heads);
        let [query, key] = [&query, &key].map(|all| all.clone().slice_dim(0, rows.clone()));
        let weight = weight / heads as f64;
        let [d_query, d_key] = gradient_of_rows(query, key, &looked_at, chunk_size, weight);
        d_queries.push(d_query);
        d_keys.push(d_key);
    }
    [d_queries, d_keys].map(|rows| {
        let rows = Tensor::cat(rows, 0).reshape([batch, heads, time, head_size]);
        rows.swap_dims(1, 2).cast(dtype)
    })
}

/// Times evenly spread over the queries that have an earlier chunk, from the last one back.
fn looked_at(time: usize, chunk_size: usize) -> Vec<i64> {
    let stride = (time - chunk_size).div_ceil((SCORES / time).max(1));
    let times = (chunk_size..time).rev().step_by(stride);
    times.map(|at| at as i64).collect()
}

/// The same for some texts and heads, `[rows, time, head_size]` in f32.
fn gradient_of_rows<B: Backend>(
    query: Tensor<B, 3>,
    key: Tensor<B, 3>,
    looked_at: &[i64],
    chunk_size: usize,
    weight: f64,
) -> [Tensor<B, 3>; 2] {
    let device = query.device();
    let [rows, time, head_size] = query.dims();
    let complete = time / chunk_size;
    let in_chunks = complete * chunk_size;

    let looks = looked_at.len();
    let positions = Tensor::<B, 1, Int>::from_data(looked_at, &device);
    let own = positions.clone().div_scalar(chunk_size as i64);
    let after = |count: usize, last: Tensor<B, 1, Int>| {
        let index = Tensor::<B, 1, Int>::arange(0..count as i64, &device);
        let last = last.reshape([1, looks, 1]).expand([rows, looks, count]);
        let index = index.reshape([1, 1, count]);
        index.expand([rows, looks, count]).greater(last)
    };

    let scale = (head_size as f64).powf(-0.5);
    let queries = query.clone().select(1, positions.clone()); // [rows, looks, head_size]
    let scores = queries.clone().matmul(key.clone().swap_dims(1, 2)) * scale;
    let future = after(time, positions.clone());
    let attention = softmax(scores.mask_fill(future, f32::NEG_INFINITY), 2); // [rows, looks, time]
    let not_earlier = after(complete, own - 1); // [rows, looks, complete]
    let share = attention
        .slice_dim(2, 0..in_chunks)
        .reshape([rows, looks, complete, chunk_size])
        .sum_dim(3)
        .squeeze_dim::<3>(3)
        .mask_fill(not_earlier.clone(), 0.0); // [rows, looks, complete]

    let steepness = scale * (chunk_size as f64).sqrt();
    let whole_chunks = key.clone().slice_dim(1, 0..in_chunks);
    let whole_chunks = whole_chunks.unsqueeze_dim::<4>(0);
    let means = chunk_means(whole_chunks, chunk_size).squeeze_dim::<3>(0); // [rows, complete, head_size]
    let choice = queries.clone().matmul(means.clone().swap_dims(1, 2)) * steepness;
    let choice = softmax(choice.mask_fill(not_earlier, f32::NEG_INFINITY), 2);
    let d_choice =
        (choice * share.clone().sum_dim(2) - share) * (weight * steepness / looks as f64);

    let d_queries = d_choice.clone().matmul(means);
    let d_query = query
        .zeros_like()
        .select_assign(1, positions, d_queries, IndexingUpdateOp::Add);
    let d_means = d_choice.swap_dims(1, 2).matmul(queries) / chunk_size as f64;
    let d_keys = d_means
        .unsqueeze_dim::<4>(2)
        .expand([rows, complete, chunk_size, head_size])
        .reshape([rows, in_chunks, head_size]);
    let d_key = key
        .zeros_like()
        .slice_assign([0..rows, 0..in_chunks, 0..head_size], d_keys);
    [d_query, d_key]
}
