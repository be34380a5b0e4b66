//! Checkpoints: published `.pth` and `.safetensors` files come in, `.safetensors` go out.
//!
//! Loading is strict. Sizes are read off the tensors; then every tensor the model needs must be there with its shape,
//! and no other. Vectors may be stored `[1, 1, channels]`, as published, or `[channels]`; layer 0's unused `v0`, `v1`,
//! `v2` may be there. Nothing is transposed. For training weights become f32, tensor by tensor ([`load`]); for inference
//! matrices stay as narrow as they are stored ([`load_as_stored`]), and [`save_as`] stores them in 32, 16 or 8 bits.

mod convert;
mod layout;
mod map;
mod pth;
mod safetensors;
mod save;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use rwkvx_datasets::Tokenizer;
use rwkvx_kernels::{KernelBackend, int8_group, int8_scheme};
use serde::{Deserialize, Serialize};

use crate::config::{RwkvXConfig, WORLD_VOCAB_SIZE};
use crate::model::RwkvX;
use crate::{Error, names};
pub use save::{WeightFormat, save, save_as};

/// What to take in place of what a checkpoint says or, in the case of published ones, does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Tokens per attention chunk; without it the checkpoint's, else 2048.
    pub chunk_size: Option<usize>,
    /// Chunks a query attends to; without it the checkpoint's, else 3.
    pub top_k: Option<usize>,
}

/// What a safetensors checkpoint of ours remembers beside its configuration; empty for the files of others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Tokenizer the model was trained with, as `Tokenizer::open` takes it.
    pub tokenizer: Option<String>,
    /// Anything else its writer wants to keep, such as the stage of training.
    pub notes: BTreeMap<String, String>,
}

impl Metadata {
    /// The tokenizer of a model: the one remembered, else the one its vocabulary size stands for.
    pub fn tokenizer_for(&self, vocab_size: usize) -> Option<&str> {
        match vocab_size {
            _ if self.tokenizer.is_some() => self.tokenizer.as_deref(),
            WORLD_VOCAB_SIZE => Some("rwkv-world"),
            257 => Some("byte"),
            _ => None,
        }
    }
}

/// A loaded checkpoint.
#[derive(Debug)]
pub struct Checkpoint<B: Backend> {
    /// The model, every parameter requiring gradients where the backend has them.
    pub model: RwkvX<B>,
    /// What the file remembers.
    pub metadata: Metadata,
}

impl<B: Backend> Checkpoint<B> {
    /// Opens the tokenizer asked for, as `Tokenizer::open` takes it, else the one that belongs to the model.
    ///
    /// # Errors
    /// If none is known, or it cannot be opened.
    pub fn open_tokenizer(&self, asked: Option<&str>) -> Result<Tokenizer, Error> {
        let rows = self.model.config().vocab_size;
        let spec = asked.or(self.metadata.tokenizer_for(rows)).ok_or_else(|| {
            Error::Tokenizer(format!(
                "the checkpoint names none and none is known for a vocabulary of {rows}; give rwkv-world, byte, needles or the \
                 path of a tokenizer.json"
            ))
        })?;
        Tokenizer::open(spec).map_err(|error| Error::Tokenizer(error.to_string()))
    }
}

/// What a checkpoint holds, read without its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The sizes of the model.
    pub config: RwkvXConfig,
    /// What the file remembers.
    pub metadata: Metadata,
    /// Every tensor of the file, in the order of names.
    pub tensors: Vec<StoredTensor>,
}

/// A tensor of a checkpoint file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Its number format.
    pub dtype: StoredDtype,
    /// Its shape in the file.
    pub shape: Vec<usize>,
}

/// Number format of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum StoredDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Integers of 8 bits, with a scale per group in a tensor of its own.
    Int8,
    /// A format that weights do not use, by its name.
    Other(String),
}

impl std::fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::Int8 => "I8",
            Self::Other(name) => name,
        })
    }
}

impl From<StoredDtype> for String {
    fn from(dtype: StoredDtype) -> Self {
        dtype.to_string()
    }
}

/// What the name of a quantised matrix's scales ends with.
const SCALE: &str = "_scale";

/// Loads a model, every parameter in f32.
///
/// # Errors
/// If the file cannot be read, is damaged or of another kind, or its tensors are not exactly those of an RWKV-7 or
/// RWKV-X model; see [`Error`].
pub fn load<B: Backend>(
    path: &Path,
    options: &LoadOptions,
    device: &B::Device,
) -> Result<Checkpoint<B>, Error> {
    load_by(path, options, device, |_| false)
}

/// Loads a model for inference: matrices keep the number format they are stored in where the device has it, which saves memory and the
/// time to read them for every token. Vectors become f32. Such a model is not for training.
///
/// Such floats are not even copied on CPUs: the file is mapped into memory. It must not be changed in place while the model is in use; writing beside
/// and renaming, as [`save`] does, is safe.
///
/// # Errors
/// As [`load`].
pub fn load_as_stored<B: KernelBackend>(
    path: &Path,
    options: &LoadOptions,
    device: &B::Device,
) -> Result<Checkpoint<B>, Error> {
    load_by(path, options, device, |stored| match stored {
        StoredDtype::Int8 => B::READS_INT8,
        floats => floats
            .float()
            .is_some_and(|dtype| B::supports_dtype(device, dtype)),
    })
}

