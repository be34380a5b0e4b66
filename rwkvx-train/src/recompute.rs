//! Gradients that keep only the input of each layer, and compute the layer again on the way back.
//!
//! The forward pass runs without a graph. The head and the loss are differentiated first, then the layers from the last to the first, each in a graph of
//! its own: as `sum(output * d_output)`, whose gradient with respect to the layer's input is the next layer's `d_output`. In memory are the inputs of
//! all layers and the graph of one, at the price of a second forward pass. (In Burn 0.21 a backward pass within another one never ends, so this cannot be
//! an operation of the graph.)

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::RwkvX;

use crate::head_loss::HeadLoss;

/// The gradients of all parameters of `model`, and the loss that `loss` makes of the hidden stream `[batch, time, channels]` of `ids` `[batch, time]`.
pub fn backward<B>(
    model: &RwkvX<B>,
    ids: Tensor<B::InnerBackend, 2, Int>,
    loss: impl FnOnce(Tensor<B, 3>) -> HeadLoss<B>,
) -> (GradientsParams, HeadLoss<B>)
where
    B: AutodiffBackend + KernelBackend,
    B::InnerBackend: KernelBackend,
{
    let layers = model.rwkv.blocks.len();
    let plain = model.valid();
    let mut inputs = Vec::with_capacity(layers); // [batch, time, channels] each
    let mut value_first = None;
    let mut x = plain.embed(ids.clone());
    for layer in 0..layers {
        inputs.push(x.clone());
        x = plain.layer(layer, x, &mut value_first);
    }

    let mut accumulator = GradientsAccumulator::new();
    let top = Tensor::<B, 3>::from_inner(x).require_grad();
    let result = loss(model.rwkv.ln_out.forward(top.clone()));
    let mut gradients = result.loss.clone().backward();
    let mut d_x = top.grad_remove(&mut gradients);
    accumulator.accumulate(model, GradientsParams::from_grads(gradients, model));

    let first = first_trained_layer(model);
    let mut d_value_first: Option<Tensor<B::InnerBackend, 2>> = None;
    for (layer, input) in inputs.into_iter().enumerate().rev() {
        let Some(d_output) = d_x.filter(|_| first.is_some_and(|first| layer >= first)) else {
            return (accumulator.grads(), result);
        };
        let input = Tensor::<B, 3>::from_inner(input).require_grad();
        let own_value_first = value_first
            .clone()
            .filter(|_| layer > 0)
            .map(|value| Tensor::<B, 2>::from_inner(value).require_grad());
        let mut value = own_value_first.clone();
        let output = model.layer(layer, input.clone(), &mut value);
        let mut product = (output * Tensor::from_inner(d_output)).sum();
        if let (0, Some(value), Some(d_value)) = (layer, value, d_value_first.clone()) {
            product = product + (value * Tensor::from_inner(d_value)).sum();
        }
        let mut gradients = product.backward();
        d_x = input.grad_remove(&mut gradients);
        let d_value = own_value_first.and_then(|value| value.grad_remove(&mut gradients));
        d_value_first = match (d_value_first, d_value) {
            (Some(sum), Some(d_value)) => Some(sum + d_value),
            (sum, d_value) => sum.or(d_value),
        };
        accumulator.accumulate(model, GradientsParams::from_grads(gradients, model));
    }

    if let Some(d_x) = d_x.filter(|_| model.rwkv.emb.weight.is_require_grad()) {
        let product = model.embed(Tensor::from_inner(ids)) * Tensor::from_inner(d_x);
        let gradients = product.sum().backward();
        accumulator.accumulate(model, GradientsParams::from_grads(gradients, model));
    }
    (accumulator.grads(), result)
}

/// The first layer below which nothing is trained; `None` if no layer is.
fn first_trained_layer<B: KernelBackend>(model: &RwkvX<B>) -> Option<usize> {
    if model.rwkv.emb.weight.is_require_grad() {
        return Some(0);
    }
    (0..model.rwkv.blocks.len()).find(|&layer| {
        let sparse = model.config().sparse_after(layer);
        is_trained(&model.rwkv.blocks[layer])
            || sparse.is_some_and(|sparse| is_trained(&model.moba[sparse]))
    })
}

fn is_trained<B: Backend, M: Module<B>>(module: &M) -> bool {
    let mut any = AnyTrained(false);
    module.visit(&mut any);
    any.0
}

/// Whether it saw a parameter that wants a gradient.
struct AnyTrained(bool);

impl<B: Backend> ModuleVisitor<B> for AnyTrained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0 |= param.is_require_grad();
    }
}
