//! What a run came to, for people and for machines.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::journal::Line;
use crate::phase::Phase;
use crate::questions::Score;

/// The result of a run; also `report.json` in its directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run's directory.
    pub run: PathBuf,
    /// Parameters of the final model.
    pub parameters: usize,
    /// What each phase did.
    pub phases: Vec<PhaseReport>,
    /// The answers of each model that was asked.
    pub answers: Vec<ModelScores>,
    /// Wall time of this process, in seconds.
    pub seconds: f64,
}

/// What one phase did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// The phase.
    pub phase: Phase,
    /// Updates.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Mean unweighted loss of the first tenth of the steps, in nats.
    pub first_nll: f64,
    /// The same of the last tenth.
    pub last_nll: f64,
    /// Tokens per second over the whole phase.
    pub tokens_per_second: f64,
    /// Wall time of all its steps, in seconds.
    pub seconds: f64,
    /// Steps left out because the loss or the gradient was no number.
    #[serde(default)]
    pub skipped: u64,
}

/// The answers of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelScores {
    /// Which model.
    pub model: String,
    /// Its scores.
    pub scores: Vec<Score>,
}

impl PhaseReport {
    /// Sums up the journal lines of `phase`; `None` if there are none.
    pub fn of(phase: Phase, lines: &[Line]) -> Option<Self> {
        let lines: Vec<&Line> = lines.iter().filter(|line| line.stage == phase).collect();
        let last = lines.last()?;
        let tenth = lines.len().div_ceil(10);
        let mean =
            |lines: &[&Line]| lines.iter().map(|line| line.nll).sum::<f64>() / lines.len() as f64;
        let mut seconds = 0.0;
        let mut before = 0;
        for line in &lines {
            seconds += (line.tokens - before) as f64 / line.speed.tokens_per_second;
            before = line.tokens;
        }
        Some(Self {
            phase,
            steps: last.step,
            tokens: last.tokens,
            first_nll: mean(&lines[..tenth]),
            last_nll: mean(&lines[lines.len() - tenth..]),
            tokens_per_second: last.tokens as f64 / seconds,
            seconds,
            skipped: last.skipped,
        })
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<14}{:>7}{:>12}{:>18}{:>12}{:>9}",
            "phase", "steps", "tokens", "nats per token", "tokens/s", "seconds"
        )?;
        for phase in &self.phases {
            let loss = format!("{:.3} to {:.3}", phase.first_nll, phase.last_nll);
            writeln!(
                out,
                "{:<14}{:>7}{:>12}{loss:>18}{:>12.0}{:>9.0}",
                phase.phase.name(),
                phase.steps,
                phase.tokens,
                phase.tokens_per_second,
                phase.seconds
            )?;
            if phase.skipped > 0 {
                writeln!(out, "{:<14}{} steps skipped", "", phase.skipped)?;
            }
        }
        if !self.answers.is_empty() {
            writeln!(out)?;
            self.write_answers(out)?;
        }
        writeln!(out)?;
        writeln!(
            out,
            "{} parameters, {:.0} seconds in all; everything is in {}",
            self.parameters,
            self.seconds,
            self.run.display()
        )
    }
}

impl RunReport {
    /// One row per model and task, one column per length.
    fn write_answers(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lengths: Vec<usize> = Vec::new();
        let mut tasks: Vec<&str> = Vec::new();
        for score in self.answers.iter().flat_map(|model| &model.scores) {
            if !lengths.contains(&score.length) {
                lengths.push(score.length);
            }
            if !tasks.contains(&score.task.as_str()) {
                tasks.push(&score.task);
            }
        }
        write!(out, "{:<14}{:<10}", "right answers", "")?;
        for length in &lengths {
            write!(out, "{:>20}", format!("{length} tokens"))?;
        }
        writeln!(out)?;
        for task in tasks {
            for model in &self.answers {
                write!(out, "{task:<14}{:<10}", model.model)?;
                for &length in &lengths {
                    let score = model
                        .scores
                        .iter()
                        .find(|score| score.task == task && score.length == length);
                    let text = score.map_or_else(String::new, |score| {
                        format!(
                            "{:.0}% ({}/{})",
                            score.percent(),
                            score.correct,
                            score.asked
                        )
                    });
                    write!(out, "{text:>20}")?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }
}
