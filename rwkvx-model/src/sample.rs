//! From logits to the next token.

use std::collections::BTreeMap;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

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
/// temperature then reshapes what is left.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    /// Decayed count of every token chosen so far.
    occurrences: BTreeMap<u32, f32>,
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
            occurrences: BTreeMap::new(),
            rng,
        })
    }

    /// Whether it always takes the likeliest token of the model.
    pub(crate) fn is_greedy(&self) -> bool {
        let config = &self.config;
        config.temperature == 0.0
            && config.presence_penalty == 0.0
            && config.frequency_penalty == 0.0
            && config.banned.is_empty()
    }

    /// Chooses a token by the logits of all, and remembers it.
    ///
    /// # Errors
    /// [`Error::Sampling`] if a logit is not a number, or every token is banned or impossible.
    pub fn sample(&mut self, mut logits: Vec<f32>) -> Result<u32, Error> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Sampling(
                "a logit is not a number; the weights are broken".to_owned(),
            ));
        }
        self.penalise(&mut logits);
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if best == f32::NEG_INFINITY {
            return Err(Error::Sampling(
                "no token is left to choose; ban fewer".to_owned(),
            ));
        }
        let token = if self.config.temperature == 0.0 {
            // The lowest id wins a tie.
            logits
                .iter()
                .position(|&logit| logit == best)
                .unwrap_or_default() as u32
        } else {
            self.draw(&logits, best)
        };
        self.remember(token);
        Ok(token)
    }

    fn penalise(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.occurrences {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= self.config.presence_penalty + count * self.config.frequency_penalty;
            }
        }
        for &token in &self.config.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn remember(&mut self, token: u32) {
        for count in self.occurrences.values_mut() {
            *count *= self.config.penalty_decay;
        }
        *self.occurrences.entry(token).or_default() += 1.0;
    }

    /// Draws from the kept tokens; `best` is the largest logit.
    fn draw(&mut self, logits: &[f32], best: f32) -> u32 {
        let mut weights: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| (token as u32, f64::from(logit - best).exp()))
            .collect();
        let total: f64 = weights.iter().map(|&(_, weight)| weight).sum();
        self.cut(&mut weights, total);
        let sharpness = 1.0 / f64::from(self.config.temperature);
        let mut sum = 0.0;
        // Relative to the likeliest, whose weight is 1, so that a low temperature does not underflow them all.
        let cumulative: Vec<f64> = weights
            .iter()
            .map(|&(_, weight)| {
                sum += weight.powf(sharpness);
                sum
            })
            .collect();
        let at = self.rng.random::<f64>() * sum;
        let index = cumulative
            .partition_point(|&upto| upto <= at)
            .min(weights.len() - 1);
        weights[index].0
    }

    /// Keeps the tokens that top-p and top-k allow, the likeliest first; all that are possible if neither cuts. Weights are relative to the likeliest
    /// token's and sum up to `total`.
    fn cut(&self, weights: &mut Vec<(u32, f64)>, total: f64) {
        /// Below this weight there is hardly ever a token that is kept, and sorting them would take longest.
        const FAINT: f64 = 1e-5;
        let reaches = f64::from(self.config.top_p) * total;
        let most = match self.config.top_k {
            0 => usize::MAX,
            most => most,
        };
        if reaches >= total && most == usize::MAX {
            weights.retain(|&(_, weight)| weight > 0.0);
            return;
        }
        let clear = || weights.iter().filter(|&&(_, weight)| weight >= FAINT);
        let share: f64 = clear().map(|&(_, weight)| weight).sum();
        if share >= reaches || clear().count() >= most {
            weights.retain(|&(_, weight)| weight >= FAINT);
        } else {
            weights.retain(|&(_, weight)| weight > 0.0);
        }
        // The sort is stable, so that ties fall to the lower id.
        weights.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut sum = 0.0;
        let by_share = weights.iter().position(|&(_, weight)| {
            sum += weight;
            sum >= reaches
        });
        let by_share = by_share.map_or(weights.len(), |last| last + 1);
        weights.truncate(by_share.min(most));
    }
}
