//! What it costs to read a text of some length, and to go on from it token by token.
//!
//! One text is read up to each length in turn; at each, some tokens are made greedily, and each is waited for. Beside the times stands the
//! floor: the bytes that a token must read, at the rate at which this machine multiplies a row with a large matrix.

use std::fmt::Write;
use std::time::Instant;

use burn::tensor::{Int, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rwkvx_kernels::{KernelBackend, WeightLayout, project};
use rwkvx_model::{CacheBudget, PREFILL_PIECE, RwkvX, State, resident_bytes, tokens};
use serde::{Deserialize, Serialize};

use crate::lengths::Length;
use crate::{Error, Result};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens of text at which to measure, rising.
    pub lengths: Vec<usize>,
    /// Tokens made at each length.
    pub tokens: usize,
    /// Texts at once.
    pub batch: usize,
    /// Tokens that a cache holds at most, if that is bounded.
    pub cache_budget: Option<usize>,
}

/// What one model costs at one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// `rwkvx`, or `rwkv7` for the same model without its sparse blocks.
    pub model: String,
    /// Tokens of each text.
    pub length: usize,
    /// Tokens read per second, all texts together, from the beginning to here.
    pub prefill_tokens_per_second: f64,
    /// Milliseconds until the next token of all texts is known: the median.
    pub step_ms: f64,
    /// The fastest.
    pub step_ms_min: f64,
    /// The slowest, in which a cache may have been moved or compressed.
    pub step_ms_max: f64,
    /// Those of every token, in order.
    pub steps_ms: Vec<f64>,
    /// Bytes of state and cache.
    pub state_bytes: usize,
    /// Bytes of memory of this process, where the system tells.
    pub resident_bytes: Option<usize>,
    /// Bytes that a step must read.
    pub step_bytes: usize,
    /// Milliseconds that these bytes take at least.
    pub floor_ms: f64,
}

/// Bytes per second at which this device reads a matrix of 256 MiB that it multiplies with a row; the best of several.
pub fn bandwidth<B: KernelBackend>(device: &B::Device) -> f64 {
    const SHAPE: [usize; 2] = [1 << 16, 1 << 10];
    let weight = Tensor::<B, 2>::ones(SHAPE, device);
    let x = Tensor::<B, 2>::ones([1, SHAPE[1]], device);
    let seconds = (0..5).map(|_| {
        let start = Instant::now();
        // Reading the result waits for it.
        project(x.clone(), weight.clone(), WeightLayout::OutIn).into_data();
        start.elapsed().as_secs_f64()
    });
    let bytes = (SHAPE[0] * SHAPE[1] * size_of::<f32>()) as f64;
    bytes / seconds.fold(f64::INFINITY, f64::min)
}

/// Measures a model at every length; `on_read` is told the tokens read or made, piece by piece.
///
/// # Errors
///
/// If there are no texts, or the budget is impossible.
pub fn run<B: KernelBackend>(
    name: &str,
    model: &RwkvX<B>,
    settings: &Settings,
    bandwidth: f64,
    mut on_read: impl FnMut(usize),
) -> Result<Vec<Point>> {
    let weights = model.weight_bytes();
    let mut text = RandomText::new(settings.batch, model.config().vocab_size);
    // So that the first piece does not pay for what is made once.
    model.prefill(text.next::<B>(model, 1)?, &mut model.state(settings.batch));

    let mut state = model.state(settings.batch);
    if let Some(max) = settings.cache_budget {
        let budget = CacheBudget::of(max);
        if let Some(error) = budget.error() {
            return Err(Error::option("--cache-budget", error));
        }
        state = state.with_cache_budget(budget);
    }
    let (mut read, mut reading) = (0, 0.0);
    let mut points = Vec::new();
    for &length in &settings.lengths {
        let mut next = None;
        while state.tokens() < length {
            let piece = (PREFILL_PIECE / settings.batch).max(1);
            let time = piece.min(length - state.tokens());
            let ids = text.next::<B>(model, time)?;
            let start = Instant::now();
            let logits = model.prefill(ids, &mut state);
            next = Some(likeliest(logits));
            reading += start.elapsed().as_secs_f64();
            read += time * settings.batch;
            on_read(time * settings.batch);
        }
        let next = match next {
            Some(next) => next,
            // The tokens made at the length before reach past this one.
            None => text.next::<B>(model, 1)?.squeeze_dim(1),
        };
        let mut point = steps(model, next, &mut state, settings.tokens);
        on_read(settings.tokens * settings.batch);
        point.model = name.to_owned();
        point.length = length;
        point.prefill_tokens_per_second = read as f64 / reading;
        point.step_bytes = weights + state.step_bytes();
        point.floor_ms = 1e3 * point.step_bytes as f64 / bandwidth;
        points.push(point);
    }
    Ok(points)
}

