//! The tiled kernels with emulated products, and spans, against the plain kernels in one span, which the suite holds to the golden data.

use burn::backend::wgpu::WgpuRuntime;
use burn::tensor::{DType, Distribution, Tensor};

use super::*;

type Vulkan = burn_cubecl::CubeBackend<WgpuRuntime, f32, i32, u8>;

fn inputs(dims @ [batch, time, heads, size]: [usize; 4]) -> Wkv7Inputs<Vulkan> {
    let device = Default::default();
    let normal = || Tensor::<Vulkan, 4>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let direction = normal();
    let length = (direction.clone() * direction.clone()).sum_dim(3).sqrt();
    let direction = direction / length;
    let uniform = Tensor::random(dims, Distribution::Uniform(0.0, 1.0), &device);
    let rate = Tensor::random(
        [batch, time, heads, 1],
        Distribution::Uniform(0.0, 1.0),
        &device,
    );
    Wkv7Inputs {
        receptance: normal(),
        log_decay: uniform * -0.606,
        key: normal(),
        value: normal(),
        removal: -direction.clone(),
        replacement: direction * rate,
        state: Some(Tensor::random(
            [batch, heads, size, size],
            Distribution::Normal(0.0, 0.3),
            &device,
        )),
    }
}

/// Outputs, last state and all gradients, by name.
fn run(
    inputs: Wkv7Inputs<Vulkan>,
    kernels: Kernels,
    spans: Option<Spans>,
) -> Vec<(&'static str, Vec<f32>)> {
    let [batch, time, heads, size] = inputs.receptance.dims();
    let mut buffers = Buffers::<WgpuRuntime>::with_kernels(inputs, kernels);
    if let Some(spans) = spans {
        (buffers.span, buffers.parts) = (spans.tokens, spans.parts);
    }
    let [output, state, span_states] = buffers.forward();
    let device = Default::default();
    let waves = |dims: [usize; 4]| {
        let count = dims.iter().product::<usize>() as i64;
        let numbers = Tensor::<Vulkan, 1, burn::tensor::Int>::arange(0..count, &device).float();
        numbers.sin().reshape(dims)
    };
    let unit = kernels.size_unit();
    let d_output = sequence_buffer(waves([batch, time, heads, size]), DType::F32, unit);
    let d_state = state_buffer(
        Some(waves([batch, heads, size, size])),
        [0; 4],
        &device,
        unit,
    );
    let (to, d_before) = buffers.backward(span_states, d_output, d_state);
    let row = |buffer| cut_rows(tensor::<Vulkan, 4>(buffer), size);
    let state_of = |buffer| cut_state(tensor::<Vulkan, 4>(buffer), size);
    [
        ("output", row(output)),
        ("state", state_of(state)),
        ("d receptance", row(to.receptance)),
        ("d log_decay", row(to.log_decay)),
        ("d key", row(to.key)),
        ("d value", row(to.value)),
        ("d removal", row(to.removal)),
        ("d replacement", row(to.replacement)),
        ("d state", state_of(d_before)),
    ]
    .map(|(name, tensor)| (name, tensor.into_data().to_vec().expect("f32")))
    .into()
}

fn assert_same(dims: [usize; 4], kernels: Kernels, spans: Option<Spans>, tolerance: f32) {
    let inputs = inputs(dims);
    let expected = run(inputs.clone(), Kernels::Plain, None);
    let found = run(inputs, kernels, spans);
    let mut worst = String::new();
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        let difference = norm(&mut expected.iter().zip(found).map(|(a, b)| a - b));
        let relative = difference / norm(&mut expected.iter().copied());
        if relative.is_nan() || relative > tolerance {
            worst += &format!("\n{name}: {relative:.2e}");
        }
    }
    assert!(worst.is_empty(), "{dims:?}, {kernels:?}, {spans:?}:{worst}");
}

fn emulated(dtype: DType) -> Kernels {
    Kernels::Tiled(Tiles {
        dtype,
        emulated: true,
    })
}

#[test]
fn tiles_of_one_warp_are_exact() {
    for time in [1, 16, 37] {
        assert_same([2, time, 2, 16], emulated(DType::F32), None, 1e-5);
    }
}

#[test]
fn tiles_of_two_warps_agree_within_the_rounding_of_f16() {
    assert_same([1, 53, 2, 32], emulated(DType::F16), None, 3e-3);
}

#[test]
fn spans_one_after_another_change_nothing() {
    let spans = |tokens| Some(Spans { tokens, parts: 1 });
    assert_same([2, 53, 2, 32], Kernels::Plain, spans(16), 1e-6);
    assert_same([2, 53, 1, 16], emulated(DType::F32), spans(32), 1e-5);
}

#[test]
fn spans_in_parallel_change_nothing() {
    for parts in [2, 4] {
        let spans = Spans { tokens: 16, parts };
        assert_same([1, 53, 2, 16], emulated(DType::F32), Some(spans), 1e-5);
    }
}
