//! How much memory a run holds.

use rwkvx_kernels::KernelBackend;

/// Bytes that the device holds for this run; on a CPU, the most that this process ever held. `None` where the system does not say.
pub fn in_use<B: KernelBackend>(device: &B::Device) -> Option<u64> {
    B::memory_in_use(device).or_else(of_process)
}

/// The most that this process ever held in memory, in bytes.
pub fn of_process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
