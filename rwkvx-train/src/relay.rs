//! What the parts of one phase tell each other.
//!
//! Burn's loop calls the data loader, the model and the optimiser in turn, passes only tensors between them and takes no
//! errors. What else they must say goes through here: what each device's step came to, and the error that ends the phase.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::train::Interrupter;

use crate::Error;
use crate::outcome::{PendingReport, StepReport, Sums};

/// A handle that the parts of a phase share.
#[derive(Clone, Default)]
pub struct Relay {
    shared: Arc<Mutex<Shared>>,
    interrupter: Interrupter,
}

#[derive(Default)]
struct Shared {
    sums: Option<Sums>,
    report: PendingReport,
    error: Option<Error>,
}

impl Relay {
    /// Burn's handle that stops the loop after the current step.
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }

    /// Leaves what a device's step came to; gives the report that all devices' steps will add up to.
    pub fn put(&self, sums: Sums) -> PendingReport {
        let mut shared = self.lock();
        *shared.sums.get_or_insert_default() += sums;
        shared.report.clone()
    }

    /// Takes the sums of all devices whose gradients the optimiser has got; `None` if a step failed.
    pub fn take(&self) -> Option<Sums> {
        let mut shared = self.lock();
        let sums = shared.sums.take();
        sums.filter(|_| shared.error.is_none())
    }

    /// Makes the report of the step known.
    pub fn settle(&self, report: StepReport) {
        std::mem::take(&mut self.lock().report).settle(report);
    }

    /// Ends the phase with an error. The first one counts, what follows from it does not.
    pub fn fail(&self, error: Error) {
        self.interrupter.stop(Some(&error.to_string()));
        self.lock().error.get_or_insert(error);
    }

    /// Whether an error ends the phase.
    pub fn has_failed(&self) -> bool {
        self.lock().error.is_some()
    }

    /// Takes the error that ended the phase.
    pub fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic elsewhere leaves these fields whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Relay")
    }
}
