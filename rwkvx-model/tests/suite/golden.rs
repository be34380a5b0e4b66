//! Logits, loss and the gradient of every parameter against the oracle.

use std::collections::BTreeSet;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, names};

use crate::support::{Golden, assert_close, golden_model, host, on_backends};

const MODELS: [&str; 2] = ["rwkv7_tiny", "rwkvx_tiny"];

on_backends! {
    logits_equal_the_oracles;
    loss_and_every_gradient_equal_the_oracles;
    frozen_parameters_get_no_gradient_and_the_others_keep_theirs;
    bf16_checkpoints_are_the_rounded_f32_ones;
}

fn logits_equal_the_oracles<B: KernelBackend>() {
    for name in MODELS {
        let golden = Golden::read(&format!("{name}.safetensors"));
        let model = golden_model::<B>(&format!("{name}.pth"));
        let logits = host(model.forward(golden.inputs()));
        let distance = assert_close(name, &logits, &golden.f32("logits"));
        println!("{name}: logits {distance:.2e}");
    }
}

/// The mean cross-entropy, and the gradient that the logits get from it and from L2Wrap, which adds `1e-4/(B T) * max` at
/// the arg max of each row. In f64 on the host: what is tested here is the model's part of the gradient.
fn loss_and_gradient(logits: &[f32], targets: &[i64], vocab: usize) -> (f64, Vec<f32>) {
    let rows = targets.len() as f64;
    let mut loss = 0.0;
    let mut gradient = Vec::with_capacity(logits.len());
    for (row, &target) in logits.chunks_exact(vocab).zip(targets) {
        let row: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
        let best = (0..vocab)
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap();
        let sum: f64 = row.iter().map(|logit| (logit - row[best]).exp()).sum();
        loss += (sum.ln() + row[best] - row[target as usize]) / rows;
        gradient.extend(row.iter().enumerate().map(|(token, logit)| {
            let probability = (logit - row[best]).exp() / sum;
            let hit = if token == target as usize { 1.0 } else { 0.0 };
            let wrap = if token == best { 1e-4 * row[best] } else { 0.0 };
            ((probability - hit + wrap) / rows) as f32
        }));
    }
    (loss, gradient)
}

/// The loss of a golden model, and the gradients of its parameters.
fn backward<B: AutodiffBackend + KernelBackend>(
    model: &RwkvX<B>,
    golden: &Golden,
) -> (f64, GradientsParams) {
    let logits = model.forward(golden.inputs());
    let [batch, time, vocab] = logits.dims();
    let (loss, gradient) = loss_and_gradient(&host(logits.clone()), &golden.targets(), vocab);
    let gradient = TensorData::new(gradient, [batch, time, vocab]);
    let gradient = Tensor::from_data(gradient, &logits.device());
    (
        loss,
        GradientsParams::from_grads((logits * gradient).sum().backward(), model),
    )
}

fn loss_and_every_gradient_equal_the_oracles<B: KernelBackend>()
where
    Autodiff<B>: KernelBackend,
{
    for name in MODELS {
        let golden = Golden::read(&format!("{name}.safetensors"));
        let model = golden_model::<Autodiff<B>>(&format!("{name}.pth"));
        let (loss, gradients) = backward(&model, &golden);
        assert_close(
            &format!("{name}: loss"),
            &[loss as f32],
            &golden.f32("loss"),
        );
        let parameters = names::parameters(&model);
        let expected: BTreeSet<String> = golden
            .names()
            .into_iter()
            .filter_map(|name| Some(name.strip_prefix("grad:")?.to_owned()))
            .collect();
        let found: BTreeSet<String> = parameters.iter().map(|param| param.name.clone()).collect();
        assert_eq!(found, expected, "{name}: parameters");

        let mut worst = (0.0, String::new());
        for param in parameters {
            let gradient = gradient::<Autodiff<B>>(&gradients, &param).expect("a gradient");
            let reference = golden.f32(&format!("grad:{}", param.name));
            let distance = assert_close(&format!("{name}: {}", param.name), &gradient, &reference);
            if distance > worst.0 {
                worst = (distance, param.name);
            }
        }
        println!("{name}: worst gradient {:.2e}, of {}", worst.0, worst.1);
    }
}

/// A parameter's gradient in row-major order.
fn gradient<B: AutodiffBackend>(
    gradients: &GradientsParams,
    param: &names::NamedParam,
) -> Option<Vec<f32>> {
    match param.shape.len() {
        1 => gradients.get::<B::InnerBackend, 1>(param.id).map(host),
        2 => gradients.get::<B::InnerBackend, 2>(param.id).map(host),
        rank => panic!("{} has {rank} axes", param.name),
    }
}

fn frozen_parameters_get_no_gradient_and_the_others_keep_theirs<B: KernelBackend>()
where
    Autodiff<B>: KernelBackend,
{
    use burn::module::Module;

    let golden = Golden::read("rwkvx_tiny.safetensors");
    let mut model = golden_model::<Autodiff<B>>("rwkvx_tiny.pth");
    model.rwkv = model.rwkv.no_grad();
    let (_, gradients) = backward(&model, &golden);
    for param in names::parameters(&model) {
        let gradient = gradient::<Autodiff<B>>(&gradients, &param);
        assert_eq!(gradient.is_some(), param.is_sparse(), "{}", param.name);
        if let Some(gradient) = gradient {
            assert_close(
                &param.name,
                &gradient,
                &golden.f32(&format!("grad:{}", param.name)),
            );
        }
    }
}

fn bf16_checkpoints_are_the_rounded_f32_ones<B: Backend>()
where
    Autodiff<B>: AutodiffBackend<InnerBackend = B>,
{
    for name in MODELS {
        let exact: RwkvX<Autodiff<B>> = golden_model(&format!("{name}.pth"));
        let rounded: RwkvX<B> = golden_model(&format!("{name}_bf16.pth"));
        let exact = values(&exact.valid());
        for ((name, rounded), (_, exact)) in values(&rounded).into_iter().zip(exact) {
            let expected: Vec<f32> = exact
                .iter()
                .map(|&x| burn::tensor::bf16::from_f32(x).to_f32())
                .collect();
            assert_eq!(rounded, expected, "{name}");
        }
    }
}

/// Name and values of every parameter.
pub(crate) fn values<B: Backend>(model: &RwkvX<B>) -> Vec<(String, Vec<f32>)> {
    use burn::module::{Module, ModuleVisitor, Param};

    struct Values(Vec<Vec<f32>>);
    impl<B: Backend> ModuleVisitor<B> for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(host(param.val()));
        }
    }
    let mut found = Values(Vec::new());
    model.visit(&mut found);
    let names = names::parameters(model).into_iter().map(|param| param.name);
    names.zip(found.0).collect()
}
