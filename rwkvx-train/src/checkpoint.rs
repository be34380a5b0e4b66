//! Training checkpoints: weights, optimiser state and position of a run, whole or absent.
//!
//! `checkpoints/<phase>-<step>/` holds
//! - `model.safetensors`: the weights under their published names, a model file like any other;
//! - `optimizer.safetensors`: the moments, `moment_1:<name>` and `moment_2:<name>`, and `time:<name>`, the updates made;
//! - `checkpoint.json`: the position, and the CRC-32 of the two files, which loading checks.
//!
//! The folder is written beside, synced and renamed, so a folder of that name is complete. State is kept by name because
//! Burn's parameter ids are new in every process.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::optim::AdaptiveMomentumState;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use rwkvx_model::checkpoint::{LoadOptions, Metadata};
use rwkvx_model::names::NamedParam;
use rwkvx_model::{RwkvX, write_beside};
use safetensors::View;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::optimizer::{GroupedAdamW, Moments};
use crate::phase::Phase;
use crate::shards::Shards;
use crate::{Error, Result};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const MANIFEST: &str = "checkpoint.json";
const VERSION: u32 = 2;
const PARTIAL: &str = ".partial";

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The phase.
    pub phase: Phase,
    /// Updates made in it.
    pub step: u64,
    /// Tokens trained on in it.
    pub tokens: u64,
    /// Steps left out in it because the loss or the gradient was no number; they count as updates made.
    #[serde(default)]
    pub skipped: u64,
}

