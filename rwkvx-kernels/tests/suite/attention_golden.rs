//! Values, choices and gradients of the attention against the golden files.

use burn::backend::Autodiff;
use rwkvx_kernels::ChunkTopK;

use crate::oracle;
use crate::support::{Array, Operators, TOLERANCE, assert_close, golden};

fn check<O: Operators>(name: &str) {
    let file = golden(name);
    let sizes = &file["chunk_topk"].values;
    let shape = ChunkTopK {
        chunk_size: sizes[0] as usize,
        top_k: sizes[1] as usize,
    };
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        file[name]
            .swapped()
            .tensor::<Autodiff<O::Inner>>()
            .require_grad()
    });
    let output = O::sparse_attention([q.clone(), k.clone(), v.clone()], shape);
    assert_close(
        "y",
        &Array::of(output.clone()).swapped(),
        &file["y"],
        TOLERANCE,
    );

    let gradients = (output * file["dy"].swapped().tensor()).sum().backward();
    for (name, tensor) in [("dq", q), ("dk", k), ("dv", v)] {
        let gradient = Array::of(tensor.grad(&gradients).expect("a gradient"));
        assert_close(name, &gradient.swapped(), &file[name], TOLERANCE);
    }
}

/// The value of each key is the one-hot code of its chunk, so the output is non-zero just where the chunk was chosen.
fn choices_are_those_of_the_golden_mask<O: Operators>() {
    for name in [
        "attention",
        "attention_dense",
        "attention_ragged",
        "attention_own_chunk",
    ] {
        let file = golden(name);
        let sizes = &file["chunk_topk"].values;
        let shape = ChunkTopK {
            chunk_size: sizes[0] as usize,
            top_k: sizes[1] as usize,
        };
        let (q, k) = (file["q"].swapped(), file["k"].swapped());
        let [batch, time, heads, n] = q.shape;
        let mut codes = Array {
            shape: q.shape,
            values: vec![0.0; q.values.len()],
        };
        for (row, code) in codes.values.chunks_mut(n).enumerate() {
            let t = row / heads % time;
            code[t / shape.chunk_size] = 1.0;
        }
        let output = O::sparse_attention([q.tensor(), k.tensor(), codes.tensor()], shape);
        let output = Array::of(output).swapped();
        let mask = &file["chunk_mask"];
        let chunks = mask.shape[3];
        for row in 0..batch * heads * time {
            for c in 0..chunks {
                let seen = output.values[row * n + c] > 0.0;
                assert_eq!(
                    seen,
                    mask.values[row * chunks + c] == 1.0,
                    "{name}: row {row}, chunk {c}"
                );
            }
        }
    }
}

pub(crate) fn several_chunks_per_query<O: Operators>() {
    check::<O>("attention");
}

fn a_sequence_short_enough_to_be_dense<O: Operators>() {
    check::<O>("attention_dense");
}

fn a_last_chunk_that_is_not_full<O: Operators>() {
    check::<O>("attention_ragged");
}

fn the_own_chunk_alone<O: Operators>() {
    check::<O>("attention_own_chunk");
}

/// Guards the test oracle itself.
#[test]
fn the_f64_oracle_agrees_with_the_golden_files() {
    for name in [
        "attention",
        "attention_dense",
        "attention_ragged",
        "attention_own_chunk",
    ] {
        let file = golden(name);
        let sizes = &file["chunk_topk"].values;
        let shape = ChunkTopK {
            chunk_size: sizes[0] as usize,
            top_k: sizes[1] as usize,
        };
        let [q, k, v] = ["q", "k", "v"].map(|name| file[name].swapped());
        let mask = oracle::chosen_chunks(&q, &k, shape);
        assert_eq!(mask.values, file["chunk_mask"].values, "{name}");
        let output = oracle::attention(&q, &k, &v, &mask, shape.chunk_size);
        assert_close(name, &output.swapped(), &file["y"], 1e-7);
    }
}

crate::on_all_bodies!(
    several_chunks_per_query,
    a_sequence_short_enough_to_be_dense,
    a_last_chunk_that_is_not_full,
    the_own_chunk_alone,
    choices_are_those_of_the_golden_mask,
);
