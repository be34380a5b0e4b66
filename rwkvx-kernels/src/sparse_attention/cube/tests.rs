//! The tiled kernels with emulated products against the plain kernels, which the suite holds to the golden data.

use burn::backend::wgpu::WgpuRuntime;
use burn::tensor::{DType, Distribution, Tensor};

use super::*;

type Vulkan = burn_cubecl::CubeBackend<WgpuRuntime, f32, i32, u8>;

/// Output and gradients, by name.
fn run(
    [query, key, value, d_output]: [Tensor<Vulkan, 4>; 4],
    shape: ChunkTopK,
    kernels: Option<Kernels>,
) -> Vec<(&'static str, Vec<f32>)> {
    let mut inputs = Inputs::<WgpuRuntime>::sequence(&AttentionInputs {
        query,
        key,
        value,
        shape,
    });
    inputs.kernels = kernels.unwrap_or(inputs.kernels);
    let [output, saved] = inputs.forward();
    let [d_query, d_key, d_value] = inputs.backward(output.clone(), saved, dense(d_output));
    [
        ("output", output),
        ("d query", d_query),
        ("d key", d_key),
        ("d value", d_value),
    ]
    .map(|(name, buffer)| {
        let data = tensor::<Vulkan, 4>(buffer).into_data();
        (name, data.to_vec().expect("f32"))
    })
    .into()
}

fn assert_tiles_agree(dims: [usize; 4], shape: ChunkTopK, dtype: DType, tolerance: f32) {
    let device = Default::default();
    let rows = [(); 4].map(|()| Tensor::random(dims, Distribution::Normal(0.0, 1.0), &device));
    let expected = run(rows.clone(), shape, None);
    let tiles = Tiles {
        dtype,
        emulated: true,
    };
    let found = run(rows, shape, Some(Kernels::Tiled(tiles)));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let mut worst = String::new();
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        let difference = norm(&mut expected.iter().zip(found).map(|(a, b)| a - b));
        let relative = difference / norm(&mut expected.iter().copied());
        if relative.is_nan() || relative > tolerance {
            worst += &format!("\n{name}: {relative:.2e}");
        }
    }
    assert!(worst.is_empty(), "{dims:?}, {shape:?}, {dtype:?}:{worst}");
}

/// Several blocks per chunk, chunks that end within a block, more queries than a tile, and a last chunk that is not full.
#[test]
fn tiles_are_exact() {
    for (time, chunk_size, top_k) in [(2, 16, 2), (300, 16, 3), (333, 100, 2), (200, 1000, 2)] {
        let shape = ChunkTopK { chunk_size, top_k };
        assert_tiles_agree([2, time, 2, 16], shape, DType::F32, 1e-5);
    }
}

#[test]
fn tiles_agree_within_the_rounding_of_f16() {
    let shape = ChunkTopK {
        chunk_size: 48,
        top_k: 3,
    };
    assert_tiles_agree([1, 260, 1, 32], shape, DType::F16, 3e-3);
}
