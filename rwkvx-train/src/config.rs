//! The configuration of a run: one JSON file, checked whole before anything starts.

use std::path::{Path, PathBuf};

use rwkvx_datasets::Tokenizer;
use rwkvx_model::RwkvXConfig;
use serde::{Deserialize, Serialize};

use crate::data::DataConfig;
use crate::longce::LongCe;
use crate::optimizer::OptimizerConfig;
use crate::phase::{Phase, Stage, StageChoice};
use crate::precision::Precision;
use crate::schedule::Schedule;
use crate::{Error, Result};

/// Everything that defines a run. The file a run leaves in its directory is one of these, complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the configuration; runs are called after it.
    pub name: String,
    /// Where the numbers come from, one remark per entry.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Which of the stages to run.
    #[serde(default)]
    pub stage: StageChoice,
    /// Weights to start from instead of fresh ones: a `.pth` or `.safetensors` file.
    #[serde(default)]
    pub start_from: Option<PathBuf>,
    /// Seed of the initial weights and of generated data.
    pub seed: u64,
    /// Sizes of the model after expansion.
    pub model: RwkvXConfig,
    /// How the added sparse blocks start.
    #[serde(default)]
    pub expansion: Expansion,
    /// `rwkv-world`, `byte`, `needles`, or the path of a `tokenizer.json`.
    pub tokenizer: String,
    /// What to train on.
    pub data: DataConfig,
    /// AdamW and clipping.
    pub optimizer: OptimizerConfig,
    /// Whether L2Wrap keeps the logits small.
    pub l2_wrap: bool,
    /// Number type of the forward and backward passes.
    #[serde(default)]
    pub precision: Precision,
    /// Settings of each stage; a stage that is absent cannot be run.
    pub stages: StageConfigs,
    /// Whether the plain base is trained on with the data of stages 1 and 2, for comparison.
    #[serde(default)]
    pub compare_base: bool,
    /// How often the run is saved.
    pub checkpoints: CheckpointConfig,
    /// Questions asked at the end of the run.
    #[serde(default)]
    pub questions: Option<QuestionConfig>,
}

/// How the sparse blocks added to a trained base start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expansion {
    /// Copies of what is before them, output projections at zero: the expanded model computes what the base did (the paper).
    #[default]
    Zero,
    /// Output projections copied as well (the published code).
    Copy,
    /// New, with queries that equal the keys, output projections at zero.
    Fresh,
}

/// The stages of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfigs {
    /// The plain RWKV-7 model, from nothing.
    #[serde(default)]
    pub base: Option<StageConfig>,
    /// Alignment of the sparse blocks.
    #[serde(default)]
    pub stage1: Option<StageConfig>,
    /// Long contexts.
    #[serde(default)]
    pub stage2: Option<StageConfig>,
    /// Conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sft: Option<StageConfig>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Updates.
    pub steps: u64,
    /// Inputs per sequence, in tokens.
    pub context: usize,
    /// Sequences per update.
    pub batch: usize,
    /// Sequences per forward and backward pass; divides `batch`.
    pub micro_batch: usize,
    /// Micro-batches worked through at once, each by a thread of its own: on a CPU as many as it has cores, on a GPU 1.
    /// The results do not depend on it.
    #[serde(default = "one")]
    pub threads: usize,
    /// Keep only the input of each layer, and compute the layer again on the way back: less memory for about a third more time.
    #[serde(default)]
    pub recompute: bool,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Learning rate at the end.
    pub final_learning_rate: f64,
    /// Updates of warm-up.
    pub warmup_steps: u64,
    /// What to train on instead of the run's `data`.
    #[serde(default)]
    pub data: Option<DataConfig>,
    /// LongCE: `"rwkv-x"`, `"paper"`, or its settings; `null` for plain cross-entropy.
    #[serde(default)]
    pub longce: Option<LongCeChoice>,
    /// How much full attention at some queries teaches the choice of chunks, which has no gradient of its own; 0, as published, for not
    /// at all. See [`teach_choice`](rwkvx_kernels::teach_choice).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub choice_weight: f64,
}

/// LongCE by name or by its settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "longce must be \"rwkv-x\", \"paper\" or an object of context, stride, gamma and first"
)]
pub enum LongCeChoice {
    /// A published set.
    Named(LongCeName),
    /// Own settings.
    Settings(LongCe),
}

/// The published settings of LongCE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LongCeName {
    /// [`LongCe::RWKV_X`]
    RwkvX,
    /// [`LongCe::PAPER`]
    Paper,
}

impl LongCeChoice {
    /// The settings.
    pub fn settings(self) -> LongCe {
        match self {
            Self::Named(LongCeName::RwkvX) => LongCe::RWKV_X,
            Self::Named(LongCeName::Paper) => LongCe::PAPER,
            Self::Settings(settings) => settings,
        }
    }
}

/// When checkpoints are written and how many stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Updates between two checkpoints; each phase also ends with one.
    pub every_steps: u64,
    /// Newest checkpoints to keep.
    pub keep: usize,
}

/// What the trained models are asked at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionConfig {
    /// Lengths of the texts in tokens.
    pub lengths: Vec<usize>,
    /// Texts per task and length.
    pub samples: usize,
    /// Facts in the texts with many facts.
    pub facts: usize,
}

