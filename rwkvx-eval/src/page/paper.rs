//! The paper's own numbers (arXiv 2504.21463, tables 2, 3 and 8).

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::svg::Line;

/// Tasks of table 3 in the order of its columns, and what they are called there.
pub(super) const SHORT: [(&str, &str); 8] = [
    ("lambada", "LAMBADA"),
    ("hellaswag", "HellaSwag"),
    ("piqa", "PIQA"),
    ("arc_easy", "ARC-e"),
    ("arc_challenge", "ARC-c"),
    ("winogrande", "WinoGrande"),
    ("sciq", "SciQ"),
    ("mmlu", "MMLU"),
];

#[derive(Deserialize)]
pub(super) struct Paper {
    pub(super) short: Vec<Short>,
    pub(super) needles: Needles,
    decode: Decode,
}

/// A row of table 3.
#[derive(Deserialize)]
pub(super) struct Short {
    pub(super) model: String,
    /// Percent, in the order of [`SHORT`].
    pub(super) scores: [f64; 8],
}

/// Table 2.
#[derive(Deserialize)]
pub(super) struct Needles {
    pub(super) lengths: Vec<usize>,
    pub(super) models: Vec<NeedleRow>,
}

#[derive(Deserialize)]
pub(super) struct NeedleRow {
    pub(super) model: String,
    /// Percent by task, in the order of the lengths.
    #[serde(flatten)]
    pub(super) tasks: HashMap<String, Vec<Option<f64>>>,
}

/// Table 8, sparse.
#[derive(Deserialize)]
struct Decode {
    model: String,
    lengths: Vec<f64>,
    step_ms: Vec<f64>,
}

pub(super) static PAPER: LazyLock<Paper> =
    LazyLock::new(|| serde_json::from_str(include_str!("paper.json")).expect("a test reads it"));

/// Milliseconds per token in the paper.
pub(super) fn decode() -> Line {
    let Decode {
        model,
        lengths,
        step_ms,
    } = &PAPER.decode;
    Line {
        name: model.clone(),
        points: lengths
            .iter()
            .copied()
            .zip(step_ms.iter().copied())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_averages_are_the_papers() {
        let averages = PAPER
            .short
            .iter()
            .map(|row| row.scores.iter().sum::<f64>() / 8.0);
        let rounded: Vec<f64> = averages
            .map(|value| (value * 10.0).round() / 10.0)
            .collect();
        assert_eq!(
            rounded,
            [43.5, 50.7, 51.8, 51.0, 63.8, 69.7, 71.4, 72.8, 71.9]
        );
        for row in &PAPER.needles.models {
            for task in ["passkey", "number", "uuid"] {
                assert_eq!(row.tasks[task].len(), PAPER.needles.lengths.len());
            }
        }
    }
}
