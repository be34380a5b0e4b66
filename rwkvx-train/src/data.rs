//! Samples for training, on the host only, and Burn's data loader over them.
//!
//! Which samples a step sees is a pure function of the step, so resuming needs no state of the data. There are no loading
//! threads: making a sample costs far less than training on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;
use rwkvx_datasets::binidx::TokenFile;
use rwkvx_datasets::chat::{Conversation, Conversations};
use rwkvx_datasets::needles::{NeedleConfig, NeedleStream};
use rwkvx_datasets::sampler::{MagicPrimeSampler, SampleOrder};
use rwkvx_datasets::{END_OF_DOCUMENT, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::relay::Relay;
use crate::{Error, Result};

/// Where the tokens come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataConfig {
    /// Generated retrieval documents; `ctx` is set by each stage.
    Needles(NeedleConfig),
    /// A token file, `prefix`.bin and `prefix`.idx, visited in magic-prime order.
    Tokens {
        /// Path without its ending; `null` until `--data` gives it.
        prefix: Option<PathBuf>,
        /// Whose published order.
        order: Order,
    },
    /// Conversations as JSON lines, see [`chat`](rwkvx_datasets::chat); what the assistant says is learned.
    Chat {
        /// The files; none until `--data` gives one.
        files: Vec<PathBuf>,
    },
}

impl DataConfig {
    /// Checks the generator's settings; `field` is where they stand in the configuration.
    ///
    /// # Errors
    ///
    /// If a setting is impossible.
    pub fn validate(&self, field: &str) -> Result<()> {
        match self {
            Self::Needles(needles) => needles
                .validate()
                .map_err(|error| Error::field(format!("{field}.needles"), error.to_string())),
            Self::Tokens { .. } | Self::Chat { .. } => Ok(()),
        }
    }
}

/// The order in which a token file is visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// That of the RWKV-X code.
    RwkvX,
    /// That of RWKV-LM.
    RwkvLm,
}

/// One training sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// At most context + 1 token ids.
    pub ids: Vec<u32>,
    /// Weight of each target in the loss, one per target; 0 for what is not learned.
    pub weights: Vec<f32>,
}

impl Sample {
    /// What the model reads: all ids but the last.
    pub fn inputs(&self) -> &[u32] {
        self.ids.split_last().map_or(&[], |(_, inputs)| inputs)
    }

    /// What it is to predict: all ids but the first.
    pub fn targets(&self) -> &[u32] {
        self.ids.split_first().map_or(&[], |(_, targets)| targets)
    }

    /// The sample with ids after it that are not learned, so that it has `targets` of them.
    #[must_use]
    pub fn padded(mut self, targets: usize) -> Self {
        self.ids.resize(targets + 1, END_OF_DOCUMENT);
        self.weights.resize(targets, 0.0);
        self
    }
}

/// What one device trains on in one optimiser step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The sequences.
    pub samples: Vec<Sample>,
    /// Sequences per forward and backward pass.
    pub micro_batch: usize,
    /// Of the sequences of all devices.
    pub whole: Whole,
}

/// What the loss of a step is a mean over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whole {
    /// Weights of all targets.
    pub weight: f64,
    /// Targets that are learned.
    pub targets: usize,
    /// Sequences.
    pub sequences: usize,
}

impl Batch {
    /// A whole batch.
    pub fn new(samples: Vec<Sample>, micro_batch: usize) -> Self {
        let weights = || samples.iter().flat_map(|sample| &sample.weights);
        let whole = Whole {
            weight: weights().map(|&weight| f64::from(weight)).sum(),
            targets: weights().filter(|&&weight| weight > 0.0).count(),
            sequences: samples.len(),
        };
        Self {
            samples,
            micro_batch,
            whole,
        }
    }

    /// The part of device `rank` of `devices`: the published sampler deals out sequences in turn.
    #[must_use]
    pub fn share(self, rank: usize, devices: usize) -> Self {
        let dealt = self.samples.into_iter().skip(rank).step_by(devices);
        Self {
            samples: dealt.collect(),
            ..self
        }
    }
}

/// A sequence of samples with random access.
pub enum Source {
    /// Generated documents.
    Needles(NeedleStream),
    /// Pieces of a token file.
    Tokens {
        /// The file.
        file: TokenFile,
        /// Where each sample starts.
        sampler: MagicPrimeSampler,
        /// Inputs per sample.
        context: usize,
    },
    /// Conversations, the same weight each.
    Chat {
        /// The conversations.
        conversations: Conversations,
        /// What makes ids of them.
        tokenizer: Tokenizer,
        /// Most inputs per sample.
        context: usize,
    },
}

impl Source {
    /// Opens the data for sequences of `context` inputs.
    ///
    /// # Errors
    ///
    /// If the token file is missing, damaged or too short, or the generator cannot fill the context.
    pub fn open(
        config: &DataConfig,
        tokenizer: &Tokenizer,
        context: usize,
        seed: u64,
    ) -> Result<Self> {
        match config {
            DataConfig::Needles(needles) => {
                let needles = NeedleConfig {
                    ctx: context,
                    ..needles.clone()
                };
                Ok(Self::Needles(NeedleStream::new(&needles, tokenizer, seed)?))
            }
            DataConfig::Tokens { prefix, order } => {
                let prefix = prefix.as_deref().ok_or_else(|| {
                    Error::field("data.tokens.prefix", "is not set; pass `--data PREFIX`")
                })?;
                Self::open_tokens(prefix, *order, context)
            }
            DataConfig::Chat { files } if files.is_empty() => Err(Error::field(
                "data.chat.files",
                "is empty; pass `--data FILE.jsonl`",
            )),
            DataConfig::Chat { files } => Ok(Self::Chat {
                conversations: Conversations::open(files, seed)?,
                tokenizer: tokenizer.clone(),
                context,
            }),
        }
    }