impl TrainConfig {
    /// Reads a configuration file without checking its values, because options may still change them.
    ///
    /// # Errors
    ///
    /// If the file is missing or not a configuration; the error names the file and the field.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::parse(&text, path)
    }

    /// Parses a configuration without checking it; `path` is what its errors call it.
    ///
    /// # Errors
    ///
    /// If the text is not a configuration; the error names the field and the place.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let bad = |reason: String| Error::ConfigFile {
            path: path.to_path_buf(),
            reason,
        };
        let config = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            match field.as_str() {
                "." => bad(error.into_inner().to_string()),
                _ => bad(format!("{field}: {}", error.into_inner())),
            }
        })?;
        json.end().map_err(|error| bad(error.to_string()))?;
        Ok(config)
    }

    /// Checks every value, and that the stages can follow one another.
    ///
    /// # Errors
    ///
    /// If a value is impossible; the error names the field.
    pub fn validate(&self) -> Result<()> {
        self.validate_values()?;
        self.validate_stages()
    }

    /// Checks every value by itself: what is needed to plan a run, whose weights and data need not be there.
    ///
    /// # Errors
    ///
    /// If a value is impossible; the error names the field.
    pub fn validate_values(&self) -> Result<()> {
        self.model
            .validate()
            .map_err(|error| Error::field("model", error.to_string()))?;
        self.optimizer.validate()?;
        self.data.validate("data")?;
        for (stage, name) in [
            (&self.stages.base, "base"),
            (&self.stages.stage1, "stage1"),
            (&self.stages.stage2, "stage2"),
            (&self.stages.sft, "sft"),
        ] {
            if let Some(stage) = stage {
                stage.validate(&format!("stages.{name}"))?;
            }
        }
        at_least_one("checkpoints.every_steps", self.checkpoints.every_steps)?;
        at_least_one("checkpoints.keep", self.checkpoints.keep as u64)?;
        if let Some(questions) = &self.questions {
            at_least_one("questions.samples", questions.samples as u64)?;
            at_least_one("questions.facts", questions.facts as u64)?;
        }
        Ok(())
    }

    fn validate_stages(&self) -> Result<()> {
        let phases = self.phases();
        let Some(&first) = phases.first() else {
            let reason = match self.stage {
                StageChoice::All => "holds no stage; give at least one",
                _ => "does not hold the stage asked for; add it or choose another `--stage`",
            };
            return Err(Error::field("stages", reason));
        };
        if first != Phase::Base && self.start_from.is_none() {
            let reason = format!("{first} goes on from trained weights; pass `--model CHECKPOINT`");
            return Err(Error::field("start_from", reason));
        }
        let adds_blocks = [Phase::Stage1, Phase::Stage2];
        if phases.iter().any(|phase| adds_blocks.contains(phase)) && self.model.n_sparse == 0 {
            let reason = "is 0, but stages 1 and 2 train a model with sparse blocks";
            return Err(Error::field("model.n_sparse", reason));
        }
        if self.compare_base && self.stages.base.is_none() {
            let reason = "needs the stage `base`, whose model is the one compared with";
            return Err(Error::field("compare_base", reason));
        }
        Ok(())
    }

    /// The phases that this configuration runs, in order.
    pub fn phases(&self) -> Vec<Phase> {
        Phase::ALL
            .into_iter()
            .filter(|&phase| {
                let stage = phase.stage();
                let compares = matches!(phase, Phase::Rwkv7Stage1 | Phase::Rwkv7Stage2);
                self.stage.includes(stage)
                    && self.stage_config(stage).is_some()
                    && (!compares || (self.compare_base && self.stage == StageChoice::All))
            })
            .collect()
    }

    /// Settings of a stage.
    pub fn stage_config(&self, stage: Stage) -> Option<&StageConfig> {
        match stage {
            Stage::Base => self.stages.base.as_ref(),
            Stage::Stage1 => self.stages.stage1.as_ref(),
            Stage::Stage2 => self.stages.stage2.as_ref(),
            Stage::Sft => self.stages.sft.as_ref(),
        }
    }

    /// Opens the tokenizer and checks that the model has a row for each of its ids.
    ///
    /// # Errors
    ///
    /// If the tokenizer cannot be opened or has more ids than the model.
    pub fn open_tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::open(&self.tokenizer)?;
        let (ids, rows) = (tokenizer.vocab_size(), self.model.vocab_size);
        match ids <= rows {
            true => Ok(tokenizer),
            false => Err(Error::field(
                "model.vocab_size",
                format!(
                    "is {rows}, but the tokenizer {:?} has {ids} ids",
                    self.tokenizer
                ),
            )),
        }
    }
}

impl StageConfig {
    fn validate(&self, field: &str) -> Result<()> {
        for (name, value) in [
            ("steps", self.steps),
            ("context", self.context as u64),
            ("batch", self.batch as u64),
            ("micro_batch", self.micro_batch as u64),
            ("threads", self.threads as u64),
        ] {
            at_least_one(&format!("{field}.{name}"), value)?;
        }
        if !self.batch.is_multiple_of(self.micro_batch) {
            let reason = format!("is {}, must divide batch {}", self.micro_batch, self.batch);
            return Err(Error::field(format!("{field}.micro_batch"), reason));
        }
        for (name, number) in [
            ("learning_rate", self.learning_rate),
            ("final_learning_rate", self.final_learning_rate),
            ("choice_weight", self.choice_weight),
        ] {
            if !(number.is_finite() && number >= 0.0) {
                let reason = format!("is {number}, must be 0 or positive");
                return Err(Error::field(format!("{field}.{name}"), reason));
            }
        }
        if let Some(data) = &self.data {
            data.validate(&format!("{field}.data"))?;
        }
        match self.longce {
            Some(longce) => longce.settings().validate(&format!("{field}.longce")),
            None => Ok(()),
        }
    }

    /// The learning rates of this stage.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            initial: self.learning_rate,
            last: self.final_learning_rate,
            warmup_steps: self.warmup_steps,
            steps: self.steps,
        }
    }
}

fn one() -> usize {
    1
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

fn at_least_one(field: &str, value: u64) -> Result<()> {
    match value {
        0 => Err(Error::field(field, "is 0, must be at least 1")),
        _ => Ok(()),
    }
}
