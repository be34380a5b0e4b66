//! How long the recurrence takes.

use std::process::ExitCode;

use burn::tensor::DType;
use rwkvx_kernels::{KernelBackend, Wkv7Output, wkv7 as run_wkv7};
use serde_json::json;

use crate::check::named_wkv7;
use crate::time::{kept_rows, measure, write};
use crate::{Pass, WkvTiming, inputs};

/// How many states are written for comparison.
const STATES_KEPT: usize = 4;

pub(crate) fn time<B: KernelBackend>(size: &WkvTiming) -> ExitCode {
    let device = B::Device::default();
    let timing = &size.timing;
    let dtype = DType::from(timing.dtype);
    let dims: [usize; 4] = size.dims[..].try_into().expect("four are asked for");
    let inputs = inputs::wkv7_inputs::<B>(dims, dtype, &device);
    let whole = |Wkv7Output { output, state }: Wkv7Output<B>| {
        let states = state.dims()[0].min(STATES_KEPT);
        vec![
            ("output", kept_rows(output)),
            ("state", state.slice_dim(0, 0..states)),
        ]
    };
    for &pass in &timing.pass {
        let (results, seconds) = match pass {
            Pass::Forward => {
                let results = whole(run_wkv7(inputs.clone()));
                let seconds = measure::<B>(&device, timing.measurements, || {
                    run_wkv7(inputs.clone());
                });
                (results, seconds)
            }
            Pass::Training => {
                let Some(gradient) = B::WKV7_GRADIENT else {
                    eprintln!("this backend has no backward pass of its own");
                    return ExitCode::FAILURE;
                };
                let d_output = inputs::d_output::<B>(dims, dtype, &device);
                let call = || {
                    let (output, saved) = (gradient.forward)(inputs.clone());
                    let d_output = Some(d_output.clone());
                    let gradients = (gradient.backward)(inputs.clone(), saved, d_output, None);
                    (output, gradients)
                };
                let (output, gradients) = call();
                let mut results = whole(output);
                let sequences = named_wkv7(gradients).into_iter().take(6);
                results.extend(sequences.map(|(name, gradient)| (name, kept_rows(gradient))));
                let seconds = measure::<B>(&device, timing.measurements, || {
                    call();
                });
                (results, seconds)
            }
            Pass::Decode => {
                let mut inputs = inputs.clone();
                inputs.state = Some(inputs::state(dims, &device));
                let results = whole(run_wkv7(inputs.clone()));
                let seconds = measure::<B>(&device, timing.measurements, || {
                    inputs.state = Some(run_wkv7(inputs.clone()).state);
                });
                (results, seconds)
            }
        };
        if let Some(folder) = &timing.results {
            write(
                &folder.join(format!("{}.safetensors", pass.name())),
                results,
            );
        }
        println!("{}", json!({ "pass": pass.name(), "seconds": seconds }));
    }
    ExitCode::SUCCESS
}
