//! The attention at awkward sizes, with ties, and with part of the gradient graph missing.

use burn::backend::Autodiff;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use burn::tensor::DType;
use rwkvx_kernels::ChunkTopK;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use rwkvx_kernels::sparse_attention;

use crate::oracle;
use crate::support::{Array, Defined, Operators, TOLERANCE, assert_close};

type Ad<O> = Autodiff<<O as Operators>::Inner>;

const fn shape(chunk_size: usize, top_k: usize) -> ChunkTopK {
    ChunkTopK { chunk_size, top_k }
}

fn qkv(dims: [usize; 4], seed: u64) -> [Array; 3] {
    std::array::from_fn(|i| Array::normal(dims, 10 * seed + i as u64))
}

fn run<O: Operators>(arrays: &[Array; 3], shape: ChunkTopK) -> Array {
    Array::of(O::sparse_attention(
        arrays.each_ref().map(Array::tensor),
        shape,
    ))
}

/// Lengths around multiples of the chunk, chunks that are no multiple of any vector, head sizes that need padding, top k of
/// one, and more queries than a task takes.
const CASES: [([usize; 4], ChunkTopK); 18] = [
    ([2, 1, 2, 32], shape(16, 3)),
    ([1, 15, 2, 32], shape(16, 3)),
    ([1, 16, 2, 32], shape(16, 1)),
    ([1, 17, 2, 32], shape(16, 1)),
    ([2, 33, 2, 32], shape(16, 2)),
    ([1, 63, 3, 64], shape(16, 3)),
    ([1, 64, 3, 64], shape(16, 3)),
    ([1, 65, 3, 64], shape(16, 2)),
    ([2, 100, 2, 32], shape(7, 3)),
    ([1, 50, 1, 32], shape(1, 4)),
    ([1, 50, 1, 32], shape(3, 1)),
    ([1, 130, 1, 20], shape(16, 4)),
    ([1, 90, 1, 1], shape(16, 2)),
    ([1, 90, 1, 96], shape(20, 2)),
    ([1, 300, 2, 32], shape(64, 3)),
    ([1, 700, 1, 32], shape(100, 2)),
    ([1, 1100, 1, 32], shape(16, 8)),
    ([1, 40, 2, 32], shape(1000, 3)),
];

fn any_size_agrees_with_attention_over_every_visible_key<O: Operators>() {
    for (dims, shape) in CASES {
        let arrays @ [q, k, v] = &qkv(dims, 1);
        let mask = oracle::chosen_chunks(q, k, shape);
        let expected = oracle::attention(q, k, v, &mask, shape.chunk_size);
        assert_close(
            &format!("{dims:?} {shape:?}"),
            &run::<O>(arrays, shape),
            &expected,
            TOLERANCE,
        );
    }
}

fn short_sequences_get_full_causal_attention<O: Operators>() {
    let chunks = shape(16, 3);
    for time in [1, 16, 17, 47, 48] {
        let arrays @ [q, k, v] = &qkv([1, time, 2, 32], 2);
        let everything = Array {
            shape: [1, 2, time, 1],
            values: vec![1.0; 2 * time],
        };
        let expected = oracle::attention(q, k, v, &everything, time);
        assert_close(
            &format!("{time} tokens"),
            &run::<O>(arrays, chunks),
            &expected,
            TOLERANCE,
        );
    }
}

fn of_equal_scores_the_earlier_chunks_are_chosen<O: Operators>() {
    let chunks = shape(4, 3);
    let [mut q, mut k, mut v] = qkv([1, 40, 1, 32], 3);
    q.values.fill(0.0);
    k.values.fill(0.0);
    v.values
        .iter_mut()
        .enumerate()
        .for_each(|(i, x)| *x = f64::from(i / 32 / 4 == i % 32));
    let output = run::<O>(&[q, k, v], chunks);
    for t in 12..40 {
        let seen: Vec<usize> = (0..10)
            .filter(|c| output.values[t * 32 + c] > 0.0)
            .collect();
        assert_eq!(seen, [0, 1, t / 4], "query {t}");
    }
}

