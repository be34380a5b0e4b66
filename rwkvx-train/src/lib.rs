//! Two-stage training of RWKV-X on Burn's learner, from a JSON file to a model that answers questions.
//!
//! | module | step |
//! | --- | --- |
//! | [`config`], [`presets`] | one JSON file says everything; it is checked whole before the first step |
//! | [`phase`] | base, stage 1, stage 2, and the plain model beside them: what each trains |
//! | [`data`] | samples as a pure function of the step, and Burn's data loader over them |
//! | [`step`], [`workers`], [`outcome`] | micro-batches, their sum, and what they came to: what the learner calls on each device |
//! | [`precision`], [`devices`] | bf16 passes over f32 parameters; which devices share a step |
//! | [`shards`] | which of them updates which parameter |
//! | [`recompute`] | gradients layer by layer, for long contexts |
//! | [`head_loss`], [`longce`] | cross-entropy without the logits of a whole batch, L2Wrap, token weights |
//! | [`gradient`], [`optimizer`], [`schedule`] | global norm, AdamW with RWKV's groups, warm-up and cosine |
//! | [`session`], [`journal`], [`checkpoint`], [`stop`] | clipping, the trace of every step, the checkpoint that resuming starts from, and stopping with one |
//! | [`plan`], [`flops`], [`memory`] | memory and operations by size and length, before a run and in it |
//! | [`run`], [`weights`] | the phases one after the other, and the weights between them |
//! | [`dashboard`], [`curve`], [`questions`], [`report`] | what is shown during and after |
//!
//! Burn's `SupervisedTraining` drives the steps. Around it stands what Burn 0.21 lacks: checkpoints within a run that are
//! whole or absent, clipping by the norm of the whole gradient, decay for some parameters only, and errors instead of panics.

#![deny(missing_docs)]

pub mod checkpoint;
pub mod config;
pub mod curve;
pub mod dashboard;
pub mod data;
pub mod devices;
mod error;
pub mod flops;
pub mod gradient;
pub mod head_loss;
pub mod journal;
pub mod longce;
pub mod memory;
pub mod optimizer;
pub mod outcome;
pub mod phase;
pub mod plan;
pub mod precision;
pub mod presets;
pub mod questions;
pub mod recompute;
pub mod relay;
pub mod report;
pub mod run;
pub mod schedule;
pub mod session;
pub mod shards;
pub mod step;
pub mod stop;
pub mod weights;
pub mod workers;

pub use error::{Error, Result};
