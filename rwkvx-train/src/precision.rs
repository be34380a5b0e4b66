//! The numbers of the forward and backward passes. Parameters, their gradients once they are added up, and the optimiser's state are f32 in any case.

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Number type of activations, and of the weights as they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// bfloat16, over f32 master weights
    Bf16,
}

impl Precision {
    /// The type as Burn calls it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Checks that a device computes in this type.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn check<B: Backend>(self, device: &B::Device) -> Result<()> {
        match B::supports_dtype(device, self.dtype()) {
            true => Ok(()),
            false => Err(Error::field(
                "precision",
                format!(
                    "is bf16, in which {} does not compute; pass `--precision f32`",
                    B::name(device)
                ),
            )),
        }
    }

    /// The module to compute with: a copy of `master` in this type, whose parameters keep their ids and whether they train.
    pub fn working_copy<B: AutodiffBackend, M: AutodiffModule<B>>(self, master: &M) -> M {
        let master = master.clone();
        match self {
            Self::F32 => master,
            Self::Bf16 => master.map(&mut Narrow),
        }
    }

    /// Gradients of a [`working_copy`](Self::working_copy) as gradients of its master, in f32.
    pub fn widen<B: AutodiffBackend, M: AutodiffModule<B>>(
        self,
        module: &M,
        mut gradients: GradientsParams,
    ) -> GradientsParams {
        if self == Self::Bf16 {
            module.visit(&mut Widen {
                gradients: &mut gradients,
            });
        }
        gradients
    }
}

struct Narrow;

impl<B: AutodiffBackend> ModuleMapper<B> for Narrow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let trains = param.is_require_grad();
        // A leaf of its own, so that its gradient is found under the parameter's id.
        param.map(|value| {
            let narrow = value.inner().cast(FloatDType::BF16);
            Tensor::from_inner(narrow).set_require_grad(trains)
        })
    }
}

struct Widen<'a> {
    gradients: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Widen<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            let gradient = gradient.cast(FloatDType::F32);
            self.gradients
                .register::<B::InnerBackend, D>(param.id, gradient);
        }
    }
}
