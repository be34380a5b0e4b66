//! The bodies of a backend against the CPU bodies, at sizes and types that the golden files do not have.

use std::process::ExitCode;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_flex::Flex;
use rwkvx_kernels::{KernelBackend, Wkv7Grads, Wkv7Inputs, Wkv7Output, wkv7};
use serde_json::json;

use crate::inputs;

/// `[batch, time, heads, head_size]`: one token, ragged lengths, every head size with a kernel of its own and one that is padded.
const SIZES: [[usize; 4]; 6] = [
    [3, 1, 2, 64],
    [2, 37, 3, 64],
    [1, 1023, 2, 64],
    [2, 130, 2, 32],
    [1, 95, 2, 128],
    [1, 50, 3, 48],
];

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
        for dims in SIZES {
            // Both start from the same rounded numbers.
            let rounded = everything::<Flex>(dims, dtype, DType::F32);
            let errors = everything::<B>(dims, dtype, dtype)
                .into_iter()
                .zip(rounded)
                .map(|((name, found), (_, expected))| (name, relative_error(&found, &expected)));
            for (tensor, error) in errors {
                // False for NaN, as it should be.
                let good = error <= tolerance(dtype);
                passed &= good;
                println!(
                    "{}",
                    json!({ "dims": dims, "dtype": dtype.name(), "tensor": tensor, "error": error,
                        "tolerance": tolerance(dtype), "passed": good })
                );
            }
        }
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Outputs and gradients for inputs rounded to `rounding`, computed in `dtype`.
fn everything<B: KernelBackend>(
    dims: [usize; 4],
    rounding: DType,
    dtype: DType,
) -> Vec<(&'static str, Vec<f32>)> {
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
        found.extend(named(gradients).map(|(name, tensor)| (name, numbers(tensor))));
    }
    found
}

/// Every gradient with its name.
pub(crate) fn named<B: Backend>(gradients: Wkv7Grads<B>) -> [(&'static str, Tensor<B, 4>); 7] {
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
