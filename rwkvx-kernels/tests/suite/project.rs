//! Rows times weights of every number format and layout, against sums in f64 of what the stored numbers stand for.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use rwkvx_kernels::{
    KernelBackend, Pointwise, Product, WeightLayout, int8_scheme, project, project_all,
};

use crate::support::{Array, assert_close};

/// Roundings of f32 sums.
const EXACT: f64 = 1e-6;

/// A number format of weights.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Float(DType),
    Int8,
}

fn matrix<B: Backend>(array: &Array) -> Tensor<B, 2> {
    let [_, _, rows, columns] = array.shape;
    array.tensor::<B>().reshape([rows, columns])
}

fn array<B: Backend>(tensor: Tensor<B, 2>) -> Array {
    Array::of(tensor.unsqueeze::<4>())
}

/// `x` times `weight`, in f64.
fn product(x: &Array, weight: &Array, layout: WeightLayout) -> Array {
    let ([_, _, rows, inputs], [_, _, _, columns]) = (x.shape, weight.shape);
    let (outputs, in_stride, out_stride) = match layout {
        WeightLayout::OutIn => (weight.shape[2], 1, columns),
        WeightLayout::InOut => (columns, columns, 1),
    };
    let values = (0..rows * outputs).map(|i| {
        let (row, output) = (i / outputs, i % outputs);
        (0..inputs)
            .map(|input| {
                x.values[row * inputs + input]
                    * weight.values[input * in_stride + output * out_stride]
            })
            .sum()
    });
    Array {
        shape: [1, 1, rows, outputs],
        values: values.collect(),
    }
}

fn check<B: KernelBackend>(
    [rows, inputs, outputs]: [usize; 3],
    format: Format,
    layout: WeightLayout,
    tolerance: f64,
) {
    let x = Array::normal([1, 1, rows, inputs], 1);
    let shape = match layout {
        WeightLayout::OutIn => [1, 1, outputs, inputs],
        WeightLayout::InOut => [1, 1, inputs, outputs],
    };
    let weight = matrix::<B>(&Array::normal(shape, 2));
    let weight = match format {
        Format::Float(dtype) => weight.cast(dtype),
        Format::Int8 => weight.quantize_dynamic(&int8_scheme(inputs).expect("whole groups")),
    };
    let stands_for = array(weight.clone().dequantize().cast(DType::F32));
    let found = array(project(matrix::<B>(&x), weight, layout));
    assert_close(
        &format!("{rows} rows, {inputs} to {outputs}, {format:?} {layout:?}"),
        &found,
        &product(&x, &stands_for, layout),
        tolerance,
    );
}

/// Rows on both sides of where the body changes, outputs that fill no block, inputs that fill no vector.
const SIZES: [[usize; 3]; 9] = [
    [1, 64, 64],
    [1, 768, 301],
    [2, 100, 7],
    [3, 35, 130],
    [5, 64, 1],
    [12, 160, 99],
    [13, 160, 99],
    [40, 96, 260],
    [7, 1, 9],
];

fn weights_in_f32<B: KernelBackend>() {
    for sizes in SIZES {
        for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
            check::<B>(sizes, Format::Float(DType::F32), layout, EXACT);
        }
    }
}

