//! One HTML page of all results: tables beside the paper's own numbers, heat maps, curves. It needs nothing but itself.

mod figures;
mod models;
mod paper;
mod sources;
mod svg;
mod tables;
mod training;

use std::path::PathBuf;

use minijinja::{Environment, UndefinedBehavior, Value as Field, context, value::Serde};
use serde::Serialize;

use crate::provenance::Program;
use crate::report::ModelInfo;
use crate::{Error, Result, runs};
use models::Model;
pub use sources::{Source, Sources, find};
pub use training::Training;

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
/// If there is nothing to show, or a report is damaged; the error names its file.
pub fn render(sources: &Sources, title: &str) -> Result<String> {
    let training = training::section(&sources.trainings);
    if sources.reports.is_empty() && training.is_none() {
        return Err(Error::option(
            "report",
            "there is no report.json and no step of a training run to show",
        ));
    }
    let mut models: Vec<Model> = Vec::new();
    let mut listed = Vec::new();
    for source in &sources.reports {
        let damaged = |error: serde_json::Error| Error::Input {
            path: source.path.clone(),
            reason: format!("not a report of this version of rwkvx-eval: {error}"),
        };
        let info: ModelInfo = source.field("model").map_err(damaged)?;
        let index = models::index_of(&mut models, info);
        models[index].add(source).map_err(damaged)?;
        let program: Program = source.field("program").map_err(damaged)?;
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
        benchmark: source.benchmark().to_owned(),
        model: models[index].name.clone(),
        seconds: format!("{:.1} s", source.report["seconds"].as_f64().unwrap_or(0.0)),
        program,
        path: source.path.display().to_string(),
        settings: pretty(&source.report["settings"]),
    });
    let runs: Vec<Run> = runs.collect();
    let partial = models.iter().flat_map(|model| {
        let of_model = model.partial.iter();
        of_model.map(|(task, limit)| format!("{} {task} {limit}", model.name))
    });
    let partial: Vec<String> = partial.collect();
    let trained = sources.trainings.iter().map(|training| {
        let path = training.path.display().to_string();
        context! { name => &training.name, path, config => pretty(&training.config) }
    });
    let trained: Vec<Field> = trained.collect();

    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let page = environment.template_from_named_str("page.html", include_str!("page.html"));
    let rendered = page.and_then(|page| {
        page.render(context! {
            title,
            models => (!models.is_empty()).then(|| Serde(tables::models(&models))),
            short => tables::short(&models).map(Serde),
            partial => Serde(partial),
            needles => figures::needles(&models),
            facts => figures::facts(&models),
            maps => figures::maps(&models),
            perplexity => figures::long_texts(&models),
            latency => figures::speed(&models),
            training,
            runs => Serde(runs),
            trained,
        })
    });
    Ok(rendered.expect("a test renders every part of the page"))
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
