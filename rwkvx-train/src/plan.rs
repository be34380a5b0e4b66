//! What a run will need, computed from its sizes before anything starts: memory by kind, operations, and what LongCE adds.
//!
//! | kind | bytes |
//! | --- | --- |
//! | parameters | 4 each; in bf16 2 more for the copy that the passes read |
//! | optimiser | 8 per parameter that trains, divided by the devices |
//! | gradients | 4 per parameter that trains; those of one more micro-batch if there are several |
//! | activations | what the backward pass needs of the forward pass, see [`activations`]; with `recompute` the input of every layer and one layer's activations |
//! | head | a piece of logits and its gradient, and the gradient of the activations twice while its pieces are joined |
//! | kernels | on GPUs the larger of the recurrence's chunk states and the attention's slots, as on CUDA |
//!
//! Head and layers have their turns, so the total counts the larger of the two. What allocators and matrix products take for themselves comes on top.

use std::fmt;

use indicatif::HumanBytes;
use rwkvx_model::RwkvXConfig;
use serde::Serialize;

use crate::config::{StageConfig, TrainConfig};
use crate::head_loss::LOGITS_BYTES;
use crate::phase::Phase;
use crate::precision::Precision;
use crate::{Error, Result, flops};

/// Lengths that the last phase is also planned for.
const LENGTHS: [usize; 6] = [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18];

/// What a run will need.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the configuration.
    pub name: String,
    /// Parameters of the final model.
    pub parameters: usize,
    /// Number type of the passes.
    pub precision: Precision,
    /// Where it will run.
    pub place: Place,
    /// The phases, in order.
    pub phases: Vec<Need>,
    /// The last phase with one sequence at a time of these lengths.
    pub lengths: Vec<Need>,
}

/// Where a run will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Devices that share each step.
    pub devices: usize,
    /// Whether they are CPUs.
    pub cpu: bool,
}

/// What one phase needs on each device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Need {
    /// The phase.
    pub phase: Phase,
    /// Tokens per sequence.
    pub context: usize,
    /// Sequences per pass.
    pub micro_batch: usize,
    /// Whether layers are computed again on the way back.
    pub recompute: bool,
    /// Bytes by kind.
    pub memory: Memory,
    /// Operations per token.
    pub flops_per_token: f64,
    /// Of these, LongCE's short passes.
    pub short_passes: f64,
    /// Operations of the phase.
    pub flops: f64,
}

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// The model, and its copy in bf16.
    pub parameters: u64,
    /// AdamW's moments.
    pub optimizer: u64,
    /// Gradients of the parameters.
    pub gradients: u64,
    /// What the backward pass needs of the forward pass.
    pub activations: u64,
    /// What the head's loss needs beside.
    pub head: u64,
    /// What passes through a layer on the way back, beside what it needs.
    pub layer: u64,
    /// What the kernels need for themselves, on CUDA.
    pub kernels: u64,
}

impl Memory {
    /// The most at once.
    pub fn total(&self) -> u64 {
        let held = self.parameters + self.optimizer + self.gradients + self.activations;
        held + self.head.max(self.layer + self.kernels)
    }
}

impl Plan {
    /// Plans a run.
    ///
    /// # Errors
    ///
    /// If a value of the configuration is impossible.
    pub fn of(config: &TrainConfig, place: Place) -> Result<Self> {
        config.validate_values()?;
        let mut phases = Vec::new();
        let mut lengths = Vec::new();
        for phase in config.phases() {
            let stage = config.stage_config(phase.stage()).ok_or_else(|| {
                Error::field("stages", format!("does not hold what {phase} needs"))
            })?;
            phases.push(Need::of(config, phase, stage, place));
            let with_length = |&context: &usize| {
                let stage = StageConfig {
                    context,
                    micro_batch: 1,
                    batch: place.devices,
                    threads: 1,
                    ..stage.clone()
                };
                Need::of(config, phase, &stage, place)
            };
            lengths = LENGTHS.iter().map(with_length).collect();
        }
        Ok(Self {
            name: config.name.clone(),
            parameters: config.model.parameters(),
            precision: config.precision,
            place,
            phases,
            lengths,
        })
    }
}

