//! Sums over several devices, by NCCL.
//!
//! CubeCL has them for CUDA alone. Burn offers them under its feature `distributed`, with which `Autodiff` no longer takes the CPU backends; the
//! runtime below has them in any case.

use burn::prelude::DeviceOps;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::Runtime;
use cubecl::server::{ReduceOperation, ServerCommunication};

use super::CubeMemory;
use crate::AllReduce;

/// The sum over devices, if the runtime connects them.
pub(crate) const fn all_reduce<B: CubeMemory>() -> Option<AllReduce<B>> {
    match <<B::Runtime as Runtime>::Server as ServerCommunication>::SERVER_COMM_ENABLED {
        true => Some(sum::<B>),
        false => None,
    }
}

/// Sums in place. This thread only says what is to be done: every device has a thread of its own, on which it waits for the others.
fn sum<B: CubeMemory>(parts: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let devices: Vec<_> = parts.iter().map(|part| part.device.to_id()).collect();
    let parts: Vec<_> = parts
        .into_iter()
        .map(|part| {
            let part = into_contiguous(part);
            // A buffer that others see must stay as it is.
            if part.can_mut() { part } else { part.copy() }
        })
        .collect();
    for part in &parts {
        let mut client = B::Runtime::client(&part.device);
        let (source, sum) = (part.handle.clone(), part.handle.clone());
        let number = part.dtype.into();
        client.all_reduce(source, sum, number, devices.clone(), ReduceOperation::Sum);
        client.sync_collective(); // What the device does from now on comes after the sum.
    }
    parts
}
