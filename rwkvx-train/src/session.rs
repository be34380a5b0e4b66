//! The end of every step: clipping, the update, the metrics line and, when one is due, the checkpoint.
//!
//! Burn 0.21 checkpoints through records, one file each for model, optimiser and scheduler, from three threads and without
//! a mark of completeness. Here the checkpoint is one folder of named tensors that appears whole. The optimiser's call is
//! the one place in the learner's loop that holds the gradients of all devices, and then the updated parameters and the optimiser's
//! state together, so this wraps the optimiser.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::module::EmptyRecord;
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::names::NamedParam;

use crate::checkpoint::{CheckpointStore, Position};
use crate::gradient;
use crate::journal::{Journal, Line};
use crate::memory;
use crate::optimizer::GroupedAdamW;
use crate::outcome::{Speed, StepReport};
use crate::relay::Relay;
use crate::shards::Shards;
use crate::step::Trainee;
use crate::{Error, Result, stop};

/// So many steps one after the other may be skipped; another one ends the run, because they are not accidents.
const MOST_SKIPPED_IN_A_ROW: u64 = 10;

/// Where a phase is and where its traces go.
#[derive(Debug)]
pub struct Session {
    /// Phase, steps and tokens done.
    pub position: Position,
    /// Steps of the phase.
    pub steps: u64,
    /// Largest norm of the whole gradient.
    pub clip_norm: Option<f64>,
    /// Whether a step whose loss or gradient is no number is left out; it ends the phase otherwise.
    pub skip_bad_steps: bool,
    /// Steps left out since the last good one.
    pub skipped_in_a_row: u64,
    /// Operations of the model per token trained on, see [`plan`](crate::plan).
    pub flops_per_token: f64,
    /// Operations per second that all devices could do, if that is known.
    pub peak_flops: Option<f64>,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// The run's metrics file.
    pub journal: Journal,
    /// The run's checkpoints.
    pub checkpoints: CheckpointStore,
    /// Names of the parameters, for the checkpoint.
    pub parameters: Vec<NamedParam>,
    /// Where errors go.
    pub relay: Relay,
    /// When the last step ended.
    pub last_step: Instant,
    /// What the last good step came to, which is shown for one left out.
    pub last_report: StepReport,
}

impl Session {
    /// Whether the update may be made. One from an infinite or undefined number may not: the step is left out, or ends the phase.
    fn admit(&mut self, report: &StepReport) -> bool {
        let numbers = [("loss", report.loss), ("gradient norm", report.grad_norm)];
        let Some((what, value)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) else {
            self.skipped_in_a_row = 0;
            return true;
        };
        self.skipped_in_a_row += 1;
        self.position.skipped += 1;
        if !self.skip_bad_steps || self.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW {
            self.relay.fail(Error::Diverged {
                phase: self.position.phase.name(),
                step: self.position.step + 1,
                what,
                value,
                skipped: self.skipped_in_a_row - 1,
                last_checkpoint: self.checkpoints.newest(),
            });
        }
        false
    }

    /// How fast the step that ends now was.
    fn speed<B: KernelBackend>(&mut self, tokens: u64, device: &B::Device) -> Speed {
        let now = Instant::now();
        let seconds = (now - self.last_step).as_secs_f64().max(1e-9);
        self.last_step = now;
        let tokens_per_second = tokens as f64 / seconds;
        let flops = self.flops_per_token * tokens_per_second;
        Speed {
            tokens_per_second,
            tflops: flops / 1e12,
            mfu: self.peak_flops.map(|peak| flops / peak),
            memory_bytes: memory::in_use::<B>(device),
        }
    }

    /// Writes the metrics of a step.
    fn record(&mut self, rate: f64, report: &StepReport) -> Result<()> {
        self.position.tokens += report.tokens;
        self.journal.append(&Line {
            stage: self.position.phase,
            step: self.position.step,
            loss: report.loss,
            nll: report.nll,
            answer_nll: report.answer_nll,
            lr: rate,
            tokens: self.position.tokens,
            speed: report.speed,
            grad_norm: report.grad_norm,
            skipped: self.position.skipped,
        })
    }

    /// Ends a step whose metrics were `recorded`, with a checkpoint if one is due.
    fn end<B: AutodiffBackend>(
        &self,
        trainee: Trainee<B>,
        optimizer: &GroupedAdamW<B::InnerBackend>,
        recorded: Result<()>,
    ) -> Trainee<B> {
        if let Err(error) = recorded.and_then(|()| self.save(&trainee, optimizer)) {
            self.relay.fail(error);
        }
        trainee
    }

    fn save<B: AutodiffBackend>(
        &self,
        trainee: &Trainee<B>,
        optimizer: &GroupedAdamW<B::InnerBackend>,
    ) -> Result<()> {
        let step = self.position.step;
        let stop = stop::requested() || self.relay.interrupter().should_stop();
        if step.is_multiple_of(self.checkpoint_every) || step == self.steps || stop {
            self.checkpoints
                .save(self.position, &trainee.model, &self.parameters, optimizer)?;
        }
        if stop {
            self.relay.interrupter().stop(None);
        }
        Ok(())
    }
}

/// An optimiser that clips the gradients it gets and leaves a trace of every step in its [`Session`].
#[derive(Clone)]
pub struct Recorded<I: Backend> {
    optimizer: GroupedAdamW<I>,
    shards: Shards<I>,
    session: Arc<Mutex<Session>>,
}

impl<I: Backend> Recorded<I> {
    /// Wraps an optimiser whose state is on the devices by `shards`.
    pub fn new(
        optimizer: GroupedAdamW<I>,
        shards: Shards<I>,
        session: Arc<Mutex<Session>>,
    ) -> Self {
        Self {
            optimizer,
            shards,
            session,
        }
    }
}

impl<B> Optimizer<Trainee<B>, B> for Recorded<B::InnerBackend>
where
    B: AutodiffBackend,
    B::InnerBackend: KernelBackend,
{
    /// Nothing: see [`GroupedAdamW`].
    type Record = EmptyRecord;

    fn step(
        &mut self,
        rate: f64,
        trainee: Trainee<B>,
        mut gradients: GradientsParams,
    ) -> Trainee<B> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sums) = session.relay.take() else {
            return trainee; // The step failed, and said so.
        };
        let norm = gradient::global_norm(&trainee, &gradients);
        let speed = session.speed::<B::InnerBackend>(sums.tokens, &trainee.model.device());
        let report = sums.report(norm, speed);
        let good = session.admit(&report);
        if session.relay.has_failed() {
            return trainee;
        }
        session.position.step += 1;
        if !good {
            let last = session.last_report;
            session.relay.settle(last);
            return session.end(trainee, &self.optimizer, Ok(()));
        }
        if let Some(limit) = session.clip_norm {
            gradient::clip(&trainee, &mut gradients, norm, limit);
        }
        let trainee = self.optimizer.step(rate, trainee, gradients);
        session.relay.settle(report);
        session.last_report = report;
        let recorded = session.record(rate, &report);
        session.end(trainee, &self.optimizer, recorded)
    }

    /// What Burn's loop calls: the step with the gradients of all devices added up.
    fn step_multi(
        &mut self,
        rate: f64,
        trainee: Trainee<B>,
        gradients: MultiGradientsParams,
    ) -> Trainee<B> {
        let gradients = self.shards.sum(&trainee, gradients);
        self.step(rate, trainee, gradients)
    }

    fn to_record(&self) -> EmptyRecord {
        EmptyRecord::new()
    }

    fn load_record(self, _record: EmptyRecord) -> Self {
        self
    }
}
