//! Files in order whose tensors are not those of a model.

use rwkvx_model::Error;

use super::{assert_error, error_of};
use crate::checkpoint::published;
use crate::support::golden_model;
use crate::support::pth::{PthTensor, pth};

/// The file with one tensor changed.
pub(super) fn changed(name: &str, change: impl Fn(&mut PthTensor)) -> Vec<u8> {
    let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
    change(
        tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .expect(name),
    );
    pth(&tensors)
}

#[test]
fn foreign_number_formats_are_named() {
    let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
    for (tensor, (storage, size)) in tensors.iter_mut().zip([("DoubleStorage", 8)]) {
        tensor.storage = storage;
        tensor.bytes = vec![0; size * tensor.length as usize];
    }
    let error = error_of(&pth(&tensors));
    assert!(
        matches!(&error, Error::TensorDtype { name, found, .. }
        if name == "emb.weight" && found == "DoubleStorage"),
        "{error}"
    );
}

#[test]
fn missing_tensors_are_named_with_their_shape() {
    for (name, shape) in [
        ("blocks.2.att.w0", vec![1, 1, 64]),
        ("blocks.1.ffn.key.weight", vec![256, 64]),
        ("head.weight", vec![97, 64]),
        ("blocks.0.ln0.bias", vec![64]),
    ] {
        let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
        tensors.retain(|tensor| tensor.name != name);
        let error = error_of(&pth(&tensors));
        assert!(
            matches!(&error, Error::MissingTensor { name: missing, expected, others: 0, .. }
            if missing == name && *expected == shape),
            "{error}"
        );
    }
    let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
    tensors.retain(|tensor| !tensor.name.starts_with("blocks.1."));
    assert_error(
        "a whole block",
        &pth(&tensors),
        "recurrent block 1 is missing",
    );
    let mut tensors = published(&golden_model("rwkvx_tiny.pth"));
    tensors.retain(|tensor| !tensor.name.starts_with("moba.0."));
    assert_error("a whole sparse block", &pth(&tensors), "sparse block 0");
    let mut tensors = published(&golden_model("rwkvx_tiny.pth"));
    tensors.retain(|tensor| tensor.name != "moba.1.ln1.bias");
    assert_error(
        "of a sparse block",
        &pth(&tensors),
        "`moba.1.ln1.bias` [64] is missing",
    );
}

#[test]
fn extra_tensors_are_named() {
    for name in [
        "blocks.1.att.extra",
        "emb.bias",
        "blocks.2.att.v3",
        "module.emb.weight",
        "moba.x.ln1.bias",
    ] {
        let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
        tensors.push(PthTensor::f32(name, &[2, 3], &[0.0; 6]));
        let error = error_of(&pth(&tensors));
        assert!(
            matches!(&error, Error::UnexpectedTensor { name: extra, found, others: 0, .. }
            if extra == name && found[..] == [2, 3]),
            "{error}"
        );
    }
}

#[test]
fn misshapen_tensors_are_named_with_both_shapes() {
    let cases: [(&str, &[usize], &[usize]); 5] = [
        ("head.weight", &[96, 64], &[97, 64]),
        ("blocks.1.att.x_r", &[1, 64, 1], &[1, 1, 64]),
        ("blocks.2.att.w2", &[64, 32], &[32, 64]),
        ("blocks.0.ffn.value.weight", &[256, 64], &[64, 256]),
        ("ln_out.bias", &[1, 1, 64], &[64]),
    ];
    for (name, shape, expected) in cases {
        let values = vec![0.0; shape.iter().product()];
        let error = error_of(&changed(name, |tensor| {
            *tensor = PthTensor::f32(name, shape, &values)
        }));
        assert!(
            matches!(&error, Error::TensorShape { name: bad, expected: wanted, found, .. }
            if bad == name && wanted == expected && found == shape),
            "{error}"
        );
    }
    assert_error(
        "head size",
        &changed("blocks.0.att.r_k", |t| t.shape = vec![64, 0]),
        "head_size",
    );
    assert_error(
        "heads",
        &changed("blocks.0.att.r_k", |t| t.shape = vec![2, 32]),
        "blocks.1.att.r_k",
    );
}
