//! Inputs that are a function of seed and index alone; `scripts/gpu/peers.py` makes the same ones bit for bit.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rwkvx_kernels::{AttentionInputs, ChunkTopK, Wkv7Inputs};

/// Chris Wellons' `lowbias32`.
fn hash(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// In [0, 1), 24 bits.
fn uniform(seed: u32, index: u32) -> f32 {
    (hash(index ^ hash(seed)) >> 8) as f32 / (1 << 24) as f32
}

/// In [-1, 1).
fn symmetric(seed: u32, index: u32) -> f32 {
    2.0 * uniform(seed, index) - 1.0
}

fn filled<B: Backend>(
    dims: [usize; 4],
    dtype: DType,
    device: &B::Device,
    value: impl Fn(u32) -> f32,
) -> Tensor<B, 4> {
    filled_from(0, dims, dtype, device, value)
}

/// The part of a longer tensor that starts at index `first`.
fn filled_from<B: Backend>(
    first: usize,
    dims: [usize; 4],
    dtype: DType,
    device: &B::Device,
    value: impl Fn(u32) -> f32,
) -> Tensor<B, 4> {
    let count = dims.iter().product::<usize>();
    let values: Vec<f32> = (first as u32..(first + count) as u32).map(value).collect();
    Tensor::<B, 4>::from_data(TensorData::new(values, dims), device).cast(dtype)
}

/// Inputs like the model's: decays over their whole range, removals of length 1 (each element is plus or minus the same number), a
/// replacement along the removal. Sequences are `[batch, time, heads, head_size]`.
pub(crate) fn wkv7_inputs<B: Backend>(
    dims @ [.., head_size]: [usize; 4],
    dtype: DType,
    device: &B::Device,
) -> Wkv7Inputs<B> {
    let element = (1.0 / (head_size as f64).sqrt()) as f32;
    let removal = move |i| {
        if uniform(5, i) < 0.5 {
            element
        } else {
            -element
        }
    };
    let sequence = |seed| filled(dims, dtype, device, move |i| symmetric(seed, i));
    Wkv7Inputs {
        receptance: sequence(1),
        log_decay: filled(dims, dtype, device, |i| -0.6 * uniform(2, i) - 0.001),
        key: sequence(3),
        value: sequence(4),
        removal: filled(dims, dtype, device, removal),
        replacement: filled(dims, dtype, device, |i| -removal(i) * uniform(6, i)),
        state: None,
    }
}

/// `[batch, heads, value, key]` in f32.
pub(crate) fn state<B: Backend>(
    [batch, _, heads, head_size]: [usize; 4],
    device: &B::Device,
) -> Tensor<B, 4> {
    let dims = [batch, heads, head_size, head_size];
    filled(dims, DType::F32, device, |i| symmetric(7, i))
}

/// The gradient of the output.
pub(crate) fn d_output<B: Backend>(
    dims: [usize; 4],
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, 4> {
    filled(dims, dtype, device, |i| symmetric(8, i))
}

/// Tokens of one sequence from the token `first` on. Scores spread by more than 1, so that a query prefers some keys to others.
pub(crate) fn attention_inputs<B: Backend>(
    first: usize,
    dims @ [_, _, heads, head_size]: [usize; 4],
    shape: ChunkTopK,
    dtype: DType,
    device: &B::Device,
) -> AttentionInputs<B> {
    let first = first * heads * head_size;
    let sequence = |seed, factor: f32| {
        filled_from(first, dims, dtype, device, move |i| {
            factor * symmetric(seed, i)
        })
    };
    AttentionInputs {
        query: sequence(11, 4.0),
        key: sequence(12, 1.0),
        value: sequence(13, 1.0),
        shape,
    }
}
