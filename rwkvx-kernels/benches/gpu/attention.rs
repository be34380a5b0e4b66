//! How long the sparse attention takes.

use std::cell::LazyCell;
use std::process::ExitCode;

use burn::tensor::{DType, Tensor};
use rwkvx_kernels::{AttentionInputs, ChunkTopK, KernelBackend, KvCache, sparse_attention};
use serde_json::json;

use crate::check::named_attention;
use crate::time::{kept_rows, measure, seconds, write};
use crate::{AttentionTiming, Pass, inputs};

/// Tokens that a cache is given at a time.
const PIECE: usize = 16 * 1024;
/// Tokens decoded per measurement. More would lengthen a short cache by much.
const STEPS: usize = 32;

type Results<B> = Vec<(&'static str, Tensor<B, 4>)>;

pub(crate) fn time<B: KernelBackend>(sizes: &AttentionTiming) -> ExitCode {
    let device = B::Device::default();
    let timing = &sizes.timing;
    let dtype = DType::from(timing.dtype);
    // One batch: a shorter sequence is the start of a longer one.
    let longest = LazyCell::new(|| {
        let tokens = sizes.tokens.iter().copied().max().unwrap_or(0);
        let dims = [1, tokens, sizes.heads, sizes.head_size];
        let inputs = inputs::attention_inputs::<B>(0, dims, sizes.shape(), dtype, &device);
        (inputs, inputs::d_output::<B>(dims, dtype, &device))
    });
    for &tokens in &sizes.tokens {
        for &pass in &timing.pass {
            let start = |x: &Tensor<B, 4>| x.clone().slice_dim(1, 0..tokens);
            let inputs = || AttentionInputs {
                query: start(&longest.0.query),
                key: start(&longest.0.key),
                value: start(&longest.0.value),
                shape: sizes.shape(),
            };
            let (results, seconds) = match pass {
                Pass::Forward => forward(&inputs(), timing.measurements, &device),
                Pass::Training => {
                    let d_output = start(&longest.1);
                    training(&inputs(), &d_output, timing.measurements, &device)
                }
                Pass::Decode => decode::<B>(sizes, tokens, dtype, &device),
            };
            if let Some(folder) = &timing.results {
                let path = folder.join(format!("{}-{tokens}.safetensors", pass.name()));
                write(&path, results);
            }
            println!(
                "{}",
                json!({ "tokens": tokens, "pass": pass.name(), "seconds": seconds })
            );
        }
    }
    ExitCode::SUCCESS
}

fn forward<B: KernelBackend>(
    inputs: &AttentionInputs<B>,
    measurements: usize,
    device: &B::Device,
) -> (Results<B>, Vec<f64>) {
    let call = || {
        let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value].map(Tensor::clone);
        sparse_attention(query, key, value, inputs.shape)
    };
    let results = vec![("output", kept_rows(call()))];
    let seconds = measure::<B>(device, measurements, || {
        call();
    });
    (results, seconds)
}

fn training<B: KernelBackend>(
    inputs: &AttentionInputs<B>,
    d_output: &Tensor<B, 4>,
    measurements: usize,
    device: &B::Device,
) -> (Results<B>, Vec<f64>) {
    let gradient = B::ATTENTION_GRADIENT.expect("a backend with a backward pass of its own");
    let call = || {
        let (output, saved) = (gradient.forward)(inputs);
        let gradients = (gradient.backward)(inputs, output.clone(), saved, d_output.clone());
        (output, gradients)
    };
    let (output, gradients) = call();
    let mut results = vec![("output", kept_rows(output))];
    let gradients = named_attention(gradients).into_iter();
    results.extend(gradients.map(|(name, gradient)| (name, kept_rows(gradient))));
    let seconds = measure::<B>(device, measurements, || {
        call();
    });
    (results, seconds)
}

/// One token after another, with a cache that holds `held` at first.
fn decode<B: KernelBackend>(
    sizes: &AttentionTiming,
    held: usize,
    dtype: DType,
    device: &B::Device,
) -> (Results<B>, Vec<f64>) {
    let shape = sizes.shape();
    let inputs = |first, tokens| {
        let dims = [1, tokens, sizes.heads, sizes.head_size];
        inputs::attention_inputs::<B>(first, dims, shape, dtype, device)
    };
    let mut cache = KvCache::<B>::new(1, sizes.heads, sizes.head_size, shape, (device, dtype));
    let measurements = sizes.timing.measurements;
    // One step to compare, and one measurement to warm up.
    cache.reserve(held + 1 + STEPS * (1 + measurements));
    for first in (0..held).step_by(PIECE) {
        let piece = inputs(first, PIECE.min(held - first));
        cache.attend(piece.query, piece.key, piece.value);
    }
    let token = inputs(held, 1);
    let mut step = || cache.attend(token.query.clone(), token.key.clone(), token.value.clone());
    let results = vec![("output", step())];
    let mut call = || {
        step();
    };
    seconds::<B>(device, STEPS, &mut call);
    let seconds = (0..measurements)
        .map(|_| seconds::<B>(device, STEPS, &mut call))
        .collect();
    (results, seconds)
}

impl AttentionTiming {
    fn shape(&self) -> ChunkTopK {
        ChunkTopK {
            chunk_size: self.chunk_size,
            top_k: self.top_k,
        }
    }
}