fn later_tokens_change_nothing_earlier<O: Operators>() {
    let chunks = shape(8, 2);
    let arrays = qkv([1, 60, 1, 32], 4);
    let before = run::<O>(&arrays, chunks);
    let changed = arrays.map(|mut array| {
        array.values[37 * 32..]
            .iter_mut()
            .for_each(|x| *x = 5.0 - *x);
        array
    });
    let after = run::<O>(&changed, chunks);
    assert_eq!(before.values[..37 * 32], after.values[..37 * 32]);
}

fn large_scores_stay_finite<O: Operators>() {
    let chunks = shape(16, 2);
    let [q, k, v] = qkv([1, 80, 1, 32], 5);
    let arrays @ [q, k, v] = &[q.map(|x| 40.0 * x), k.map(|x| 40.0 * x), v];
    let mask = oracle::chosen_chunks(q, k, chunks);
    let expected = oracle::attention(q, k, v, &mask, chunks.chunk_size);
    // Scores reach thousands, where one rounding is 1e-4 absolute.
    assert_close("output", &run::<O>(arrays, chunks), &expected, 2e-3);
}

fn gradients<O: Operators>(
    arrays: &[Array; 3],
    shape: ChunkTopK,
    tracked: [bool; 3],
) -> [Option<Array>; 3] {
    let mut leaves = arrays.each_ref().map(|array| array.tensor::<Ad<O>>());
    for (leaf, tracked) in leaves.iter_mut().zip(tracked) {
        *leaf = leaf.clone().set_require_grad(tracked);
    }
    let output = O::sparse_attention(leaves.clone(), shape);
    let gradients = (output * Array::normal(arrays[0].shape, 99).tensor())
        .sum()
        .backward();
    leaves.map(|leaf| leaf.grad(&gradients).map(Array::of))
}

const NAMES: [&str; 3] = ["query", "key", "value"];

fn gradients_at_any_size_are_those_of_the_definition<O: Operators>() {
    for (dims, shape) in CASES {
        if dims[1] == 1100 {
            continue; // gathers 8 chunks for each of 1100 queries and keeps them
        }
        let arrays = qkv(dims, 6);
        let found = gradients::<O>(&arrays, shape, [true; 3]);
        let expected = gradients::<Defined<burn_flex::Flex>>(&arrays, shape, [true; 3]);
        for ((name, found), expected) in NAMES.iter().zip(found).zip(expected) {
            let (found, expected) = (found.expect("tracked"), expected.expect("tracked"));
            // One visible key has weight 1 whatever query and key are: their gradients are 0 but for rounding.
            if dims[1] == 1 && *name != "value" {
                assert!(
                    found.values.iter().all(|x| x.abs() < 1e-5),
                    "{name} {dims:?}"
                );
                continue;
            }
            assert_close(
                &format!("{name} {dims:?} {shape:?}"),
                &found,
                &expected,
                TOLERANCE,
            );
        }
    }
}

fn gradients_are_the_slopes_of_attention_with_the_choice_held<O: Operators>() {
    let (dims, chunks) = ([1, 9, 1, 4], shape(2, 2));
    let arrays = qkv(dims, 7);
    let mask = oracle::chosen_chunks(&arrays[0], &arrays[1], chunks);
    let weights = Array::normal(dims, 99);
    let loss = |[q, k, v]: &[Array; 3]| {
        let output = oracle::attention(q, k, v, &mask, chunks.chunk_size);
        output
            .values
            .iter()
            .zip(&weights.values)
            .map(|(x, y)| x * y)
            .sum::<f64>()
    };
    let found = gradients::<O>(&arrays, chunks, [true; 3]);
    for (i, found) in found.into_iter().enumerate() {
        let mut slopes = arrays[i].clone();
        for (e, slope) in slopes.values.iter_mut().enumerate() {
            let step = 1e-5;
            let mut moved = arrays.clone();
            moved[i].values[e] += step;
            let above = loss(&moved);
            moved[i].values[e] -= 2.0 * step;
            *slope = (above - loss(&moved)) / (2.0 * step);
        }
        assert_close(NAMES[i], &found.expect("tracked"), &slopes, TOLERANCE);
    }
}

