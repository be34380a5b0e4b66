//! Which devices share the steps of a run.

use burn::prelude::DeviceOps;
use burn::tensor::backend::DeviceId;
use rwkvx_kernels::KernelBackend;

use crate::{Error, Result};

/// `first` and the next devices of its kind, `count` in all. On a CPU they are one and the same, and each has a thread.
///
/// # Errors
///
/// If there are not so many.
pub fn first<B: KernelBackend>(first: &B::Device, count: usize) -> Result<Vec<B::Device>> {
    if count == 1 {
        return Ok(vec![first.clone()]);
    }
    let kind = first.to_id().type_id;
    let there_are = B::device_count(kind);
    let is_cpu = B::memory_in_use(first).is_none();
    if count == 0 || (!is_cpu && count > there_are) {
        return Err(Error::Option {
            option: "--devices",
            reason: format!("is {count}, but {} has {there_are}", B::name(first)),
        });
    }
    let device = |index| B::Device::from_id(DeviceId::new(kind, index as u16));
    Ok((0..count).map(device).collect())
}