impl Position {
    /// The start of a phase.
    pub fn start(phase: Phase) -> Self {
        Self {
            phase,
            step: 0,
            tokens: 0,
            skipped: 0,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    position: Position,
    model_crc32: u32,
    optimizer_crc32: u32,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    directory: PathBuf,
    keep: usize,
    metadata: Metadata,
}

impl CheckpointStore {
    /// The checkpoints of the run in `run`. The newest `keep` are kept, `metadata` goes into their model files.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made or cleared of what a killed process left half written.
    pub fn open(run: &Path, keep: usize, metadata: Metadata) -> Result<Self> {
        let directory = run.join("checkpoints");
        fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        for entry in fs::read_dir(&directory).map_err(Error::io(&directory))? {
            let path = entry.map_err(Error::io(&directory))?.path();
            if path.to_string_lossy().ends_with(PARTIAL) {
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(Self {
            directory,
            keep,
            metadata,
        })
    }

    /// Writes a checkpoint and removes the oldest ones.
    ///
    /// # Errors
    ///
    /// If a file cannot be written; the older checkpoints then stay.
    pub fn save<B: Backend>(
        &self,
        position: Position,
        model: &RwkvX<B>,
        parameters: &[NamedParam],
        optimizer: &GroupedAdamW<impl Backend>,
    ) -> Result<()> {
        let path = self.folder(position.phase, position.step);
        let partial = path.with_added_extension(&PARTIAL[1..]);
        fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        rwkvx_model::checkpoint::save(model, &self.metadata, &partial.join(MODEL))?;
        save_optimizer(optimizer, parameters, &partial.join(OPTIMIZER))?;
        let manifest = Manifest {
            version: VERSION,
            position,
            model_crc32: checksum(&partial.join(MODEL))?,
            optimizer_crc32: checksum(&partial.join(OPTIMIZER))?,
        };
        let json = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        write_beside(&partial.join(MANIFEST), |out| out.write_all(&json))?;
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        fs::rename(&partial, &path).map_err(Error::io(&path))?;
        let all = self.all()?;
        for (_, old) in all.iter().rev().skip(self.keep) {
            fs::remove_dir_all(old).map_err(Error::io(old))?;
        }
        Ok(())
    }

    /// Folder of the newest checkpoint, if there is one.
    pub fn newest(&self) -> Option<PathBuf> {
        self.all().ok()?.pop().map(|(_, path)| path)
    }

    /// Opens the newest checkpoint; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If it is there but damaged.
    pub fn open_newest(&self) -> Result<Option<SavedCheckpoint>> {
        match self.all()?.pop() {
            None => Ok(None),
            Some((_, path)) => SavedCheckpoint::open(path).map(Some),
        }
    }

    /// The checkpoint folders, oldest first.
    fn all(&self) -> Result<Vec<((Phase, u64), PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(Error::io(&self.directory))? {
            let path = entry.map_err(Error::io(&self.directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let position = name.rsplit_once('-').and_then(|(phase, step)| {
                let phase = Phase::ALL.into_iter().find(|known| known.name() == phase)?;
                Some((phase, step.parse().ok()?))
            });
            if let Some(position) = position {
                found.push((position, path));
            }
        }
        found.sort();
        Ok(found)
    }

    fn folder(&self, phase: Phase, step: u64) -> PathBuf {
        self.directory.join(format!("{phase}-{step:08}"))
    }
}

/// A complete checkpoint on disk.
#[derive(Debug)]
pub struct SavedCheckpoint {
    path: PathBuf,
    position: Position,
}

impl SavedCheckpoint {
    fn open(path: PathBuf) -> Result<Self> {
        let file = path.join(MANIFEST);
        let text = fs::read(&file).map_err(Error::io(&file))?;
        let remove = "remove this checkpoint's folder to go on from the one before";
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| Error::checkpoint(&file, format!("{error}; {remove}")))?;
        if manifest.version != VERSION {
            let reason = format!(
                "is of version {}, this program reads version {VERSION}; {remove}",
                manifest.version
            );
            return Err(Error::checkpoint(&file, reason));
        }
        for (name, expected) in [
            (MODEL, manifest.model_crc32),
            (OPTIMIZER, manifest.optimizer_crc32),
        ] {
            let file = path.join(name);
            let found = checksum(&file)?;
            if found != expected {
                let reason =
                    format!("is damaged: its CRC-32 is {found:08x}, not {expected:08x}; {remove}");
                return Err(Error::checkpoint(&file, reason));
            }
        }
        Ok(Self {
            path,
            position: manifest.position,
        })
    }

    /// Where the run was.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Reads the weights.
    ///
    /// # Errors
    ///
    /// If the file is damaged.
    pub fn model<B: Backend>(&self, options: &LoadOptions, device: &B::Device) -> Result<RwkvX<B>> {
        let path = self.path.join(MODEL);
        Ok(rwkvx_model::checkpoint::load(&path, options, device)?.model)
    }

    /// Reads the optimiser's state into `optimizer`, which belongs to a model with these parameters, each parameter's to its owner.
    ///
    /// # Errors
    ///
    /// If the file is damaged, or is about other parameters.
    pub fn restore_optimizer<B: Backend>(
        &self,
        optimizer: &mut GroupedAdamW<B>,
        parameters: &[NamedParam],
        shards: &Shards<B>,
    ) -> Result<()> {
        let path = self.path.join(OPTIMIZER);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let bad = |reason: String| Error::checkpoint(&path, reason);
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| bad(error.to_string()))?;
        let mut states = 0;
        for parameter in parameters {
            let name = &parameter.name;
            let Ok(time) = tensors.tensor(&format!("time:{name}")) else {
                continue; // Never updated: frozen, or not reached by any gradient.
            };
            let time = <[u8; 8]>::try_from(time.data())
                .ok()
                .and_then(|bytes| usize::try_from(u64::from_le_bytes(bytes)).ok())
                .ok_or_else(|| bad(format!("time:{name} is not one u64")))?;
            let moment = |which: &str| {
                let key = format!("{which}:{name}");
                let view = tensors
                    .tensor(&key)
                    .map_err(|error| bad(format!("{key}: {error}")))?;
                let size: usize = parameter.shape.iter().product();
                if view.dtype() != Dtype::F32 || view.shape() != [size] {
                    let (dtype, shape) = (view.dtype(), view.shape());
                    let reason = format!("{key} is {dtype:?} {shape:?}, expected F32 [{size}]");
                    return Err(bad(reason));
                }
                let data = TensorData::from_bytes_vec(view.data().to_vec(), [size], DType::F32);
                Ok(Tensor::<B, 1>::from_data(data, shards.device(parameter.id)))
            };
            let momentum =
                AdaptiveMomentumState::new(time, moment("moment_1")?, moment("moment_2")?);
            optimizer.set_moments(parameter.id, Moments::new(momentum));
            states += 3;
        }
        match tensors.len() == states {
            true => Ok(()),
            false => Err(bad(format!(
                "holds {} tensors, of which {states} belong to this model",
                tensors.len()
            ))),
        }
    }
}

/// CRC-32 of a file.
fn checksum(path: &Path) -> Result<u32> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn save_optimizer(
    optimizer: &GroupedAdamW<impl Backend>,
    parameters: &[NamedParam],
    path: &Path,
) -> Result<()> {
    let mut views = Vec::new();
    for parameter in parameters {
        let Some(moments) = optimizer.moments(parameter.id) else {
            continue;
        };
        let momentum = &moments.momentum;
        let name = &parameter.name;
        views.push((
            format!("moment_1:{name}"),
            StateView::moment(&momentum.moment_1),
        ));
        views.push((
            format!("moment_2:{name}"),
            StateView::moment(&momentum.moment_2),
        ));
        views.push((format!("time:{name}"), StateView::time(momentum.time)));
    }
    safetensors::serialize_to_file(views, None, path)
        .map_err(|error| Error::checkpoint(path, error.to_string()))?;
    let file = File::open(path).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))
}

/// One tensor of the optimiser's file, fetched from the device when it is its turn to be written.
struct StateView<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    fetch: Box<dyn Fn() -> Vec<u8> + 'a>,
}

impl<'a> StateView<'a> {
    fn moment<B: Backend>(tensor: &'a Tensor<B, 1>) -> Self {
        let shape = tensor.dims().to_vec();
        Self {
            dtype: Dtype::F32,
            bytes: shape.iter().product::<usize>() * size_of::<f32>(),
            shape,
            fetch: Box::new(|| tensor.to_data().convert::<f32>().bytes.to_vec()),
        }
    }

    fn time(time: usize) -> Self {
        Self {
            dtype: Dtype::U64,
            shape: vec![1],
            bytes: size_of::<u64>(),
            fetch: Box::new(move || (time as u64).to_le_bytes().to_vec()),
        }
    }
}

impl View for StateView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.fetch)())
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}
