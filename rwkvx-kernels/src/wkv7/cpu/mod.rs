//! The recurrence by hand for CPUs: forward and backward token by token, f32, vectorised along the key axis.
//!
//! Per head the rows of the state are independent of each other: row i needs only element i of the value. So rows go four at
//! a time through the vector units, and a head's rows can be shared out to several threads. The chunked form of the reference takes
//! as many multiply-adds (its products with the state cost what the updates cost here), and was slower when measured.
//!
//! The forward pass of training saves the state before every [`CHUNK`]-th token, `4 head_size^2 / 16` bytes per token and head (1 KiB
//! for heads of 64); the backward pass recomputes the states of one chunk at a time and never divides by a decay.

mod backward;
mod forward;

use burn::tensor::Tensor;

use super::{Wkv7Gradient, Wkv7Grads, Wkv7Inputs, Wkv7Output};
use crate::cpu::HostMemory;
use crate::padding::{cut_rows, cut_state, pad_rows, pad_state};

/// Tokens between saved states.
const CHUNK: usize = 16;

/// Rows of the state that go through the vector units together.
const ROWS: usize = 4;

/// Head sizes are padded to a multiple of this: whole vectors on every instruction set, and whole groups of rows.
const UNIT: usize = 16;

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
struct Dims {
    batch: usize,
    time: usize,
    heads: usize,
    /// Head size, a multiple of [`UNIT`].
    size: usize,
}

impl Dims {
    /// Where the row of a token and head starts in `[batch, time, heads, head_size]`.
    #[inline(always)]
    fn row(self, batch: usize, time: usize, head: usize) -> usize {
        ((batch * self.time + time) * self.heads + head) * self.size
    }

    fn chunks(self) -> usize {
        self.time.div_ceil(CHUNK)
    }

    /// Elements of a sequence.
    fn elements(self) -> usize {
        self.batch * self.time * self.heads * self.size
    }

    /// Multiply-adds of a pass with `per_element` of them per element of the state and token.
    fn work(self, per_element: usize) -> usize {
        self.elements() * self.size * per_element
    }
}

/// The six sequences as slices.
#[derive(Clone, Copy)]
struct Sequences<'a> {
    receptance: &'a [f32],
    log_decay: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    removal: &'a [f32],
    replacement: &'a [f32],
}

/// The inputs in memory.
struct Loaded<B: HostMemory> {
    dims: Dims,
    /// In the order of [`Wkv7Inputs`].
    sequences: [B::Values; 6],
    state: Option<B::Values>,
}

impl<B: HostMemory> Loaded<B> {
    fn new(inputs: Wkv7Inputs<B>) -> Self {
        let [batch, time, heads, size] = inputs.receptance.dims();
        let load = |sequence| B::values(pad_rows(sequence, UNIT));
        Self {
            dims: Dims {
                batch,
                time,
                heads,
                size: size.next_multiple_of(UNIT),
            },
            sequences: [
                load(inputs.receptance),
                load(inputs.log_decay),
                load(inputs.key),
                load(inputs.value),
                load(inputs.removal),
                load(inputs.replacement),
            ],
            state: inputs.state.map(|state| B::values(pad_state(state, UNIT))),
        }
    }

    fn sequences(&self) -> Sequences<'_> {
        let [receptance, log_decay, key, value, removal, replacement] = &self.sequences;
        Sequences {
            receptance,
            log_decay,
            key,
            value,
            removal,
            replacement,
        }
    }
}

/// The body of [`KernelBackend::wkv7`](crate::KernelBackend::wkv7).
pub(crate) fn wkv7<B: HostMemory>(inputs: Wkv7Inputs<B>) -> Wkv7Output<B> {
    run_forward(inputs, false).0
}

/// The passes for [`KernelBackend::WKV7_GRADIENT`](crate::KernelBackend::WKV7_GRADIENT).
pub(crate) const fn gradient<B: HostMemory>() -> Wkv7Gradient<B> {
    Wkv7Gradient {
        forward: forward_saving,
        backward,
    }
}

fn forward_saving<B: HostMemory>(inputs: Wkv7Inputs<B>) -> (Wkv7Output<B>, Tensor<B, 4>) {
    let dims = inputs.receptance.dims();
    let (outputs, saved) = run_forward(inputs, true);
    let [batch, _, heads, size] = dims;
    let size = size.next_multiple_of(UNIT);
    let row = saved.len() / (batch * heads * size);
    (outputs, B::tensor(saved, [batch, heads, size, row]))
}

/// The outputs and, if asked for, the states before each chunk, `[batch, heads, value, chunk, key]`.
fn run_forward<B: HostMemory>(inputs: Wkv7Inputs<B>, save: bool) -> (Wkv7Output<B>, Vec<f32>) {
    let [.., size] = inputs.receptance.dims();
    let dtype = inputs.receptance.dtype();
    let loaded = Loaded::new(inputs);
    let d = loaded.dims;
    let mut state = match &loaded.state {
        Some(state) => state.to_vec(),
        None => vec![0.0; d.batch * d.heads * d.size * d.size],
    };
    let mut output = vec![0.0; d.elements()];
    let mut saved = vec![0.0; if save { state.len() * d.chunks() } else { 0 }];
    forward::run(d, loaded.sequences(), &mut state, &mut output, &mut saved);
    let outputs = Wkv7Output {
        output: cut_rows(B::tensor(output, [d.batch, d.time, d.heads, d.size]), size).cast(dtype),
        state: cut_state(B::tensor(state, [d.batch, d.heads, d.size, d.size]), size),
    };
    (outputs, saved)
}

fn backward<B: HostMemory>(
    inputs: Wkv7Inputs<B>,
    saved: Tensor<B, 4>,
    d_output: Option<Tensor<B, 4>>,
    d_state: Option<Tensor<B, 4>>,
) -> Wkv7Grads<B> {
    let [.., size] = inputs.receptance.dims();
    let dtype = inputs.receptance.dtype();
    let loaded = Loaded::new(inputs);
    let d = loaded.dims;
    let d_output = d_output.map(|gradient| B::values(pad_rows(gradient, UNIT)));
    let mut d_state = match d_state {
        Some(gradient) => B::values(pad_state(gradient, UNIT)).to_vec(),
        None => vec![0.0; d.batch * d.heads * d.size * d.size],
    };
    let gradients = backward::run(
        d,
        loaded.sequences(),
        &B::values(saved),
        d_output.as_deref(),
        &mut d_state,
    );
    let [receptance, log_decay, key, value, removal, replacement] = gradients.map(|gradient| {
        cut_rows(
            B::tensor(gradient, [d.batch, d.time, d.heads, d.size]),
            size,
        )
        .cast(dtype)
    });
    let state = cut_state(B::tensor(d_state, [d.batch, d.heads, d.size, d.size]), size);
    Wkv7Grads {
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state,
    }
}
