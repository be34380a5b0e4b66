//! How long the operators take.

use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::{DType, Distribution, Int, Tensor, backend::Backend};
use rwkvx_kernels::{
    KernelBackend, Wkv7Output, cross_entropy_gradient, cross_entropy_rows, wkv7 as run_wkv7,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::check::{named, numbers};
use crate::{CrossEntropyTiming, Pass, WkvTiming, inputs};

/// Calls before the first measurement, beside the one that is timed roughly.
const WARM_UP: usize = 3;
/// One measurement lasts at least this long, in seconds, so that waiting for the device weighs little.
const SHORTEST: f64 = 0.01;
/// But holds no more calls than this.
const MOST_CALLS: f64 = 1000.0;
/// How many tokens of each sequence are written for comparison,
const TOKENS_KEPT: usize = 16;
/// and how many states.
const STATES_KEPT: usize = 4;

/// Seconds per call, each a mean over as many calls as fill a measurement.
fn measure<B: Backend>(
    device: &B::Device,
    measurements: usize,
    mut call: impl FnMut(),
) -> Vec<f64> {
    let mut seconds = |calls: usize| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        B::sync(device).expect("the device computes");
        start.elapsed().as_secs_f64() / calls as f64
    };
    seconds(WARM_UP);
    let calls = (SHORTEST / seconds(1)).clamp(1.0, MOST_CALLS) as usize;
    (0..measurements).map(|_| seconds(calls)).collect()
}

pub(crate) fn wkv7<B: KernelBackend>(timing: &WkvTiming) -> ExitCode {
    let device = B::Device::default();
    let dtype = DType::from(timing.dtype);
    let dims: [usize; 4] = timing.dims[..].try_into().expect("four are asked for");
    let inputs = inputs::wkv7_inputs::<B>(dims, dtype, &device);
    let whole = |Wkv7Output { output, state }: Wkv7Output<B>| {
        let states = state.dims()[0].min(STATES_KEPT);
        vec![
            ("output", kept_rows(output)),
            ("state", state.slice_dim(0, 0..states)),
        ]
    };
    for &pass in &timing.pass {
        let (name, results, seconds) = match pass {
            Pass::Forward => {
                let results = whole(run_wkv7(inputs.clone()));
                let seconds = measure::<B>(&device, timing.measurements, || {
                    run_wkv7(inputs.clone());
                });
                ("forward", results, seconds)
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
                let sequences = named(gradients).into_iter().take(6);
                results.extend(sequences.map(|(name, gradient)| (name, kept_rows(gradient))));
                let seconds = measure::<B>(&device, timing.measurements, || {
                    call();
                });
                ("training", results, seconds)
            }
            Pass::Decode => {
                let mut inputs = inputs.clone();
                inputs.state = Some(inputs::state(dims, &device));
                let results = whole(run_wkv7(inputs.clone()));
                let seconds = measure::<B>(&device, timing.measurements, || {
                    inputs.state = Some(run_wkv7(inputs.clone()).state);
                });
                ("decode", results, seconds)
            }
        };
        if let Some(folder) = &timing.results {
            let results: Vec<_> = results
                .into_iter()
                .map(|(name, x)| (name, Stored::of(x)))
                .collect();
            let views = results.iter().map(|(name, stored)| (name, stored.view()));
            let path = folder.join(format!("{name}.safetensors"));
            safetensors::serialize_to_file(views, None, &path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        println!("{}", json!({ "pass": name, "seconds": seconds }));
    }
    ExitCode::SUCCESS
}

/// Each call overwrites the logits by their gradient and takes that for the next one's logits.
pub(crate) fn cross_entropy<B: KernelBackend>(timing: &CrossEntropyTiming) -> ExitCode {
    let device = B::Device::default();
    let (rows, vocab) = (timing.rows, timing.vocab);
    let normal = Distribution::Normal(0.0, 1.0);
    let logits = Tensor::<B, 2>::random([rows, vocab], normal, &device);
    let mut logits = Some(logits.cast(DType::from(timing.dtype)));
    let targets = Tensor::<B, 1, Int>::zeros([rows], &device);
    let shares = Tensor::<B, 1>::ones([rows], (&device, DType::F32));
    let seconds = measure::<B>(&device, timing.measurements, || {
        let own = logits.take().expect("every call puts them back");
        let losses = cross_entropy_rows(own.clone(), targets.clone());
        let (targets, shares) = (targets.clone(), shares.clone());
        logits = Some(cross_entropy_gradient(own, targets, losses, shares, 1e-4));
    });
    println!(
        "{}",
        json!({ "pass": "losses and gradient", "seconds": seconds })
    );
    ExitCode::SUCCESS
}

/// Some tokens of a sequence `[batch, time, heads, head_size]`, evenly spread from the first to the last.
fn kept_rows<B: Backend>(sequence: Tensor<B, 4>) -> Tensor<B, 4> {
    let time = sequence.dims()[1];
    let last = TOKENS_KEPT.min(time) - 1;
    let rows = (0..=last)
        .map(|i| (time - 1) * i / last.max(1))
        .map(|t| sequence.clone().slice_dim(1, t..t + 1))
        .collect();
    Tensor::cat(rows, 1)
}

/// A tensor as it is written, in f32.
struct Stored {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of<B: Backend>(tensor: Tensor<B, 4>) -> Self {
        let shape = tensor.dims().to_vec();
        let bytes = numbers(tensor).into_iter().flat_map(f32::to_le_bytes);
        Self {
            shape,
            bytes: bytes.collect(),
        }
    }

    fn view(&self) -> TensorView<'_> {
        TensorView::new(Dtype::F32, self.shape.clone(), &self.bytes)
            .expect("as many bytes as the shape says")
    }
}
