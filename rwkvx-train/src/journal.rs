//! `metrics.jsonl`: one line per step, written before the checkpoint that covers it.
//!
//! Burn's own metric loggers run on another thread, so after a kill their files may lack steps that a checkpoint holds.
//! Here a line is in the file before the step's checkpoint is begun, and resuming drops the lines past the checkpoint.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use rwkvx_model::write_beside;
use serde::{Deserialize, Serialize};

use crate::outcome::Speed;
use crate::phase::Phase;
use crate::{Error, Result};

/// Name of the file in a run directory.
pub const FILE: &str = "metrics.jsonl";

/// One line: one update of the parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Phase of the run.
    pub stage: Phase,
    /// Update within the phase, from 1.
    pub step: u64,
    /// What is minimised: the mean loss in nats, weighted per token. Measured before the update.
    pub loss: f64,
    /// Mean loss in nats with all tokens weighing 1.
    pub nll: f64,
    /// The same of the tokens of answers, where the data marks them by a weight above 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_nll: Option<f64>,
    /// Learning rate of the update.
    pub lr: f64,
    /// Tokens trained on in this phase so far.
    pub tokens: u64,
    /// How fast this step was.
    #[serde(flatten)]
    pub speed: Speed,
    /// Euclidean norm of the whole gradient, before clipping.
    pub grad_norm: f64,
    /// Steps of this phase left out so far because the loss or the gradient was no number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Appends lines to a run's `metrics.jsonl`.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of the run in `directory`, keeping only the lines up to update `step` of `phase`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written, or a line before the last is not a journal line.
    pub fn open(directory: &Path, phase: Phase, step: u64) -> Result<Self> {
        let path = directory.join(FILE);
        let mut text = Vec::new();
        if path.exists() {
            for line in read(&path)? {
                if (line.stage, line.step) <= (phase, step) {
                    write_line(&mut text, &line);
                }
            }
        }
        write_beside(&path, |out| out.write_all(&text))?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        Ok(Self { path, file })
    }

    /// Appends one line. It is in the system's hands when this returns: a killed process loses nothing.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, for example on a full disk.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = Vec::new();
        write_line(&mut text, line);
        self.file.write_all(&text).map_err(Error::io(&self.path))
    }
}

/// All lines of a journal. A last line cut short by a kill is left out.
///
/// # Errors
///
/// If the file cannot be read, or a line before the last is not a journal line.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let texts = BufReader::new(file)
        .lines()
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::io(path))?;
    let mut lines = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match serde_json::from_str(text) {
            Ok(line) => lines.push(line),
            Err(_) if index + 1 == texts.len() => {}
            Err(error) => {
                return Err(Error::checkpoint(
                    path,
                    format!("line {} is not a metrics line: {error}", index + 1),
                ));
            }
        }
    }
    Ok(lines)
}

fn write_line(text: &mut Vec<u8>, line: &Line) {
    // Numbers and names only: serde_json cannot fail on them, and writing to memory cannot either.
    let json = serde_json::to_string(line).unwrap_or_default();
    text.extend_from_slice(json.as_bytes());
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stage: Phase, step: u64) -> Line {
        Line {
            stage,
            step,
            loss: 1.0 / step as f64,
            nll: 2.0,
            answer_nll: Some(1.5),
            lr: 1e-3,
            tokens: 64 * step,
            speed: Speed {
                tokens_per_second: 1e4,
                memory_bytes: Some(1 << 30),
                ..Speed::default()
            },
            grad_norm: 0.5,
            skipped: 0,
        }
    }

    #[test]
    fn resuming_drops_the_lines_past_the_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(run.path(), Phase::Base, 0).unwrap();
        for (stage, step) in [
            (Phase::Base, 1),
            (Phase::Base, 2),
            (Phase::Stage1, 1),
            (Phase::Stage1, 2),
        ] {
            journal.append(&line(stage, step)).unwrap();
        }
        let mut resumed = Journal::open(run.path(), Phase::Stage1, 1).unwrap();
        resumed.append(&line(Phase::Stage1, 2)).unwrap();
        let read: Vec<_> = read(&run.path().join(FILE))
            .unwrap()
            .into_iter()
            .map(|line| (line.stage, line.step))
            .collect();
        assert_eq!(
            read,
            [
                (Phase::Base, 1),
                (Phase::Base, 2),
                (Phase::Stage1, 1),
                (Phase::Stage1, 2)
            ]
        );
    }

    #[test]
    fn a_last_line_cut_short_is_dropped_and_a_broken_one_before_is_an_error() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(FILE);
        let whole = serde_json::to_string(&line(Phase::Base, 1)).unwrap();
        std::fs::write(&path, format!("{whole}\n{}", &whole[..20])).unwrap();
        assert_eq!(read(&path).unwrap(), [line(Phase::Base, 1)]);
        std::fs::write(&path, format!("{}\n{whole}\n", &whole[..20])).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl: line 1"), "{message}");
    }

    #[test]
    fn losses_survive_the_file_bit_for_bit() {
        let run = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(run.path(), Phase::Base, 0).unwrap();
        let odd = Line {
            loss: f64::from(0.1_f32 + 0.2_f32),
            ..line(Phase::Base, 1)
        };
        journal.append(&odd).unwrap();
        let back = read(&run.path().join(FILE)).unwrap();
        assert_eq!(back[0].loss.to_bits(), odd.loss.to_bits());
    }
}
