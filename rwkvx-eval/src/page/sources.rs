//! What lies in the folders that a page is made of: reports, and runs of `rwkvx-train`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::training::{self, Training};
use crate::report;
use crate::{Error, Result};

/// What a page shows.
pub struct Sources {
    /// Reports of `rwkvx-eval`.
    pub reports: Vec<Source>,
    /// Runs of `rwkvx-train`.
    pub trainings: Vec<Training>,
}

/// A report and where it was found.
pub struct Source {
    /// Its file.
    pub path: PathBuf,
    /// The report, as [`report::read`] gives it.
    pub report: Value,
}

impl Source {
    pub(super) fn field<T: DeserializeOwned>(&self, name: &str) -> serde_json::Result<T> {
        serde_json::from_value(self.report[name].clone())
    }

    pub(super) fn benchmark(&self) -> &str {
        self.report["benchmark"].as_str().unwrap_or_default()
    }
}

/// Files and folders to be read.
#[derive(Default)]
struct Paths {
    reports: Vec<PathBuf>,
    trainings: Vec<PathBuf>,
}

/// Every report in files and folders, and every run of `rwkvx-train` in folders, in the order of their names.
///
/// # Errors
///
/// If one cannot be read, or a folder holds none.
pub fn find(places: &[PathBuf]) -> Result<Sources> {
    let mut paths = Paths::default();
    for place in places {
        let before = paths.len();
        paths.collect(place)?;
        if paths.len() == before {
            return Err(Error::Input {
                path: place.clone(),
                reason: format!(
                    "the folder holds no {} of rwkvx-eval and no run of rwkvx-train",
                    report::FILE
                ),
            });
        }
    }
    for paths in [&mut paths.reports, &mut paths.trainings] {
        paths.sort();
        paths.dedup();
    }
    let read = |path: PathBuf| {
        let report = report::read(&path)?;
        Ok(Source { path, report })
    };
    Ok(Sources {
        reports: paths.reports.into_iter().map(read).collect::<Result<_>>()?,
        trainings: training::read_all(&paths.trainings)?,
    })
}

impl Paths {
    fn len(&self) -> usize {
        self.reports.len() + self.trainings.len()
    }

    fn collect(&mut self, place: &Path) -> Result<()> {
        if !place.is_dir() {
            self.reports.push(place.to_path_buf());
            return Ok(());
        }
        if training::is_run(place) {
            self.trainings.push(place.to_path_buf());
        }
        for entry in fs::read_dir(place).map_err(Error::io(place))? {
            let path = entry.map_err(Error::io(place))?.path();
            if path.is_dir() {
                self.collect(&path)?;
            } else if path.file_name().is_some_and(|name| name == report::FILE)
                && !is_of_training(&path)
            {
                self.reports.push(path);
            }
        }
        Ok(())
    }
}

/// Whether a report is one that `rwkvx-train` leaves in its run, which tells of phases and of no benchmark.
fn is_of_training(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    report.get("phases").is_some() && report.get("benchmark").is_none()
}
