//! Runs of `rwkvx-train`: what the losses of their phases came to.

use std::fs;
use std::path::{Path, PathBuf};

use minijinja::{Value as Field, context, value::Serde};
use serde::Deserialize;
use serde_json::Value;

use super::figures::chart;
use super::svg::{Axes, Line};
use super::{Cell, Row, Table};
use crate::{Error, Result, runs};

/// A line per step, in the folder of a run.
const METRICS: &str = "metrics.jsonl";
/// The whole configuration of a run.
const CONFIG: &str = "config.json";
/// Most points of a curve; of more steps each point is the mean of some.
const POINTS: usize = 100;

/// A run of `rwkvx-train`.
pub struct Training {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) config: Value,
    phases: Vec<Phase>,
}

/// The steps of a phase.
struct Phase {
    /// As `rwkvx-train` calls it: `base`, `stage1`, `rwkv7-stage1` and so on.
    name: String,
    steps: Vec<Step>,
}

/// What the page needs of a line of `metrics.jsonl`.
#[derive(Deserialize)]
struct Step {
    stage: String,
    step: u64,
    tokens: u64,
    nll: f64,
    answer_nll: Option<f64>,
}

/// Whether a folder is that of a run.
pub(super) fn is_run(folder: &Path) -> bool {
    [METRICS, CONFIG]
        .iter()
        .all(|name| folder.join(name).is_file())
}

/// Reads runs, and names them so that they are told apart.
pub(super) fn read_all(folders: &[PathBuf]) -> Result<Vec<Training>> {
    let models: Vec<PathBuf> = folders.iter().map(|run| run.join(runs::MODEL)).collect();
    let named = folders.iter().zip(runs::names(&models));
    named
        .map(|(path, name)| Training::read(path, name))
        .collect()
}

impl Training {
    fn read(path: &Path, name: String) -> Result<Self> {
        let config = path.join(CONFIG);
        let text = fs::read_to_string(&config).map_err(Error::io(&config))?;
        let mut phases: Vec<Phase> = Vec::new();
        for step in steps(&path.join(METRICS))? {
            match phases.iter_mut().find(|phase| phase.name == step.stage) {
                Some(phase) => phase.steps.push(step),
                None => phases.push(Phase {
                    name: step.stage.clone(),
                    steps: vec![step],
                }),
            }
        }
        Ok(Self {
            name,
            path: path.to_path_buf(),
            config: serde_json::from_str(&text).map_err(|error| Error::Input {
                path: config,
                reason: format!("not a configuration of rwkvx-train: {error}"),
            })?,
            phases,
        })
    }
}

/// The steps of a run, one being made as this is read left out.
fn steps(path: &Path) -> Result<Vec<Step>> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let step = |(line, number): (&str, usize)| {
        serde_json::from_str(line).map_err(|error| Error::Record {
            path: path.to_path_buf(),
            unit: "line",
            number,
            reason: format!("not a step of rwkvx-train: {error}"),
        })
    };
    whole.lines().zip(1..).map(step).collect()
}

impl Phase {
    /// What is trained: the plain model, or the one with sparse blocks.
    fn model(&self) -> &'static str {
        match self.name == "base" || self.name.starts_with("rwkv7-") {
            true => "RWKV-7",
            false => "RWKV-X",
        }
    }

    /// The same of both models.
    fn stage(&self) -> &str {
        self.name.strip_prefix("rwkv7-").unwrap_or(&self.name)
    }

    /// A value over millions of tokens.
    fn curve(&self, value: fn(&Step) -> Option<f64>) -> Vec<(f64, f64)> {
        let part = |steps: &[Step]| {
            let tokens = steps.iter().map(|step| step.tokens as f64 / 1e6);
            Some((
                tokens.sum::<f64>() / steps.len() as f64,
                mean(steps, value)?,
            ))
        };
        let together = self.steps.len().div_ceil(POINTS).max(1);
        self.steps.chunks(together).filter_map(part).collect()
    }
}

