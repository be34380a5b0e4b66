//! Stopping on request: SIGINT (Ctrl-C) and SIGTERM end a run after the step it is in, with a checkpoint. A second one ends the process at once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on the signals are requests.
///
/// # Errors
///
/// If the system does not let this process handle them.
pub fn on_signals() -> io::Result<()> {
    /// What a process that Ctrl-C ends exits with.
    const ENDED: i32 = 130;
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds no request yet.
        flag::register_conditional_shutdown(signal, ENDED, REQUESTED.clone())?;
        flag::register(signal, REQUESTED.clone())?;
    }
    Ok(())
}

/// Whether a signal came.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
