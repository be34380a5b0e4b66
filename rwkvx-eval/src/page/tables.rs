//! The tables of the page.

use std::collections::BTreeSet;

use super::models::Model;
use super::paper::{PAPER, SHORT};
use super::{Cell, Row, Table};
use crate::grid::Count;
use crate::latency::Point;
use crate::lengths::Length;
use crate::statistics::Mean;

pub(super) fn models(models: &[Model]) -> Table {
    let columns = [
        "parameters",
        "layers",
        "sparse",
        "channels",
        "chunk x top-k",
        "tokenizer",
        "SHA-256",
    ];
    let rows = models.iter().map(|model| {
        let config = &model.info.config;
        let attention = match config.n_sparse {
            0 => None,
            _ => Cell::of(format!("{} x {}", config.chunk_size, config.top_k)),
        };
        Row {
            name: model.name.clone(),
            ours: true,
            cells: vec![
                Cell::of(model.info.parameters),
                Cell::of(config.n_layer),
                Cell::of(config.n_sparse),
                Cell::of(config.channels),
                attention,
                Cell::of(&model.info.tokenizer),
                Cell::of(model.info.file.sha256.get(..12).unwrap_or_default()),
            ],
        }
    });
    Table {
        corner: "model",
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// A share as percent, with its standard error.
fn percent(mean: &Mean) -> Option<Cell> {
    Some(Cell {
        text: format!("{:.1}", 100.0 * mean.value),
        note: Some(format!("±{:.1}", 100.0 * mean.stderr)),
    })
}

pub(super) fn short(models: &[Model]) -> Option<Table> {
    let asked = |model: &&Model| model.lambada.is_some() || !model.choices.is_empty();
    let ours = models.iter().filter(asked).map(|model| {
        let means = SHORT.map(|(task, _)| match task {
            "lambada" => model.lambada.as_ref().map(|scores| scores.accuracy),
            _ => {
                let scores = model.choices.iter().find(|scores| scores.task == task)?;
                // What the paper reports: acc_norm of HellaSwag, acc of the others.
                let metric = match task {
                    "hellaswag" => crate::tasks::Metric::AccNorm,
                    _ => crate::tasks::Metric::Acc,
                };
                scores.metrics.get(&metric).copied()
            }
        });
        let known: Vec<f64> = means
            .iter()
            .flatten()
            .map(|mean| 100.0 * mean.value)
            .collect();
        let perplexity = model.lambada.as_ref().map(|scores| scores.perplexity);
        let mut cells: Vec<Option<Cell>> =
            means.iter().map(|mean| percent(mean.as_ref()?)).collect();
        cells.push(match known.len() {
            8 => Cell::of(format!("{:.1}", known.iter().sum::<f64>() / 8.0)),
            _ => None,
        });
        cells.push(perplexity.and_then(|value| match value {
            large if large >= 1e6 => Cell::of(format!("{large:.1e}")),
            usual => Cell::of(format!("{usual:.2}")),
        }));
        Row {
            name: model.name.clone(),
            ours: true,
            cells,
        }
    });
    let mut rows: Vec<Row> = ours.collect();
    if rows.is_empty() {
        return None;
    }
    rows.extend(PAPER.short.iter().map(|row| {
        let average = row.scores.iter().sum::<f64>() / 8.0;
        let scores = row.scores.iter().copied().chain([average]);
        let cells = scores.map(|score| Cell::of(format!("{score:.1}")));
        Row {
            name: row.model.clone(),
            ours: false,
            cells: cells.chain([None]).collect(),
        }
    }));
    let names = SHORT.iter().map(|(_, name)| *name);
    Some(Table {
        corner: "model",
        columns: names
            .chain(["average", "LAMBADA ppl"])
            .map(str::to_owned)
            .collect(),
        rows,
    })
}

pub(super) fn needles(models: &[Model], task: &str) -> Option<Table> {
    let of_task = |model: &Model, length: usize| {
        Count::of(&model.sniah, |answer| {
            answer.task == task && answer.length == length
        })
    };
    let answers = models.iter().flat_map(|model| &model.sniah);
    let asked: BTreeSet<usize> = answers
        .filter(|answer| answer.task == task)
        .map(|answer| answer.length)
        .collect();
    if asked.is_empty() {
        return None;
    }
    let lengths: BTreeSet<usize> = asked
        .iter()
        .chain(&PAPER.needles.lengths)
        .copied()
        .collect();
    let has_answers = |model: &&Model| model.sniah.iter().any(|answer| answer.task == task);
    let ours = models.iter().filter(has_answers).map(|model| Row {
        name: model.name.clone(),
        ours: true,
        cells: lengths
            .iter()
            .map(|&length| match of_task(model, length) {
                Count { asked: 0, .. } => None,
                count => Some(Cell {
                    text: format!("{:.1}", 100.0 * count.share()),
                    note: Some(format!("of {}", count.asked)),
                }),
            })
            .collect(),
    });
    let papers = PAPER.needles.models.iter().map(|row| Row {
        name: row.model.clone(),
        ours: false,
        cells: lengths
            .iter()
            .map(|length| {
                let column = PAPER
                    .needles
                    .lengths
                    .iter()
                    .position(|other| other == length)?;
                Cell::of(format!(
                    "{:.1}",
                    row.tasks.get(task)?.get(column).copied()??
                ))
            })
            .collect(),
    });
    Some(Table {
        corner: "model",
        columns: lengths
            .iter()
            .map(|&length| Length(length).to_string())
            .collect(),
        rows: ours.chain(papers).collect(),
    })
}

pub(super) fn perplexity(models: &[Model]) -> Option<Table> {
    let read = || {
        models
            .iter()
            .filter_map(|model| Some((model, model.perplexity.as_ref()?)))
    };
    let lengths: BTreeSet<usize> = read()
        .flat_map(|(_, scores)| &scores.lengths)
        .filter(|at| at.documents > 0)
        .map(|at| at.length)
        .collect();
    if lengths.is_empty() {
        return None;
    }
    let columns = lengths
        .iter()
        .map(|&length| format!("nats at {}", Length(length)));
    let rows = read().map(|(model, scores)| {
        let cell = |&length: &usize| {
            let found = scores
                .lengths
                .iter()
                .find(|at| at.length == length && at.documents > 0)?;
            Some(Cell {
                text: format!("{:.4}", found.loss.value),
                note: Some(match found.documents {
                    1 => "1 text".to_owned(),
                    texts => format!("±{:.4}, {texts} texts", found.loss.stderr),
                }),
            })
        };
        let mut cells: Vec<Option<Cell>> = lengths.iter().map(cell).collect();
        cells.push(
            scores
                .long_ppl
                .filter(|it| it.key_tokens > 0)
                .map(|it| Cell {
                    text: format!("{:.3}", it.perplexity),
                    note: Some(format!("{} of {} tokens", it.key_tokens, it.tokens)),
                }),
        );
        Row {
            name: model.name.clone(),
            ours: true,
            cells,
        }
    });
    Some(Table {
        corner: "model",
        columns: columns.chain(["LongPPL".to_owned()]).collect(),
        rows: rows.collect(),
    })
}

/// A model of the latency benchmark, which also runs models without their sparse blocks.
pub(super) fn latency_name(model: &Model, point: &Point) -> String {
    format!("{}, {}", model.name, point.model)
}

pub(super) fn latency(models: &[Model]) -> Option<Table> {
    let rows: Vec<Row> = models
        .iter()
        .flat_map(|model| model.latency.iter().map(move |point| (model, point)))
        .map(|(model, point)| Row {
            name: latency_name(model, point),
            ours: true,
            cells: vec![
                Cell::of(Length(point.length)),
                Cell::of(format!("{:.0}", point.prefill_tokens_per_second)),
                Cell::of(format!("{:.2}", point.step_ms)),
                Cell::of(format!(
                    "{:.1}",
                    point.state_bytes as f64 / f64::from(1 << 20)
                )),
            ],
        })
        .collect();
    let columns = ["tokens", "read per second", "ms per token", "MiB of state"];
    (!rows.is_empty()).then(|| Table {
        corner: "model",
        columns: columns.map(str::to_owned).to_vec(),
        rows,
    })
}
