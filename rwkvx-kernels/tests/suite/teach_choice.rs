//! What teaches the choice of chunks, against differences of its loss in plain loops.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rwkvx_kernels::teach_choice;

use crate::support::{Array, Operators, TOLERANCE, assert_close};

type Ad<O> = Autodiff<<O as Operators>::Inner>;

/// Gradients that reach query and key if those of the results are `d_outputs`, and the results.
fn gradients<O: Operators>(
    inputs: [&Array; 2],
    d_outputs: [&Array; 2],
    chunk_size: usize,
    weight: f64,
) -> ([Array; 2], [Array; 2]) {
    let leaves = inputs.map(|array| array.tensor::<Ad<O>>().require_grad());
    let [query, key] = leaves.clone();
    let outputs = teach_choice(query, key, chunk_size, weight);
    let products = [0, 1].map(|i| {
        let d_output: Tensor<Ad<O>, 4> = d_outputs[i].tensor();
        (outputs[i].clone() * d_output).sum()
    });
    let [of_query, of_key] = products;
    let grads = (of_query + of_key).backward();
    let found = leaves.map(|leaf| Array::of(leaf.grad(&grads).expect("it is a leaf")));
    (found, outputs.map(|output| Array::of(output.inner())))
}

/// Shares of full attention `[batch, heads, time, chunks]` that fall on each chunk before the query's own.
fn shares(query: &Array, key: &Array, chunk_size: usize) -> Vec<Vec<f64>> {
    let scale = (query.shape[3] as f64).powf(-0.5);
    per_query(query.shape, |text, head, row| {
        let score = |other| scale * product(query, key, text, head, [row, other]);
        let weights: Vec<f64> = (0..=row).map(|other| score(other).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let earlier = row / chunk_size * chunk_size;
        let chunks = weights[..earlier].chunks(chunk_size);
        chunks.map(|of| of.iter().sum::<f64>() / sum).collect()
    })
}

/// The loss: cross-entropy of `shares` and the softmax over means, mean over heads and queries past the first chunk.
fn loss(query: &Array, key: &Array, shares: &[Vec<f64>], chunk_size: usize) -> f64 {
    let [_, time, heads, size] = query.shape;
    let steepness = (chunk_size as f64 / size as f64).sqrt();
    let mut share = shares.iter();
    let losses = per_query(query.shape, |text, head, row| {
        let choice = |chunk: usize| -> f64 {
            let tokens = chunk * chunk_size..(chunk + 1) * chunk_size;
            let products = tokens.map(|other| product(query, key, text, head, [row, other]));
            steepness * products.sum::<f64>() / chunk_size as f64
        };
        let choices: Vec<f64> = (0..row / chunk_size).map(choice).collect();
        let log_sum = choices.iter().map(|choice| choice.exp()).sum::<f64>().ln();
        let pairs = share.next().expect("one per query").iter().zip(choices);
        pairs
            .map(|(share, choice)| share * (log_sum - choice))
            .sum::<f64>()
    });
    losses.iter().sum::<f64>() / (heads * (time - chunk_size)) as f64
}

/// `query . key` of two times.
fn product(query: &Array, key: &Array, text: usize, head: usize, times: [usize; 2]) -> f64 {
    let [_, time, heads, size] = query.shape;
    let [q, k] = times.map(|at| ((text * time + at) * heads + head) * size);
    let pairs = query.values[q..].iter().zip(&key.values[k..]);
    pairs.take(size).map(|(q, k)| q * k).sum()
}

fn per_query<T>(
    [batch, time, heads, _]: [usize; 4],
    mut of: impl FnMut(usize, usize, usize) -> T,
) -> Vec<T> {
    let mut all = Vec::new();
    for text in 0..batch {
        for head in 0..heads {
            for row in 0..time {
                all.push(of(text, head, row));
            }
        }
    }
    all
}

fn slopes(inputs: [&Array; 2], chunk_size: usize, weight: f64) -> [Array; 2] {
    let shares = shares(inputs[0], inputs[1], chunk_size);
    [0, 1].map(|which| {
        let mut slope = inputs[which].clone();
        for index in 0..slope.values.len() {
            let at = |step: f64| {
                let mut moved = inputs.map(Clone::clone);
                moved[which].values[index] += step;
                loss(&moved[0], &moved[1], &shares, chunk_size)
            };
            slope.values[index] = weight * (at(1e-4) - at(-1e-4)) / 2e-4;
        }
        slope
    })
}

/// Lengths of whole chunks and not, of one chunk and of less, chunks of one token.
fn it_adds_the_slope_of_its_loss_and_changes_nothing_else<O: Operators>() {
    for (dims, chunk_size) in [
        ([2, 11, 2, 3], 4),
        ([1, 12, 1, 4], 4),
        ([1, 9, 2, 2], 1),
        ([1, 4, 1, 2], 4),
        ([1, 3, 1, 2], 4),
    ] {
        let [query, key, d_query, d_key] = [0, 1, 2, 3].map(|seed| Array::normal(dims, 40 + seed));
        let inputs = [&query, &key];
        let (found, outputs) = gradients::<O>(inputs, [&d_query, &d_key], chunk_size, 0.7);
        let mut expected = [d_query, d_key];
        if dims[1] > chunk_size {
            for (sum, slope) in expected.iter_mut().zip(slopes(inputs, chunk_size, 0.7)) {
                let pairs = sum.values.iter_mut().zip(slope.values);
                pairs.for_each(|(sum, slope)| *sum += slope);
            }
        }
        for ((found, expected), what) in found.iter().zip(&expected).zip(["query", "key"]) {
            assert_close(&format!("{dims:?} {what}"), found, expected, TOLERANCE);
        }
        for (output, input) in outputs.iter().zip(inputs) {
            let input: Vec<f64> = input.values.iter().map(|&x| f64::from(x as f32)).collect();
            assert_eq!(output.values, input);
        }
    }
}

/// So that a long text takes no more memory than a short one does; one head after the other.
fn of_a_long_text_it_looks_at_some_queries<O: Operators>() {
    let (dims, chunk_size) = ([1, 3000, 2, 2], 1024);
    let [query, key] = [50, 51].map(|seed| Array::normal(dims, seed));
    let nothing = query.clone().map(|_| 0.0);
    let (found, _) = gradients::<O>([&query, &key], [&nothing, &nothing], chunk_size, 1.0);
    // 2^21 / 3000 = 699 queries: every third of the 1976 that have an earlier chunk. Those that have one have no choice.
    for (time, heads) in found[0].values.chunks(4).enumerate() {
        let taught = time >= 2 * chunk_size && (dims[1] - 1 - time).is_multiple_of(3);
        for head in heads.chunks(2) {
            assert_eq!(head.iter().any(|&d| d != 0.0), taught, "query {time}");
        }
    }
    let (whole, rest) = found[1].values.split_at(2 * chunk_size * 4);
    assert!(whole.iter().all(|&d| d != 0.0));
    assert!(rest.iter().all(|&d| d == 0.0), "it cannot be chosen");
}

crate::on_all_bodies!(
    it_adds_the_slope_of_its_loss_and_changes_nothing_else,
    of_a_long_text_it_looks_at_some_queries,
);
