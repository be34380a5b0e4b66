//! What the hand-written CPU bodies share: access to tensor memory, vector helpers, and writing from several threads.

pub(crate) mod disjoint;
pub(crate) mod memory;
pub(crate) mod simd;

pub(crate) use disjoint::Disjoint;
pub(crate) use memory::HostMemory;

/// Runs `task(i)` for all `i < tasks`: on all cores if the work is worth it, else here. `work` counts multiply-adds in all.
pub(crate) fn for_each(tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    map(tasks, work, task);
}

/// As [`for_each`], with what the tasks give, in order.
pub(crate) fn map<T: Send>(
    tasks: usize,
    work: usize,
    task: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    use rayon::iter::{IntoParallelIterator, ParallelIterator};
    /// About 20 microseconds on one core, where waking the pool costs a few.
    const WORTH_THREADS: usize = 1 << 18;
    if tasks > 1 && work >= WORTH_THREADS && rayon::current_num_threads() > 1 {
        (0..tasks).into_par_iter().map(task).collect()
    } else {
        (0..tasks).map(task).collect()
    }
}

/// `parts` such that `tasks * parts` occupies all threads, dividing `whole / unit`.
pub(crate) fn parts_to_fill_threads(tasks: usize, whole: usize, unit: usize) -> usize {
    let wanted = rayon::current_num_threads().div_ceil(tasks.max(1));
    let most = whole / unit;
    (1..=most)
        .find(|&parts| most.is_multiple_of(parts) && parts >= wanted)
        .unwrap_or(most.max(1))
}
