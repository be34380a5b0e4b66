//! The whole gradient as one vector: its norm and its clipping. Burn 0.21 clips each tensor on its own.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

/// Euclidean norm of all gradients of `module` together, on whatever devices they are.
pub fn global_norm<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    gradients: &GradientsParams,
) -> f64 {
    let mut squares = Squares::<B> {
        gradients,
        sums: Vec::new(),
    };
    module.visit(&mut squares);
    let sums = squares.sums.into_iter().map(Tensor::into_data);
    sums.map(|sum| sum.iter::<f64>().sum::<f64>())
        .sum::<f64>()
        .sqrt()
}

/// Scales all gradients so that their norm, which is `norm`, becomes at most `limit`. As PyTorch's `clip_grad_norm_`.
pub fn clip<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    gradients: &mut GradientsParams,
    norm: f64,
    limit: f64,
) {
    let factor = limit / (norm + 1e-6);
    if factor < 1.0 {
        module.visit(&mut Scale { gradients, factor });
    }
}

struct Squares<'a, B: AutodiffBackend> {
    gradients: &'a GradientsParams,
    /// One per device, `[1]`.
    sums: Vec<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
            let square = gradient.square().sum();
            let device = square.device();
            match self.sums.iter_mut().find(|sum| sum.device() == device) {
                Some(sum) => *sum = sum.clone() + square,
                None => self.sums.push(square),
            }
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            self.gradients
                .register::<B::InnerBackend, D>(param.id, gradient * self.factor);
        }
    }
}
