//! Weights in 32, 16 and 8 bits: stored, loaded as they are, computed with.

use std::path::{Path, PathBuf};

use rwkvx_kernels::KernelBackend;
use rwkvx_model::RwkvX;
use rwkvx_model::checkpoint::{
    self, LoadOptions, Metadata, StoredDtype, WeightFormat, load_as_stored, save_as,
};
use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::checkpoint::published;
use crate::golden::values;
use crate::support::pth::pth;
use crate::support::{
    Flex, Golden, NdArray, assert_close, data, distance, golden_model, golden_options, host,
    on_backends,
};

on_backends! {
    a_narrow_model_computes_what_its_weights_stand_for;
    a_published_bf16_checkpoint_gives_the_golden_logits;
}

const FORMATS: [WeightFormat; 4] = [
    WeightFormat::F32,
    WeightFormat::Bf16,
    WeightFormat::F16,
    WeightFormat::Int8,
];

/// The golden hybrid in a file of this format.
fn saved(format: WeightFormat) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    save_as(&model, &Metadata::default(), format, &path).unwrap();
    (folder, path)
}

fn logits<B: KernelBackend>(model: &RwkvX<B>) -> Vec<f32> {
    host(model.forward(Golden::read("rwkvx_tiny.safetensors").inputs()))
}

fn as_stored<B: KernelBackend>(path: &Path) -> RwkvX<B> {
    let loaded = load_as_stored::<B>(path, &golden_options(), &Default::default());
    loaded.unwrap().model
}

fn a_narrow_model_computes_what_its_weights_stand_for<B: KernelBackend>() {
    let exact = logits(&golden_model::<B>("rwkvx_tiny.pth"));
    for (format, rounding) in FORMATS.into_iter().zip([0.0, 2e-2, 3e-3, 5e-2]) {
        let (_folder, path) = saved(format);
        let widened = checkpoint::load::<B>(&path, &golden_options(), &Default::default());
        let widened = logits(&widened.unwrap().model);
        let model = as_stored::<B>(&path);
        assert_close(&format!("{format:?}"), &logits(&model), &widened);
        let error = distance(&widened, &exact);
        println!("{format:?}: logits are off by {error:.1e}");
        assert!(error <= rounding, "{format:?}: {error}");

        // Prefill in pieces and steps too.
        let ids = Golden::read("rwkvx_tiny.safetensors").inputs::<B>();
        let [batch, time] = ids.dims();
        let mut state = model.state(batch);
        model.prefill(ids.clone().narrow(1, 0, time - 1), &mut state);
        let last = model.prefill(ids.narrow(1, time - 1, 1), &mut state);
        let vocab = model.config().vocab_size;
        let expected: Vec<f32> = widened
            .chunks(time * vocab)
            .flat_map(|row| row[(time - 1) * vocab..].to_vec())
            .collect();
        assert_close(&format!("{format:?}, last step"), &host(last), &expected);
    }
}

fn a_published_bf16_checkpoint_gives_the_golden_logits<B: KernelBackend>() {
    let path = data("rwkvx_tiny_bf16.pth");
    let widened = checkpoint::load::<B>(&path, &golden_options(), &Default::default());
    let found = logits(&as_stored::<B>(&path));
    assert_close("bf16 .pth", &found, &logits(&widened.unwrap().model));
}

#[test]
fn a_pth_loads_alike_whether_its_storages_can_be_used_where_they_lie_or_not() {
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    assert!(values(&as_stored::<Flex>(&data("rwkvx_tiny.pth"))) == values(&model));
    // Names of any length come before the storages of this one.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    std::fs::write(&path, pth(&published(&model))).unwrap();
    assert!(values(&as_stored::<Flex>(&path)) == values(&model));
}

#[test]
fn narrow_weights_take_less_memory_and_less_disk() {
    let size = |format| {
        let (_folder, path) = saved(format);
        let bytes = std::fs::metadata(&path).unwrap().len() as f64;
        (as_stored::<Flex>(&path).weight_bytes() as f64, bytes)
    };
    let (memory, disk) = size(WeightFormat::F32);
    for (format, least, most) in [
        (WeightFormat::Bf16, 0.5, 0.54),
        (WeightFormat::F16, 0.5, 0.54),
        (WeightFormat::Int8, 0.26, 0.37),
    ] {
        let (narrow, file) = size(format);
        assert!(
            (least..most).contains(&(narrow / memory)),
            "{format:?}: {}",
            narrow / memory
        );
        assert!(
            (least..most).contains(&(file / disk)),
            "{format:?}: {}",
            file / disk
        );
    }
    // NdArray has neither halves nor a product of integers.
    let (_folder, path) = saved(WeightFormat::Int8);
    assert_eq!(as_stored::<NdArray>(&path).weight_bytes() as f64, memory);
}

