//! One HTML page of all results: tables beside the paper's own numbers, heat maps, curves. It needs nothing but itself.

mod paper;
mod svg;
mod tables;

use std::path::{Path, PathBuf};

use minijinja::{Environment, UndefinedBehavior, Value as Field, context, value::Serde};
use serde::Serialize;
use serde_json::Value;

use crate::grid::Answer;
use crate::latency::Point;
use crate::provenance::Program;
use crate::report::{self, ModelInfo};
use crate::{Error, Result, choice, lambada, perplexity, runs, table};
use svg::{Axes, Line};

/// A report and where it was found.
pub struct Source {
    /// Its file.
    pub path: PathBuf,
    /// The report, as [`report::read`] gives it.
    pub report: Value,
}

/// What is known of a model, of all reports together.
struct Model {
    name: String,
    info: ModelInfo,
    /// The last report of each task.
    choices: Vec<choice::Scores>,
    lambada: Option<lambada::Scores>,
    /// Answers of needle benchmarks, by benchmark.
    sniah: Vec<Answer>,
    passkey: Vec<Answer>,
    perplexity: Option<perplexity::Scores>,
    latency: Vec<Point>,
    /// Benchmarks of which only the first questions were asked.
    partial: Vec<String>,
}

/// A table of the page.
#[derive(Serialize)]
struct Table {
    corner: &'static str,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// Measured here, and not by the paper.
    ours: bool,
    cells: Vec<Option<Cell>>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    note: Option<String>,
}

impl Cell {
    fn of(text: impl ToString) -> Option<Self> {
        Some(Self {
            text: text.to_string(),
            note: None,
        })
    }
}

/// A report as the page lists it at its end.
#[derive(Serialize)]
struct Run {
    benchmark: String,
    model: String,
    seconds: String,
    program: Program,
    path: String,
    settings: String,
}

/// Writes the page.
///
/// # Errors
///
/// If there is no report, or one is damaged; the error names its file.
pub fn render(sources: &[Source], title: &str) -> Result<String> {
    if sources.is_empty() {
        return Err(Error::option("report", "there is no report.json to show"));
    }
    let mut models: Vec<Model> = Vec::new();
    let mut listed = Vec::new();
    for source in sources {
        let damaged = |error: serde_json::Error| Error::Input {
            path: source.path.clone(),
            reason: format!("not a report of this version of rwkvx-eval: {error}"),
        };
        let info: ModelInfo = field(source, "model").map_err(damaged)?;
        let index = index_of(&mut models, info);
        models[index].add(source).map_err(damaged)?;
        let program: Program = field(source, "program").map_err(damaged)?;
        listed.push((index, source, program));
    }
    let paths: Vec<PathBuf> = models
        .iter()
        .map(|model| model.info.file.path.clone())
        .collect();
    for (model, name) in models.iter_mut().zip(runs::names(&paths)) {
        model.name = name;
    }
    let runs = listed.into_iter().map(|(index, source, program)| Run {
        benchmark: text(&source.report["benchmark"]),
        model: models[index].name.clone(),
        seconds: format!("{:.1} s", source.report["seconds"].as_f64().unwrap_or(0.0)),
        program,
        path: source.path.display().to_string(),
        settings: serde_json::to_string_pretty(&source.report["settings"]).unwrap_or_default(),
    });
    let runs: Vec<Run> = runs.collect();
    let partial = models.iter().flat_map(|model| {
        let of_model = model.partial.iter();
        of_model.map(|task| format!("{} {task}", model.name))
    });
    let partial: Vec<String> = partial.collect();

    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let page = environment.template_from_named_str("page.html", include_str!("page.html"));
    let rendered = page.and_then(|page| {
        page.render(context! {
            title,
            models => Serde(tables::models(&models)),
            short => tables::short(&models).map(Serde),
            partial => Serde(partial),
            needles => needles(&models),
            maps => maps(&models),
            perplexity => long_texts(&models),
            latency => speed(&models),
            runs => Serde(runs),
        })
    });
    Ok(rendered.expect("a test renders every part of the page"))
}

