//! The threads that CPU backends compute on, kept ready for the many small operations of one token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rayon::{ThreadPoolBuilder, Yield};

/// Makes the calling thread one of those that CPU backends compute on, if they have not begun to. For programs that compute on one thread:
/// else it hands every operation to the others and sleeps, which takes longer than the small operations of one token.
pub fn compute_on_this_thread() {
    // An error means that there are threads already; those do the work then.
    let _ = ThreadPoolBuilder::new().use_current_thread().build_global();
}

/// While it lives, the other threads look for work without pause: waking one from its sleep takes as long as what it is woken for.
pub(crate) struct Awake(Arc<AtomicBool>);

impl Awake {
    /// `None` on a thread that does not [compute](compute_on_this_thread) itself.
    pub(crate) fn new() -> Option<Self> {
        let here = rayon::current_thread_index()?;
        let over = Arc::new(AtomicBool::new(false));
        let awake = Self(over.clone());
        rayon::spawn_broadcast(move |thread| {
            while thread.index() != here && !over.load(Ordering::Relaxed) {
                if rayon::yield_now() != Some(Yield::Executed) {
                    thread::yield_now();
                }
            }
        });
        Some(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
