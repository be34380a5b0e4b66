//! Threads that each work on a micro-batch of their own.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// Pools of one thread. What runs in one does all its work there: splitting every operation over all cores instead costs
/// more in waiting than it gains while tensors are small.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    pools: Arc<Vec<ThreadPool>>,
}

impl Workers {
    /// So many workers; with one, work is done by the thread that asks for it, on all cores.
    ///
    /// # Errors
    ///
    /// If the system gives no more threads.
    pub fn new(count: usize) -> Result<Self> {
        let pools = match count {
            0 | 1 => Vec::new(),
            _ => (0..count)
                .map(|_| ThreadPoolBuilder::new().num_threads(1).build())
                .collect::<std::result::Result<_, _>>()
                .map_err(|error| Error::field("threads", format!("is {count}: {error}")))?,
        };
        Ok(Self {
            pools: Arc::new(pools),
        })
    }

    /// Number of workers, at least 1.
    pub fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// Runs at most [`count`](Self::count) pieces of work at once and gives their results in order.
    pub fn run<R: Send>(&self, work: impl Iterator<Item = impl FnOnce() -> R + Send>) -> Vec<R> {
        std::thread::scope(|scope| {
            let waiting: Vec<_> = self
                .pools
                .iter()
                .zip(work)
                .map(|(pool, work)| scope.spawn(|| pool.install(work)))
                .collect();
            let results = waiting.into_iter().map(|thread| {
                let joined = thread.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_work() {
        let workers = Workers::new(3).unwrap();
        let slowest_first = (0..3_u64).map(|number| {
            move || {
                std::thread::sleep(std::time::Duration::from_millis(20 * (2 - number)));
                number
            }
        });
        assert_eq!(workers.run(slowest_first), [0, 1, 2]);
        assert_eq!(Workers::new(1).unwrap().count(), 1);
    }
}
