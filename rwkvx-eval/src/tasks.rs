//! Multiple-choice benchmarks as data: `tasks/*.json` say how a record becomes a question.
//!
//! Templates and expressions are Jinja's, as in lm-evaluation-harness, over the fields of a record. `choices` gives the
//! list of choices; `context` and `continuation` are written once for each of them, with the choice at hand as `choice`.

use std::collections::{BTreeSet, HashMap};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Field, ValueKind};
use minijinja::{Environment, ErrorKind, Expression, Template, UndefinedBehavior};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::records::Record;
use crate::requests::Request;

/// A multiple-choice benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Its name, as in lm-evaluation-harness.
    pub name: String,
    /// Data set on Hugging Face.
    pub repository: String,
    /// Configuration of the data set.
    pub config: String,
    /// Split that is asked.
    pub split: String,
    /// Field that parts the records into groups with examples of their own.
    #[serde(default)]
    pub group: Option<String>,
    /// Examples before each question.
    #[serde(default)]
    pub shots: Option<Shots>,
    /// Template of what stands before the examples.
    #[serde(default)]
    pub description: String,
    /// Template of what a choice is scored after.
    pub context: String,
    /// Expression of the list of choices.
    pub choices: String,
    /// Template of what is scored.
    pub continuation: String,
    /// Expression of the right choice's index, from 0.
    pub answer: String,
    /// What is reported, what the paper reports first.
    pub metrics: Vec<Metric>,
}

/// Examples: the first records of a split, of the question's group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shots {
    /// Where they are taken from.
    pub split: String,
    /// How many.
    pub count: usize,
}

/// How often the right choice is the likeliest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// By the probability of its continuation.
    Acc,
    /// By the logarithm of that probability per character of the choice.
    AccNorm,
}

impl Metric {
    /// Its name in lm-evaluation-harness.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
        }
    }
}

/// A question with its choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The choices.
    pub choices: Vec<Choice>,
    /// Index of the right one.
    pub answer: usize,
    /// Group of the record, where there are groups.
    pub group: Option<String>,
}

/// A choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What is scored after what.
    pub request: Request,
    /// Length of the choice in characters.
    pub characters: usize,
}

impl Task {
    /// Every task, in the order of the paper's table.
    pub fn all() -> Vec<Self> {
        [
            include_str!("../tasks/hellaswag.json"),
            include_str!("../tasks/piqa.json"),
            include_str!("../tasks/arc_easy.json"),
            include_str!("../tasks/arc_challenge.json"),
            include_str!("../tasks/winogrande.json"),
            include_str!("../tasks/sciq.json"),
            include_str!("../tasks/mmlu.json"),
        ]
        .map(|text| serde_json::from_str(text).expect("a test reads all of them"))
        .to_vec()
    }

    /// The questions of records. `examples` are the records of the split that [`Shots`] names.
    ///
    /// # Errors
    ///
    /// If a record lacks a field or holds what cannot be asked; the error names the record.
    pub fn questions(&self, records: &[Record], examples: &[Record]) -> Result<Vec<Question>> {
        let environment = environment();
        let prompts = Prompts::compile(self, &environment);
        let prompts = prompts.expect("a test compiles all tasks");
        let mut before = HashMap::new();
        records
            .iter()
            .map(|record| prompts.question(record, examples, &mut before))
            .collect()
    }
}

/// The templates of a task, compiled.
struct Prompts<'a> {
    task: &'a Task,
    /// Fields that a record must have.
    fields: BTreeSet<String>,
    description: Template<'a, 'a>,
    context: Template<'a, 'a>,
    continuation: Template<'a, 'a>,
    choices: Expression<'a, 'a>,
    answer: Expression<'a, 'a>,
}

impl<'a> Prompts<'a> {
    fn compile(
        task: &'a Task,
        environment: &'a Environment<'a>,
    ) -> std::result::Result<Self, minijinja::Error> {
        let description = environment.template_from_str(&task.description)?;
        let context = environment.template_from_str(&task.context)?;
        let continuation = environment.template_from_str(&task.continuation)?;
        let choices = environment.compile_expression(&task.choices)?;
        let answer = environment.compile_expression(&task.answer)?;
        let mut fields: BTreeSet<String> = [&description, &context, &continuation]
            .iter()
            .flat_map(|template| template.undeclared_variables(false))
            .chain(choices.undeclared_variables(false))
            .chain(answer.undeclared_variables(false))
            .chain(task.group.clone())
            .collect();
        fields.remove("choice");
        Ok(Self {
            task,
            fields,
            description,
            context,
            continuation,
            choices,
            answer,
        })
    }

