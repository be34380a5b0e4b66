//! How long the head's loss takes.

use std::process::ExitCode;

use burn::tensor::{DType, Distribution, Int, Tensor};
use rwkvx_kernels::{KernelBackend, cross_entropy_gradient, cross_entropy_rows};
use serde_json::json;

use crate::CrossEntropyTiming;
use crate::time::measure;

/// Each call overwrites the logits by their gradient and takes that for the next one's logits.
pub(crate) fn time<B: KernelBackend>(timing: &CrossEntropyTiming) -> ExitCode {
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