/// Mean over the steps that have the value.
fn mean(steps: &[Step], value: fn(&Step) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = steps.iter().filter_map(value).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Table and curves of runs that made a step.
pub(super) fn section(trainings: &[Training]) -> Option<Field> {
    let mut rows = Vec::new();
    let mut charts = Vec::new();
    for training in trainings {
        rows.extend(training.phases.iter().map(|phase| row(training, phase)));
        charts.extend(curves(training));
    }
    let columns = [
        "steps",
        "tokens",
        "nats at first",
        "nats at last",
        "of answers at last",
    ];
    let table = Table {
        corner: "run",
        columns: columns.map(str::to_owned).to_vec(),
        rows,
    };
    (!table.rows.is_empty()).then(|| context! { table => Serde(table), charts })
}

fn row(training: &Training, phase: &Phase) -> Row {
    let tenth = phase.steps.len().div_ceil(10);
    let (first, last) = (
        &phase.steps[..tenth],
        &phase.steps[phase.steps.len() - tenth..],
    );
    let nats = |steps, value| Cell::of(format!("{:.4}", mean(steps, value)?));
    let end = phase.steps.last();
    Row {
        name: format!("{}, {}", training.name, phase.name),
        ours: true,
        cells: vec![
            end.and_then(|step| Cell::of(step.step)),
            end.and_then(|step| Cell::of(step.tokens)),
            nats(first, |step| Some(step.nll)),
            nats(last, |step| Some(step.nll)),
            nats(last, |step| step.answer_nll),
        ],
    }
}

/// The curves of a run, of each stage those of all tokens and of answers.
fn curves(training: &Training) -> Vec<Field> {
    let mut stages: Vec<&str> = Vec::new();
    for phase in &training.phases {
        if !stages.contains(&phase.stage()) {
            stages.push(phase.stage());
        }
    }
    type Value = fn(&Step) -> Option<f64>;
    let values: [(&str, Value); 2] = [
        ("nats per token", |step| Some(step.nll)),
        ("nats per token of answers", |step| step.answer_nll),
    ];
    let mut charts = Vec::new();
    for stage in stages {
        let of_stage = || {
            training
                .phases
                .iter()
                .filter(|phase| phase.stage() == stage)
        };
        for (unit, value) in values {
            let mut lines: Vec<Line> = of_stage()
                .map(|phase| Line {
                    name: phase.model().to_owned(),
                    points: phase.curve(value),
                })
                .filter(|line| !line.points.is_empty())
                .collect();
            if lines.is_empty() {
                continue;
            }
            // RWKV-7 first, as it is alone in the base, so that its colour stays.
            lines.sort_by(|one, other| one.name.cmp(&other.name));
            let axes = Axes {
                across: "million tokens",
                doubling: false,
                unit,
                from_zero: false,
            };
            let title = format!("{}, {stage}: {unit}", training.name);
            charts.push(chart(&title, &lines, &axes));
        }
    }
    charts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(metrics: &str) -> Result<Training> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), "{}").unwrap();
        fs::write(folder.path().join(METRICS), metrics).unwrap();
        assert!(is_run(folder.path()));
        Training::read(folder.path(), "demo".to_owned())
    }

    fn line(stage: &str, step: u64, answers: &str) -> String {
        let (tokens, nll) = (1_000_000 * step, 10 + step);
        format!(
            r#"{{"stage":"{stage}","step":{step},"loss":0.5,"nll":{nll},{answers}"tokens":{tokens},"lr":0.1}}"#
        ) + "\n"
    }

    #[test]
    fn both_models_of_a_stage_share_a_figure_and_answers_have_their_own() {
        let answers = r#""answer_nll":1.5,"#;
        let text = line("base", 1, "") + &line("stage1", 1, answers) + &line("rwkv7-stage1", 1, "");
        let read = run(&text).unwrap();
        let models: Vec<_> = read.phases.iter().map(Phase::model).collect();
        assert_eq!(models, ["RWKV-7", "RWKV-X", "RWKV-7"]);
        let legends: Vec<String> = curves(&read)
            .iter()
            .map(|chart| {
                let get = |name| chart.get_attr(name).unwrap();
                format!("{} {}", get("title"), get("legend"))
            })
            .collect();
        assert_eq!(
            legends,
            [
                "demo, base: nats per token ['RWKV-7']",
                "demo, stage1: nats per token ['RWKV-7', 'RWKV-X']",
                "demo, stage1: nats per token of answers ['RWKV-X']",
            ]
        );
        assert!(section(&[run("").unwrap()]).is_none());
    }

    #[test]
    fn many_steps_become_means_of_some() {
        let text: String = (1..=250).map(|step| line("base", step, "")).collect();
        let read = run(&text).unwrap();
        let curve = read.phases[0].curve(|step| Some(step.nll));
        assert_eq!(curve.len(), 84);
        assert_eq!((curve[0], curve[83]), ((2.0, 12.0), (250.0, 260.0)));
        let cells = row(&read, &read.phases[0]).cells;
        let texts: Vec<_> = cells
            .iter()
            .flatten()
            .map(|cell| cell.text.as_str())
            .collect();
        assert_eq!(texts, ["250", "250000000", "23.0000", "248.0000"]);
    }

    #[test]
    fn a_line_being_written_is_left_out_and_a_damaged_one_is_named() {
        let whole = line("base", 1, "");
        let read = run(&(whole.clone() + &whole[..20])).unwrap();
        assert_eq!(read.phases[0].steps.len(), 1);
        let message = run(&(whole.clone() + "{}\n" + &whole))
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.contains("metrics.jsonl, line 2: not a step"),
            "{message}"
        );
    }
}
