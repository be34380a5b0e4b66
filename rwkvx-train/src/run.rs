//! A run from its configuration to its report: one phase after the other, each through Burn's learner.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn::train::metric::LearningRateMetric;
use burn::train::{ExecutionStrategy, Learner, MultiDeviceOptim, SupervisedTraining};
use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_datasets::Tokenizer;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, names, write_beside};

use crate::checkpoint::{CheckpointStore, Position, SavedCheckpoint};
use crate::config::{LongCeChoice, StageConfig, TrainConfig};
use crate::dashboard::{NoFiles, PlainRenderer, ReportMetric};
use crate::data::{Feed, NoValidation, Source};
use crate::journal::{self, Journal};
use crate::optimizer::GroupedAdamW;
use crate::outcome::StepReport;
use crate::phase::{Phase, Stage};
use crate::relay::Relay;
use crate::report::{ModelScores, PhaseReport, RunReport};
use crate::session::{Recorded, Session};
use crate::shards::Shards;
use crate::step::{StepSettings, Trainee};
use crate::weights::{Weights, metadata, trainable};
use crate::workers::Workers;
use crate::{Error, Result, curve, devices, flops, questions, stop};

/// The configuration of a run, in its directory.
pub const CONFIG: &str = "config.json";
const REPORT: &str = "report.json";

/// How to run, as far as it changes no result but by rounding.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Devices that share each step. On a CPU, threads.
    pub devices: usize,
    /// Whether a step whose loss or gradient is no number is left out; it ends the run otherwise.
    pub skip_bad_steps: bool,
    /// What one device could do, in 10^12 operations per second.
    pub peak_tflops: Option<f64>,
    /// Burn's dashboard instead of lines of text.
    pub dashboard: bool,
}

/// Makes the directory of a new run and writes its configuration there.
///
/// # Errors
///
/// If the configuration is impossible, or the directory holds something already.
pub fn create(config: &TrainConfig, directory: &Path) -> Result<()> {
    config.validate()?;
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    let mut entries = fs::read_dir(directory).map_err(Error::io(directory))?;
    if entries.next().is_some() {
        return Err(Error::Option {
            option: "--out",
            reason: format!(
                "{} is not empty; choose another directory, or pass `--resume` to go on with the run there",
                directory.display()
            ),
        });
    }
    let json = serde_json::to_vec_pretty(config).map_err(|error| Error::ConfigFile {
        path: directory.join(CONFIG),
        reason: error.to_string(),
    })?;
    Ok(write_beside(&directory.join(CONFIG), |out| {
        out.write_all(&json)
    })?)
}

/// Runs, or goes on with, the run in `directory`.
///
/// # Errors
///
/// Whatever stops a run: bad data, a bad checkpoint, a full disk, a loss that is no number.
pub fn train<B: KernelBackend>(
    config: &TrainConfig,
    directory: &Path,
    device: &B::Device,
    options: RunOptions,
) -> Result<RunReport> {
    B::on_one_stream(|| run::<B>(config, directory, device, options))
}

fn run<B: KernelBackend>(
    config: &TrainConfig,
    directory: &Path,
    device: &B::Device,
    options: RunOptions,
) -> Result<RunReport> {
    let started = Instant::now();
    config.validate()?;
    config.precision.check::<B>(device)?;
    let run = Run::<B> {
        config,
        directory,
        device,
        devices: devices::first::<B>(device, options.devices)?,
        weights: Weights {
            config,
            directory,
            device,
        },
        options,
        tokenizer: config.open_tokenizer()?,
        checkpoints: CheckpointStore::open(directory, config.checkpoints.keep, metadata(config))?,
    };
    run.check_data()?;
    run.phases()?;
    let lines = journal::read(&directory.join(journal::FILE))?;
    curve::draw(&lines, directory)?;
    let report = RunReport {
        run: directory.to_path_buf(),
        parameters: config.model.parameters(),
        phases: config
            .phases()
            .into_iter()
            .filter_map(|phase| PhaseReport::of(phase, &lines))
            .collect(),
        answers: run.answers()?,
        seconds: started.elapsed().as_secs_f64(),
    };
    let json = serde_json::to_vec_pretty(&report).unwrap_or_default();
    write_beside(&directory.join(REPORT), |out| out.write_all(&json))?;
    Ok(report)
}

