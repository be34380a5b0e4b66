//! WKV-7, the recurrence of RWKV-7.
//!
//! Per head, with a state `S` indexed `[value, key]`:
//!
//! ```text
//! S_t = S_{t-1} diag(w_t) + (S_{t-1} removal_t) replacement_t^T + value_t key_t^T
//! y_t = S_t receptance_t
//! ```
//!
//! where `w = exp(log_decay)`. In RWKV-7 `removal = -kk` and `replacement = kk * a`, so that the second term takes out of the
//! state what is stored under the (normalised) key `kk`, at the in-context rate `a`.

pub(crate) mod autodiff;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;

use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, shapes};

/// Inputs of [`wkv7`]; six sequences `[batch, time, heads, head_size]` and a state.
#[derive(Debug, Clone)]
pub struct Wkv7Inputs<B: Backend> {
    /// What each head reads from the state.
    pub receptance: Tensor<B, 4>,
    /// ln of the decay; the model's values lie in (-0.6066, 0), and 0 means no decay. At most 0 and at least -1.
    pub log_decay: Tensor<B, 4>,
    /// Where the value is written.
    pub key: Tensor<B, 4>,
    /// What is written.
    pub value: Tensor<B, 4>,
    /// The direction that is read out to be replaced: `-kk`.
    pub removal: Tensor<B, 4>,
    /// Where what was read out is added back: `kk * a`.
    pub replacement: Tensor<B, 4>,
    /// State before the first token, `[batch, heads, value, key]`; `None` is zero.
    pub state: Option<Tensor<B, 4>>,
}

/// Outputs of [`wkv7`].
#[derive(Debug, Clone)]
pub struct Wkv7Output<B: Backend> {
    /// `[batch, time, heads, head_size]`
    pub output: Tensor<B, 4>,
    /// State after the last token, `[batch, heads, value, key]`.
    pub state: Tensor<B, 4>,
}

/// Gradients of a loss with respect to the fields of [`Wkv7Inputs`], in the same shapes.
#[derive(Debug, Clone)]
pub struct Wkv7Grads<B: Backend> {
    /// With respect to `receptance`.
    pub receptance: Tensor<B, 4>,
    /// With respect to ln of the decay.
    pub log_decay: Tensor<B, 4>,
    /// With respect to `key`.
    pub key: Tensor<B, 4>,
    /// With respect to `value`.
    pub value: Tensor<B, 4>,
    /// With respect to `removal`.
    pub removal: Tensor<B, 4>,
    /// With respect to `replacement`.
    pub replacement: Tensor<B, 4>,
    /// With respect to the initial state.
    pub state: Tensor<B, 4>,
}

/// Computes the outputs and what the backward pass needs of the states on the way: a tensor in the backend's own layout.
pub type Wkv7Forward<B> = fn(Wkv7Inputs<B>) -> (Wkv7Output<B>, Tensor<B, 4>);

/// From the inputs, what the forward pass saved, and the gradients of output and last state (`None` is zero), the gradients of the
/// inputs.
pub type Wkv7Backward<B> = fn(
    inputs: Wkv7Inputs<B>,
    saved: Tensor<B, 4>,
    d_output: Option<Tensor<B, 4>>,
    d_state: Option<Tensor<B, 4>>,
) -> Wkv7Grads<B>;

/// A backend's own training passes, hooked into the gradient graph by `Autodiff`.
#[derive(Debug)]
pub struct Wkv7Gradient<B: Backend> {
    /// The forward pass.
    pub forward: Wkv7Forward<B>,
    /// The backward pass.
    pub backward: Wkv7Backward<B>,
}

/// Runs the RWKV-7 recurrence over any number of tokens (at least one).
///
/// Differentiable in all seven inputs, through the output and through the last state. Feeding the returned state to
/// the next call continues the sequence exactly.
///
/// # Panics
/// If the six sequences do not share one shape `[batch, time >= 1, heads, head_size]`, or the state is not
/// `[batch, heads, head_size, head_size]`.
pub fn wkv7<B: KernelBackend>(inputs: Wkv7Inputs<B>) -> Wkv7Output<B> {
    let dims = inputs.receptance.dims();
    let [batch, _, heads, head_size] = dims;
    assert!(
        dims.iter().all(|&size| size > 0),
        "wkv7: `receptance` must be [batch, time, heads, head_size] with no axis empty, found {dims:?}"
    );
    let axes = "[batch, time, heads, head_size]";
    for (name, tensor) in [
        ("log_decay", &inputs.log_decay),
        ("key", &inputs.key),
        ("value", &inputs.value),
        ("removal", &inputs.removal),
        ("replacement", &inputs.replacement),
    ] {
        shapes::expect("wkv7", name, axes, tensor, dims);
    }
    if let Some(state) = &inputs.state {
        let expected = [batch, heads, head_size, head_size];
        shapes::expect(
            "wkv7",
            "state",
            "[batch, heads, value, key]",
            state,
            expected,
        );
    }
    B::wkv7(inputs)
}
