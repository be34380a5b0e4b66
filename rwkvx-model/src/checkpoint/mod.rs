//! Checkpoints: published `.pth` and `.safetensors` files come in, `.safetensors` go out.
//!
//! Loading is strict. Sizes are read off the tensors; then every tensor the model needs must be there with its shape,
//! and no other. Vectors may be stored `[1, 1, channels]`, as published, or `[channels]`; layer 0's unused `v0`, `v1`,
//! `v2` may be there. Weights become f32, tensor by tensor, and nothing is transposed.

mod convert;
mod layout;
mod pth;
mod safetensors;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Bytes, DType, TensorData};
use rwkvx_datasets::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::config::{RwkvXConfig, WORLD_VOCAB_SIZE};
use crate::model::RwkvX;
use crate::{Error, names};
pub use safetensors::save;

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
                "the checkpoint names none and none is known for a vocabulary of {rows}; give rwkv-world, byte or the \
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
    /// A format that weights do not use, by its name.
    Other(String),
}

impl std::fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::Other(name) => name,
        })
    }
}

impl From<StoredDtype> for String {
    fn from(dtype: StoredDtype) -> Self {
        dtype.to_string()
    }
}

/// Loads a model.
///
/// # Errors
/// If the file cannot be read, is damaged or of another kind, or its tensors are not exactly those of an RWKV-7 or
/// RWKV-X model; see [`Error`].
pub fn load<B: Backend>(
    path: &Path,
    options: &LoadOptions,
    device: &B::Device,
) -> Result<Checkpoint<B>, Error> {
    let mut file = CheckpointFile::open(path)?;
    let config = layout::infer(path, file.tensors(), file.config(), options)?;
    let model = RwkvX::unset(&config, device);
    let places = layout::pair(path, file.tensors(), &names::parameters(&model))?;
    let model = names::fill(model, |name, shape| {
        Ok(TensorData::from_bytes(
            file.read(places[name])?,
            shape.to_vec(),
            DType::F32,
        ))
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

    /// The values of a tensor as f32.
    fn read(&mut self, index: usize) -> Result<Bytes, Error> {
        match self {
            Self::Pth(file) => file.read(index),
            Self::Safetensors(file) => file.read(index),
        }
    }
}

fn format_error(path: &Path, reason: impl Into<String>) -> Error {
    Error::Format {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