#[test]
fn narrow_models_are_saved_again_as_they_are() {
    for format in FORMATS {
        let (folder, path) = saved(format);
        let again = folder.path().join("again.safetensors");
        save_as(
            &as_stored::<Flex>(&path),
            &Metadata::default(),
            format,
            &again,
        )
        .unwrap();
        let [path, again] = [path, again].map(|path| std::fs::read(path).unwrap());
        assert!(path == again, "{format:?}");
    }
}

#[test]
fn eight_bits_are_for_projections_and_the_head() {
    let (_folder, path) = saved(WeightFormat::Int8);
    let summary = checkpoint::inspect::<Flex>(&path, &LoadOptions::default()).unwrap();
    let dtype = |name: &str| {
        let mut tensors = summary.tensors.iter();
        tensors
            .find(|tensor| tensor.name == name)
            .unwrap()
            .dtype
            .clone()
    };
    assert_eq!(dtype("rwkv.head.weight"), StoredDtype::Int8);
    assert_eq!(dtype("rwkv.head.weight_scale"), StoredDtype::F32);
    assert_eq!(dtype("moba.0.att.key.weight"), StoredDtype::Int8);
    assert_eq!(dtype("rwkv.emb.weight"), StoredDtype::Bf16);
    assert_eq!(dtype("rwkv.blocks.0.att.w1"), StoredDtype::Bf16);
    assert_eq!(dtype("rwkv.blocks.0.att.r_k"), StoredDtype::F32);
    assert_eq!(dtype("rwkv.ln_out.weight"), StoredDtype::F32);
}

#[test]
fn a_weight_too_large_for_f16_is_refused_and_nothing_left() {
    use burn::module::{Module, ModuleMapper, Param};
    use burn::tensor::Tensor;

    struct Grow;
    impl ModuleMapper<Flex> for Grow {
        fn map_float<const D: usize>(
            &mut self,
            param: Param<Tensor<Flex, D>>,
        ) -> Param<Tensor<Flex, D>> {
            param.map(|tensor| tensor * 1e6)
        }
    }
    let model = golden_model::<Flex>("rwkvx_tiny.pth").map(&mut Grow);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let error = save_as(&model, &Metadata::default(), WeightFormat::F16, &path).unwrap_err();
    assert!(error.to_string().contains("too large for f16"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The tensors of a file, changed, in a new file.
fn changed(change: impl Fn(&mut Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>)) -> String {
    let (folder, path) = saved(WeightFormat::Int8);
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let path = folder.path().join("changed.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let loaded = load_as_stored::<Flex>(&path, &golden_options(), &Default::default());
    loaded.unwrap_err().to_string()
}

#[test]
fn quantised_tensors_that_do_not_fit_are_errors() {
    const KEY: &str = "moba.0.att.key.weight";
    let missing =
        changed(|tensors| tensors.retain(|(name, ..)| name != "moba.0.att.key.weight_scale"));
    assert!(
        missing.contains("`moba.0.att.key.weight_scale` [64, 1] is missing"),
        "{missing}"
    );
    let lonely = changed(|tensors| tensors.retain(|(name, ..)| name != KEY));
    assert!(lonely.contains("`moba.0.att.key.weight`"), "{lonely}");
    let misshapen = changed(|tensors| {
        let scale = tensors
            .iter_mut()
            .find(|(name, ..)| name == "moba.0.att.key.weight_scale");
        scale.unwrap().2 = vec![8, 8];
    });
    assert!(
        misshapen.contains("has shape [8, 8], expected [64, 1]"),
        "{misshapen}"
    );
    let embedding = changed(|tensors| {
        let emb = tensors
            .iter_mut()
            .find(|(name, ..)| name == "rwkv.emb.weight")
            .unwrap();
        emb.1 = safetensors::Dtype::I8;
        emb.3.truncate(emb.3.len() / 2);
    });
    assert!(embedding.contains("`rwkv.emb.weight` is I8"), "{embedding}");
}
