//! The configurations that come with the program.

use std::path::Path;

use crate::config::TrainConfig;
use crate::{Error, Result};

/// Name and JSON of each preset.
const PRESETS: [(&str, &str); 5] = [
    ("demo", include_str!("../configs/demo.json")),
    ("demo-short", include_str!("../configs/demo-short.json")),
    ("rwkvx-0.2b", include_str!("../configs/rwkvx-0.2b.json")),
    ("rwkvx-3.6b", include_str!("../configs/rwkvx-3.6b.json")),
    ("sft-0.2b", include_str!("../configs/sft-0.2b.json")),
];

/// Names of the presets, the default one first.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The preset called `name`.
///
/// # Errors
///
/// If there is none of that name.
pub fn preset(name: &str) -> Result<TrainConfig> {
    let known = || names().collect::<Vec<_>>().join(", ");
    let (_, json) = PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| Error::Option {
            option: "--preset",
            reason: format!("there is no {name:?}; there are {}", known()),
        })?;
    TrainConfig::parse(json, Path::new(&format!("configs/{name}.json")))
}
