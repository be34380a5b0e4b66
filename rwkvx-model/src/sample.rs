//! From logits to the next token.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rwkvx_kernels::{BANNED, Draw, KernelBackend, NONE_LEFT, NOT_A_NUMBER, sample, sample_row};

use crate::Error;

/// How a token is chosen. The default takes the likeliest one.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Flattens (above 1) or sharpens (below 1) the kept probabilities; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens whose probabilities together reach this share; 1 keeps all.
    pub top_p: f32,
    /// Keeps at most so many tokens; 0 keeps all.
    pub top_k: usize,
    /// Taken from the logit of every token that has occurred.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for every time it has occurred.
    pub frequency_penalty: f32,
    /// What is left of an occurrence after one more token; 1 never forgets.
    pub penalty_decay: f32,
    /// Tokens that are never chosen.
    pub banned: Vec<u32>,
    /// Seed of the choice; the same seed and logits choose the same tokens.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_decay: 0.996,
            banned: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// Checks every option.
    ///
    /// # Errors
    /// [`Error::Sampling`] naming the option and its range.
    pub fn validate(&self) -> Result<(), Error> {
        let within = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::Sampling(format!(
                "{name} is {value}, it must be from {low} to {high}"
            )))
        };
        within("temperature", self.temperature, 0.0, f32::MAX)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within(
            "presence_penalty",
            self.presence_penalty,
            f32::MIN,
            f32::MAX,
        )?;
        within(
            "frequency_penalty",
            self.frequency_penalty,
            f32::MIN,
            f32::MAX,
        )?;
        within("penalty_decay", self.penalty_decay, 0.0, 1.0)
    }
}

/// Chooses tokens one after another and remembers them for the penalties.
///
/// As in the `rwkv` package: penalties and bans change the logits, top-p and top-k cut the probabilities, and the
/// temperature then reshapes what is left. [`sample`](rwkvx_kernels::sample()) defines it to the last bit.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    /// Decayed count of every token chosen so far, [`BANNED`] for some; empty before the first and where nothing is penalised or banned.
    counts: Vec<f32>,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler that has chosen nothing yet.
    ///
    /// # Errors
    /// As [`SamplerConfig::validate`].
    pub fn new(config: SamplerConfig) -> Result<Self, Error> {
        config.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        Ok(Self {
            config,
            counts: Vec::new(),
            rng,
        })
    }

    /// Chooses a token by the logits of all, and remembers it.
    ///
    /// # Errors
    /// [`Error::Sampling`] if a logit is not a number, or every token is banned or impossible.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let draw = self.draw();
        if self.needs_counts() {
            self.count_up_to(logits.len());
        }
        chosen(sample_row(logits, &mut self.counts, &draw))
    }

    /// The next draw.
    fn draw(&mut self) -> Draw {
        Draw {
            temperature: self.config.temperature,
            top_p: self.config.top_p,
            top_k: self.config.top_k,
            presence_penalty: self.config.presence_penalty,
            frequency_penalty: self.config.frequency_penalty,
            penalty_decay: self.config.penalty_decay,
            uniform: self.rng.random(),
        }
    }

    fn needs_counts(&self) -> bool {
        let config = &self.config;
        config.presence_penalty != 0.0
            || config.frequency_penalty != 0.0
            || !config.banned.is_empty()
    }

    /// Makes the counts of a vocabulary, if there are none yet.
    fn count_up_to(&mut self, vocab: usize) {
        if self.counts.len() == vocab {
            return;
        }
        self.counts = vec![0.0; vocab];
        for &token in &self.config.banned {
            if let Some(count) = self.counts.get_mut(token as usize) {
                *count = BANNED;
            }
        }
    }
}

/// The samplers of a batch while it is on the device.
pub(crate) struct DeviceSamplers<'a, B: Backend> {
    samplers: &'a mut [Sampler],
    /// `[batch, vocab]`, if any of the samplers needs them.
    counts: Option<Tensor<B, 2>>,
}

impl<'a, B: KernelBackend> DeviceSamplers<'a, B> {
    /// Takes the counts to the device; [`finish`](Self::finish) brings them back.
    pub(crate) fn new(samplers: &'a mut [Sampler], vocab: usize, device: &B::Device) -> Self {
        let mut counts = None;
        if samplers.iter().any(Sampler::needs_counts) {
            samplers
                .iter_mut()
                .for_each(|sampler| sampler.count_up_to(vocab));
            let values: Vec<f32> = samplers
                .iter_mut()
                .flat_map(|sampler| std::mem::take(&mut sampler.counts))
                .collect();
            let values = TensorData::new(values, [samplers.len(), vocab]);
            counts = Some(Tensor::from_data(values, (device, DType::F32)));
        }
        Self { samplers, counts }
    }

    /// The next token of every row of `[batch, vocab]` that is going on.
    pub(crate) fn sample(&mut self, logits: Tensor<B, 2>, going: &[bool]) -> Tensor<B, 1, Int> {
        let draws = self.samplers.iter_mut().zip(going);
        let draws: Vec<Option<Draw>> = draws
            .map(|(sampler, &going)| going.then(|| sampler.draw()))
            .collect();
        let sampled = sample(logits, self.counts.take(), &draws);
        self.counts = sampled.counts;
        sampled.ids
    }

    /// Gives the counts back to the samplers.
    pub(crate) fn finish(self) {
        let Some(counts) = self.counts else {
            return;
        };
        let [_, vocab] = counts.dims();
        let counts: Vec<f32> = counts.into_data().iter().collect();
        for (sampler, counts) in self.samplers.iter_mut().zip(counts.chunks_exact(vocab)) {
            sampler.counts = counts.to_vec();
        }
    }
}

/// The token of what was sampled.
pub(crate) fn chosen(sampled: i32) -> Result<u32, Error> {
    let reason = match sampled {
        NOT_A_NUMBER => "a logit is not a number; the weights are broken",
        NONE_LEFT => "no token is left to choose; ban fewer",
        token => return Ok(token.cast_unsigned()),
    };
    Err(Error::Sampling(reason.to_owned()))
}
