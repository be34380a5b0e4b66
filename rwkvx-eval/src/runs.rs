//! Where trained models are, and where results go.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where `rwkvx-train` leaves its runs.
pub const RUNS: &str = "runs";
/// A run's final weights.
const MODEL: &str = "model.safetensors";

/// The weights of the run under `runs` that was trained last.
///
/// # Errors
///
/// If there is none; the error says how to get one.
pub fn newest_model(runs: &Path) -> Result<PathBuf> {
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    fs::read_dir(runs)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join(MODEL))
        .filter_map(|path| Some((changed(&path).ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .ok_or_else(|| {
            Error::option(
                "--model",
                format!(
                    "not given, and there is no trained model in {}/; train one (`cargo run --release -p rwkvx-train`) \
                     or give a .pth or .safetensors file",
                    runs.display()
                ),
            )
        })
}

/// `runs/name-N` with the least N that is not taken.
pub fn next_free(runs: &Path, name: &str) -> PathBuf {
    (1..)
        .map(|number| runs.join(format!("{name}-{number}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| runs.join(name))
}
