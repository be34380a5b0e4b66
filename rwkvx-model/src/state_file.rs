//! A session in a file: what was read once need not be read again.
//!
//! Safetensors in f32: recurrent states, token-shift carries, the rows of the caches and the last logits; sizes and budget as JSON in the header.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use rwkvx_kernels::{CacheBudget, CacheContents, KernelBackend};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::RwkvXConfig;
use crate::files::write_beside;
use crate::model::RwkvX;
use crate::session::Session;

/// The header's entry that holds the description.
const ENTRY: &str = "rwkvx-state";

/// The JSON under [`ENTRY`].
#[derive(Serialize, Deserialize)]
struct Description {
    config: RwkvXConfig,
    batch: usize,
    tokens: usize,
    /// Largest and smallest size, window and observers of the caches.
    budget: Option<[usize; 4]>,
}

impl<B: KernelBackend> Session<B> {
    /// Writes the session to a file, whole or not at all.
    ///
    /// # Errors
    /// If the folder is missing or cannot be written, or the disk is full.
    pub fn save(&self, model: &RwkvX<B>, path: &Path) -> Result<(), Error> {
        let budget = self.state.cache_budget();
        let description = Description {
            config: model.config().clone(),
            batch: self.state.batch(),
            tokens: self.state.tokens(),
            budget: budget.map(|budget| [budget.max, budget.min, budget.window, budget.observers]),
        };
        let mut tensors = Vec::new();
        for (layer, block) in self.state.recurrent.iter().enumerate() {
            let name = |part: &str| format!("recurrent.{layer}.{part}");
            tensors.push(host(name("carry"), &block.time_mix.carry));
            tensors.push(host(name("wkv"), &block.time_mix.wkv));
            tensors.push(host(name("channel_carry"), &block.channel_carry));
        }
        for (index, block) in self.state.sparse.iter().enumerate() {
            let name = |part: &str| format!("sparse.{index}.{part}");
            tensors.push(host(name("channel_carry"), &block.channel_carry));
            if let Some(carry) = &block.attention.key_carry {
                tensors.push(host(name("key_carry"), carry));
            }
            if let Some(contents) = block.attention.cache.contents() {
                tensors.push(host(name("keys"), &contents.keys));
                tensors.push(host(name("values"), &contents.values));
                if let Some(queries) = &contents.queries {
                    tensors.push(host(name("queries"), queries));
                }
            }
        }
        if let Some(logits) = &self.logits {
            tensors.push(host("logits".to_owned(), logits));
        }
        let damaged = |error: String| format_error(path, error);
        let views = tensors
            .iter()
            .map(|(name, data)| {
                let view = TensorView::new(Dtype::F32, data.shape.to_vec(), data.as_bytes());
                view.map(|view| (name.as_str(), view))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(error.to_string()))?;
        let json =
            serde_json::to_string(&description).map_err(|error| damaged(error.to_string()))?;
        let entries = HashMap::from([(ENTRY.to_owned(), json)]);
        let bytes = safetensors::serialize(views, Some(entries))
            .map_err(|error| damaged(error.to_string()))?;
        write_beside(path, |file| file.write_all(&bytes))
    }

    /// Reads a session that [`save`](Self::save) wrote with a model of the same sizes.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged or of another kind, or of a model of other sizes.
    pub fn load(model: &RwkvX<B>, path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|error| Error::Io {
            path: path.to_owned(),
            error,
        })?;
        let file = File::open(path, &bytes)?;
        let description = &file.description;
        if description.config != *model.config() {
            return Err(format_error(
                path,
                format!(
                    "is of a model with {:?}, this one has {:?}",
                    description.config,
                    model.config()
                ),
            ));
        }
        let budget = description
            .budget
            .map(|[max, min, window, observers]| CacheBudget {
                max,
                min,
                window,
                observers,
            });
        if let Some(error) = budget.and_then(|budget| budget.error()) {
            return Err(format_error(path, error));
        }
        if description.batch == 0 || description.tokens == 0 {
            return Err(format_error(path, "is of no text or of an empty one"));
        }

        let device = model.device();
        let mut session = Self::new(model, description.batch, budget);
        session.state.tokens = description.tokens;
        for (layer, block) in session.state.recurrent.iter_mut().enumerate() {
            let name = |part: &str| format!("recurrent.{layer}.{part}");
            file.fill(&name("carry"), &mut block.time_mix.carry)?;
            file.fill(&name("wkv"), &mut block.time_mix.wkv)?;
            file.fill(&name("channel_carry"), &mut block.channel_carry)?;
        }
        let (heads, head_size) = (model.config().n_head(), model.config().head_size);
        for (index, block) in session.state.sparse.iter_mut().enumerate() {
            let name = |part: &str| format!("sparse.{index}.{part}");
            file.fill(&name("channel_carry"), &mut block.channel_carry)?;
            if let Some(carry) = &mut block.attention.key_carry {
                file.fill(&name("key_carry"), carry)?;
            }
            let rows = file.length(&name("keys"), 2)?;
            let most = budget.map_or(description.tokens, |budget| budget.max);
            if rows == 0 || rows > most.min(description.tokens) {
                return Err(format_error(path, format!("holds {rows} rows of {most}")));
            }
            let shape = [description.batch, heads, rows, head_size];
            let queries = budget.map(|budget| {
                let shape = [description.batch, heads, budget.observers, head_size];
                file.tensor(&name("queries"), shape, &device)
            });
            block.attention.cache.restore(CacheContents {
                keys: file.tensor(&name("keys"), shape, &device)?,
                values: file.tensor(&name("values"), shape, &device)?,
                queries: queries.transpose()?,
                tokens: description.tokens,
            });
        }
        let shape = [description.batch, model.config().vocab_size];
        session.logits = Some(file.tensor("logits", shape, &device)?);
        Ok(session)
    }
}

