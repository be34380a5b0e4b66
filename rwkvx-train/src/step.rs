//! One optimiser step's worth of work: micro-batches, accumulation, clipping. This is what Burn's learner calls.

use std::convert::Infallible;

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, tokens};

use crate::Result;
use crate::data::{Batch, Sample};
use crate::gradient;
use crate::head_loss::{HeadLoss, L2_WRAP, Objective, head_loss};
use crate::longce::LongCe;
use crate::relay::Relay;

/// How a step computes its loss and gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// Token weights by LongCE, if the phase uses them.
    pub longce: Option<LongCe>,
    /// Whether L2Wrap adds its gradient.
    pub l2_wrap: bool,
    /// Largest norm of the whole gradient.
    pub clip_norm: Option<f64>,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// What is minimised, in nats.
    pub loss: f64,
    /// Mean loss of all tokens, each weighing 1, in nats.
    pub nll: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on.
    pub tokens: u64,
}

impl ItemLazy for StepReport {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

/// A model in training.
#[derive(Module, Debug)]
pub struct Trainee<B: Backend> {
    /// The model.
    pub model: RwkvX<B>,
    #[module(skip)]
    settings: StepSettings,
    #[module(skip)]
    relay: Relay,
}

impl<B: Backend> Trainee<B> {
    /// Wraps a model for the learner.
    pub fn new(model: RwkvX<B>, settings: StepSettings, relay: Relay) -> Self {
        Self {
            model,
            settings,
            relay,
        }
    }
}

impl<B> Trainee<B>
where
    B: AutodiffBackend + KernelBackend,
    B::InnerBackend: KernelBackend,
{
    /// The gradient of the mean loss over the whole batch, clipped, and the report.
    ///
    /// The batch is worked through in micro-batches whose gradients add up to what one pass over all of it would give.
    ///
    /// # Errors
    ///
    /// If a token id is past the vocabulary or the rows have unequal lengths.
    pub fn gradients(&self, batch: &Batch) -> Result<(GradientsParams, StepReport)> {
        let tokens: usize = batch
            .samples
            .iter()
            .map(|sample| sample.weights.len())
            .sum();
        let total_weight: f64 = batch
            .samples
            .iter()
            .flat_map(|sample| &sample.weights)
            .map(|&weight| f64::from(weight))
            .sum();
        let l2_wrap = match self.settings.l2_wrap {
            true => L2_WRAP / tokens as f64,
            false => 0.0,
        };
        let mut accumulator = GradientsAccumulator::new();
        let mut sums: Option<Tensor<B::InnerBackend, 1>> = None;
        for samples in batch.samples.chunks(batch.micro_batch.max(1)) {
            let HeadLoss { loss, value, nll } = self.loss(samples, total_weight, l2_wrap)?;
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            accumulator.accumulate(&self.model, gradients);
            let sum = Tensor::cat(vec![value, nll.sum()], 0);
            sums = Some(match sums {
                Some(sums) => sums + sum,
                None => sum,
            });
        }
        let mut gradients = accumulator.grads();
        let norm = gradient::global_norm(&self.model, &gradients);
        let numbers = Tensor::cat(sums.into_iter().chain(norm).collect(), 0);
        // The only read from the device in a step.
        let mut numbers = numbers
            .into_data()
            .iter::<f64>()
            .collect::<Vec<_>>()
            .into_iter();
        let mut next = || numbers.next().unwrap_or(0.0);
        let report = StepReport {
            loss: next(),
            nll: next() / tokens as f64,
            grad_norm: next(),
            tokens: tokens as u64,
        };
        if let Some(limit) = self.settings.clip_norm {
            gradient::clip(&self.model, &mut gradients, report.grad_norm, limit);
        }
        Ok((gradients, report))
    }

    fn loss(&self, samples: &[Sample], total_weight: f64, l2_wrap: f64) -> Result<HeadLoss<B>> {
        let device = self.model.device();
        let vocab_size = self.model.config().vocab_size;
        let inputs: Vec<&[u32]> = samples.iter().map(Sample::inputs).collect();
        let targets: Vec<&[u32]> = samples.iter().map(Sample::targets).collect();
        let ids = tokens::ids_tensor::<B::InnerBackend>(&inputs, vocab_size, &device)?;
        let targets = tokens::ids_tensor::<B::InnerBackend>(&targets, vocab_size, &device)?;
        let shares: Vec<f32> = samples
            .iter()
            .flat_map(|sample| &sample.weights)
            .map(|&weight| (f64::from(weight) / total_weight) as f32)
            .collect();
        let shares = Tensor::from_data(TensorData::new(shares, targets.dims()), &device);
        let short = self
            .settings
            .longce
            .and_then(|longce| longce.short_losses(&self.model.valid(), &ids, &targets));
        let hidden = self.model.hidden(Tensor::from_inner(ids)); // [batch, time, channels]
        let objective = Objective {
            targets,
            shares,
            short,
            l2_wrap,
        };
        Ok(head_loss(
            hidden,
            self.model.rwkv.head.weight.val(),
            objective,
        ))
    }
}

impl<B> TrainStep for Trainee<B>
where
    B: AutodiffBackend + KernelBackend,
    B::InnerBackend: KernelBackend,
{
    type Input = Batch;
    type Output = StepReport;

    fn step(&self, batch: Batch) -> TrainOutput<StepReport> {
        match self.gradients(&batch) {
            Ok((grads, report)) => {
                self.relay.put_report(report);
                TrainOutput {
                    grads,
                    item: report,
                }
            }
            Err(error) => {
                self.relay.fail(error);
                TrainOutput {
                    grads: GradientsParams::new(),
                    item: StepReport {
                        loss: f64::NAN,
                        nll: f64::NAN,
                        grad_norm: f64::NAN,
                        tokens: 0,
                    },
                }
            }
        }
    }
}

/// Burn asks for a validation step. These runs are judged by retrieval after training, so there is no input for one.
impl<B: Backend> InferenceStep for Trainee<B> {
    type Input = Infallible;
    type Output = ();

    fn step(&self, input: Infallible) {
        match input {}
    }
}
