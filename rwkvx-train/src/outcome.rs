//! What a step came to: sums over each device's share of the batch, and the one report that they add up to.

use std::ops::AddAssign;
use std::sync::{Arc, OnceLock};

use burn::train::ItemLazy;
use serde::{Deserialize, Serialize};

/// Sums over the tokens that one device trained on in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// This device's share of what is minimised, in nats; the shares of all devices add up to the loss.
    pub loss: f64,
    /// Losses of all targets that are learned, each weighing 1, in nats.
    pub nll: f64,
    /// Targets that are learned.
    pub targets: u64,
    /// Losses of those that weigh more than 1 in the data, which are answers.
    pub answer_nll: f64,
    /// Tokens of answers.
    pub answers: u64,
    /// Tokens read.
    pub tokens: u64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.nll += other.nll;
        self.targets += other.targets;
        self.answer_nll += other.answer_nll;
        self.answers += other.answers;
        self.tokens += other.tokens;
    }
}

impl Sums {
    /// The report of the step, if these are the sums of all devices.
    pub fn report(self, grad_norm: f64, speed: Speed) -> StepReport {
        StepReport {
            loss: self.loss,
            nll: self.nll / self.targets.max(1) as f64,
            answer_nll: (self.answers > 0).then(|| self.answer_nll / self.answers as f64),
            grad_norm,
            tokens: self.tokens,
            speed,
        }
    }
}

/// What one step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// What is minimised, in nats.
    pub loss: f64,
    /// Mean loss of all targets that are learned, each weighing 1, in nats.
    pub nll: f64,
    /// The same of the tokens that weigh more than 1 in the data, which are answers; `None` where there are none.
    pub answer_nll: Option<f64>,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// How fast.
    pub speed: Speed,
}

/// How fast a step was, and the memory it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens per second of wall time.
    pub tokens_per_second: f64,
    /// The model's operations per second, in 10^12: 2 per multiplication and addition, forward and backward, without what `recompute` does twice.
    #[serde(default)]
    pub tflops: f64,
    /// The same as a share of what the devices could do, where `peak_tflops` says that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Memory held after the step, in bytes, see [`memory`](crate::memory).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A report that is known once the gradients of all devices have come together, after the step of each.
#[derive(Clone, Debug, Default)]
pub struct PendingReport(Arc<OnceLock<StepReport>>);

impl PendingReport {
    /// Makes the report known to all who hold this.
    pub fn settle(&self, report: StepReport) {
        // Each step has a pending report of its own, so it is empty.
        let _ = self.0.set(report);
    }
}

impl ItemLazy for PendingReport {
    type ItemSync = StepReport;

    /// Zeros for a step that failed; the run ends with its error.
    fn sync(self) -> StepReport {
        self.0.get().copied().unwrap_or_default()
    }
}
