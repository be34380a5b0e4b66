//! One device's work of an optimiser step: micro-batches and their sum. This is what Burn's learner calls.

use std::convert::Infallible;

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, tokens};

use crate::Result;
use crate::data::{Batch, Sample};
use crate::head_loss::{HeadLoss, L2_WRAP, Objective, head_loss};
use crate::longce::LongCe;
use crate::outcome::{PendingReport, Sums};
use crate::precision::Precision;
use crate::recompute;
use crate::relay::Relay;
use crate::workers::Workers;

/// How a step computes its loss and gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// Token weights by LongCE, if the phase uses them.
    pub longce: Option<LongCe>,
    /// How much attention teaches the choice of chunks, see [`teach_choice`](rwkvx_kernels::teach_choice); 0 for not at all.
    pub choice_weight: f64,
    /// Whether L2Wrap adds its gradient.
    pub l2_wrap: bool,
    /// Whether each layer is computed again on the way back, see [`recompute`].
    pub recompute: bool,
    /// Number type of both passes.
    pub precision: Precision,
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
    /// The gradient of the batch's share of the loss, and the sums over its tokens.
    ///
    /// The batch is worked through in micro-batches whose gradients add up to what one pass over all of it would give.
    ///
    /// # Errors
    ///
    /// If a token id is past the vocabulary or the rows have unequal lengths.
    pub fn gradients(&self, batch: &Batch) -> Result<(GradientsParams, Sums)> {
        let choice_weight = self.settings.choice_weight / batch.whole.sequences.max(1) as f64;
        let model = self
            .settings
            .precision
            .working_copy(&self.model)
            .teaching_choice(choice_weight);
        let micro_batches: Vec<&[Sample]> =
            batch.samples.chunks(batch.micro_batch.max(1)).collect();
        let mut accumulator = GradientsAccumulator::new();
        let mut sums: Option<Tensor<B::InnerBackend, 1>> = None;
        // Summed in the order of the micro-batches, whichever thread is first: the same bits with any number of threads.
        for at_once in micro_batches.chunks(self.workers.count()) {
            for done in self.backward_at_once(&model, at_once, batch) {
                let (gradients, sum) = done?;
                accumulator.accumulate(&model, gradients);
                sums = Some(match sums {
                    Some(sums) => sums + sum,
                    None => sum,
                });
            }
        }
        let sums = sums.map_or_else(Vec::new, |sums| {
            sums.into_data().iter::<f64>().collect::<Vec<_>>()
        });
        let sum = |index: usize| sums.get(index).copied().unwrap_or_default();
        let weights = || batch.samples.iter().flat_map(|sample| &sample.weights);
        let above = |least: f32| weights().filter(|&&weight| weight > least).count() as u64;
        let sums = Sums {
            loss: sum(0),
            nll: sum(1),
            targets: above(0.0),
            answer_nll: sum(2),
            answers: above(1.0),
            tokens: weights().count() as u64,
        };
        Ok((accumulator.grads(), sums))
    }

    /// [`backward`](Self::backward) of each micro-batch, each on a worker of its own where there are several.
    fn backward_at_once(
        &self,
        model: &RwkvX<B>,
        micro_batches: &[&[Sample]],
        batch: &Batch,
    ) -> Vec<Result<Backward<B>>> {
        if let [samples] = micro_batches {
            return vec![self.backward(model, samples, batch)];
        }
        let device = model.device();
        let work = micro_batches.iter().map(|samples| {
            // A fork has an autodiff graph of its own, so that the threads do not wait for each other.
            let model = model.clone().fork(&device);
            move || self.backward(&model, samples, batch)
        });
        self.workers.run(work)
    }

    /// A micro-batch's share of the gradient, and its sums of the loss, of all tokens' losses and of answers'.
    fn backward(&self, model: &RwkvX<B>, samples: &[Sample], batch: &Batch) -> Result<Backward<B>> {
        let longest = samples.iter().map(|sample| sample.weights.len()).max();
        let padded = |sample: &Sample| sample.clone().padded(longest.unwrap_or(0));
        let samples: Vec<Sample> = samples.iter().map(padded).collect();
        let (ids, objective) = self.objective(model, &samples, batch)?;
        let loss = |hidden| head_loss(hidden, model.rwkv.head.weight.val(), objective);
        let (gradients, HeadLoss { value, nll, .. }) = if self.settings.recompute {
            recompute::backward(model, ids, loss)
        } else {
            let result = loss(model.hidden(Tensor::from_inner(ids)));
            let gradients = result.loss.clone().backward();
            (GradientsParams::from_grads(gradients, model), result)
        };
        let gradients = self.settings.precision.widen(model, gradients);
        let [learned, answers] =
            [0.0, 1.0].map(|least| weighing_more(least, &samples, nll.dims(), &nll.device()));
        let sums = vec![value, (nll.clone() * learned).sum(), (nll * answers).sum()];
        let sums = Tensor::cat(sums, 0);
        Ok((gradients, sums))
    }

    /// Ids `[batch, time]` of the samples, and what they are to be trained on.
    fn objective(
        &self,
        model: &RwkvX<B>,
        samples: &[Sample],
        batch: &Batch,
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
            .map(|&weight| (f64::from(weight) / batch.whole.weight.max(f64::MIN_POSITIVE)) as f32)
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
            l2_wrap: match self.settings.l2_wrap {
                true => L2_WRAP / batch.whole.targets.max(1) as f64,
                false => 0.0,
            },
        };
        Ok((ids, objective))
    }
}

/// 1 where a target weighs more than `least`, 0 elsewhere, `[batch, time]`.
fn weighing_more<B: Backend>(
    least: f32,
    samples: &[Sample],
    shape: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 2> {
    let mask: Vec<f32> = samples
        .iter()
        .flat_map(|sample| &sample.weights)
        .map(|&weight| f32::from(u8::from(weight > least)))
        .collect();
    Tensor::from_data(TensorData::new(mask, shape), device)
}

impl<B> TrainStep for Trainee<B>
where
    B: AutodiffBackend + KernelBackend,
    B::InnerBackend: KernelBackend,
{
    type Input = Batch;
    type Output = PendingReport;

    fn step(&self, batch: Batch) -> TrainOutput<PendingReport> {
        // Burn calls this on threads of its own.
        let gradients = B::on_one_stream(|| self.gradients(&batch));
        let (grads, item) = match gradients {
            Ok((gradients, sums)) => (gradients, self.relay.put(sums)),
            Err(error) => {
                self.relay.fail(error);
                (GradientsParams::new(), PendingReport::default())
            }
        };
        TrainOutput { grads, item }
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