fn load_by<B: Backend>(
    path: &Path,
    options: &LoadOptions,
    device: &B::Device,
    keep: impl Fn(&StoredDtype) -> bool,
) -> Result<Checkpoint<B>, Error> {
    let mut file = CheckpointFile::open(path)?;
    let config = layout::infer(path, file.tensors(), file.config(), options)?;
    let model = RwkvX::unset(&config, device);
    let places = layout::pair(path, file.tensors(), &names::parameters(&model))?;
    let model = names::fill(model, |name, shape| {
        let place = places[name];
        let is_matrix = shape.len() == 2 && !name.ends_with("r_k");
        let keep = is_matrix && keep(&file.tensors()[place.tensor].dtype);
        let mut data = match place.scales {
            Some(scales) => file.read_int8(place.tensor, scales, keep)?,
            None => file.read(place.tensor, keep)?,
        };
        // Vectors may be stored with axes in front.
        data.shape = shape.into();
        Ok(data)
    })?;
    Ok(Checkpoint {
        model,
        metadata: file.metadata(),
    })
}

/// Reads what a checkpoint holds, and checks it as [`load`] does, without reading its weights.
///
/// # Errors
/// As [`load`].
pub fn inspect<B: Backend>(path: &Path, options: &LoadOptions) -> Result<Summary, Error> {
    let file = CheckpointFile::open(path)?;
    let config = layout::infer(path, file.tensors(), file.config(), options)?;
    // No value of this model is ever asked for, so it costs nothing.
    let model = RwkvX::<B>::unset(&config, &B::Device::default());
    layout::pair(path, file.tensors(), &names::parameters(&model))?;
    Ok(Summary {
        config,
        metadata: file.metadata(),
        tensors: file.tensors().to_vec(),
    })
}

/// An open checkpoint file, its kind told by its first bytes.
enum CheckpointFile {
    Pth(pth::PthFile),
    Safetensors(safetensors::SafetensorsFile),
}

impl CheckpointFile {
    fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        if path.metadata().map_err(io)?.is_dir() {
            return Err(format_error(
                path,
                "is a folder; name the checkpoint file in it",
            ));
        }
        let mut start = Vec::new();
        let opened = File::open(path).map_err(io)?;
        opened.take(9).read_to_end(&mut start).map_err(io)?;
        match start[..] {
            [b'P', b'K', 3, 4, ..] => pth::PthFile::open(path).map(Self::Pth),
            // A JSON object behind its length.
            [_, _, _, _, _, _, _, _, b'{'] => {
                safetensors::SafetensorsFile::open(path).map(Self::Safetensors)
            }
            // A bare pickle, or the numbered ones PyTorch wrote before 1.6.
            [0x80, 2..=5, ..] => Err(format_error(
                path,
                "is a PyTorch file older than 1.6; save it again with a current torch.save",
            )),
            _ => Err(format_error(
                path,
                "is neither a .pth (zip) nor a .safetensors checkpoint, or it is damaged; get the file again",
            )),
        }
    }

    fn tensors(&self) -> &[StoredTensor] {
        match self {
            Self::Pth(file) => file.tensors(),
            Self::Safetensors(file) => file.tensors(),
        }
    }

    fn config(&self) -> Option<&RwkvXConfig> {
        match self {
            Self::Pth(_) => None,
            Self::Safetensors(file) => file.config(),
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::Pth(_) => Metadata::default(),
            Self::Safetensors(file) => file.metadata().clone(),
        }
    }

    /// The values of a tensor of floats, as f32 or as they are.
    fn read(&mut self, index: usize, keep: bool) -> Result<TensorData, Error> {
        match self {
            Self::Pth(file) => file.read(index, keep),
            Self::Safetensors(file) => file.read(index, keep),
        }
    }

    /// The values of a matrix of integers and their scales, quantised still or as f32.
    fn read_int8(&mut self, index: usize, scales: usize, keep: bool) -> Result<TensorData, Error> {
        let shape = self.tensors()[index].shape.clone();
        let Self::Safetensors(file) = self else {
            unreachable!("storages of integers are refused before");
        };
        let quantised = file.read_int8(index)?;
        let scales = file.read(scales, false)?;
        let scales = scales.as_slice::<f32>().unwrap_or_default();
        let (Some(group), Some(scheme)) = (int8_group(shape[1]), int8_scheme(shape[1])) else {
            unreachable!("checked when parameters and tensors were paired");
        };
        Ok(match keep {
            true => TensorData::quantized(quantised, shape, scheme, scales),
            false => TensorData::new(convert::dequantise(&quantised, scales, group), shape),
        })
    }
}

fn format_error(path: &Path, reason: impl Into<String>) -> Error {
    Error::Format {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
