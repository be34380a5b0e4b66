//! Where trained models are, and where results go.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where `rwkvx-train` leaves its runs.
pub const RUNS: &str = "runs";
/// A run's final weights.
pub(crate) const MODEL: &str = "model.safetensors";

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

/// A short name for each model that tells it from the others: its file's, or its run's where that is called `model`.
pub fn names(models: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for path in models {
        let parent = path.parent().and_then(Path::file_name);
        let name = match (path.file_stem(), parent) {
            (Some(stem), Some(run)) if stem == "model" => run,
            (Some(stem), _) => stem,
            (None, _) => path.as_os_str(),
        };
        let name = name.to_string_lossy().into_owned();
        let free = (1..).map(|number| match number {
            1 => name.clone(),
            _ => format!("{name}-{number}"),
        });
        names.extend(free.into_iter().find(|name| !names.contains(name)));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_told_apart_by_short_names() {
        let models = [
            "runs/a/model.safetensors",
            "b.pth",
            "old/b.pth",
            "model.pth",
        ];
        let models = models.map(PathBuf::from);
        assert_eq!(names(&models), ["a", "b", "b-2", "model"]);
    }
}
