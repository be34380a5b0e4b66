//! The element-wise functions, element by element, and their slopes.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rwkvx_kernels::{KernelBackend, sigmoid, squared_relu, tanh};

use crate::support::{Array, TOLERANCE, assert_close};

/// Numbers of all sizes, both signs, in a shape whose rows are no whole vectors.
fn numbers() -> Array {
    let mut array = Array::normal([3, 7, 5, 61], 1).map(|x| f64::from((x * x * x) as f32));
    let extremes = [
        0.0, 1e-20, -1e-6, 0.624, 0.626, -0.625, 20.0, -20.0, 87.0, -87.0, 1000.0, -1000.0,
    ];
    array.values[..extremes.len()].copy_from_slice(&extremes.map(|x| f64::from(x as f32)));
    array
}

type Function<B> = fn(Tensor<B, 4>) -> Tensor<B, 4>;

fn check<B: KernelBackend>(
    function: Function<Autodiff<B>>,
    exact: fn(f64) -> f64,
    slope: fn(f64) -> f64,
    tolerance: f64,
) {
    let x = numbers();
    let leaf = x.tensor::<Autodiff<B>>().require_grad();
    let y = function(leaf.clone());
    let found = Array::of(y.clone());
    for (x, y) in x.values.iter().zip(&found.values) {
        let expected = exact(*x);
        // Results below 1e-37 may be flushed to zero.
        let error = (y - expected).abs();
        assert!(
            error <= tolerance * expected.abs() + 1e-37,
            "f({x:e}) = {y:e}, expected {expected:e}"
        );
    }

    let weights = Array::normal(x.shape, 2);
    let gradients = (y * weights.tensor()).sum().backward();
    let mut expected = x.map(slope);
    expected
        .values
        .iter_mut()
        .zip(&weights.values)
        .for_each(|(slope, weight)| *slope *= weight);
    let gradient = Array::of(leaf.grad(&gradients).expect("tracked"));
    assert_close("gradient", &gradient, &expected, TOLERANCE);
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Four roundings.
const ACCURATE: f64 = 4e-7;

#[test]
fn sigmoid_is_accurate_for_each_element_on_flex() {
    check::<burn_flex::Flex>(sigmoid, logistic, |x| logistic(x) * logistic(-x), ACCURATE);
}

#[test]
fn sigmoid_is_accurate_for_each_element_on_ndarray() {
    check::<burn_ndarray::NdArray<f32>>(
        sigmoid,
        logistic,
        |x| logistic(x) * logistic(-x),
        ACCURATE,
    );
}

#[test]
fn tanh_is_accurate_for_each_element_on_flex() {
    check::<burn_flex::Flex>(tanh, f64::tanh, |x| 1.0 - x.tanh().powi(2), ACCURATE);
}

#[test]
fn tanh_is_accurate_for_each_element_on_ndarray() {
    check::<burn_ndarray::NdArray<f32>>(tanh, f64::tanh, |x| 1.0 - x.tanh().powi(2), ACCURATE);
}

fn check_squared_relu<B: KernelBackend>() {
    let square = |x: f64| x.max(0.0).powi(2);
    check::<B>(squared_relu, square, |x| 2.0 * x.max(0.0), ACCURATE);
    let x = Tensor::<B, 1>::from_floats([f32::NAN, -1.0, 3.0], &Default::default());
    let values: Vec<f32> = squared_relu(x).into_data().to_vec().unwrap();
    assert!(values[0].is_nan(), "what is no number stays none");
    assert_eq!(values[1..], [0.0, 9.0]);
}

#[test]
fn squared_relu_is_accurate_for_each_element_on_flex() {
    check_squared_relu::<burn_flex::Flex>();
}

#[test]
fn squared_relu_is_accurate_for_each_element_on_ndarray() {
    check_squared_relu::<burn_ndarray::NdArray<f32>>();
}

#[test]
fn a_transposed_argument_keeps_its_shape() {
    let x = numbers();
    let turned = sigmoid(x.tensor::<burn_flex::Flex>().swap_dims(1, 3));
    let straight = sigmoid(x.tensor::<burn_flex::Flex>()).swap_dims(1, 3);
    assert_eq!(Array::of(turned).values, Array::of(straight).values);
}