/// The values of a tensor under its name.
fn host<B: Backend, const D: usize>(name: String, tensor: &Tensor<B, D>) -> (String, TensorData) {
    (name, tensor.clone().into_data().convert::<f32>())
}

/// A file in memory.
struct File<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    description: Description,
}

impl<'a> File<'a> {
    fn open(path: &'a Path, bytes: &'a [u8]) -> Result<Self, Error> {
        let damaged = |error: &dyn std::fmt::Display| {
            format_error(path, format!("is no saved state, or damaged: {error}"))
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(&error))?;
        let entry = header.metadata().as_ref().and_then(|all| all.get(ENTRY));
        let description = match entry {
            Some(json) => serde_json::from_str(json).map_err(|error| damaged(&error))?,
            None => {
                return Err(format_error(
                    path,
                    "is no saved state; `rwkvx generate --state-out` writes one",
                ));
            }
        };
        Ok(Self {
            path,
            tensors: SafeTensors::deserialize(bytes).map_err(|error| damaged(&error))?,
            description,
        })
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let view = self.tensors.tensor(name);
        view.map_err(|_| format_error(self.path, format!("has no tensor `{name}`; it is damaged")))
    }

    /// The length of one axis of a tensor.
    fn length(&self, name: &str, axis: usize) -> Result<usize, Error> {
        Ok(self.view(name)?.shape().get(axis).copied().unwrap_or(0))
    }

    fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D>, Error> {
        let view = self.view(name)?;
        if view.shape() != shape {
            return Err(Error::TensorShape {
                path: self.path.to_owned(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        if view.dtype() != Dtype::F32 {
            return Err(Error::TensorDtype {
                path: self.path.to_owned(),
                name: name.to_owned(),
                found: format!("{:?}", view.dtype()),
            });
        }
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let data = TensorData::new(values, shape);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }

    /// Replaces a tensor by the one of this name, which must have its shape.
    fn fill<B: Backend, const D: usize>(
        &self,
        name: &str,
        tensor: &mut Tensor<B, D>,
    ) -> Result<(), Error> {
        *tensor = self.tensor(name, tensor.dims(), &tensor.device())?;
        Ok(())
    }
}

fn format_error(path: &Path, reason: impl Into<String>) -> Error {
    Error::Format {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
