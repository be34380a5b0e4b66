//! The end of every step: the metrics line and, at the end of a mini-epoch, the checkpoint.
//!
//! Burn 0.21 checkpoints through records, one file each for model, optimiser and scheduler, from three threads and without
//! a mark of completeness. Here the checkpoint is one folder of named tensors that appears whole. The optimiser's call is
//! the one place in the learner's loop that holds the updated parameters and the optimiser's state together, so this
//! wraps the optimiser.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::module::EmptyRecord;
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use rwkvx_model::names::NamedParam;

use crate::checkpoint::{CheckpointStore, Position};
use crate::journal::{Journal, Line};
use crate::optimizer::GroupedAdamW;
use crate::relay::Relay;
use crate::step::{StepReport, Trainee};
use crate::{Error, Result, stop};

/// Where a phase is and where its traces go.
#[derive(Debug)]
pub struct Session {
    /// Phase, steps and tokens done.
    pub position: Position,
    /// Steps of the phase.
    pub steps: u64,
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
}

impl Session {
    /// Whether the update may be made; an infinite or undefined number ends the phase.
    fn admit(&self, report: &StepReport) -> bool {
        let numbers = [("loss", report.loss), ("gradient norm", report.grad_norm)];
        match numbers.into_iter().find(|(_, value)| !value.is_finite()) {
            None => true,
            Some((what, value)) => {
                self.relay.fail(Error::Diverged {
                    phase: self.position.phase.name(),
                    step: self.position.step + 1,
                    what,
                    value,
                    last_checkpoint: self.checkpoints.newest(),
                });
                false
            }
        }
    }

    fn record<B: AutodiffBackend>(
        &mut self,
        rate: f64,
        report: &StepReport,
        trainee: &Trainee<B>,
        optimizer: &GroupedAdamW<B::InnerBackend>,
    ) -> Result<()> {
        self.position.step += 1;
        self.position.tokens += report.tokens;
        let seconds = self.last_step.elapsed().as_secs_f64();
        self.last_step = Instant::now();
        self.journal.append(&Line {
            stage: self.position.phase,
            step: self.position.step,
            loss: report.loss,
            nll: report.nll,
            answer_nll: report.answer_nll,
            lr: rate,
            tokens: self.position.tokens,
            tokens_per_second: report.tokens as f64 / seconds.max(1e-9),
            grad_norm: report.grad_norm,
        })?;
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

/// An optimiser that leaves a trace of every step in its [`Session`].
#[derive(Clone)]
pub struct Recorded<I: Backend> {
    optimizer: GroupedAdamW<I>,
    session: Arc<Mutex<Session>>,
}

impl<I: Backend> Recorded<I> {
    /// Wraps an optimiser.
    pub fn new(optimizer: GroupedAdamW<I>, session: Arc<Mutex<Session>>) -> Self {
        Self { optimizer, session }
    }

    fn step_with<B: AutodiffBackend<InnerBackend = I>>(
        &mut self,
        rate: f64,
        trainee: Trainee<B>,
        update: impl FnOnce(&mut GroupedAdamW<I>, Trainee<B>) -> Trainee<B>,
    ) -> Trainee<B> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(report) = session.relay.take_report() else {
            return trainee; // The step failed, and said so.
        };
        if !session.admit(&report) {
            return trainee;
        }
        let trainee = update(&mut self.optimizer, trainee);
        if let Err(error) = session.record(rate, &report, &trainee, &self.optimizer) {
            session.relay.fail(error);
        }
        trainee
    }
}

impl<B: AutodiffBackend> Optimizer<Trainee<B>, B> for Recorded<B::InnerBackend> {
    /// Nothing: see [`GroupedAdamW`].
    type Record = EmptyRecord;

    fn step(&mut self, rate: f64, trainee: Trainee<B>, gradients: GradientsParams) -> Trainee<B> {
        self.step_with(rate, trainee, |optimizer, trainee| {
            optimizer.step(rate, trainee, gradients)
        })
    }

    fn step_multi(
        &mut self,
        rate: f64,
        trainee: Trainee<B>,
        gradients: MultiGradientsParams,
    ) -> Trainee<B> {
        self.step_with(rate, trainee, |optimizer, trainee| {
            optimizer.step_multi(rate, trainee, gradients)
        })
    }

    fn to_record(&self) -> EmptyRecord {
        EmptyRecord::new()
    }

    fn load_record(self, _record: EmptyRecord) -> Self {
        self
    }
}
