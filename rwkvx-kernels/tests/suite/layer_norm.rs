//! The norm and its gradients, by hand and by the definition, against f64.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor};
use burn_flex::Flex;
use rwkvx_kernels::layer_norm;

use crate::on_all_bodies;
use crate::support::{Array, Native, Operators, TOLERANCE, assert_close};

type Ad<O> = Autodiff<<O as Operators>::Inner>;

/// The norm and its gradients by `x`, `weight` and `bias`, as `[1, 1, rows, channels]`.
struct Results([Array; 4]);

impl Results {
    fn exact(x: &Array, weight: &Array, bias: &Array, d_normal: &Array) -> Self {
        let channels = weight.values.len();
        let share = 1.0 / channels as f64;
        let (mut normals, mut d_x) = (x.clone(), x.clone());
        let (mut d_weight, mut d_bias) = (weight.clone().map(|_| 0.0), bias.clone().map(|_| 0.0));
        for first in (0..x.values.len()).step_by(channels) {
            let row = &x.values[first..][..channels];
            let d = &d_normal.values[first..][..channels];
            let mean = row.iter().sum::<f64>() * share;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() * share;
            let deviation = (variance + 1e-5).sqrt();
            let normal: Vec<f64> = row.iter().map(|x| (x - mean) / deviation).collect();
            let scaled: Vec<f64> = (0..channels).map(|i| d[i] * weight.values[i]).collect();
            let d_mean = scaled.iter().sum::<f64>() * share;
            let along = (0..channels).map(|i| scaled[i] * normal[i]).sum::<f64>() * share;
            for i in 0..channels {
                normals.values[first + i] = normal[i] * weight.values[i] + bias.values[i];
                d_x.values[first + i] = (scaled[i] - d_mean - normal[i] * along) / deviation;
                d_weight.values[i] += d[i] * normal[i];
                d_bias.values[i] += d[i];
            }
        }
        Self([normals, d_x, d_weight, d_bias])
    }

    fn found<O: Operators>([x, weight, bias, d_normal]: [&Array; 4], dtype: DType) -> Self {
        let [_, _, rows, channels] = x.shape;
        let [x, weight, bias] = [x, weight, bias].map(|array| array.tensor::<Ad<O>>());
        let leaves = [x, weight, bias].map(Tensor::require_grad);
        let [x, weight, bias] = leaves.clone();
        let normal = O::layer_norm(
            x.reshape([rows, channels]).cast(dtype),
            weight.reshape([channels]).cast(dtype),
            bias.reshape([channels]).cast(dtype),
        );
        let normal = normal.cast(DType::F32).unsqueeze::<4>();
        let gradients = (normal.clone() * d_normal.tensor()).sum().backward();
        let [x, weight, bias] =
            leaves.map(|leaf| Array::of(leaf.grad(&gradients).expect("tracked")));
        Self([Array::of(normal), x, weight, bias])
    }

    #[track_caller]
    fn assert_close(&self, what: &str, expected: &Self, tolerance: f64) {
        let names = ["normal", "d_x", "d_weight", "d_bias"];
        for ((name, found), expected) in names.iter().zip(&self.0).zip(&expected.0) {
            assert_close(&format!("{what}, {name}"), found, expected, tolerance);
        }
    }
}

fn inputs(rows: usize, channels: usize) -> [Array; 4] {
    let vector = |seed| Array::normal([1, 1, 1, channels], seed);
    let x = Array::normal([1, 1, rows, channels], 1).map(|x| f64::from((3.0 * x + 5.0) as f32));
    let d_normal = Array::normal([1, 1, rows, channels], 4);
    [x, vector(2), vector(3), d_normal]
}

/// Fewer and more channels than units, rows that are no whole vectors, more rows than a block.
fn rows_of_any_number_and_length<O: Operators>() {
    for (rows, channels) in [(1, 768), (3, 35), (40, 64), (100, 96), (1500, 12)] {
        let [x, weight, bias, d_normal] = &inputs(rows, channels);
        let expected = Results::exact(x, weight, bias, d_normal);
        let found = Results::found::<O>([x, weight, bias, d_normal], DType::F32);
        found.assert_close(&format!("{rows} x {channels}"), &expected, TOLERANCE);
    }
}

on_all_bodies!(rows_of_any_number_and_length);

/// One rounding of inputs and one of outputs; sums over rows must not add to that.
#[test]
fn half_precision_is_rounded_once() {
    let [x, weight, bias, d_normal] = &inputs(2000, 32);
    let expected = Results::exact(x, weight, bias, d_normal);
    let found = Results::found::<Native<Flex>>([x, weight, bias, d_normal], DType::BF16);
    found.assert_close("bf16", &expected, 5e-3);
}

#[test]
fn a_row_of_one_is_its_bias() {
    let vector = |x: f32| Tensor::<Flex, 1>::from_floats([x], &Default::default());
    let x = Tensor::from_floats([[3.0], [-7.0]], &Default::default());
    let values: Vec<f32> = layer_norm(x, vector(2.0), vector(0.5))
        .into_data()
        .to_vec()
        .unwrap();
    assert_eq!(values, [0.5, 0.5]);
}

#[test]
#[should_panic(expected = "`bias` must be [channels] = [4], found [3]")]
fn sizes_that_do_not_fit_are_refused() {
    let device = Default::default();
    let vector = |size: usize| Tensor::<Flex, 1>::zeros([size], &device);
    layer_norm(Tensor::zeros([2, 4], &device), vector(4), vector(3));
}
