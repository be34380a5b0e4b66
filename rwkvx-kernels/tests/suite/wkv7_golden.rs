//! Values and all gradients of the recurrence against the golden files.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rwkvx_kernels::Wkv7Inputs;

use crate::support::{Array, Operators, TOLERANCE, assert_close, golden};

fn check<O: Operators>(name: &str) {
    let file = golden(name);
    let leaf = |name: &str| file[name].tensor::<Autodiff<O::Inner>>().require_grad();
    let log_decay = file["w"]
        .clone()
        .map(f64::ln)
        .tensor::<Autodiff<O::Inner>>()
        .require_grad();
    let inputs = Wkv7Inputs {
        receptance: leaf("r"),
        log_decay,
        key: leaf("k"),
        value: leaf("v"),
        removal: leaf("a"),
        replacement: leaf("b"),
        state: Some(leaf("s0")),
    };
    let outputs = O::wkv7(inputs.clone());
    assert_close(
        "y",
        &Array::of(outputs.output.clone()),
        &file["y"],
        TOLERANCE,
    );
    assert_close(
        "s_last",
        &Array::of(outputs.state.clone()),
        &file["s_last"],
        TOLERANCE,
    );

    let weighted = |x: Tensor<Autodiff<O::Inner>, 4>, name: &str| (x * file[name].tensor()).sum();
    let loss = weighted(outputs.output, "dy") + weighted(outputs.state, "ds_last");
    let gradients = loss.backward();
    let gradient =
        |x: &Tensor<Autodiff<O::Inner>, 4>| Array::of(x.grad(&gradients).expect("a gradient"));
    for (name, tensor) in [
        ("dr", &inputs.receptance),
        ("dk", &inputs.key),
        ("dv", &inputs.value),
        ("da", &inputs.removal),
        ("db", &inputs.replacement),
        ("ds0", inputs.state.as_ref().expect("given above")),
    ] {
        assert_close(name, &gradient(tensor), &file[name], TOLERANCE);
    }
    let mut d_decay = gradient(&inputs.log_decay);
    d_decay
        .values
        .iter_mut()
        .zip(&file["w"].values)
        .for_each(|(d, w)| *d /= w);
    assert_close("dw", &d_decay, &file["dw"], TOLERANCE);
}

pub(crate) fn two_sequences_of_50_tokens<O: Operators>() {
    check::<O>("wkv7");
}

fn heads_of_size_32<O: Operators>() {
    check::<O>("wkv7_head32");
}

fn the_strongest_decay_over_256_tokens<O: Operators>() {
    check::<O>("wkv7_fast_decay");
}

fn the_weakest_decay_over_256_tokens<O: Operators>() {
    check::<O>("wkv7_slow_decay");
}

crate::on_all_bodies!(
    two_sequences_of_50_tokens,
    heads_of_size_32,
    the_strongest_decay_over_256_tokens,
    the_weakest_decay_over_256_tokens,
);