/// As of a time mix: both layouts, sizes of all kinds, with functions and addends.
fn several_at_once_in<B: KernelBackend>(format: DType, tolerance: f64) {
    use WeightLayout::{InOut, OutIn};
    let tasks = [
        (OutIn, 96, 96, None, false),
        (InOut, 96, 12, Some(Pointwise::Tanh), false),
        (OutIn, 160, 33, Some(Pointwise::SquaredRelu), true),
        (InOut, 8, 300, Some(Pointwise::Sigmoid), true),
        (InOut, 4, 4, None, true),
    ];
    for rows in [1, 2, 3, 8, 11, 32, 33] {
        let mut products = Vec::new();
        let mut expected = Vec::new();
        for (seed, (layout, inputs, outputs, then, adds)) in (10..).step_by(3).zip(tasks) {
            let shape = match layout {
                OutIn => [1, 1, outputs, inputs],
                InOut => [1, 1, inputs, outputs],
            };
            let x = Array::normal([1, 1, rows, inputs], seed);
            let scale = (inputs as f64).sqrt().recip();
            let weight = Array::normal(shape, seed + 1).map(|w| w * scale);
            let weight = matrix::<B>(&weight).cast(format);
            let mut exact = product(&x, &array(weight.clone().cast(DType::F32)), layout);
            exact = exact.map(|y| match then {
                None => y,
                Some(Pointwise::Sigmoid) => 1.0 / (1.0 + (-y).exp()),
                Some(Pointwise::Tanh) => y.tanh(),
                Some(Pointwise::SquaredRelu) => y.max(0.0).powi(2),
            });
            let mut one = Product::new(matrix::<B>(&x), weight, layout);
            one.then = then;
            if adds {
                let addend = Array::normal([1, 1, rows, outputs], seed + 2);
                one = one.plus(matrix::<B>(&addend));
                for (sum, added) in exact.values.iter_mut().zip(&addend.values) {
                    *sum += added;
                }
            }
            products.push(one);
            expected.push(exact);
        }
        for (i, (found, expected)) in project_all(products).into_iter().zip(expected).enumerate() {
            assert_close(
                &format!("{rows} rows, product {i}"),
                &array(found),
                &expected,
                tolerance,
            );
        }
    }
}

fn several_at_once<B: KernelBackend>() {
    several_at_once_in::<B>(DType::F32, EXACT);
}

/// Up to 32 rows are multiplied in f32; more are rounded to the type of the weights, and so are their products.
#[cfg(feature = "cuda")]
fn weights_in_half_precision<B: KernelBackend>() {
    several_at_once_in::<B>(DType::BF16, 5e-3);
    let few = |sizes: &[usize; 3]| sizes[0] <= 32 && sizes[1].is_multiple_of(4);
    for sizes in SIZES.into_iter().filter(few) {
        for dtype in [DType::BF16, DType::F16] {
            check::<B>(sizes, Format::Float(dtype), WeightLayout::OutIn, EXACT);
        }
    }
}

fn weights_in_8_bits<B: KernelBackend>() {
    for sizes in [
        [1, 768, 301],
        [3, 64, 130],
        [4, 96, 4],
        [12, 128, 99],
        [30, 160, 260],
    ] {
        check::<B>(sizes, Format::Int8, WeightLayout::OutIn, EXACT);
    }
}

fn quantised_weights_are_off_by_less_than_a_percent<B: KernelBackend>() {
    let exact = Array::normal([1, 1, 64, 768], 3);
    let scheme = int8_scheme(768).expect("whole groups");
    let weight = matrix::<B>(&exact).quantize_dynamic(&scheme);
    assert_close("int8", &array(weight.dequantize()), &exact, 8e-3);
    assert!(int8_scheme(24).is_none());
}

fn transposed(array: &Array) -> Array {
    let [_, _, rows, columns] = array.shape;
    let values = (0..rows * columns).map(|i| array.values[i % rows * columns + i / rows]);
    Array {
        shape: [1, 1, columns, rows],
        values: values.collect(),
    }
}