    /// `before` keeps each group's description and examples.
    fn question(
        &self,
        record: &Record,
        examples: &[Record],
        before: &mut HashMap<Option<String>, String>,
    ) -> Result<Question> {
        self.check(record)?;
        let group = self.group(record);
        if !before.contains_key(&group) {
            let text = self.before(record, examples)?;
            before.insert(group.clone(), text);
        }
        let before = &before[&group];
        let wrong = |error: minijinja::Error| record.error(error.to_string());
        let choices = self.choices.eval(Serde(&record.fields)).map_err(wrong)?;
        let mut asked = Vec::new();
        for choice in choices.try_iter().map_err(wrong)? {
            let text = choice.as_str().ok_or_else(|| {
                let reason = format!("a choice is {choice}, not a text");
                record.error(reason)
            })?;
            let mut fields = record.fields.clone();
            fields.insert("choice".to_owned(), text.into());
            asked.push(Choice {
                request: Request {
                    context: before.clone()
                        + &self.context.render(Serde(&fields)).map_err(wrong)?,
                    continuation: self.continuation.render(Serde(&fields)).map_err(wrong)?,
                },
                characters: text.chars().count(),
            });
        }
        let answer = self.answer.eval(Serde(&record.fields)).map_err(wrong)?;
        let answer = usize::try_from(answer.clone())
            .ok()
            .filter(|&answer| answer < asked.len())
            .ok_or_else(|| {
                let count = asked.len();
                record.error(format!("the answer is {answer}, of {count} choices"))
            })?;
        Ok(Question {
            choices: asked,
            answer,
            group,
        })
    }

    fn check(&self, record: &Record) -> Result<()> {
        match self
            .fields
            .iter()
            .find(|&field| !record.fields.contains_key(field))
        {
            None => Ok(()),
            Some(field) => {
                let found: Vec<&str> = record.fields.keys().map(String::as_str).collect();
                Err(record.error(format!(
                    "no field `{field}`, which {} needs; the fields are {}",
                    self.task.name,
                    found.join(", ")
                )))
            }
        }
    }

    fn group(&self, record: &Record) -> Option<String> {
        let group = record.fields.get(self.task.group.as_deref()?)?;
        Some(
            group
                .as_str()
                .map_or_else(|| group.to_string(), str::to_owned),
        )
    }

    /// What stands before a question: the description and its group's examples, each with the right continuation.
    fn before(&self, record: &Record, examples: &[Record]) -> Result<String> {
        let description = self.description.render(Serde(&record.fields));
        let mut text = description.map_err(|error| record.error(error.to_string()))?;
        let Some(shots) = &self.task.shots else {
            return Ok(text);
        };
        let group = self.group(record);
        let of_group = examples
            .iter()
            .filter(|example| self.group(example) == group);
        let mut missing = shots.count;
        let mut nothing = HashMap::from([(group.clone(), String::new())]);
        for example in of_group.take(shots.count) {
            let question = self.question(example, &[], &mut nothing)?;
            let Request {
                context,
                continuation,
            } = &question.choices[question.answer].request;
            text += &format!("{context}{continuation}\n\n");
            missing -= 1;
        }
        match missing {
            0 => Ok(text),
            _ => Err(record.error(format!(
                "the split {} has {} examples of {}, {} are needed",
                shots.split,
                shots.count - missing,
                group.unwrap_or_default(),
                shots.count
            ))),
        }
    }
}

/// Jinja with what the tasks need beyond its own filters.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("Jinja's own marks do not clash"));
    environment.add_filter("clean_wikihow", |text: &str| clean_wikihow(text));
    environment.add_filter("trim_start", |text: &str| text.trim_start().to_owned());
    environment.add_filter("index", index);
    environment
}

/// The place of `wanted` in a list.
fn index(list: &Field, wanted: &Field) -> std::result::Result<usize, minijinja::Error> {
    let wrong = |reason: String| minijinja::Error::new(ErrorKind::InvalidOperation, reason);
    if list.kind() != ValueKind::Seq {
        return Err(wrong(format!("{list} is not a list")));
    }
    let found = list.try_iter()?.position(|value| value == *wanted);
    found.ok_or_else(|| wrong(format!("{wanted} is not in {list}")))
}

/// HellaSwag's mending of texts from WikiHow: titles become sentences, other marks in brackets go.
fn clean_wikihow(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let (mut clean, mut rest) = (String::new(), text.as_str());
    while let Some((before, mark)) = rest.split_once('[') {
        // A mark ends on its line.
        match mark.split_once(']') {
            Some((inside, after)) if !inside.contains('\n') => {
                clean += before;
                rest = after;
            }
            _ => {
                clean += &rest[..=before.len()];
                rest = mark;
            }
        }
    }
    (clean + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_read_and_compiled() {
        for task in Task::all() {
            let environment = environment();
            let prompts = Prompts::compile(&task, &environment).unwrap();
            assert!(!prompts.fields.is_empty() && !task.metrics.is_empty());
        }
    }

    #[test]
    fn texts_from_wikihow_are_mended_as_hellaswag_does() {
        for (text, mended) in [
            (" Cut [title] Peel [step] it  now ", "Cut. Peel it now"),
            ("a [b\nc] [d] e", "a [b\nc] e"),
            ("[[x] y [", " y ["),
            ("no marks", "no marks"),
        ] {
            assert_eq!(clean_wikihow(text), mended, "{text:?}");
        }
    }
}
