//! Reports sorted by the models that they tell of.

use super::sources::Source;
use crate::grid::Answer;
use crate::latency::Point;
use crate::report::ModelInfo;
use crate::{choice, lambada, perplexity};

/// What is known of a model, of all reports together.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) info: ModelInfo,
    /// The last report of each task.
    pub(super) choices: Vec<choice::Scores>,
    pub(super) lambada: Option<lambada::Scores>,
    /// Answers of needle benchmarks, by benchmark.
    pub(super) sniah: Vec<Answer>,
    pub(super) passkey: Vec<Answer>,
    pub(super) facts: Vec<Answer>,
    pub(super) perplexity: Option<perplexity::Scores>,
    pub(super) latency: Vec<Point>,
    /// Benchmarks of which only the first questions were asked, and how many.
    pub(super) partial: Vec<(String, u64)>,
}

/// The model with these weights, read with the same attention; a new one if it is not among them.
pub(super) fn index_of(models: &mut Vec<Model>, info: ModelInfo) -> usize {
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
            facts: Vec::new(),
            perplexity: None,
            latency: Vec::new(),
            partial: Vec::new(),
        });
        models.len() - 1
    })
}

impl Model {
    /// Takes in what a report says.
    pub(super) fn add(&mut self, source: &Source) -> serde_json::Result<()> {
        let limited = source.report["settings"]["limit"].as_u64();
        match source.benchmark() {
            "choice" => {
                let scores: Vec<choice::Scores> = source.field("result")?;
                for scores in scores {
                    self.choices.retain(|other| other.task != scores.task);
                    self.note_partial(limited, &scores.task);
                    self.choices.push(scores);
                }
            }
            "lambada" => {
                self.lambada = Some(source.field("result")?);
                self.note_partial(limited, "lambada");
            }
            "sniah" => replace(&mut self.sniah, source.field("result")?),
            "passkey" => replace(&mut self.passkey, source.field("result")?),
            "facts" => replace(&mut self.facts, source.field("result")?),
            "perplexity" => self.perplexity = Some(source.field("result")?),
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
        self.partial.retain(|(other, _)| other != task);
        self.partial
            .extend(limited.map(|limit| (task.to_owned(), limit)));
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
