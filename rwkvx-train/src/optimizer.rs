//! AdamW with RWKV's parameter groups, around Burn's AdamW.
//!
//! | parameters | rate | weight decay |
//! | --- | --- | --- |
//! | `att.w0` | 2x | no |
//! | matrices named `*.weight` | 1x | yes, decoupled |
//! | all others: vectors, low-rank pairs, `r_k` | 1x | no |
//!
//! Source: `configure_optimizers` of RWKV-LM's `RWKV-v7/train_temp/src/model.py`. A parameter without gradient is left as
//! it is and has no state, so frozen parameters cost nothing.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{AutodiffModule, EmptyRecord, ModuleMapper, Param, ParamId};
use burn::optim::adaptor::GradAdaptor;
use burn::optim::{
    AdamW, AdamWConfig, AdamWState, GradientsParams, MultiGradientsParams, Optimizer,
    SimpleOptimizer,
};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use rwkvx_model::names::{NamedParam, Role};
use serde::{Deserialize, Serialize};

use crate::devices::moved;
use crate::{Error, Result};

/// How much faster `att.w0` learns than the rest.
const FAST: f64 = 2.0;

/// Settings of AdamW. Every number is spelled out: Burn's defaults differ from RWKV's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decay of the mean of the gradients.
    pub beta_1: f64,
    /// Decay of the mean of their squares.
    pub beta_2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Part of each decayed parameter taken away per step, times the learning rate.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; `null` for no limit.
    pub clip_norm: Option<f64>,
}

impl OptimizerConfig {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// If a value is out of its range; the error names the field.
    pub fn validate(&self) -> Result<()> {
        let check = |field: &str, value: f64, good: bool, range: &str| match good {
            true => Ok(()),
            false => Err(Error::field(
                format!("optimizer.{field}"),
                format!("is {value}, must be {range}"),
            )),
        };
        let unit = 0.0..1.0;
        check(
            "beta_1",
            self.beta_1,
            unit.contains(&self.beta_1),
            "in [0, 1)",
        )?;
        check(
            "beta_2",
            self.beta_2,
            unit.contains(&self.beta_2),
            "in [0, 1)",
        )?;
        let epsilon = self.epsilon as f32;
        check(
            "epsilon",
            self.epsilon,
            epsilon > 0.0 && epsilon.is_finite(),
            "positive in f32",
        )?;
        let decay = self.weight_decay;
        check(
            "weight_decay",
            decay,
            decay >= 0.0 && decay.is_finite(),
            "0 or positive",
        )?;
        match self.clip_norm {
            Some(norm) => check(
                "clip_norm",
                norm,
                norm > 0.0 && norm.is_finite(),
                "positive or null",
            ),
            None => Ok(()),
        }
    }
}

/// Moments of one parameter, flattened.
pub type Moments<B> = AdamWState<B, 1>;

/// AdamW over the groups. `B` is the backend without autodiff.
#[derive(Clone)]
pub struct GroupedAdamW<B: Backend> {
    decayed: AdamW,
    plain: AdamW,
    roles: Arc<HashMap<ParamId, Role>>,
    moments: HashMap<ParamId, Moments<B>>,
}

impl<B: Backend> GroupedAdamW<B> {
    /// An optimizer without state for the given parameters.
    pub fn new(config: &OptimizerConfig, parameters: &[NamedParam]) -> Self {
        let adamw = AdamWConfig::new()
            .with_beta_1(config.beta_1 as f32)
            .with_beta_2(config.beta_2 as f32)
            .with_epsilon(config.epsilon as f32);
        let roles = parameters
            .iter()
            .map(|parameter| (parameter.id, parameter.role))
            .collect();
        Self {
            decayed: adamw
                .clone()
                .with_weight_decay(config.weight_decay as f32)
                .build(),
            plain: adamw.with_weight_decay(0.0).build(),
            roles: Arc::new(roles),
            moments: HashMap::new(),
        }
    }

    /// State of a parameter, if it was ever updated.
    pub fn moments(&self, id: ParamId) -> Option<&Moments<B>> {
        self.moments.get(&id)
    }

    /// Sets the state of a parameter, as read from a checkpoint.
    pub fn set_moments(&mut self, id: ParamId, moments: Moments<B>) {
        self.moments.insert(id, moments);
    }

