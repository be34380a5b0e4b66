//! Wrong shapes are named.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rwkvx_kernels::{ChunkTopK, KvCache, Wkv7Inputs, sparse_attention, wkv7};

type Sequence = Tensor<Flex, 4>;

fn zeros(shape: [usize; 4]) -> Sequence {
    Tensor::zeros(shape, &Default::default())
}

fn wkv7_inputs(shape: [usize; 4]) -> Wkv7Inputs<Flex> {
    Wkv7Inputs {
        receptance: zeros(shape),
        log_decay: zeros(shape),
        key: zeros(shape),
        value: zeros(shape),
        removal: zeros(shape),
        replacement: zeros(shape),
        state: None,
    }
}

const SHAPE: ChunkTopK = ChunkTopK {
    chunk_size: 4,
    top_k: 2,
};

#[test]
#[should_panic(
    expected = "wkv7: `value` must be [batch, time, heads, head_size] = [1, 3, 2, 4], found [1, 3, 2, 5]"
)]
fn a_sequence_of_another_shape_is_named() {
    let mut inputs = wkv7_inputs([1, 3, 2, 4]);
    inputs.value = zeros([1, 3, 2, 5]);
    wkv7(inputs);
}

#[test]
#[should_panic(
    expected = "wkv7: `state` must be [batch, heads, value, key] = [1, 2, 4, 4], found [1, 1, 4, 4]"
)]
fn a_state_of_another_shape_is_named() {
    let mut inputs = wkv7_inputs([1, 3, 2, 4]);
    inputs.state = Some(zeros([1, 1, 4, 4]));
    wkv7(inputs);
}

#[test]
#[should_panic(expected = "no axis empty, found [1, 0, 2, 4]")]
fn no_tokens_are_refused() {
    wkv7(wkv7_inputs([1, 0, 2, 4]));
}

#[test]
#[should_panic(expected = "sparse_attention: `key` must be")]
fn keys_of_another_length_are_named() {
    sparse_attention(
        zeros([1, 3, 2, 4]),
        zeros([1, 4, 2, 4]),
        zeros([1, 3, 2, 4]),
        SHAPE,
    );
}

#[test]
#[should_panic(expected = "`chunk_size` must be at least 1")]
fn empty_chunks_are_refused() {
    let x = zeros([1, 3, 2, 4]);
    sparse_attention(
        x.clone(),
        x.clone(),
        x,
        ChunkTopK {
            chunk_size: 0,
            top_k: 1,
        },
    );
}

#[test]
#[should_panic(expected = "`top_k` must be at least 1")]
fn a_query_that_may_not_see_its_own_chunk_is_refused() {
    KvCache::<Flex>::new(
        1,
        1,
        4,
        ChunkTopK {
            chunk_size: 4,
            top_k: 0,
        },
        &Default::default(),
    );
}

#[test]
#[should_panic(
    expected = "KvCache::attend: `query` must be [batch, time, heads, head_size] = [1, 3, 2, 4], found [1, 3, 2, 8]"
)]
fn rows_that_do_not_fit_the_cache_are_named() {
    let mut cache = KvCache::<Flex>::new(1, 2, 4, SHAPE, &Default::default());
    let x = zeros([1, 3, 2, 8]);
    cache.attend(x.clone(), x.clone(), x);
}
