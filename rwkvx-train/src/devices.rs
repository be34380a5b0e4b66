//! Which devices share the steps of a run, and how tensors get from one to another.

use burn::prelude::DeviceOps;
use burn::tensor::Tensor;
use burn::tensor::backend::{Backend, DeviceId};
use rwkvx_kernels::KernelBackend;

use crate::{Error, Result};

/// `first` and the next devices of its kind, `count` in all. On a CPU they are one and the same, and each has a thread.
///
/// # Errors
///
/// If there are not so many, or Burn does not connect them.
pub fn first<B: KernelBackend>(first: &B::Device, count: usize) -> Result<Vec<B::Device>> {
    if count == 1 {
        return Ok(vec![first.clone()]);
    }
    let kind = first.to_id().type_id;
    let there_are = B::device_count(kind);
    let is_cpu = B::memory_in_use(first).is_none();
    let refused = |reason: String| Error::Option {
        option: "--devices",
        reason: format!("is {count}, but {reason}"),
    };
    if count == 0 || (!is_cpu && count > there_are) {
        return Err(refused(format!("{} has {there_are}", B::name(first))));
    }
    if !is_cpu && B::ALL_REDUCE.is_none() {
        let name = B::name(first);
        return Err(refused(format!(
            "Burn connects no devices of {name}; several GPUs need CUDA"
        )));
    }
    let device = |index| B::Device::from_id(DeviceId::new(kind, index as u16));
    Ok((0..count).map(device).collect())
}

/// The tensor on `device`.
///
/// Between CUDA devices CubeCL 0.10 sends and receives on a stream of their own, which waits neither for kernels that still read the memory
/// received into, nor they for it before they write to the memory sent from. So nothing else is under way meanwhile.
pub(crate) fn moved<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    device: &B::Device,
) -> Tensor<B, D> {
    if tensor.device() == *device {
        return tensor;
    }
    // What fails here fails again where values are read.
    let wait = || drop(B::sync(device));
    wait();
    let there = tensor.clone().to_device(device);
    wait();
    there
}
