//! How much memory a run holds.

use rwkvx_kernels::KernelBackend;
use rwkvx_model::most_resident_bytes;

/// Bytes that the device holds for this run; on a CPU, the most that this process ever held. `None` where the system does not say.
pub fn in_use<B: KernelBackend>(device: &B::Device) -> Option<u64> {
    B::memory_in_use(device).or_else(most_resident_bytes)
}