struct Run<'a, B: Backend> {
    config: &'a TrainConfig,
    directory: &'a Path,
    /// Where the parameters are.
    device: &'a B::Device,
    /// Where the passes run, the first of which is `device`.
    devices: Vec<B::Device>,
    weights: Weights<'a, B>,
    options: RunOptions,
    tokenizer: Tokenizer,
    checkpoints: CheckpointStore,
}

impl<B: KernelBackend> Run<'_, B> {
    /// Opens the data of every phase before the first step, so that a mistake in the last phase is found now.
    fn check_data(&self) -> Result<()> {
        for phase in self.config.phases() {
            let stage = self.stage(phase)?;
            let (batch, micro_batch, devices) =
                (stage.batch, stage.micro_batch, self.devices.len());
            if !batch.is_multiple_of(micro_batch * devices) {
                return Err(Error::Option {
                    option: "--devices",
                    reason: format!(
                        "is {devices}, but {phase} has batches of {batch} in micro-batches of {micro_batch}; each device needs equally many"
                    ),
                });
            }
            self.source(phase, stage)?.sample(0)?;
        }
        Ok(())
    }

    fn phases(&self) -> Result<()> {
        let phases = self.config.phases();
        let saved = self.checkpoints.open_newest()?;
        let first = match &saved {
            None => 0,
            Some(saved) => phases
                .iter()
                .position(|phase| *phase == saved.position().phase)
                .ok_or_else(|| {
                    let reason = format!(
                        "is of a phase, {}, that config.json does not run",
                        saved.position().phase
                    );
                    Error::checkpoint(self.directory, reason)
                })?,
        };
        let mut before: Option<RwkvX<B>> = None;
        let mut saved = saved;
        for &phase in &phases[first..] {
            if stop::requested() {
                return Err(self.stopped(phase, 0));
            }
            let saved = saved.take();
            let model = match &saved {
                Some(saved) => saved.model(&self.weights.load_options(), self.device)?,
                None => self.weights.start(phase, before)?,
            };
            let model = self.phase(phase, model, saved.as_ref())?;
            self.weights.keep(phase, &model)?;
            before = Some(model);
        }
        Ok(())
    }

    /// Trains one phase and gives the model without autodiff.
    fn phase(
        &self,
        phase: Phase,
        model: RwkvX<B>,
        saved: Option<&SavedCheckpoint>,
    ) -> Result<RwkvX<B>> {
        let stage = self.stage(phase)?;
        let position = saved.map_or(Position::start(phase), SavedCheckpoint::position);
        if position.step >= stage.steps {
            return Ok(model);
        }
        let model = trainable(RwkvX::<Autodiff<B>>::from_inner(model), phase);
        let parameters = names::parameters(&model);
        let mut optimizer = GroupedAdamW::<B>::new(&self.config.optimizer, &parameters);
        let trained = parameters
            .iter()
            .filter(|parameter| phase.trains(parameter));
        let shards = Shards::new(&self.devices, trained);
        if let Some(saved) = saved {
            saved.restore_optimizer(&mut optimizer, &parameters, &shards)?;
        }
        let relay = Relay::default();
        let session = Arc::new(Mutex::new(Session {
            position,
            steps: stage.steps,
            clip_norm: self.config.optimizer.clip_norm,
            skip_bad_steps: self.options.skip_bad_steps,
            skipped_in_a_row: 0,
            flops_per_token: flops::per_token(&self.config.model, phase, stage),
            peak_flops: self
                .options
                .peak_tflops
                .map(|peak| peak * 1e12 * self.devices.len() as f64),
            checkpoint_every: self.config.checkpoints.every_steps,
            journal: Journal::open(self.directory, phase, position.step)?,
            checkpoints: self.checkpoints.clone(),
            parameters,
            relay: relay.clone(),
            last_step: Instant::now(),
            last_report: StepReport::default(),
        }));
        let settings = StepSettings {
            longce: stage.longce.map(LongCeChoice::settings),
            choice_weight: stage.choice_weight,
            l2_wrap: self.config.l2_wrap,
            recompute: stage.recompute,
            precision: self.config.precision,
        };
        let source = self.source(phase, stage)?;
        let marks_answers = matches!(source, Source::Needles(_));
        let feed = Feed {
            source: Arc::new(source),
            batch: stage.batch,
            micro_batch: stage.micro_batch,
            devices: self.devices.len(),
            rank: 0,
            steps: stage.steps,
            done: position.step,
            relay: relay.clone(),
        };
        let learner = Learner::new(
            Trainee::new(model, settings, Workers::new(stage.threads)?, relay.clone()),
            Recorded::new(optimizer, shards, session.clone()),
            stage.schedule().from_step(position.step),
        );
        let mut training =
            SupervisedTraining::new(self.directory, Arc::new(feed), Arc::new(NoValidation))
                .with_metric_logger(NoFiles)
                .with_application_logger(None)
                .with_interrupter(relay.interrupter())
                .with_training_strategy(
                    ExecutionStrategy::multi(self.devices.clone(), MultiDeviceOptim::OptimSharded)
                        .into(),
                )
                .metric_train_numeric(LearningRateMetric::new())
                .num_epochs(1);
        let shown = ReportMetric::shown(marks_answers, self.options.peak_tflops.is_some());
        for metric in shown {
            training = training.metric_train_numeric(metric);
        }
        if !self.options.dashboard {
            let progress =
                PlainRenderer::new(phase, position.step, stage.steps, self.devices.len());
            training = training.renderer(progress);
        }
        let trained = training.launch(learner);
        drop(trained.renderer); // Leaves the dashboard's screen.
        if let Some(error) = relay.take_error() {
            return Err(error);
        }
        let session = session.lock().unwrap_or_else(PoisonError::into_inner);
        match session.position.step == stage.steps {
            true => Ok(trained.model.model),
            false => Err(self.stopped(phase, session.position.step)),
        }
    }

    fn stopped(&self, phase: Phase, step: u64) -> Error {
        Error::Stopped {
            phase: phase.name(),
            step,
            run: self.directory.to_path_buf(),
        }
    }

    /// Asks the final model, and the plain one beside it if there is one.
    fn answers(&self) -> Result<Vec<ModelScores>> {
        let Some(config) = &self.config.questions else {
            return Ok(Vec::new());
        };
        let models: Vec<_> = self.weights.results().collect();
        // Drawn on a terminal only.
        let style =
            ProgressStyle::with_template("asking {msg} {wide_bar} {pos}/{len} texts, {eta} left");
        let progress = ProgressBar::new((models.len() * questions::texts(config)) as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let mut answers = Vec::new();
        for (name, file) in models {
            progress.set_message(name);
            let model = self.weights.load(file)?;
            // Another seed than any phase trains with.
            let seed = self.config.seed.wrapping_add(1_000_003);
            answers.push(ModelScores {
                model: name.to_owned(),
                scores: questions::examine(&model, &self.tokenizer, config, seed, &progress)?,
            });
        }
        progress.finish_and_clear();
        Ok(answers)
    }

    fn stage(&self, phase: Phase) -> Result<&StageConfig> {
        self.config
            .stage_config(phase.stage())
            .ok_or_else(|| Error::field("stages", format!("does not hold what {phase} needs")))
    }

    /// The data of a phase. Stages see different texts; the comparison sees those of the stage it stands beside.
    fn source(&self, phase: Phase, stage: &StageConfig) -> Result<Source> {
        let offset = match phase.stage() {
            Stage::Base => 0,
            Stage::Stage1 => 1,
            Stage::Stage2 => 2,
            Stage::Sft => 3,
        };
        let seed = self.config.seed.wrapping_add(offset);
        let data = stage.data.as_ref().unwrap_or(&self.config.data);
        Source::open(data, &self.tokenizer, stage.context, seed)
    }
}
