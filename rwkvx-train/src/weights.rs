//! The weights that a phase starts with and those it leaves.

use std::collections::HashSet;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rwkvx_model::checkpoint::{self, LoadOptions, Metadata};
use rwkvx_model::{RwkvX, RwkvXConfig, SparseStart, expand, names};

use crate::config::{Expansion, TrainConfig};
use crate::phase::Phase;
use crate::{Error, Result};

/// The final weights of a run, in its directory.
pub const MODEL: &str = "model.safetensors";
/// The weights of the plain base, before expansion.
pub const BASE: &str = "base.safetensors";
/// The weights of the plain base trained on for comparison.
pub const COMPARED: &str = "rwkv7.safetensors";

/// Finds and keeps the weights of a run.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, B: Backend> {
    /// What the run is.
    pub config: &'a TrainConfig,
    /// Its directory.
    pub directory: &'a Path,
    /// Where the weights go.
    pub device: &'a B::Device,
}

impl<B: Backend> Weights<'_, B> {
    /// The model that a phase starts with, given what the phase before it left.
    ///
    /// # Errors
    ///
    /// If weights to start from cannot be loaded or do not fit, or blocks cannot be added.
    pub fn start(&self, phase: Phase, before: Option<RwkvX<B>>) -> Result<RwkvX<B>> {
        let base = RwkvXConfig {
            n_sparse: 0,
            key_conv: 0,
            ..self.config.model.clone()
        };
        let model = match (phase, before) {
            (Phase::Rwkv7Stage1 | Phase::Rwkv7Stage2, Some(model))
                if model.config().n_sparse == 0 =>
            {
                model
            }
            (Phase::Rwkv7Stage1 | Phase::Rwkv7Stage2, _) => self.load(BASE)?,
            (_, Some(model)) => model,
            (_, None) => match &self.config.start_from {
                Some(path) => self.load_start(path, phase)?,
                None => {
                    B::seed(self.device, self.config.seed);
                    base.init(self.device)
                }
            },
        };
        if !phase.is_hybrid() || model.config().n_sparse == self.config.model.n_sparse {
            return Ok(model);
        }
        let start = match self.config.expansion {
            Expansion::Zero => SparseStart::Zero,
            Expansion::Copy => SparseStart::Copy,
            Expansion::Fresh => SparseStart::Fresh,
        };
        B::seed(self.device, self.config.seed);
        let wanted = &self.config.model;
        let (n_sparse, key_conv) = (wanted.n_sparse, wanted.key_conv);
        Ok(expand(
            model,
            n_sparse,
            wanted.attention(),
            key_conv,
            start,
        )?)
    }

    /// The weights in a file of the run's directory.
    ///
    /// # Errors
    ///
    /// If the file is missing or damaged.
    pub fn load(&self, file: &str) -> Result<RwkvX<B>> {
        self.read(&self.directory.join(file))
    }

    fn read(&self, path: &Path) -> Result<RwkvX<B>> {
        Ok(checkpoint::load(path, &self.load_options(), self.device)?.model)
    }

    /// Loads the weights given by `--model` and checks that they fit the configuration and the phase.
    fn load_start(&self, path: &Path, phase: Phase) -> Result<RwkvX<B>> {
        let model = self.read(path)?;
        let wanted = &self.config.model;
        let found = model.config();
        let allowed: &[usize] = match phase {
            Phase::Stage1 => &[0, wanted.n_sparse],
            Phase::Stage2 | Phase::Sft => &[wanted.n_sparse],
            Phase::Base | Phase::Rwkv7Stage1 | Phase::Rwkv7Stage2 => &[0],
        };
        if !allowed.contains(&found.n_sparse) {
            let reason = format!(
                "has {} sparse blocks; {phase} starts from a model with {allowed:?}",
                found.n_sparse
            );
            return Err(Error::checkpoint(path, reason));
        }
        let same_rest = RwkvXConfig {
            n_sparse: found.n_sparse,
            key_conv: if found.n_sparse == 0 {
                0
            } else {
                wanted.key_conv
            },
            chunk_size: found.chunk_size,
            top_k: found.top_k,
            ..wanted.clone()
        };
        match *found == same_rest {
            true => Ok(model),
            false => Err(Error::field(
                "model",
                format!("does not fit {}, which has {found:?}", path.display()),
            )),
        }
    }

    /// Writes the weights that a phase ends with under the names that later phases, and users, look for.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn keep(&self, phase: Phase, model: &RwkvX<B>) -> Result<()> {
        let files: &[&str] = match phase {
            Phase::Base => &[BASE, MODEL],
            Phase::Stage1 | Phase::Stage2 | Phase::Sft => &[MODEL],
            Phase::Rwkv7Stage1 | Phase::Rwkv7Stage2 => &[COMPARED],
        };
        for file in files {
            checkpoint::save(model, &metadata(self.config), &self.directory.join(file))?;
        }
        Ok(())
    }

    /// The models that a finished run leaves: name and file.
    pub fn results(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        [("RWKV-X", MODEL), ("RWKV-7", COMPARED)]
            .into_iter()
            .filter(|(_, file)| self.directory.join(file).exists())
    }

    /// Chunk size and top-k by the configuration: published files do not say.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            chunk_size: Some(self.config.model.chunk_size),
            top_k: Some(self.config.model.top_k),
        }
    }
}

/// What the weights files of a run say besides the weights.
pub fn metadata(config: &TrainConfig) -> Metadata {
    Metadata {
        tokenizer: Some(config.tokenizer.clone()),
        ..Metadata::default()
    }
}

/// Marks the parameters that a phase trains; the others get no gradient, no optimiser state and no change.
pub fn trainable<B: Backend>(model: RwkvX<B>, phase: Phase) -> RwkvX<B> {
    let frozen = names::parameters(&model)
        .into_iter()
        .filter(|parameter| !phase.trains(parameter))
        .map(|parameter| parameter.id)
        .collect();
    model.map(&mut Freeze { frozen })
}

struct Freeze {
    frozen: HashSet<ParamId>,
}

impl<B: Backend> ModuleMapper<B> for Freeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let trains = !self.frozen.contains(&param.id);
        param.set_require_grad(trains)
    }
}
