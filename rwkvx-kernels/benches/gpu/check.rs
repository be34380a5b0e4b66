//! The bodies of a backend against the CPU bodies, at sizes and types that the golden files do not have.

use std::process::ExitCode;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_flex::Flex;
use rwkvx_kernels::{
    AttentionGrads, AttentionInputs, ChunkTopK, KernelBackend, Wkv7Grads, Wkv7Inputs, Wkv7Output,
    sparse_attention, wkv7,
};
use serde_json::json;

use crate::inputs;

/// Of the recurrence, `[batch, time, heads, head_size]`: one token, ragged lengths, every head size with a kernel of its own and one that
/// is padded.
const WKV7_SIZES: [[usize; 4]; 6] = [
    [3, 1, 2, 64],
    [2, 37, 3, 64],
    [1, 1023, 2, 64],
    [2, 130, 2, 32],
    [1, 95, 2, 128],
    [1, 50, 3, 48],
];

/// Of the attention, with chunk size: short and ragged lengths, a head size that is padded.
const ATTENTION_SIZES: [([usize; 4], usize); 4] = [
    ([2, 37, 2, 64], 16),
    ([1, 1000, 2, 64], 64),
    ([1, 300, 2, 64], 100),
    ([1, 300, 2, 40], 48),
];
/// The same for all, since each has kernels of its own to compile.
const TOP_K: usize = 3;

/// Names and numbers of tensors.
type Found = Vec<(&'static str, Vec<f32>)>;

/// What a difference may be, `norm(x - reference) / norm(reference)`.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        _ => 1e-2,
    }
}

pub(crate) fn check<B: KernelBackend>(dtypes: impl Iterator<Item = DType>) -> ExitCode {
    let mut passed = true;
    for dtype in dtypes {
        // Both start from the same rounded numbers.
        for dims in WKV7_SIZES {
            let expected = wkv7_results::<Flex>(dims, dtype, DType::F32);
            let found = wkv7_results::<B>(dims, dtype, dtype);
            passed &= compare("wkv7", dims, dtype, found, expected);
        }
        for (dims, chunk_size) in ATTENTION_SIZES {
            let shape = ChunkTopK {
                chunk_size,
                top_k: TOP_K,
            };
            let expected = attention_results::<Flex>(dims, shape, dtype, DType::F32);
            let found = attention_results::<B>(dims, shape, dtype, dtype);
            passed &= compare("attention", dims, dtype, found, expected);
        }
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether all that was found is close enough; prints a line per tensor.
fn compare(operator: &str, dims: [usize; 4], dtype: DType, found: Found, expected: Found) -> bool {
    let mut passed = true;
    for ((tensor, found), (_, expected)) in found.iter().zip(&expected) {
        let error = relative_error(found, expected);
        // False for NaN, as it should be.
        let good = error <= tolerance(dtype);
        passed &= good;
        println!(
            "{}",
            json!({ "operator": operator, "dims": dims, "dtype": dtype.name(), "tensor": tensor,
                "error": error, "tolerance": tolerance(dtype), "passed": good })
        );
    }
    passed
}

/// Outputs and gradients for inputs rounded to `rounding`, computed in `dtype`.
fn wkv7_results<B: KernelBackend>(dims: [usize; 4], rounding: DType, dtype: DType) -> Found {
    let device = B::Device::default();
    let rounded = inputs::wkv7_inputs::<B>(dims, rounding, &device);
    let inputs = Wkv7Inputs {
        receptance: rounded.receptance.cast(dtype),
        log_decay: rounded.log_decay.cast(dtype),
        key: rounded.key.cast(dtype),
        value: rounded.value.cast(dtype),
        removal: rounded.removal.cast(dtype),
        replacement: rounded.replacement.cast(dtype),
        state: Some(inputs::state(dims, &device)),
    };
    let d_output = inputs::d_output::<B>(dims, rounding, &device).cast(dtype);
    let d_state = inputs::state::<B>(dims, &device);

    let Wkv7Output { output, state } = wkv7(inputs.clone());
    let mut found = vec![("output", numbers(output)), ("state", numbers(state))];
    if let Some(gradient) = B::WKV7_GRADIENT {
        let (Wkv7Output { output, state }, saved) = (gradient.forward)(inputs.clone());
        let gradients = (gradient.backward)(inputs, saved, Some(d_output), Some(d_state));
        found.push(("output for training", numbers(output)));
        found.push(("state for training", numbers(state)));
        found.extend(named_wkv7(gradients).map(|(name, tensor)| (name, numbers(tensor))));
    }
    found
}

/// The same of the attention.
fn attention_results<B: KernelBackend>(
    dims: [usize; 4],
    shape: ChunkTopK,
    rounding: DType,
    dtype: DType,
) -> Found {
    let device = B::Device::default();
    let rounded = inputs::attention_inputs::<B>(0, dims, shape, rounding, &device);
    let inputs = AttentionInputs {
        query: rounded.query.cast(dtype),
        key: rounded.key.cast(dtype),
        value: rounded.value.cast(dtype),
        shape,
    };
    let d_output = inputs::d_output::<B>(dims, rounding, &device).cast(dtype);

    let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value].map(Tensor::clone);
    let output = sparse_attention(query, key, value, shape);
    let mut found = vec![("output", numbers(output))];
    if let Some(gradient) = B::ATTENTION_GRADIENT {
        let (output, saved) = (gradient.forward)(&inputs);
        let gradients = (gradient.backward)(&inputs, output.clone(), saved, d_output);
        found.push(("output for training", numbers(output)));
        found.extend(named_attention(gradients).map(|(name, tensor)| (name, numbers(tensor))));
    }
    found
}

/// Every gradient with its name.
pub(crate) fn named_wkv7<B: Backend>(gradients: Wkv7Grads<B>) -> [(&'static str, Tensor<B, 4>); 7] {
    [
        ("d_receptance", gradients.receptance),
        ("d_log_decay", gradients.log_decay),
        ("d_key", gradients.key),
        ("d_value", gradients.value),
        ("d_removal", gradients.removal),
        ("d_replacement", gradients.replacement),
        ("d_state", gradients.state),
    ]
}

/// Every gradient with its name.
pub(crate) fn named_attention<B: Backend>(
    gradients: AttentionGrads<B>,
) -> [(&'static str, Tensor<B, 4>); 3] {
    [
        ("d_query", gradients.query),
        ("d_key", gradients.key),
        ("d_value", gradients.value),
    ]
}

/// Row-major, in f32.
pub(crate) fn numbers<B: Backend>(tensor: Tensor<B, 4>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.into_vec().expect("converted to f32")
}

fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    norm(&mut pairs.map(|(x, y)| f64::from(*x) - f64::from(*y)))
        / norm(&mut expected.iter().map(|y| f64::from(*y)))
}
