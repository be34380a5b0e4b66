//! Checkpoints that are in order: every layout and number format, and the way back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rwkvx_model::checkpoint::{self, LoadOptions, Metadata, StoredDtype, Summary};
use rwkvx_model::{RwkvX, RwkvXConfig, SparseStart, expand};

use crate::golden::values;
use crate::support::pth::{PthTensor, pth};
use crate::support::{Flex, data, golden_model};

fn load(path: &Path) -> RwkvX<Flex> {
    checkpoint::load(path, &LoadOptions::default(), &Default::default())
        .unwrap()
        .model
}

fn inspect(path: &Path) -> Summary {
    checkpoint::inspect::<Flex>(path, &LoadOptions::default()).unwrap()
}

/// Every tensor of a model as it would be published.
pub(crate) fn published(model: &RwkvX<Flex>) -> Vec<PthTensor> {
    let shapes = rwkvx_model::names::parameters(model).into_iter();
    shapes
        .zip(values(model))
        .map(|(param, (name, values))| {
            PthTensor::f32(
                &name,
                &rwkvx_model::names::published_shape(&name, &param.shape),
                &values,
            )
        })
        .collect()
}

#[test]
fn sizes_are_read_off_the_shapes() {
    let summary = inspect(&data("rwkvx_tiny.pth"));
    let expected = RwkvXConfig {
        vocab_size: 97,
        channels: 64,
        head_size: 64,
        n_layer: 4,
        n_sparse: 2,
        chunk_size: 2048,
        top_k: 3,
        key_conv: 0,
        decay_rank: 32,
        rate_rank: 32,
        value_rank: 32,
        gate_rank: 32,
    };
    assert_eq!(summary.config, expected);
    assert_eq!(
        inspect(&data("rwkv7_tiny.pth")).config,
        RwkvXConfig {
            n_layer: 3,
            n_sparse: 0,
            ..expected
        }
    );
    assert!(
        summary
            .tensors
            .iter()
            .all(|tensor| tensor.dtype == StoredDtype::F32)
    );
    assert!(
        inspect(&data("rwkvx_tiny_bf16.pth"))
            .tensors
            .iter()
            .all(|t| t.dtype == StoredDtype::Bf16)
    );
}

#[test]
fn saving_and_loading_is_exact_and_keeps_the_published_names_and_shapes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["rwkv7_tiny.pth", "rwkvx_tiny.pth"] {
        let original = golden_model::<Flex>(name);
        let path = folder.path().join(name).with_extension("safetensors");
        let metadata = Metadata {
            tokenizer: Some("byte".to_owned()),
            notes: BTreeMap::from([("stage".to_owned(), "2".to_owned())]),
        };
        checkpoint::save(&original, &metadata, &path).unwrap();

        let back =
            checkpoint::load::<Flex>(&path, &LoadOptions::default(), &Default::default()).unwrap();
        assert_eq!(back.metadata, metadata);
        assert_eq!(back.model.config(), original.config());
        assert!(
            values(&back.model) == values(&original),
            "the values changed"
        );

        let shapes = |summary: Summary| -> BTreeSet<(String, Vec<usize>)> {
            summary
                .tensors
                .into_iter()
                .map(|tensor| (tensor.name, tensor.shape))
                .collect()
        };
        assert_eq!(shapes(inspect(&path)), shapes(inspect(&data(name))));
    }
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(
        files.len(),
        2,
        "nothing is left beside the checkpoints: {files:?}"
    );
}

#[test]
fn equal_models_make_equal_files() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = folder.path().join(name);
        checkpoint::save(
            &golden_model::<Flex>("rwkvx_tiny.pth"),
            &Metadata::default(),
            &path,
        )
        .unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes("a.safetensors"), bytes("b.safetensors"));
}

#[test]
fn options_come_before_the_file_and_the_file_before_the_published_setting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    checkpoint::save(
        &golden_model::<Flex>("rwkvx_tiny.pth"),
        &Metadata::default(),
        &path,
    )
    .unwrap();
    let attention = |options: &LoadOptions| {
        let config = checkpoint::inspect::<Flex>(&path, options).unwrap().config;
        (config.chunk_size, config.top_k)
    };
    assert_eq!(attention(&LoadOptions::default()), (16, 3));
    assert_eq!(
        attention(&LoadOptions {
            chunk_size: Some(8),
            top_k: None
        }),
        (8, 3)
    );
    assert_eq!(
        attention(&LoadOptions {
            chunk_size: None,
            top_k: Some(1)
        }),
        (16, 1)
    );
}

