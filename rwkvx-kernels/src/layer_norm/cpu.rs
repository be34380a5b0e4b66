//! The norm by hand for CPUs, a row at a time.

use burn::tensor::Tensor;

use super::EPSILON;
use crate::cpu::HostMemory;
use crate::time_mix::cpu::rows::{RowPass, run};
use crate::time_mix::cpu::sum;

/// The body of [`KernelBackend::layer_norm`](crate::KernelBackend::layer_norm).
pub(crate) fn layer_norm<B: HostMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let [_, channels] = x.dims();
    let ([normal], []) = run(Forward, channels, [x], [weight, bias]);
    normal
}

struct Forward;

impl RowPass<1, 2, 1, 0, 0> for Forward {
    const COST: usize = 6;

    #[inline(always)]
    fn row(
        channels: usize,
        [x]: [&[f32]; 1],
        [weight, bias]: [&[f32]; 2],
        [normal]: [&mut [f32]; 1],
        []: [&mut [f32]; 0],
        []: [&mut [f32]; 0],
    ) {
        let count = channels as f32;
        let mean = sum(x) / count;
        for (square, x) in normal.iter_mut().zip(x) {
            *square = (x - mean) * (x - mean);
        }
        let scale = 1.0 / (sum(normal) / count + EPSILON as f32).sqrt();
        for (i, normal) in normal.iter_mut().enumerate() {
            *normal = (x[i] - mean) * scale * weight[i] + bias[i];
        }
    }
}
