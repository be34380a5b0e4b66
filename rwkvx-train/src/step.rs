//! One optimiser step's worth of work: micro-batches, accumulation, clipping. This is what Burn's learner calls.

use std::convert::Infallible;

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, tokens};

use crate::Result;
use crate::data::{Batch, Sample};
use crate::gradient;
use crate::head_loss::{HeadLoss, L2_WRAP, Objective, head_loss};
use crate::longce::LongCe;
use crate::recompute;
use crate::relay::Relay;
use crate::workers::Workers;

/// How a step computes its loss and gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// Token weights by LongCE, if the phase uses them.
    pub longce: Option<LongCe>,
    /// Whether L2Wrap adds its gradient.
    pub l2_wrap: bool,
    /// Largest norm of the whole gradient.
    pub clip_norm: Option<f64>,
    /// Whether each layer is computed again on the way back, see [`recompute`].
    pub recompute: bool,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// What is minimised, in nats.
    pub loss: f64,
    /// Mean loss of all tokens, each weighing 1, in nats.
    pub nll: f64,
    /// The same of the tokens that weigh more than 1 in the data, which are answers; `None` where there are none.
    pub answer_nll: Option<f64>,
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
    workers: Workers,
    #[module(skip)]
    relay: Relay,
}

/// Gradients of a micro-batch, and sums `[3]` over its tokens.
type Backward<B> = (
    GradientsParams,
    Tensor<<B as AutodiffBackend>::InnerBackend, 1>,
);

/// Token ids without a graph.
type Ids<B> = Tensor<<B as AutodiffBackend>::InnerBackend, 2, Int>;

impl<B: Backend> Trainee<B> {
    /// Wraps a model for the learner.
    pub fn new(model: RwkvX<B>, settings: StepSettings, workers: Workers, relay: Relay) -> Self {
        Self {
            model,
            settings,
            workers,
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
        let micro_batches: Vec<&[Sample]> =
            batch.samples.chunks(batch.micro_batch.max(1)).collect();
        let mut accumulator = GradientsAccumulator::new();
        let mut sums: Option<Tensor<B::InnerBackend, 1>> = None;
        // Summed in the order of the micro-batches, whichever thread is first: the same bits with any number of threads.
        for at_once in micro_batches.chunks(self.workers.count()) {
            for done in self.backward_at_once(at_once, total_weight, l2_wrap) {
                let (gradients, sum) = done?;
                accumulator.accumulate(&self.model, gradients);
                sums = Some(match sums {
                    Some(sums) => sums + sum,
                    None => sum,
                });
            }
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
        let answers = batch
            .samples
            .iter()
            .flat_map(answers)
            .filter(|is| *is)
            .count();
        let report = StepReport {
            loss: next(),
            nll: next() / tokens as f64,
            answer_nll: Some(next() / answers as f64).filter(|_| answers > 0),
            grad_norm: next(),
            tokens: tokens as u64,
        };
        if let Some(limit) = self.settings.clip_norm {
            gradient::clip(&self.model, &mut gradients, report.grad_norm, limit);
        }
        Ok((gradients, report))
    }

    /// [`backward`](Self::backward) of each micro-batch, each on a worker of its own where there are several.
    fn backward_at_once(
        &self,
        micro_batches: &[&[Sample]],
        total_weight: f64,
        l2_wrap: f64,
    ) -> Vec<Result<Backward<B>>> {
        if let [samples] = micro_batches {
            return vec![self.backward(&self.model, samples, total_weight, l2_wrap)];
        }
        let device = self.model.device();
        let work = micro_batches.iter().map(|samples| {
            // A fork has an autodiff graph of its own, so that the threads do not wait for each other.
            let model = self.model.clone().fork(&device);
            move || self.backward(&model, samples, total_weight, l2_wrap)
        });
        self.workers.run(work)
    }

    /// A micro-batch's share of the gradient, and its sums of the loss, of all tokens' losses and of answers'.
    fn backward(
        &self,
        model: &RwkvX<B>,
        samples: &[Sample],
        total_weight: f64,
        l2_wrap: f64,
    ) -> Result<Backward<B>> {
        let (ids, objective) = self.objective(model, samples, total_weight, l2_wrap)?;
        let loss = |hidden| head_loss(hidden, model.rwkv.head.weight.val(), objective);
        let (gradients, HeadLoss { value, nll, .. }) = if self.settings.recompute {
            recompute::backward(model, ids, loss)
        } else {
            let result = loss(model.hidden(Tensor::from_inner(ids)));
            let gradients = result.loss.clone().backward();
            (GradientsParams::from_grads(gradients, model), result)
        };
        let answers = answer_mask(samples, nll.dims(), &nll.device());
        let sums = Tensor::cat(vec![value, nll.clone().sum(), (nll * answers).sum()], 0);
        Ok((gradients, sums))
    }

    /// Ids `[batch, time]` of the samples, and what they are to be trained on.
    fn objective(
        &self,
        model: &RwkvX<B>,
        samples: &[Sample],
        total_weight: f64,
        l2_wrap: f64,
    ) -> Result<(Ids<B>, Objective<B::InnerBackend>)> {
        let device = model.device();
        let vocab_size = model.config().vocab_size;
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
            .and_then(|longce| longce.short_losses(&model.valid(), &ids, &targets));
        let objective = Objective {
            targets,
            shares,
            short,
            l2_wrap,
        };
        Ok((ids, objective))
    }
}

/// Which targets are tokens of answers.
fn answers(sample: &Sample) -> impl Iterator<Item = bool> {
    sample.weights.iter().map(|&weight| weight > 1.0)
}

/// 1 where a target is of an answer, 0 elsewhere, `[batch, time]`.
fn answer_mask<B: Backend>(
    samples: &[Sample],
    shape: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 2> {
    let mask: Vec<f32> = samples
        .iter()
        .flat_map(answers)
        .map(|is| f32::from(u8::from(is)))
        .collect();
    Tensor::from_data(TensorData::new(mask, shape), device)
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
                        answer_nll: None,
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