    /// Values held as state: two per value of every parameter that was ever updated.
    pub fn state_values(&self) -> usize {
        self.moments
            .values()
            .map(|moments| {
                let momentum = &moments.momentum;
                momentum.moment_1.shape().num_elements() + momentum.moment_2.shape().num_elements()
            })
            .sum()
    }

    fn step_any<A, M>(&mut self, rate: f64, module: M, gradients: GradAdaptor) -> M
    where
        A: AutodiffBackend<InnerBackend = B>,
        M: AutodiffModule<A>,
    {
        module.map(&mut Update::<A> {
            optimizer: self,
            rate,
            gradients,
        })
    }

    /// One parameter's update, on the device of its gradient; the new value is where the old one was.
    fn update<const D: usize>(
        &mut self,
        id: ParamId,
        rate: f64,
        value: Tensor<B, D>,
        gradient: Tensor<B, D>,
    ) -> Tensor<B, D> {
        let (shape, home, owner) = (value.shape(), value.device(), gradient.device());
        let size = shape.num_elements();
        let (adamw, rate) = match self.roles.get(&id) {
            Some(Role::DecayBias) => (&self.plain, rate * FAST),
            Some(Role::Matrix) => (&self.decayed, rate),
            Some(Role::LowRank | Role::Vector) | None => (&self.plain, rate),
        };
        let (value, moments) = adamw.step(
            rate,
            moved(value, &owner).reshape([size]),
            gradient.reshape([size]),
            self.moments.remove(&id),
        );
        if let Some(moments) = moments {
            self.moments.insert(id, moments);
        }
        moved(value, &home).reshape(shape)
    }
}

impl<A, M> Optimizer<M, A> for GroupedAdamW<A::InnerBackend>
where
    A: AutodiffBackend,
    M: AutodiffModule<A>,
{
    /// Nothing: [`crate::checkpoint`] keeps the state by parameter name, so that it outlives the process's parameter ids.
    type Record = EmptyRecord;

    fn step(&mut self, rate: f64, module: M, gradients: GradientsParams) -> M {
        self.step_any(rate, module, gradients.into())
    }

    fn step_multi(&mut self, rate: f64, module: M, gradients: MultiGradientsParams) -> M {
        self.step_any(rate, module, gradients.into())
    }

    fn to_record(&self) -> EmptyRecord {
        EmptyRecord::new()
    }

    fn load_record(self, _record: EmptyRecord) -> Self {
        self
    }
}

struct Update<'a, A: AutodiffBackend> {
    optimizer: &'a mut GroupedAdamW<A::InnerBackend>,
    rate: f64,
    gradients: GradAdaptor,
}

impl<A: AutodiffBackend> ModuleMapper<A> for Update<'_, A> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        let (id, value, mapper) = param.consume();
        let value = match self.gradients.remove::<A::InnerBackend, D>(id) {
            None => value,
            Some((gradient, _device)) => {
                let updated = self
                    .optimizer
                    .update(id, self.rate, value.inner(), gradient);
                Tensor::from_inner(updated).require_grad()
            }
        };
        Param::from_mapped_value(id, value, mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_name_their_field() {
        let good = OptimizerConfig {
            beta_1: 0.9,
            beta_2: 0.99,
            epsilon: 1e-18,
            weight_decay: 0.1,
            clip_norm: Some(1.0),
        };
        assert!(good.validate().is_ok());
        let bad = [
            (
                OptimizerConfig {
                    beta_1: 1.0,
                    ..good
                },
                "optimizer.beta_1",
            ),
            (
                OptimizerConfig {
                    beta_2: -0.1,
                    ..good
                },
                "optimizer.beta_2",
            ),
            (
                OptimizerConfig {
                    epsilon: 1e-60,
                    ..good
                },
                "optimizer.epsilon",
            ),
            (
                OptimizerConfig {
                    weight_decay: f64::NAN,
                    ..good
                },
                "optimizer.weight_decay",
            ),
            (
                OptimizerConfig {
                    clip_norm: Some(0.0),
                    ..good
                },
                "optimizer.clip_norm",
            ),
        ];
        for (config, field) in bad {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        }
    }
}
