//! Every use of the operators for which they have a kernel of their own.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use rwkvx_kernels::{Wkv7Inputs, Wkv7Output, wkv7};

use crate::guard::{GuardDevice, GuardRuntime};
use crate::{attention, cross_entropy, layers, sample, time_mix};

pub(crate) type Guard = burn_cubecl::CubeBackend<GuardRuntime, f32, i32, u8>;
type Train = Autodiff<Guard>;

/// One use of an operator, whose kernels are compiled as it launches them.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn(&GuardDevice) + Sync>,
}

/// To cover another operator, write a function like [`wkv7_cases`] and call it here.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for head_size in [32, 64, 128] {
            wkv7_cases(dtype, head_size, &mut cases);
            attention::cases(dtype, head_size, &mut cases);
        }
        time_mix::cases(dtype, &mut cases);
        cross_entropy::cases(dtype, &mut cases);
        sample::cases(dtype, &mut cases);
        layers::cases(dtype, &mut cases);
    }
    cases
}

fn wkv7_cases(dtype: DType, head_size: usize, cases: &mut Vec<Case>) {
    let mut add = |what: &str, run: Box<dyn Fn(&GuardDevice) + Sync>| {
        let name = format!("wkv7 {what}, {}, N{head_size}", dtype.name());
        cases.push(Case { name, run });
    };
    for (what, [batch, time, heads]) in [
        ("one token", [8, 1, 40]),
        ("forward", [4, 1024, 40]),
        ("forward, one long sequence", [1, 65536, 12]),
    ] {
        let dims = [batch, time, heads, head_size];
        let inputs = move |device: &GuardDevice| wkv7_inputs::<Guard>(dims, dtype, device);
        add(
            &format!("{what}, no state"),
            Box::new(move |device| {
                wkv7(inputs(device));
            }),
        );
        add(
            what,
            Box::new(move |device| {
                wkv7(with_state(inputs(device)));
            }),
        );
    }
    for (what, [batch, time, heads]) in [
        ("backward", [4, 1024, 40]),
        ("backward, ragged length", [2, 1001, 8]),
        ("backward, one long sequence", [1, 65536, 12]),
    ] {
        let dims = [batch, time, heads, head_size];
        let inputs = move |device: &GuardDevice| wkv7_inputs::<Train>(dims, dtype, device);
        add(
            &format!("{what}, no state"),
            Box::new(move |device| wkv7_backward(inputs(device))),
        );
        add(
            what,
            Box::new(move |device| wkv7_backward(with_state(inputs(device)))),
        );
    }
}

/// Sequences `[batch, time, heads, head_size]` of `dtype`; their contents are never looked at.
fn wkv7_inputs<B: Backend<Device = GuardDevice>>(
    dims: [usize; 4],
    dtype: DType,
    device: &GuardDevice,
) -> Wkv7Inputs<B> {
    let sequence = || Tensor::empty(dims, (device, dtype)).require_grad();
    Wkv7Inputs {
        receptance: sequence(),
        log_decay: sequence(),
        key: sequence(),
        value: sequence(),
        removal: sequence(),
        replacement: sequence(),
        state: None,
    }
}

/// Adds a state in f32.
fn with_state<B: Backend>(inputs: Wkv7Inputs<B>) -> Wkv7Inputs<B> {
    let [batch, _, heads, head_size] = inputs.receptance.dims();
    let options = (&inputs.receptance.device(), DType::F32);
    // [batch, heads, value, key]
    let state = Tensor::empty([batch, heads, head_size, head_size], options).require_grad();
    Wkv7Inputs {
        state: Some(state),
        ..inputs
    }
}

/// Both outputs have a gradient.
fn wkv7_backward(inputs: Wkv7Inputs<Train>) {
    let Wkv7Output { output, state } = wkv7(inputs);
    (output.cast(DType::F32).sum() + state.sum()).backward();
}
