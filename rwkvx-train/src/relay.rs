//! What the parts of one phase tell each other.
//!
//! Burn's loop calls the data loader, the model and the optimiser in turn, passes only tensors between them and takes no
//! errors. What else they must say goes through here: the report of a step, and the error that ends the phase.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::train::Interrupter;

use crate::Error;
use crate::step::StepReport;

/// A handle that the parts of a phase share.
#[derive(Clone, Default)]
pub struct Relay {
    shared: Arc<Mutex<Shared>>,
    interrupter: Interrupter,
}

#[derive(Default)]
struct Shared {
    report: Option<StepReport>,
    error: Option<Error>,
}

impl Relay {
    /// Burn's handle that stops the loop after the current step.
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }

    /// Leaves the report of the step whose gradients the optimiser is about to get.
    pub fn put_report(&self, report: StepReport) {
        self.lock().report = Some(report);
    }

    /// Takes that report; `None` if the step failed.
    pub fn take_report(&self) -> Option<StepReport> {
        self.lock().report.take()
    }

    /// Ends the phase with an error. The first one counts, what follows from it does not.
    pub fn fail(&self, error: Error) {
        self.interrupter.stop(Some(&error.to_string()));
        self.lock().error.get_or_insert(error);
    }

    /// Takes the error that ended the phase.
    pub fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic elsewhere leaves these two fields whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Relay")
    }
}