fn gradients_are_products<B: KernelBackend>() {
    let [rows, inputs, outputs] = [9, 5, 7];
    let x = Array::normal([1, 1, rows, inputs], 1);
    let d_output = Array::normal([1, 1, rows, outputs], 2);
    for (layout, back, shape) in [
        (WeightLayout::OutIn, WeightLayout::InOut, [outputs, inputs]),
        (WeightLayout::InOut, WeightLayout::OutIn, [inputs, outputs]),
    ] {
        let weight = Array::normal([1, 1, shape[0], shape[1]], 3);
        let expected_d_x = product(&d_output, &weight, back);
        let expected_d_weight = match layout {
            WeightLayout::OutIn => product(&transposed(&d_output), &x, WeightLayout::InOut),
            WeightLayout::InOut => product(&transposed(&x), &d_output, WeightLayout::InOut),
        };
        for [x_learns, weight_learns] in [[true, true], [true, false], [false, true]] {
            let leaf = |array: &Array, learns| {
                Tensor::<Autodiff<B>, 2>::from_inner(matrix::<B>(array)).set_require_grad(learns)
            };
            let (x, weight) = (leaf(&x, x_learns), leaf(&weight, weight_learns));
            let output = project(x.clone(), weight.clone(), layout);
            let d_output = Tensor::from_inner(matrix::<B>(&d_output));
            let grads = (output * d_output).sum().backward();
            for (name, leaf, learns, expected) in [
                ("d_x", x, x_learns, &expected_d_x),
                ("d_weight", weight, weight_learns, &expected_d_weight),
            ] {
                let gradient = leaf.grad(&grads);
                assert_eq!(gradient.is_some(), learns, "{name}");
                if let Some(gradient) = gradient {
                    assert_close(name, &array(gradient), expected, EXACT);
                }
            }
        }
    }
}

#[test]
fn half_precision_weights_on_flex() {
    for dtype in [DType::BF16, DType::F16] {
        for sizes in SIZES {
            for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
                check::<burn_flex::Flex>(sizes, Format::Float(dtype), layout, EXACT);
            }
        }
    }
}

#[test]
fn every_finite_f16_widens_exactly() {
    use burn::tensor::{TensorData, f16};
    type B = burn_flex::Flex;

    let halves: Vec<f16> = (0..=u16::MAX)
        .map(f16::from_bits)
        .filter(|half| half.is_finite())
        .collect();
    let expected: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
    let shape = [halves.len(), 1];
    let options = (&Default::default(), DType::F16);
    let weight = Tensor::<B, 2>::from_data(TensorData::new(halves, shape), options);
    let one = Tensor::<B, 2>::ones([1, 1], &Default::default());
    let found = project(one, weight, WeightLayout::OutIn).into_data();
    assert_eq!(found.to_vec::<f32>().expect("f32"), expected);
}

#[test]
#[should_panic(expected = "`weight` has 4 inputs, `x` 3 columns")]
fn sizes_that_do_not_fit_are_refused() {
    let zeros = |shape| Tensor::<burn_flex::Flex, 2>::zeros(shape, &Default::default());
    project(zeros([1, 3]), zeros([5, 4]), WeightLayout::OutIn);
}

macro_rules! on_backends {
    ($($module:ident: $backend:ty),+ $(,)?) => {
        $(mod $module {
            #[test] fn weights_in_f32() { super::weights_in_f32::<$backend>() }
            #[test] fn several_at_once() { super::several_at_once::<$backend>() }
            #[test] fn weights_in_8_bits() { super::weights_in_8_bits::<$backend>() }
            #[test] fn gradients_are_products() { super::gradients_are_products::<$backend>() }
            #[test] fn quantised_weights_are_off_by_less_than_a_percent() { super::quantised_weights_are_off_by_less_than_a_percent::<$backend>() }
        })+
    };
}

on_backends! { flex: burn_flex::Flex, ndarray: burn_ndarray::NdArray<f32> }

#[cfg(feature = "cuda")]
mod cuda {
    type Cuda = burn::backend::Cuda;
    #[test]
    fn weights_in_f32() {
        super::weights_in_f32::<Cuda>()
    }
    #[test]
    fn weights_in_half_precision() {
        super::weights_in_half_precision::<Cuda>()
    }
    #[test]
    fn several_at_once() {
        super::several_at_once::<Cuda>()
    }
}

#[cfg(feature = "vulkan")]
mod vulkan {
    #[test]
    fn weights_in_f32() {
        super::weights_in_f32::<crate::Vulkan>()
    }
    #[test]
    fn several_at_once() {
        super::several_at_once::<crate::Vulkan>()
    }
}
