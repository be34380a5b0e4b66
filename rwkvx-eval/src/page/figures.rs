//! The figures of the page: heat maps and curves, with the tables that go with them.

use minijinja::{Value as Field, context, value::Serde};

use super::models::Model;
use super::svg::{self, Axes, Line};
use super::{paper, tables};
use crate::latency::Point;
use crate::lengths::Length;
use crate::{facts, perplexity, table};

/// Tables of right answers by length, of each task that was asked.
pub(super) fn needles(models: &[Model]) -> Vec<Field> {
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

/// Right answers by the number of facts in a text: a table, and a chart for each length.
pub(super) fn facts(models: &[Model]) -> Option<Field> {
    let table = tables::facts(models)?;
    let answers = models.iter().flat_map(|model| model.facts.iter().cloned());
    let lengths = table::lengths(&answers.collect::<Vec<_>>());
    let axes = Axes {
        across: "facts",
        doubling: true,
        unit: "percent",
        from_zero: true,
    };
    let charts: Vec<Field> = lengths
        .into_iter()
        .map(|length| {
            let lines: Vec<Line> = models
                .iter()
                .map(|model| Line {
                    name: model.name.clone(),
                    points: facts::by_number(&model.facts, length)
                        .into_iter()
                        .map(|(facts, count)| (facts as f64, 100.0 * count.share()))
                        .collect(),
                })
                .filter(|line| !line.points.is_empty())
                .collect();
            let title = format!("{} tokens, percent right", Length(length));
            chart(&title, &lines, &axes)
        })
        .collect();
    Some(context! { table => Serde(table), charts })
}

/// Heat maps of every model, benchmark and task.
pub(super) fn maps(models: &[Model]) -> Vec<Field> {
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

/// Lines with their legend.
pub(super) fn chart(title: &str, lines: &[Line], axes: &Axes) -> Field {
    let legend: Vec<String> = lines.iter().map(|line| line.name.clone()).collect();
    let svg = Field::from_safe_string(svg::lines(lines, axes));
    context! { title, legend, svg }
}

/// Loss by length and position.
pub(super) fn long_texts(models: &[Model]) -> Option<Field> {
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
        across: "tokens",
        doubling,
        unit: "nats per token",
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

/// What reading and going on cost.
pub(super) fn speed(models: &[Model]) -> Option<Field> {
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
        across: "tokens",
        doubling: true,
        unit,
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
