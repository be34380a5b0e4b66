//! Safetensors whose bytes are not in order.

use rwkvx_model::checkpoint::{self, Metadata};

use super::{assert_error, error_of};
use crate::support::{Flex, golden_model};

/// A golden model as safetensors.
pub(super) fn golden() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    checkpoint::save(
        &golden_model::<Flex>("rwkvx_tiny.pth"),
        &Metadata::default(),
        &path,
    )
    .unwrap();
    std::fs::read(path).unwrap()
}

/// A safetensors file of this header and so many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The safetensors file with a text of its header replaced by another of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .expect(from);
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn safetensors_cut_off_anywhere_are_an_error() {
    let whole = golden();
    for length in (0..whole.len())
        .step_by(whole.len() / 97)
        .chain(0..20)
        .chain([whole.len() - 1])
    {
        error_of(&whole[..length]);
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert_error("one byte more", &longer, "truncated or damaged");
}

#[test]
fn safetensors_headers_that_lie_are_errors() {
    let huge = u64::MAX.to_le_bytes();
    assert_error(
        "huge header",
        &[&huge[..], b"{}      "].concat(),
        "header claims",
    );
    let large = 99_000_000u64.to_le_bytes();
    assert_error(
        "large header",
        &[&large[..], b"{}      "].concat(),
        "header claims",
    );
    assert_error(
        "no JSON",
        &with_header("{\"a\": nonsense", 0),
        "damaged safetensors header",
    );
    assert_error("empty", &with_header("{}", 0), "emb.weight");
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"emb.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    assert_error(
        "shape past data",
        &with_header(&tensor("[8,8]", "[0,4]"), 4),
        "damaged safetensors header",
    );
    assert_error(
        "offsets past file",
        &with_header(&tensor("[8,8]", "[0,256]"), 4),
        "truncated or damaged",
    );
    let overflow = tensor("[4294967296,4294967296,4294967296]", "[0,4]");
    assert_error(
        "overflowing shape",
        &with_header(&overflow, 4),
        "damaged safetensors header",
    );
    let huge_offsets = tensor("[4611686018427387904]", "[0,18446744073709551615]");
    assert_error(
        "huge offsets",
        &with_header(&huge_offsets, 4),
        "damaged safetensors header",
    );
    assert_error(
        "not a matrix",
        &with_header(&tensor("[8]", "[0,32]"), 32),
        "expected 2 axes",
    );
    assert_error(
        "our entry",
        &with_header(r#"{"__metadata__":{"rwkvx":"{"}}"#, 0),
        "`rwkvx` entry",
    );
}

#[test]
fn safetensors_that_contradict_their_own_configuration_are_errors() {
    let whole = golden();
    assert_error(
        "layers",
        &replaced(&whole, r#"n_layer\":4"#, r#"n_layer\":2"#),
        "it says it is",
    );
    assert_error(
        "top-k",
        &replaced(&whole, r#"top_k\":3"#, r#"top_k\":0"#),
        "top_k",
    );
}