/// Makes tokens and measures each.
fn steps<B: KernelBackend>(
    model: &RwkvX<B>,
    mut next: Tensor<B, 1, Int>,
    state: &mut State<B>,
    tokens: usize,
) -> Point {
    let steps_ms: Vec<f64> = (0..tokens)
        .map(|_| {
            let start = Instant::now();
            next = likeliest(model.step(next.clone(), state));
            1e3 * start.elapsed().as_secs_f64()
        })
        .collect();
    let mut sorted = steps_ms.clone();
    sorted.sort_by(f64::total_cmp);
    Point {
        model: String::new(),
        length: 0,
        prefill_tokens_per_second: 0.0,
        step_ms: sorted[tokens / 2],
        step_ms_min: sorted[0],
        step_ms_max: sorted[tokens - 1],
        steps_ms,
        state_bytes: state.bytes(),
        resident_bytes: resident_bytes().map(|bytes| bytes as usize),
        step_bytes: 0,
        floor_ms: 0.0,
    }
}

/// The likeliest tokens, waited for.
fn likeliest<B: KernelBackend>(logits: Tensor<B, 2>) -> Tensor<B, 1, Int> {
    let next = logits.argmax(1).squeeze_dim::<1>(1); // [batch]
    next.clone().into_data();
    next
}

/// Tokens without meaning, the same at every run.
struct RandomText {
    batch: usize,
    vocab_size: usize,
    rng: ChaCha8Rng,
}

impl RandomText {
    fn new(batch: usize, vocab_size: usize) -> Self {
        Self {
            batch,
            vocab_size,
            rng: ChaCha8Rng::seed_from_u64(0),
        }
    }

    /// The next `time` tokens of every text, `[batch, time]`.
    fn next<B: KernelBackend>(
        &mut self,
        model: &RwkvX<B>,
        time: usize,
    ) -> Result<Tensor<B, 2, Int>> {
        let vocab = self.vocab_size as u32;
        let rows: Vec<Vec<u32>> = (0..self.batch)
            .map(|_| (0..time).map(|_| self.rng.random_range(0..vocab)).collect())
            .collect();
        Ok(tokens::ids_tensor(&rows, self.vocab_size, &model.device())?)
    }
}

/// The points as a table.
pub fn table(points: &[Point]) -> String {
    let megabytes = |bytes: usize| format!("{:.1}", bytes as f64 / 1e6);
    let mut text = format!(
        "{:<6}{:>9}{:>12}{:>11}{:>19}{:>11}{:>13}{:>12}{:>10}{:>8}\n",
        "model",
        "tokens",
        "prefill/s",
        "ms/token",
        "fastest-slowest",
        "state MB",
        "resident MB",
        "step MB",
        "floor ms",
        "share"
    );
    for point in points {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<6}{:>9}{:>12.0}{:>11.2}{:>19}{:>11}{:>13}{:>12}{:>10.2}{:>7.0}%",
            point.model,
            Length(point.length),
            point.prefill_tokens_per_second,
            point.step_ms,
            format!("{:.2}-{:.2}", point.step_ms_min, point.step_ms_max),
            megabytes(point.state_bytes),
            point.resident_bytes.map_or("?".to_owned(), megabytes),
            megabytes(point.step_bytes),
            point.floor_ms,
            100.0 * point.floor_ms / point.step_ms,
        );
    }
    text
}
