//! A short examination of a trained model: RULER's single needles, and texts with many facts.
//!
//! Everything is generated and answered greedily. `rwkvx-eval` asks far more thoroughly; this is what a training run can
//! say about its own result in a minute.

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::needles::{FactsSpec, FactsText, ValueWeights};
use rwkvx_datasets::ruler::{self, Fit, PromptSpec, Task};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, ScoredText, greedy, score};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::QuestionConfig;

/// Texts read at once.
const BATCH: usize = 8;
/// Questions about each text with many facts.
const QUESTIONS_PER_TEXT: usize = 4;
/// Tokens a model may say. A UUID in bytes, and the space before it, take 37; no answer takes more.
const ANSWER_TOKENS: usize = 40;
/// RULER's tasks, easiest first.
const NEEDLES: [Task; 3] = [Task::Passkey, Task::Number, Task::Uuid];

/// How many answers of one kind were right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// `passkey`, `number` and `uuid` of RULER, or `facts`: many numbers, each under a key.
    pub task: String,
    /// Length of the texts in tokens, answer included.
    pub length: usize,
    /// Right answers.
    pub correct: usize,
    /// Answers asked for.
    pub asked: usize,
}

impl Score {
    /// Right answers in percent.
    pub fn percent(&self) -> f64 {
        100.0 * self.correct as f64 / self.asked.max(1) as f64
    }
}

/// Number of texts that [`examine`] reads.
pub fn texts(config: &QuestionConfig) -> usize {
    (NEEDLES.len() + 1) * config.lengths.len() * config.samples
}

/// Asks everything of `config`; `seed` decides the texts, so two models can be asked the same. `progress` counts texts.
///
/// # Errors
///
/// If a length is too short for a task's fixed text.
pub fn examine<B: KernelBackend>(
    model: &RwkvX<B>,
    tokenizer: &Tokenizer,
    config: &QuestionConfig,
    seed: u64,
    progress: &ProgressBar,
) -> Result<Vec<Score>> {
    let examination = Examination {
        model,
        tokenizer,
        config,
        seed,
        progress,
    };
    let mut scores = Vec::new();
    for task in NEEDLES {
        for &length in &config.lengths {
            scores.push(examination.needles(task, length)?);
        }
    }
    for &length in &config.lengths {
        scores.push(examination.facts(length)?);
    }
    Ok(scores)
}

struct Examination<'a, B: KernelBackend> {
    model: &'a RwkvX<B>,
    tokenizer: &'a Tokenizer,
    config: &'a QuestionConfig,
    seed: u64,
    progress: &'a ProgressBar,
}

impl<B: KernelBackend> Examination<'_, B> {
    /// Single-needle prompts, scored as RULER does: the answer stands in what the model says.
    fn needles(&self, task: Task, length: usize) -> Result<Score> {
        let samples = self.config.samples;
        let mut prompts = Vec::with_capacity(samples);
        for sample in 0..samples {
            let spec = PromptSpec {
                tokens_to_generate: ANSWER_TOKENS,
                fit: Fit::Exact,
                seed: self.seed.wrapping_add(sample as u64),
                ..PromptSpec::new(task, length)
            };
            let prompt = ruler::build(&spec, self.tokenizer, None)?;
            prompts.push((self.tokenizer.encode(&prompt.text)?, prompt));
        }
        let mut correct = 0;
        for batch in prompts.chunks(BATCH) {
            let rows: Vec<&[u32]> = batch.iter().map(|(ids, _)| ids.as_slice()).collect();
            let said = greedy(self.model, &rows, ANSWER_TOKENS, |_| false, |_| ())?;
            correct += batch
                .iter()
                .zip(said)
                .filter(|((_, prompt), said)| {
                    prompt.is_answered_by(&self.tokenizer.decode_lossy(said))
                })
                .count();
            self.progress.inc(batch.len() as u64);
        }
        Ok(Score {
            task: task.name().to_owned(),
            length,
            correct,
            asked: samples,
        })
    }

    /// Questions about texts with many facts. An answer counts when all its tokens are the most likely ones given the
    /// text before them, which is when the model, asked that question there, would have said just this.
    fn facts(&self, length: usize) -> Result<Score> {
        let mut texts = Vec::with_capacity(self.config.samples);
        for sample in 0..self.config.samples {
            let spec = FactsSpec {
                tokens: length,
                facts: self.config.facts,
                questions: QUESTIONS_PER_TEXT.min(self.config.facts),
                values: ValueWeights::NUMBERS,
                seed: self.seed.wrapping_add(sample as u64),
            };
            texts.push(FactsText::new(&spec, self.tokenizer)?);
        }
        let scored: Vec<ScoredText> = texts
            .iter()
            .map(|text| ScoredText {
                ids: text.ids.clone(),
                context: text.context(),
            })
            .collect();
        let scores = score(self.model, &scored, |_| ())?;
        self.progress.inc(texts.len() as u64);
        let right = |(text, score): (&FactsText, &rwkvx_model::Score)| {
            let asked = text.asked.iter();
            asked
                .filter(|asked| text.is_answered(asked, &score.likeliest))
                .count()
        };
        Ok(Score {
            task: "facts".to_owned(),
            length,
            correct: texts.iter().zip(&scores).map(right).sum(),
            asked: texts.iter().map(|text| text.asked.len()).sum(),
        })
    }
}