impl Need {
    /// What a phase needs.
    pub fn of(config: &TrainConfig, phase: Phase, stage: &StageConfig, place: Place) -> Self {
        let model = of_phase(&config.model, phase);
        let flops_per_token = flops::per_token(&model, phase, stage);
        Self {
            phase,
            context: stage.context,
            micro_batch: stage.micro_batch,
            recompute: stage.recompute,
            memory: memory(&model, phase, stage, config.precision, place),
            flops_per_token,
            short_passes: flops::short_passes(&model, phase, stage),
            flops: flops_per_token * (stage.steps as usize * stage.batch * stage.context) as f64,
        }
    }
}

/// The model that a phase trains.
fn of_phase(model: &RwkvXConfig, phase: Phase) -> RwkvXConfig {
    RwkvXConfig {
        n_sparse: if phase.is_hybrid() { model.n_sparse } else { 0 },
        ..model.clone()
    }
}

fn memory(
    model: &RwkvXConfig,
    phase: Phase,
    stage: &StageConfig,
    precision: Precision,
    place: Place,
) -> Memory {
    let size = precision.dtype().size() as u64;
    let all = model.parameters() as u64;
    let trained = match phase.freezes_rwkv() {
        true => all - of_phase(model, Phase::Base).parameters() as u64,
        false => all,
    };
    // Devices share the moments by whole parameters, so that none has less than the largest.
    let matrix = 4 * model.channels * model.channels;
    let largest = match phase.freezes_rwkv() {
        true => matrix,
        false => matrix.max(model.vocab_size * model.channels),
    };
    let share = trained
        .div_ceil(place.devices.max(1) as u64)
        .max(largest as u64);
    let passes = stage.batch / stage.micro_batch / place.devices.max(1);
    // Passes at once, on threads of their own.
    let threads = stage.threads.min(passes).max(1) as u64;
    let rows = (stage.micro_batch * stage.context) as u64;
    let stream = rows * model.channels as u64 * size; // the residual stream, once
    // On CPUs the recurrence keeps its state, in f32, before every 16 tokens.
    let states = match place.cpu {
        true => model.head_size as f64 / 16.0 * 4.0 / size as f64,
        false => 0.0,
    };
    let (layer, stack) = activations(model, phase, states);
    let kept = match stage.recompute {
        true => model.n_layer as f64 + 1.0 + layer,
        false => stack,
    };
    let n = model.head_size as u64;
    let (chunk, states_limit) = match precision {
        Precision::F32 => (8, 128 << 20),
        Precision::Bf16 => (16, 1 << 30),
    };
    let chunk_states = (rows / chunk * model.channels as u64 * n * size).min(states_limit);
    let slots = (rows * (model.channels * (model.top_k - 1)) as u64 * 4).min(128 << 20);
    let weight_block = match phase.freezes_rwkv() {
        true => 0,
        false => (model.vocab_size * model.channels * 4) as u64,
    };
    let logits = (rows * model.vocab_size as u64 * size).min(LOGITS_BYTES as u64);
    Memory {
        parameters: all * if precision == Precision::F32 { 4 } else { 6 },
        optimizer: 8 * share,
        gradients: 4 * trained
            + if passes > 1 {
                threads * size * trained
            } else {
                0
            },
        activations: (kept * stream as f64) as u64 * threads,
        head: (logits + weight_block.min(48 << 20)).max(2 * stream) * threads,
        layer: (ON_THE_WAY_BACK * stream as f64) as u64 * threads,
        kernels: match place.cpu {
            true => 0,
            false => chunk_states.max(slots) * threads,
        },
    }
}

/// What passes through a layer on the way back, in units of the residual stream: the gradients of the channel mix's hidden values (4 wide) and of what made
/// them, while all activations are still there.
const ON_THE_WAY_BACK: f64 = 11.0;

