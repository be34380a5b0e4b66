//! Two reports side by side: how much the second is better or worse, question by question.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::statistics::Mean;
use crate::{Error, Result};

/// Standard errors on each side of a mean within which it lies with 95% probability.
pub const CONFIDENCE: f64 = 1.96;

/// What two reports say of the same thing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// What was measured.
    pub measure: String,
    /// Whether it is a share, from 0 to 1; others are in the unit that the measure names.
    pub is_share: bool,
    /// Questions, documents or tokens.
    pub count: usize,
    /// Mean of the first report.
    pub first: Mean,
    /// Mean of the second.
    pub second: Mean,
    /// Mean of the differences of each question: second less first.
    pub difference: Mean,
}

impl Difference {
    /// The interval in which the difference lies with 95% probability; a single question tells of none.
    pub fn interval(&self) -> Option<[f64; 2]> {
        let half = CONFIDENCE * self.difference.stderr;
        let middle = self.difference.value;
        (self.count > 1).then_some([middle - half, middle + half])
    }
}

/// What is measured, in the order in which it is shown.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Measure {
    name: String,
    /// Of texts of so many tokens only.
    length: Option<usize>,
    is_share: bool,
}

impl Measure {
    /// The share of questions that are answered right.
    fn share(name: impl Into<String>) -> Self {
        Self {
            is_share: true,
            ..Self::of(name)
        }
    }

    /// What is counted in the unit that its name tells.
    fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            length: None,
            is_share: false,
        }
    }

    fn at(self, length: usize) -> Self {
        Self {
            length: Some(length),
            ..self
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)?;
        self.length
            .map_or(Ok(()), |length| write!(out, " at {length}"))
    }
}

/// A measure's values by question.
type Values = BTreeMap<String, f64>;

/// Compares what both reports measured, of the questions that are in both.
///
/// # Errors
///
/// If they are of different benchmarks, a report is damaged, or they have nothing in common.
pub fn compare(first: &Value, second: &Value) -> Result<Vec<Difference>> {
    let benchmark = |report: &Value| report["benchmark"].as_str().map(str::to_owned);
    if benchmark(first) != benchmark(second) {
        return Err(Error::Comparison(format!(
            "the first report is of {}, the second of {}",
            benchmark(first).unwrap_or_default(),
            benchmark(second).unwrap_or_default()
        )));
    }
    let (first, second) = (measures(first)?, measures(second)?);
    let differences: Vec<Difference> = first
        .iter()
        .filter_map(|(measure, first)| {
            let second = second.get(measure)?;
            let pairs: Vec<(f64, f64)> = first
                .iter()
                .filter_map(|(question, &first)| Some((first, *second.get(question)?)))
                .collect();
            (!pairs.is_empty()).then(|| Difference {
                measure: measure.to_string(),
                is_share: measure.is_share,
                count: pairs.len(),
                first: Mean::of(pairs.iter().map(|(first, _)| *first)),
                second: Mean::of(pairs.iter().map(|(_, second)| *second)),
                difference: Mean::of(pairs.iter().map(|(first, second)| second - first)),
            })
        })
        .collect();
    match differences.is_empty() {
        true => Err(Error::Comparison(
            "the reports have no question in common".to_owned(),
        )),
        false => Ok(differences),
    }
}

