//! What the tests share: a backend, golden files, small models and batches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rwkvx_model::checkpoint::{self, LoadOptions};
use rwkvx_model::{RwkvX, RwkvXConfig, names};
use rwkvx_train::data::{Batch, Sample};
use rwkvx_train::precision::Precision;
use rwkvx_train::step::StepSettings;
use safetensors::SafeTensors;

/// Backend of the tests.
pub(crate) type B = Flex;
/// The same with gradients.
pub(crate) type Ad = Autodiff<Flex>;

/// Plain cross-entropy with L2Wrap, in f32.
pub(crate) const PLAIN: StepSettings = StepSettings {
    longce: None,
    choice_weight: 0.0,
    l2_wrap: true,
    recompute: false,
    precision: Precision::F32,
};

/// A file made by the oracle in PyTorch, in float64 (see tests/golden/README.md).
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let path = golden(name);
        Self(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let bytes = tensors.tensor(name).unwrap().data();
        bytes
            .chunks_exact(4)
            .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
            .collect()
    }

    /// Rows of token ids.
    pub(crate) fn ids(&self) -> Vec<Vec<u32>> {
        let tensors = self.tensors();
        let view = tensors.tensor("ids").unwrap();
        let width = view.shape()[1];
        let ids: Vec<u32> = view
            .data()
            .chunks_exact(8)
            .map(|id| i64::from_le_bytes(id.try_into().unwrap()) as u32)
            .collect();
        ids.chunks(width).map(<[u32]>::to_vec).collect()
    }
}

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The hybrid that the golden training steps start from: 4 recurrent and 2 sparse blocks of 64 channels.
pub(crate) fn golden_model<T: Backend>() -> RwkvX<T> {
    let options = LoadOptions {
        chunk_size: Some(16),
        top_k: Some(3),
    };
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../rwkvx-model/tests/data/rwkvx_tiny.pth");
    checkpoint::load(&path, &options, &T::Device::default())
        .unwrap()
        .model
}

/// A small hybrid with its first values, the same at every call: they are drawn once, since tests that run at the same time draw from the same generator.
pub(crate) fn small_model(n_sparse: usize) -> RwkvX<B> {
    static DRAWN: Mutex<BTreeMap<usize, RwkvX<B>>> = Mutex::new(BTreeMap::new());
    let mut drawn = DRAWN.lock().unwrap();
    let draw = || {
        let device = Default::default();
        B::seed(&device, 7);
        small_config(n_sparse).init(&device)
    };
    drawn.entry(n_sparse).or_insert_with(draw).clone()
}

pub(crate) fn small_config(n_sparse: usize) -> RwkvXConfig {
    RwkvXConfig {
        head_size: 16,
        n_sparse,
        chunk_size: 8,
        top_k: 2,
        ..RwkvXConfig::rwkv7(50, 32, 2)
    }
}

/// A batch of rows whose targets all weigh 1.
pub(crate) fn batch(rows: Vec<Vec<u32>>, micro_batch: usize) -> Batch {
    let samples = rows
        .into_iter()
        .map(|ids| Sample {
            weights: vec![1.0; ids.len() - 1],
            ids,
        })
        .collect();
    Batch::new(samples, micro_batch)
}

/// `rows` rows of `length` ids that depend on nothing but their place.
pub(crate) fn rows(rows: u32, length: u32, vocab_size: u32) -> Vec<Vec<u32>> {
    (0..rows)
        .map(|row| {
            (0..length)
                .map(|at| (row * 31 + at * at * 7 + at) % vocab_size)
                .collect()
        })
        .collect()
}

/// Every parameter's name and values.
pub(crate) fn values<T: Backend>(model: &RwkvX<T>) -> Vec<(String, Vec<f32>)> {
    struct Values(Vec<(ParamId, Vec<f32>)>);
    impl<T: Backend> ModuleVisitor<T> for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<T, D>>) {
            self.0.push((param.id, floats(param.val())));
        }
    }
    let mut visitor = Values(Vec::new());
    model.visit(&mut visitor);
    let name = |id| {
        let named = names::parameters(model)
            .into_iter()
            .find(|named| named.id == id);
        named.unwrap().name
    };
    visitor
        .0
        .into_iter()
        .map(|(id, values)| (name(id), values))
        .collect()
}

pub(crate) fn tensor<T: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
) -> Tensor<T, D> {
    Tensor::from_data(TensorData::new(values, shape), &T::Device::default())
}

pub(crate) fn floats<T: Backend, const D: usize>(tensor: Tensor<T, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

/// Euclidean distance, relative to the size of `expected`.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| value * value).sum::<f64>().sqrt()
    };
    let difference = norm(
        &mut found
            .iter()
            .zip(expected)
            .map(|(a, b)| f64::from(*a) - f64::from(*b)),
    );
    difference / norm(&mut expected.iter().map(|value| f64::from(*value))).max(1e-30)
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let distance = distance(found, expected);
    assert!(
        distance <= tolerance,
        "{what}: relative distance {distance:.2e} > {tolerance:.0e}"
    );
}