#[test]
fn a_hybrid_grown_from_a_published_base_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hybrid.safetensors");
    let shape = rwkvx_kernels::ChunkTopK {
        chunk_size: 8,
        top_k: 2,
    };
    let hybrid = expand(
        golden_model::<Flex>("rwkv7_tiny.pth"),
        3,
        shape,
        4,
        SparseStart::Zero,
    )
    .unwrap();
    checkpoint::save(&hybrid, &Metadata::default(), &path).unwrap();
    let back = load(&path);
    assert_eq!(back.config(), hybrid.config());
    assert!(values(&back) == values(&hybrid), "the values changed");
}

#[test]
fn unused_tensors_of_layer_0_are_ignored_and_flat_vectors_taken() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden_model::<Flex>("rwkv7_tiny.pth");
    let mut tensors = published(&model);
    for tensor in &mut tensors {
        if let [1, 1, channels] = tensor.shape[..] {
            (tensor.shape, tensor.strides) = (vec![channels], vec![1]);
        }
    }
    tensors.push(PthTensor::f32("blocks.0.att.v0", &[1, 1, 64], &[9.0; 64]));
    tensors.push(PthTensor::f32(
        "blocks.0.att.v1",
        &[64, 32],
        &[9.0; 64 * 32],
    ));
    tensors.push(PthTensor::f32(
        "blocks.0.att.v2",
        &[32, 64],
        &[9.0; 64 * 32],
    ));
    let path = folder.path().join("model.pth");
    std::fs::write(&path, pth(&tensors)).unwrap();
    assert!(values(&load(&path)) == values(&model), "the values changed");
}

#[test]
fn half_precision_is_widened() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden_model::<Flex>("rwkv7_tiny.pth");
    let mut tensors = published(&model);
    for tensor in &mut tensors {
        let half = |bytes: &[u8]| {
            burn::tensor::f16::from_f32(f32::from_le_bytes(bytes.try_into().unwrap())).to_le_bytes()
        };
        tensor.bytes = tensor.bytes.chunks_exact(4).flat_map(half).collect();
        tensor.storage = "HalfStorage";
    }
    let path = folder.path().join("model.pth");
    std::fs::write(&path, pth(&tensors)).unwrap();
    for ((name, found), (_, exact)) in values(&load(&path)).into_iter().zip(values(&model)) {
        let expected: Vec<f32> = exact
            .iter()
            .map(|&x| burn::tensor::f16::from_f32(x).to_f32())
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn transposed_and_shared_storages_are_read_by_their_strides() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden_model::<Flex>("rwkv7_tiny.pth");
    let mut tensors = published(&model);
    let position = |name: &str| {
        tensors
            .iter()
            .position(|tensor| tensor.name == name)
            .unwrap()
    };
    let (key, norm) = (
        position("blocks.1.ffn.key.weight"),
        position("blocks.1.ln1.bias"),
    );
    // [256, 64], stored column by column.
    let transposed = (0..64).flat_map(|column| (0..256).map(move |row| 64 * row + column));
    let bytes = tensors[key].bytes.clone();
    tensors[key].bytes = transposed
        .flat_map(|at| bytes[4 * at..4 * at + 4].to_vec())
        .collect();
    tensors[key].strides = vec![1, 256];
    // The last 64 elements of a longer storage.
    let tail = &mut tensors[norm];
    tail.bytes = [vec![7; 40], std::mem::take(&mut tail.bytes)].concat();
    (tail.length, tail.offset) = (74, 10);
    let path = folder.path().join("model.pth");
    std::fs::write(&path, pth(&tensors)).unwrap();
    assert!(values(&load(&path)) == values(&model), "the values changed");
}

#[test]
fn the_tokenizer_is_the_remembered_one_or_the_vocabularys() {
    let remembered = Metadata {
        tokenizer: Some("my.json".to_owned()),
        ..Metadata::default()
    };
    assert_eq!(remembered.tokenizer_for(65536), Some("my.json"));
    let none = Metadata::default();
    assert_eq!(none.tokenizer_for(65536), Some("rwkv-world"));
    assert_eq!(none.tokenizer_for(257), Some("byte"));
    assert_eq!(none.tokenizer_for(97), None);
}