/// The settings that differ, by name. Paths are left out, because a file is known by its hash.
pub fn different_settings(first: &Value, second: &Value) -> Vec<String> {
    fn without_paths(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.iter().filter(|(name, _)| *name != "path");
                kept.map(|(name, value)| (name.clone(), without_paths(value)))
                    .collect()
            }
            Value::Array(values) => values.iter().map(without_paths).collect(),
            other => other.clone(),
        }
    }
    let (first, second) = (&first["settings"], &second["settings"]);
    let names = [first, second]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|it| it.keys());
    let mut names: Vec<String> = names
        .filter(|name| {
            without_paths(&first[name.as_str()]) != without_paths(&second[name.as_str()])
        })
        .cloned()
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Every measure of a report with its value for each question. Right is 1, wrong 0.
fn measures(report: &Value) -> Result<BTreeMap<Measure, Values>> {
    let benchmark = report["benchmark"].as_str().unwrap_or_default();
    let found = match benchmark {
        "choice" => choice(report),
        "lambada" => lambada(report),
        "sniah" | "passkey" | "facts" => grid(report),
        "perplexity" => perplexity(report),
        "latency" => latency(report),
        other => {
            let reason = format!("reports of {other:?} cannot be compared");
            return Err(Error::Comparison(reason));
        }
    };
    found.map_err(|error| Error::Comparison(format!("not a report of {benchmark}: {error}")))
}

type Measures = serde_json::Result<BTreeMap<Measure, Values>>;

fn right(is_right: bool) -> f64 {
    f64::from(u8::from(is_right))
}

fn choice(report: &Value) -> Measures {
    let results: Vec<crate::choice::Scores> = serde_json::from_value(report["result"].clone())?;
    let mut measures = BTreeMap::new();
    for scores in results {
        for &metric in scores.metrics.keys() {
            let answers = scores.answers.iter().enumerate();
            let values = answers.map(|(index, answer)| {
                let question = format!("{index}: {}", answer.right);
                (question, right(answer.is_right(metric)))
            });
            let measure = Measure::share(format!("{} {}", scores.task, metric.name()));
            measures.insert(measure, values.collect());
        }
    }
    Ok(measures)
}

fn lambada(report: &Value) -> Measures {
    let scores: crate::lambada::Scores = serde_json::from_value(report["result"].clone())?;
    let words = || scores.answers.iter().enumerate();
    let accuracy = words().map(|(index, answer)| (index.to_string(), right(answer.right)));
    let loss = words().map(|(index, answer)| (index.to_string(), -answer.log_probability));
    Ok(BTreeMap::from([
        (Measure::share("accuracy"), accuracy.collect()),
        (Measure::of("nats per word"), loss.collect()),
    ]))
}

fn grid(report: &Value) -> Measures {
    let answers: Vec<crate::grid::Answer> = serde_json::from_value(report["result"].clone())?;
    let mut measures: BTreeMap<Measure, Values> = BTreeMap::new();
    for answer in answers {
        let question = format!("{}% {}: {}", answer.depth, answer.sample, answer.expected);
        let measure = Measure::share(answer.task).at(answer.length);
        let values = measures.entry(measure).or_default();
        values.insert(question, right(answer.correct));
    }
    Ok(measures)
}

fn perplexity(report: &Value) -> Measures {
    let scores: crate::perplexity::Scores = serde_json::from_value(report["result"].clone())?;
    let lengths = scores.lengths.iter().enumerate();
    let of_length = |(index, at): (usize, &crate::perplexity::AtLength)| {
        let documents = scores.documents.iter();
        let values = documents.filter_map(|document| {
            let question = format!("{}: {}", document.number, document.tokens);
            Some((question, *document.losses.get(index)?))
        });
        (
            Measure::of("nats per token").at(at.length),
            values.collect(),
        )
    };
    Ok(lengths.map(of_length).collect())
}

fn latency(report: &Value) -> Measures {
    let points: Vec<crate::latency::Point> =
        serde_json::from_value(report["result"]["points"].clone())?;
    let mut measures = BTreeMap::new();
    for point in points {
        let measure = |what: &str| Measure::of(format!("{} {what}", point.model)).at(point.length);
        let tokens = point.steps_ms.iter().enumerate();
        let steps = tokens.map(|(index, &ms)| (index.to_string(), ms));
        measures.insert(measure("ms per token"), steps.collect());
        for (what, value) in [
            ("prefill tokens/s", point.prefill_tokens_per_second),
            ("state MB", point.state_bytes as f64 / 1e6),
        ] {
            measures.insert(measure(what), Values::from([(String::new(), value)]));
        }
    }
    Ok(measures)
}
