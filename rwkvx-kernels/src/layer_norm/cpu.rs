//! The norm by hand for CPUs, a row at a time.

use burn::tensor::Tensor;

use super::{EPSILON, LayerNormGrads};
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

/// The body of [`KernelBackend::layer_norm_backward`](crate::KernelBackend::layer_norm_backward).
pub(crate) fn backward<B: HostMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    d_normal: Tensor<B, 2>,
) -> LayerNormGrads<B> {
    let [_, channels] = x.dims();
    let bias = weight.clone(); // its gradient takes as much room; the value is not read
    let ([x], [weight, bias]) = run(Backward, channels, [x, d_normal], [weight, bias]);
    LayerNormGrads { x, weight, bias }
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

struct Backward;

impl RowPass<2, 2, 1, 2, 1> for Backward {
    const COST: usize = 16;

    #[inline(always)]
    fn row(
        channels: usize,
        [x, d_normal]: [&[f32]; 2],
        [weight, _]: [&[f32]; 2],
        [d_x]: [&mut [f32]; 1],
        [d_weight, d_bias]: [&mut [f32]; 2],
        [scratch]: [&mut [f32]; 1],
    ) {
        let share = 1.0 / channels as f32;
        let normal = d_x;
        let mean = sum(x) * share;
        for i in 0..channels {
            normal[i] = x[i] - mean;
            scratch[i] = normal[i] * normal[i];
        }
        let inverse = 1.0 / (sum(scratch) * share + EPSILON as f32).sqrt();
        for i in 0..channels {
            normal[i] *= inverse;
            d_weight[i] += d_normal[i] * normal[i];
            d_bias[i] += d_normal[i];
            scratch[i] = d_normal[i] * weight[i];
        }
        let d_mean = sum(scratch) * share;
        for i in 0..channels {
            scratch[i] *= normal[i];
        }
        let along = sum(scratch) * share;
        let d_x = normal;
        for i in 0..channels {
            d_x[i] = (d_normal[i] * weight[i] - d_mean - d_x[i] * along) * inverse;
        }
    }
}
