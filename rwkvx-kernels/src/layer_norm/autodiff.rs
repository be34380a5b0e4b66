//! Hooks the norm and its backward pass into Burn's gradient graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::LayerNormGrads;
use crate::KernelBackend;
use crate::joint::{self, unwrap, wrap};

/// The body of [`KernelBackend::layer_norm`] with gradients.
pub(crate) fn layer_norm<B: KernelBackend, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 2>,
    weight: Tensor<Autodiff<B, C>, 1>,
    bias: Tensor<Autodiff<B, C>, 1>,
) -> Tensor<Autodiff<B, C>, 2> {
    let normal = |[x, weight, bias]: [_; 3]| {
        [unwrap(<B as KernelBackend>::layer_norm(
            wrap(x),
            wrap(weight),
            wrap(bias),
        ))]
    };
    let [normal] = joint::apply::<B, C, (), 3, 1>(
        "LayerNorm",
        [unwrap(x), unwrap(weight), unwrap(bias)],
        normal,
        |inputs| (normal(inputs), ()),
        |[x, weight, _], (), [d_normal]| {
            let d_normal = wrap(d_normal.expect("its gradient wakes the node"));
            let grads: LayerNormGrads<B> = B::layer_norm_backward(wrap(x), wrap(weight), d_normal);
            [unwrap(grads.x), unwrap(grads.weight), unwrap(grads.bias)]
        },
    );
    wrap(normal)
}