fn every_run_gives_the_same_bits<O: Operators>() {
    let (chunks, arrays) = (shape(16, 4), qkv([2, 400, 2, 32], 9));
    let output = run::<O>(&arrays, chunks).values;
    let first = gradients::<O>(&arrays, chunks, [true; 3]);
    for _ in 0..3 {
        assert_eq!(run::<O>(&arrays, chunks).values, output);
        let again = gradients::<O>(&arrays, chunks, [true; 3]);
        for ((name, again), first) in NAMES.iter().zip(again).zip(&first) {
            let first = first.as_ref().expect("tracked");
            assert_eq!(again.expect("tracked").values, first.values, "{name}");
        }
    }
}

fn frozen_inputs_get_no_gradient_and_change_no_other<O: Operators>() {
    let (chunks, arrays) = (shape(8, 2), qkv([1, 50, 2, 32], 8));
    let all = gradients::<O>(&arrays, chunks, [true; 3]);
    for kept in 0..3 {
        let some = gradients::<O>(&arrays, chunks, std::array::from_fn(|i| i == kept));
        for (i, gradient) in some.into_iter().enumerate() {
            assert_eq!(gradient.is_some(), i == kept, "{}", NAMES[i]);
            if let Some(gradient) = gradient {
                assert_close(NAMES[i], &gradient, all[i].as_ref().expect("tracked"), 1e-6);
            }
        }
    }
}

crate::on_all_bodies!(
    any_size_agrees_with_attention_over_every_visible_key,
    short_sequences_get_full_causal_attention,
    of_equal_scores_the_earlier_chunks_are_chosen,
    later_tokens_change_nothing_earlier,
    large_scores_stay_finite,
    gradients_at_any_size_are_those_of_the_definition,
    gradients_are_the_slopes_of_attention_with_the_choice_held,
    every_run_gives_the_same_bits,
    frozen_inputs_get_no_gradient_and_change_no_other,
);

/// bf16 is what CUDA trains in; software Vulkan has f16 alone.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn halves_are_read_as_they_are<B: rwkvx_kernels::KernelBackend>(dtype: DType, tolerance: f64) {
    let chunks = shape(16, 3);
    let dims = [1, 300, 2, 64];
    let arrays = qkv(dims, 10).map(|array| Array::of(array.tensor::<B>().cast(dtype)));
    let run = |dtype| {
        let leaves = arrays
            .each_ref()
            .map(|array| array.tensor::<Autodiff<B>>().cast(dtype).require_grad());
        let [q, k, v] = leaves.clone();
        let output = sparse_attention(q, k, v, chunks);
        assert_eq!(output.dtype(), dtype);
        let gradients = (output.clone().cast(DType::F32) * Array::normal(dims, 99).tensor())
            .sum()
            .backward();
        let mut results = vec![("output", Array::of(output))];
        for (name, leaf) in NAMES.into_iter().zip(leaves) {
            let gradient = leaf.grad(&gradients).expect("tracked");
            assert_eq!(gradient.dtype(), dtype);
            results.push((name, Array::of(gradient)));
        }
        results
    };
    for ((name, found), (_, expected)) in run(dtype).iter().zip(&run(DType::F32)) {
        assert_close(name, found, expected, tolerance);
    }
}

#[cfg(feature = "vulkan")]
#[test]
fn sequences_in_f16_are_read_as_they_are_on_vulkan() {
    halves_are_read_as_they_are::<crate::Vulkan>(DType::F16, 1e-3);
}

#[cfg(feature = "cuda")]
#[test]
fn sequences_in_bf16_are_read_as_they_are_on_cuda() {
    halves_are_read_as_they_are::<burn::backend::Cuda>(DType::BF16, 1e-2);
}
