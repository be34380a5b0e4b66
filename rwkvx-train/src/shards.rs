//! Which of the devices that share the steps of a run updates which parameter, and holds its moments.
//!
//! Every device has all parameters and makes the gradients of its share of a batch. The sum of a parameter's gradients stays with the
//! parameter's owner, which alone has its moments and updates it; the new values go back to the first device, from which Burn's loop hands
//! out the model of the next step. So the optimiser's state is divided by the number of devices.
//!
//! Burn has two strategies of its own for this, neither of which is used. Its sharded optimiser ([`MultiDeviceOptim::OptimSharded`], whose loop is) leaves
//! the new values with their owners, and all devices fetch them from each other at once; on CUDA two that each send before they receive never end.
//! Its distributed strategy has a whole optimiser on every device.
//!
//! [`MultiDeviceOptim::OptimSharded`]: burn::train::MultiDeviceOptim::OptimSharded

use std::cmp::Reverse;
use std::collections::HashMap;

use burn::module::{AutodiffModule, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorPrimitive};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::names::NamedParam;

use crate::devices::moved;

/// The owners of the parameters.
#[derive(Clone, Debug)]
pub struct Shards<B: Backend> {
    devices: Vec<B::Device>,
    owners: HashMap<ParamId, usize>,
}

impl<B: Backend> Shards<B> {
    /// Gives parameters to devices, of which there is at least one: the largest first, each to the device that has the fewest values by then.
    pub fn new<'a>(
        devices: &[B::Device],
        parameters: impl IntoIterator<Item = &'a NamedParam>,
    ) -> Self {
        let mut sizes: Vec<(usize, ParamId)> = parameters
            .into_iter()
            .map(|parameter| (parameter.shape.iter().product(), parameter.id))
            .collect();
        sizes.sort_by_key(|&(size, _)| Reverse(size));
        let mut held = vec![0; devices.len()];
        let mut owners = HashMap::new();
        for (size, id) in sizes {
            if let Some((owner, held)) = held.iter_mut().enumerate().min_by_key(|(_, held)| **held)
            {
                *held += size;
                owners.insert(id, owner);
            }
        }
        Self {
            devices: devices.to_vec(),
            owners,
        }
    }

    /// Place in the list of devices of a parameter's owner.
    pub fn owner(&self, id: ParamId) -> usize {
        self.owners.get(&id).copied().unwrap_or_default()
    }

    /// The owner of a parameter.
    pub fn device(&self, id: ParamId) -> &B::Device {
        &self.devices[self.owner(id)]
    }
}

impl<B: KernelBackend> Shards<B> {
    /// Adds up the gradients that the devices have of `module`, each sum on its owner. The order in which the devices were done changes nothing.
    pub fn sum<A, M>(&self, module: &M, gradients: MultiGradientsParams) -> GradientsParams
    where
        A: AutodiffBackend<InnerBackend = B>,
        M: AutodiffModule<A>,
    {
        let mut parts = gradients.grads;
        parts.sort_by_key(|&(_, device)| device);
        let mut sum = Sum {
            shards: self,
            parts: parts.into_iter().map(|(part, _)| part).collect(),
            sums: GradientsParams::new(),
        };
        module.visit(&mut sum);
        sum.sums
    }
}

struct Sum<'a, B: Backend> {
    shards: &'a Shards<B>,
    parts: Vec<GradientsParams>,
    sums: GradientsParams,
}

impl<A> ModuleVisitor<A> for Sum<'_, A::InnerBackend>
where
    A: AutodiffBackend,
    A::InnerBackend: KernelBackend,
{
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        let parts = self.parts.iter_mut();
        let parts: Vec<Tensor<A::InnerBackend, D>> =
            parts.filter_map(|part| part.remove(param.id)).collect();
        let owner = self.shards.device(param.id);
        if let Some(sum) = sum(parts, owner) {
            self.sums.register(param.id, moved(sum, owner));
        }
    }
}

/// The sum of tensors that are each on a device of its own, on `owner` if that is one of them.
fn sum<B: KernelBackend, const D: usize>(
    parts: Vec<Tensor<B, D>>,
    owner: &B::Device,
) -> Option<Tensor<B, D>> {
    match B::ALL_REDUCE {
        Some(all_reduce) if parts.len() > 1 => {
            let parts = parts
                .into_iter()
                .map(|part| part.into_primitive().tensor())
                .collect();
            let sums = all_reduce(parts).into_iter();
            let sums: Vec<Tensor<B, D>> = sums
                .map(|sum| Tensor::from_primitive(TensorPrimitive::Float(sum)))
                .collect();
            let on_owner = sums.iter().position(|sum| sum.device() == *owner);
            sums.into_iter().nth(on_owner.unwrap_or_default())
        }
        _ => parts.into_iter().reduce(|sum, part| sum + part),
    }
}