fn field<T: serde::de::DeserializeOwned>(source: &Source, name: &str) -> serde_json::Result<T> {
    serde_json::from_value(source.report[name].clone())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The model with these weights, read with the same attention; a new one if it is not among them.
fn index_of(models: &mut Vec<Model>, info: ModelInfo) -> usize {
    let same = |model: &Model| {
        model.info.file.sha256 == info.file.sha256 && model.info.config == info.config
    };
    models.iter().position(same).unwrap_or_else(|| {
        models.push(Model {
            name: String::new(),
            info,
            choices: Vec::new(),
            lambada: None,
            sniah: Vec::new(),
            passkey: Vec::new(),
            perplexity: None,
            latency: Vec::new(),
            partial: Vec::new(),
        });
        models.len() - 1
    })
}

impl Model {
    fn add(&mut self, source: &Source) -> serde_json::Result<()> {
        let benchmark = text(&source.report["benchmark"]);
        let limited = source.report["settings"]["limit"].as_u64();
        match benchmark.as_str() {
            "choice" => {
                let scores: Vec<choice::Scores> = field(source, "result")?;
                for scores in scores {
                    self.choices.retain(|other| other.task != scores.task);
                    self.note_partial(limited, &scores.task);
                    self.choices.push(scores);
                }
            }
            "lambada" => {
                self.lambada = Some(field(source, "result")?);
                self.note_partial(limited, "lambada");
            }
            "sniah" => replace(&mut self.sniah, field(source, "result")?),
            "passkey" => replace(&mut self.passkey, field(source, "result")?),
            "perplexity" => self.perplexity = Some(field(source, "result")?),
            "latency" => {
                let points = source.report["result"]["points"].clone();
                self.latency = serde_json::from_value(points)?;
            }
            // Of a later version, perhaps; its run is listed all the same.
            _ => {}
        }
        Ok(())
    }

    fn note_partial(&mut self, limited: Option<u64>, task: &str) {
        if let Some(limit) = limited {
            self.partial.push(format!("{task} {limit}"));
        }
    }
}

/// Puts answers in place of those of the same tasks and lengths.
fn replace(answers: &mut Vec<Answer>, new: Vec<Answer>) {
    answers.retain(|old| {
        let same = |new: &Answer| new.task == old.task && new.length == old.length;
        !new.iter().any(same)
    });
    answers.extend(new);
}

fn needles(models: &[Model]) -> Vec<Field> {
    ["passkey", "number", "uuid"]
        .into_iter()
        .zip([
            "1: pass key in noise",
            "2: number in essays",
            "3: UUID in essays",
        ])
        .filter_map(|(task, title)| {
            let table = tables::needles(models, task)?;
            Some(context! { title, table => Serde(table) })
        })
        .collect()
}

fn maps(models: &[Model]) -> Vec<Field> {
    let mut maps = Vec::new();
    for model in models {
        for (benchmark, answers) in [
            ("S-NIAH", &model.sniah),
            ("passkey protocol", &model.passkey),
        ] {
            for task in table::tasks(answers) {
                let of_task = answers.iter().filter(|answer| answer.task == task).cloned();
                let svg = svg::heat_map(&of_task.collect::<Vec<_>>());
                let title = match benchmark {
                    "S-NIAH" => format!("{}: {task}", model.name),
                    _ => format!("{}: {benchmark}", model.name),
                };
                maps.push(context! { title, svg => Field::from_safe_string(svg) });
            }
        }
    }
    maps
}

fn chart(title: &str, lines: &[Line], axes: &Axes) -> Field {
    let legend: Vec<String> = lines.iter().map(|line| line.name.clone()).collect();
    let svg = Field::from_safe_string(svg::lines(lines, axes));
    context! { title, legend, svg }
}

fn long_texts(models: &[Model]) -> Option<Field> {
    let table = tables::perplexity(models)?;
    let line = |points: &dyn Fn(&perplexity::Scores) -> Vec<(f64, f64)>| -> Vec<Line> {
        let read = models
            .iter()
            .filter_map(|model| Some((model, model.perplexity.as_ref()?)));
        let lines = read.map(|(model, scores)| Line {
            name: model.name.clone(),
            points: points(scores),
        });
        lines.collect()
    };
    let by_position = line(&|scores| {
        let parts = scores.positions.iter().filter(|part| part.documents > 0);
        parts
            .map(|part| (part.end as f64, part.loss.value))
            .collect()
    });
    let by_length = line(&|scores| {
        let lengths = scores.lengths.iter().filter(|at| at.documents > 0);
        lengths
            .map(|at| (at.length as f64, at.loss.value))
            .collect()
    });
    let axes = |doubling| Axes {
        unit: "nats per token",
        doubling,
        from_zero: false,
    };
    let charts = vec![
        chart(
            "Loss by position, nats per token",
            &by_position,
            &axes(false),
        ),
        chart(
            "Mean loss by length, nats per token",
            &by_length,
            &axes(true),
        ),
    ];
    Some(context! { table => Serde(table), charts })
}

fn speed(models: &[Model]) -> Option<Field> {
    let table = tables::latency(models)?;
    let mut lines: Vec<(String, Vec<Point>)> = Vec::new();
    for model in models {
        for point in &model.latency {
            let name = tables::latency_name(model, point);
            match lines.last_mut() {
                Some((last, points)) if *last == name => points.push(point.clone()),
                _ => lines.push((name, vec![point.clone()])),
            }
        }
    }
    let of = |value: fn(&Point) -> f64| -> Vec<Line> {
        let line = |(name, points): &(String, Vec<Point>)| Line {
            name: name.clone(),
            points: points
                .iter()
                .map(|point| (point.length as f64, value(point)))
                .collect(),
        };
        lines.iter().map(line).collect()
    };
    let mut steps = of(|point| point.step_ms);
    steps.push(paper::decode());
    let read = of(|point| point.prefill_tokens_per_second);
    let memory = of(|point| point.state_bytes as f64 / f64::from(1 << 20));
    let axes = |unit| Axes {
        unit,
        doubling: true,
        from_zero: true,
    };
    let charts = vec![
        chart(
            "Milliseconds per token",
            &steps,
            &axes("milliseconds per token"),
        ),
        chart("Tokens read per second", &read, &axes("per second")),
        chart("MiB of state and cache", &memory, &axes("MiB")),
    ];
    Some(context! { table => Serde(table), charts })
}

/// Every report in files and folders, in the order of their names.
///
/// # Errors
///
/// If one cannot be read, or a folder holds none.
pub fn find(places: &[PathBuf]) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for place in places {
        let before = paths.len();
        collect(place, &mut paths)?;
        if paths.len() == before {
            return Err(Error::Input {
                path: place.clone(),
                reason: format!("the folder holds no {} of rwkvx-eval", report::FILE),
            });
        }
    }
    paths.sort();
    paths.dedup();
    let read = |path: PathBuf| {
        let report = report::read(&path)?;
        Ok(Source { path, report })
    };
    paths.into_iter().map(read).collect()
}

fn collect(place: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    if !place.is_dir() {
        paths.push(place.to_path_buf());
        return Ok(());
    }
    let entries = std::fs::read_dir(place).map_err(Error::io(place))?;
    for entry in entries {
        let path = entry.map_err(Error::io(place))?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.file_name().is_some_and(|name| name == report::FILE)
            && !is_of_training(&path)
        {
            paths.push(path);
        }
    }
    Ok(())
}

/// Whether a report is one that `rwkvx-train` leaves in its run, which tells of phases and of no benchmark.
fn is_of_training(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    report.get("phases").is_some() && report.get("benchmark").is_none()
}
