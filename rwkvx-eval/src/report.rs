//! A result with everything needed to repeat it, and the files it becomes.

use std::fs;
use std::path::Path;

use rwkvx_model::{RwkvXConfig, write_beside};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::grid::Answer;
use crate::provenance::{InputFile, Program};
use crate::{Error, Result, heat_map, table};

/// Which model was asked, and how it read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The checkpoint.
    #[serde(flatten)]
    pub file: InputFile,
    /// Sizes, with the chunk size and top-k in force.
    pub config: RwkvXConfig,
    /// Parameters.
    pub parameters: usize,
    /// Tokenizer, as `Tokenizer::open` takes it.
    pub tokenizer: String,
}

/// The result of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report<S, R> {
    /// Name of the benchmark, as on the command line.
    pub benchmark: String,
    /// What computed it.
    pub program: Program,
    /// The model.
    pub model: ModelInfo,
    /// What was asked for.
    pub settings: S,
    /// What came out.
    pub result: R,
    /// Wall time, in seconds, loading not counted.
    pub seconds: f64,
}

/// Name of a report in its folder.
pub const FILE: &str = "report.json";

impl<S: Serialize, R: Serialize> Report<S, R> {
    /// Writes `report.json` into `directory`.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made or written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).map_err(Error::io(directory))?;
        let json = self.to_json();
        write_beside(&directory.join(FILE), |out| out.write_all(json.as_bytes()))?;
        Ok(())
    }

    /// The report as indented JSON.
    pub fn to_json(&self) -> String {
        // Plain data with string keys, which always has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Reads a report of any benchmark from its file, or from its folder.
///
/// # Errors
///
/// If it cannot be read or is none.
pub fn read(path: &Path) -> Result<Value> {
    let path = match path.is_dir() {
        true => path.join(FILE),
        false => path.to_path_buf(),
    };
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let bad = |reason: String| Error::Input {
        path: path.clone(),
        reason,
    };
    let report: Value = serde_json::from_str(&text)
        .map_err(|error| bad(format!("not a report of rwkvx-eval: {error}")))?;
    let fields = ["benchmark", "program", "model", "settings", "result"];
    match fields.iter().find(|&&field| report[field].is_null()) {
        None => Ok(report),
        Some(field) => Err(bad(format!(
            "not a report of rwkvx-eval: no field `{field}`"
        ))),
    }
}

/// Writes `grid.csv` and `heat_map.png` of a grid of answers into `directory`, which must be there.
///
/// # Errors
///
/// If a file cannot be drawn or written.
pub fn write_grid(answers: &[Answer], title: &str, directory: &Path) -> Result<()> {
    let csv = table::csv(answers);
    write_beside(&directory.join("grid.csv"), |out| {
        out.write_all(csv.as_bytes())
    })?;
    heat_map::draw(answers, title, &directory.join("heat_map.png"))
}