/// Activations that autodiff keeps, in units of the residual stream `[batch, time, channels]`: of the largest layer (a recurrent block and the sparse one
/// behind it), and of all layers that have a gradient.
///
/// - A norm keeps its input, 1. A channel mix keeps its input, the shifted input and the hidden values (4 wide), 6.
/// - A time mix keeps its input 1, the six shifted inputs 6, receptance, gate 2, the raw decay, rate and key 3, what the recurrence takes of them 4, raw and
///   mixed value and its amount 3, the recurrence's output and the gated one 2: 21, the hidden values of the low-rank maps, and `states` of the recurrence.
/// - An attention keeps its input, query, key, value and output, 5.
/// - Where the weights are frozen their inputs are not kept: the seven shifted ones and the gated output, 8.
pub fn activations(model: &RwkvXConfig, phase: Phase, states: f64) -> (f64, f64) {
    const NORM: f64 = 1.0;
    const CHANNEL_MIX: f64 = 6.0;
    const TIME_MIX: f64 = 21.0;
    const ATTENTION: f64 = 5.0;
    const FOR_WEIGHTS: f64 = 8.0;
    let ranks = model.decay_rank + model.rate_rank + model.value_rank + model.gate_rank;
    let low_rank = ranks as f64 / model.channels as f64;
    let trained = 2.0 * NORM + TIME_MIX + low_rank + states + CHANNEL_MIX;
    let recurrent = match phase.freezes_rwkv() {
        true => trained - FOR_WEIGHTS,
        false => trained,
    };
    let sparse = 2.0 * NORM + ATTENTION + CHANNEL_MIX;
    let (mut largest, mut stack) = (0.0_f64, 0.0);
    let mut reached = !phase.freezes_rwkv();
    for layer in 0..model.n_layer {
        let mut here = if reached { recurrent } else { 0.0 };
        if phase.is_hybrid() && model.sparse_after(layer).is_some() {
            reached = true;
            here += sparse;
        }
        largest = largest.max(here);
        stack += here;
    }
    (largest, stack)
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precision = match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16 over f32",
        };
        writeln!(
            out,
            "{}: {} parameters, {precision}, {} {}{}; memory of each",
            self.name,
            self.parameters,
            self.place.devices,
            if self.place.cpu { "CPU" } else { "GPU" },
            if self.place.devices == 1 { "" } else { "s" }
        )?;
        writeln!(out)?;
        self.table(out, "the phases", &self.phases)?;
        if let Some(last) = self.lengths.first() {
            writeln!(out)?;
            let title = format!("{}, one sequence at a time", last.phase);
            self.table(out, &title, &self.lengths)?;
        }
        writeln!(out)?;
        write!(
            out,
            "Operations: 2 per multiplication and addition, without what `recompute` does twice. Allocators and matrix products take more."
        )
    }
}

impl Plan {
    fn table(&self, out: &mut fmt::Formatter<'_>, title: &str, needs: &[Need]) -> fmt::Result {
        writeln!(
            out,
            "{title:<40}{:>11}{:>11}{:>11}{:>12}{:>11}{:>11}{:>12}{:>9}{:>10}",
            "parameters",
            "optimiser",
            "gradients",
            "activations",
            "head",
            "kernels",
            "at once",
            "GFLOP/t",
            "LongCE"
        )?;
        for need in needs {
            let memory = &need.memory;
            let shape = format!(
                "{}, {} x {}{}",
                need.phase,
                need.micro_batch,
                need.context,
                if need.recompute { ", recompute" } else { "" }
            );
            let bytes = |bytes: u64| HumanBytes(bytes).to_string();
            writeln!(
                out,
                "{shape:<40}{:>11}{:>11}{:>11}{:>12}{:>11}{:>11}{:>12}{:>9.2}{:>9.0}%",
                bytes(memory.parameters),
                bytes(memory.optimizer),
                bytes(memory.gradients),
                bytes(memory.activations),
                bytes(memory.head),
                bytes(memory.kernels),
                bytes(memory.total()),
                need.flops_per_token / 1e9,
                100.0 * need.short_passes / need.flops_per_token
            )?;
        }
        Ok(())
    }
}
