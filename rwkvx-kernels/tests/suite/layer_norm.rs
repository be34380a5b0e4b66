//! The norm, by hand and by its definition, against f64.

use burn::tensor::Tensor;
use rwkvx_kernels::{KernelBackend, layer_norm, reference};

use crate::support::{Array, TOLERANCE, assert_close};

fn check<B: KernelBackend>(rows: usize, channels: usize) {
    let x = Array::normal([1, 1, rows, channels], 1).map(|x| f64::from((3.0 * x + 5.0) as f32));
    let vector = |seed| Array::normal([1, 1, 1, channels], seed);
    let (weight, bias) = (vector(2), vector(3));
    let mut expected = x.clone();
    for row in expected.values.chunks_mut(channels) {
        let mean = row.iter().sum::<f64>() / channels as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / channels as f64;
        for (i, x) in row.iter_mut().enumerate() {
            *x = (*x - mean) / (variance + 1e-5).sqrt() * weight.values[i] + bias.values[i];
        }
    }
    let arguments = || -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
        let vector = |array: &Array| array.tensor::<B>().reshape([channels]);
        let x = x.tensor::<B>().reshape([rows, channels]);
        (x, vector(&weight), vector(&bias))
    };
    let (x, weight, bias) = arguments();
    let found = Array::of(layer_norm(x, weight, bias).unsqueeze::<4>());
    assert_close(
        &format!("{rows} x {channels}"),
        &found,
        &expected,
        TOLERANCE,
    );
    let (x, weight, bias) = arguments();
    let defined = Array::of(reference::layer_norm(x, weight, bias).unsqueeze::<4>());
    assert_close("definition", &defined, &expected, TOLERANCE);
}

#[test]
fn rows_of_any_number_and_length() {
    for (rows, channels) in [(1, 1), (1, 768), (3, 35), (40, 64), (100, 96)] {
        check::<burn_flex::Flex>(rows, channels);
        check::<burn_ndarray::NdArray<f32>>(rows, channels);
    }
}

#[test]
#[should_panic(expected = "`bias` must be [channels] = [4], found [3]")]
fn sizes_that_do_not_fit_are_refused() {
    let device = Default::default();
    let vector = |size: usize| Tensor::<burn_flex::Flex, 1>::zeros([size], &device);
    layer_norm(Tensor::zeros([2, 4], &device), vector(4), vector(3));
}
