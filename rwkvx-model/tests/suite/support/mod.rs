//! What the tests share: golden files, distances, backends.

pub(crate) mod pth;

use std::path::PathBuf;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rwkvx_model::RwkvX;
use rwkvx_model::checkpoint::{self, LoadOptions};
use safetensors::{Dtype, SafeTensors};

pub(crate) type Flex = burn_flex::Flex;
pub(crate) type NdArray = burn_ndarray::NdArray<f32>;

/// The relative distance within which f32 must agree with the oracle.
pub(crate) const F32_TOLERANCE: f64 = 1e-5;

/// Path of a file of `tests/data`.
pub(crate) fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// The options the golden hybrid was computed with.
pub(crate) fn golden_options() -> LoadOptions {
    LoadOptions {
        chunk_size: Some(16),
        top_k: Some(3),
    }
}

/// A golden model.
pub(crate) fn golden_model<B: Backend>(file: &str) -> RwkvX<B> {
    let path = data(file);
    checkpoint::load(&path, &golden_options(), &B::Device::default())
        .expect("golden model")
        .model
}

/// A golden file in memory.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        Self(std::fs::read(data(name)).expect("golden file"))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("golden safetensors")
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).expect(name);
        assert_eq!(view.dtype(), Dtype::F32);
        view.data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// The token ids, row by row.
    pub(crate) fn ids(&self) -> Vec<Vec<i64>> {
        let tensors = self.tensors();
        let view = tensors.tensor("ids").expect("ids");
        assert_eq!(view.dtype(), Dtype::I64);
        let ids: Vec<i64> = view
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        ids.chunks_exact(view.shape()[1])
            .map(<[i64]>::to_vec)
            .collect()
    }

    /// All tokens but the last of every row, `[batch, time]`.
    pub(crate) fn inputs<B: Backend>(&self) -> Tensor<B, 2, Int> {
        int_rows(self.ids().iter().map(|row| &row[..row.len() - 1]))
    }

    /// All tokens but the first of every row, row after row.
    pub(crate) fn targets(&self) -> Vec<i64> {
        self.ids()
            .iter()
            .flat_map(|row| row[1..].to_vec())
            .collect()
    }
}

fn int_rows<'a, B: Backend>(rows: impl Iterator<Item = &'a [i64]>) -> Tensor<B, 2, Int> {
    let rows: Vec<&[i64]> = rows.collect();
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), &Default::default())
}

/// The values of a tensor in row-major order.
pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("f32")
}

/// `|x - reference| / |reference|`.
pub(crate) fn distance(x: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(x.len(), reference.len(), "lengths");
    let square = |x: f64| x * x;
    let error: f64 = x
        .iter()
        .zip(reference)
        .map(|(&x, &y)| square(f64::from(x) - f64::from(y)))
        .sum();
    let size: f64 = reference.iter().map(|&y| square(f64::from(y))).sum();
    (error / size).sqrt()
}

/// Asserts that `x` agrees with `reference` within [`F32_TOLERANCE`], and gives the distance.
#[track_caller]
pub(crate) fn assert_close(what: &str, x: &[f32], reference: &[f32]) -> f64 {
    let distance = distance(x, reference);
    assert!(
        distance <= F32_TOLERANCE,
        "{what}: relative distance {distance:.2e}"
    );
    distance
}

/// Runs generic functions as tests on every CPU backend.
macro_rules! on_backends {
    ($($test:ident;)*) => {
        mod flex {
            $(#[test] fn $test() { super::$test::<crate::support::Flex>(); })*
        }
        mod ndarray {
            $(#[test] fn $test() { super::$test::<crate::support::NdArray>(); })*
        }
    };
}
pub(crate) use on_backends;
