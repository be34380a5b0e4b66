//! What a run shows while it trains: Burn's dashboard on a terminal, lines of text elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::train::logger::MetricLogger;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricEntry, MetricId, MetricMetadata,
    MetricName, Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use indicatif::HumanDuration;

use crate::outcome::StepReport;
use crate::phase::Phase;

/// Time between two lines of text.
const INTERVAL: Duration = Duration::from_secs(10);

/// A number of the [`StepReport`] as a metric of Burn's.
#[derive(Clone)]
pub struct ReportMetric {
    name: MetricName,
    read: fn(&StepReport) -> f64,
    state: NumericMetricState,
}

impl ReportMetric {
    /// What a run shows of its steps: the loss of answers where the data marks them, the share of the devices' operations where that is known.
    pub fn shown(answers: bool, mfu: bool) -> Vec<Self> {
        let mut shown = vec![
            Self::new("Loss", |report| report.loss),
            Self::new("NLL", |report| report.nll),
        ];
        if answers {
            let nll = |report: &StepReport| report.answer_nll.unwrap_or(report.nll);
            shown.push(Self::new("Answer NLL", nll));
        }
        shown.extend([
            Self::new("Gradient norm", |report| report.grad_norm),
            Self::new("Tokens/s", |report| report.speed.tokens_per_second),
            Self::new("TFLOP/s", |report| report.speed.tflops),
            Self::new("Memory MiB", |report| {
                report.speed.memory_bytes.unwrap_or(0) as f64 / f64::from(1 << 20)
            }),
        ]);
        if mfu {
            let share = |report: &StepReport| report.speed.mfu.unwrap_or(0.0);
            shown.push(Self::new("MFU", share));
        }
        shown
    }

    /// The metric `name`, read from the report by `read`.
    fn new(name: &str, read: fn(&StepReport) -> f64) -> Self {
        Self {
            name: Arc::new(name.to_owned()),
            read,
            state: NumericMetricState::new(),
        }
    }
}

impl Adaptor<StepReport> for StepReport {
    fn adapt(&self) -> StepReport {
        *self
    }
}

impl Metric for ReportMetric {
    type Input = StepReport;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: false,
        }
        .into()
    }

    fn update(&mut self, report: &StepReport, _metadata: &MetricMetadata) -> SerializedEntry {
        let format = FormatOptions::new(self.name()).precision(3);
        self.state.update((self.read)(report), 1, format)
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for ReportMetric {
    fn value(&self) -> NumericEntry {
        self.state.current_value()
    }

    fn running_value(&self) -> NumericEntry {
        self.state.running_value()
    }
}

/// Keeps Burn from writing its own metric files: `metrics.jsonl` is the record of a run.
pub struct NoFiles;

impl MetricLogger for NoFiles {
    fn log(&mut self, _update: MetricsUpdate, _epoch: usize, _split: &Split) {}

    fn read_numeric(
        &mut self,
        name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Err(format!("{name} is in {}", crate::journal::FILE))
    }

    fn log_metric_definition(&mut self, _definition: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}

/// A line of text on standard error now and then.
pub struct PlainRenderer {
    phase: Phase,
    done: u64,
    steps: u64,
    /// Devices that share each step; each reports it.
    devices: u64,
    reported: u64,
    started: Instant,
    started_at: u64,
    last_line: Option<Instant>,
    names: HashMap<MetricId, String>,
    values: Vec<(String, f64)>,
}

impl PlainRenderer {
    /// For a phase of `steps` updates of which `done` are made, on so many devices.
    pub fn new(phase: Phase, done: u64, steps: u64, devices: usize) -> Self {
        Self {
            phase,
            done,
            steps,
            devices: devices as u64,
            reported: 0,
            started: Instant::now(),
            started_at: done,
            last_line: None,
            names: HashMap::new(),
            values: Vec::new(),
        }
    }

    fn keep(&mut self, entry: &MetricEntry, value: f64) {
        let Some(name) = self.names.get(&entry.metric_id) else {
            return;
        };
        match self.values.iter_mut().find(|(known, _)| known == name) {
            Some((_, kept)) => *kept = value,
            None => self.values.push((name.clone(), value)),
        }
    }

    fn line(&self) -> String {
        let per_step =
            self.started.elapsed().as_secs_f64() / (self.done - self.started_at).max(1) as f64;
        let left = per_step * self.steps.saturating_sub(self.done) as f64;
        let values: String = self
            .values
            .iter()
            .map(|(name, value)| match value.abs() {
                small if small < 0.01 => format!("  {} {value:.2e}", name.to_lowercase()),
                _ => format!("  {} {value:.4}", name.to_lowercase()),
            })
            .collect();
        format!(
            "{:<12} step {}/{}{values}  {} left",
            self.phase,
            self.done,
            self.steps,
            HumanDuration(Duration::from_secs_f64(left))
        )
    }
}

impl MetricsRendererTraining for PlainRenderer {
    fn update_train(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, value) = state {
            self.keep(&entry, value.current());
        }
    }

    fn update_valid(&mut self, _state: MetricState) {}

    fn render_train(&mut self, _item: TrainingProgress, _indicators: Vec<ProgressType>) {
        self.reported += 1;
        if !self.reported.is_multiple_of(self.devices) {
            return;
        }
        self.done += 1;
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= INTERVAL);
        if is_due || self.done == self.steps {
            self.last_line = Some(Instant::now());
            eprintln!("{}", self.line());
        }
    }

    fn render_valid(&mut self, _item: TrainingProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRendererEvaluation for PlainRenderer {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRenderer for PlainRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}