    fn open_tokens(prefix: &Path, order: Order, context: usize) -> Result<Self> {
        let file = TokenFile::open(prefix)?;
        let order = match order {
            Order::RwkvX => SampleOrder::RwkvX,
            Order::RwkvLm => SampleOrder::RwkvLm,
        };
        let sampler = MagicPrimeSampler::new(file.len(), context as u64, order)?;
        Ok(Self::Tokens {
            file,
            sampler,
            context,
        })
    }

    /// The sample at `index`.
    ///
    /// # Errors
    ///
    /// If the token file cannot be read there.
    pub fn sample(&self, index: u64) -> Result<Sample> {
        match self {
            Self::Needles(stream) => {
                let needle = stream.sample(index)?;
                Ok(Sample {
                    ids: needle.ids,
                    weights: needle.weights,
                })
            }
            Self::Tokens {
                file,
                sampler,
                context,
            } => {
                let mut ids = vec![0; context + 1];
                file.read(sampler.start(index), &mut ids)?;
                Ok(Sample {
                    ids,
                    weights: vec![1.0; *context],
                })
            }
            Self::Chat {
                conversations,
                tokenizer,
                context,
            } => {
                let Conversation { ids, learned } =
                    conversations.sample(index, tokenizer, context + 1)?;
                let targets = learned.get(1..).unwrap_or_default();
                let share = 1.0 / targets.iter().filter(|learned| **learned).count() as f32;
                let weight = |learned: &bool| if *learned { share } else { 0.0 };
                Ok(Sample {
                    weights: targets.iter().map(weight).collect(),
                    ids,
                })
            }
        }
    }
}

/// The batches of one phase, as one epoch, for Burn's learner: it starts new threads for its devices with every epoch, and each thread's memory on a GPU
/// would stay.
#[derive(Clone)]
pub struct Feed {
    /// The samples.
    pub source: Arc<Source>,
    /// Sequences per step, of all devices together.
    pub batch: usize,
    /// Sequences per forward and backward pass.
    pub micro_batch: usize,
    /// Devices that share a step.
    pub devices: usize,
    /// Which of them this is for.
    pub rank: usize,
    /// Steps of the phase.
    pub steps: u64,
    /// Steps made before.
    pub done: u64,
    /// Where errors go.
    pub relay: Relay,
}

impl Feed {
    /// The batch of the update after `done` updates.
    ///
    /// # Errors
    ///
    /// If the source fails.
    pub fn batch(&self, done: u64) -> Result<Batch> {
        let first = done * self.batch as u64;
        let samples = (first..first + self.batch as u64)
            .map(|index| self.source.sample(index))
            .collect::<Result<_>>()?;
        Ok(Batch::new(samples, self.micro_batch).share(self.rank, self.devices))
    }
}

impl<B: Backend> DataLoader<B, Batch> for Feed {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        Box::new(Remaining {
            feed: self,
            done: self.done,
        })
    }

    fn num_items(&self) -> usize {
        self.devices
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, Batch>> {
        Arc::new(self.clone()) // Batches are on the host.
    }

    /// Burn splits the items over the devices. These are shares of one step, of which there are as many as devices.
    fn slice(&self, start: usize, _end: usize) -> Arc<dyn DataLoader<B, Batch>> {
        Arc::new(Self {
            rank: start,
            ..self.clone()
        })
    }
}

/// The steps that are not yet made.
struct Remaining<'a> {
    feed: &'a Feed,
    done: u64,
}

impl Iterator for Remaining<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        if self.done >= self.feed.steps {
            return None;
        }
        let batch = self.feed.batch(self.done);
        self.done += 1;
        batch.map_err(|error| self.feed.relay.fail(error)).ok()
    }
}

impl DataLoaderIterator<Batch> for Remaining<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.done as usize, self.feed.steps as usize)
    }
}

/// Burn asks for validation data; there is none.
pub struct NoValidation;

impl<B: Backend> DataLoader<B, std::convert::Infallible> for NoValidation {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<std::convert::Infallible> + 'a> {
        Box::new(Nothing)
    }

    fn num_items(&self) -> usize {
        0
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, std::convert::Infallible>> {
        Arc::new(Self)
    }

    fn slice(
        &self,
        _start: usize,
        _end: usize,
    ) -> Arc<dyn DataLoader<B, std::convert::Infallible>> {
        Arc::new(Self)
    }
}

struct Nothing;

impl Iterator for Nothing {
    type Item = std::convert::Infallible;

    fn next(&mut self) -> Option<std::convert::Infallible> {
        None
    }
}

impl DataLoaderIterator<std::convert::Infallible> for Nothing {
    fn progress(&self) -> Progress {
        Progress::new(0, 0)
    }
}
