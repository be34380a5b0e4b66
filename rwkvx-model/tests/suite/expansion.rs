//! Block expansion.

use burn::backend::Autodiff;
use rwkvx_kernels::{ChunkTopK, KernelBackend};
use rwkvx_model::{RwkvX, RwkvXConfig, SparseStart, expand, names};

use crate::golden::values;
use crate::support::{Flex, Golden, distance, golden_model, host, on_backends};

const SHAPE: ChunkTopK = ChunkTopK {
    chunk_size: 16,
    top_k: 2,
};

on_backends! {
    a_fresh_start_computes_what_the_base_did;
    a_zero_start_computes_what_the_base_did;
    a_copied_start_does_not;
}

fn expanded<B: KernelBackend>(start: SparseStart) -> (RwkvX<B>, RwkvX<B>) {
    let base = golden_model::<B>("rwkv7_tiny.pth");
    (base.clone(), expand(base, 3, SHAPE, 3, start).unwrap())
}

fn a_zero_start_computes_what_the_base_did<B: KernelBackend>() {
    let (base, expanded) = expanded::<B>(SparseStart::Zero);
    assert_eq!(expanded.config().n_sparse, 3);
    let ids = Golden::read("rwkv7_tiny.safetensors").inputs::<B>();
    let (expanded, base) = (host(expanded.forward(ids.clone())), host(base.forward(ids)));
    assert!(
        expanded == base,
        "distance {:.1e}",
        distance(&expanded, &base)
    );
}

fn a_fresh_start_computes_what_the_base_did<B: KernelBackend>() {
    let (base, expanded) = expanded::<B>(SparseStart::Fresh);
    let ids = Golden::read("rwkv7_tiny.safetensors").inputs::<B>();
    let (expanded, base) = (host(expanded.forward(ids.clone())), host(base.forward(ids)));
    assert!(distance(&expanded, &base) < 1e-6);
}

fn a_copied_start_does_not<B: KernelBackend>() {
    let (base, expanded) = expanded::<B>(SparseStart::Copy);
    let ids = Golden::read("rwkv7_tiny.safetensors").inputs::<B>();
    assert!(
        distance(
            &host(expanded.forward(ids.clone())),
            &host(base.forward(ids))
        ) > 0.01
    );
}

fn of(values: &[(String, Vec<f32>)], name: &str) -> Vec<f32> {
    let found = values.iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("{name}")).1.clone()
}

#[test]
fn new_blocks_start_from_the_block_before_them() {
    let (base, expanded) = expanded::<Flex>(SparseStart::Copy);
    let (base, expanded) = (values(&base), values(&expanded));
    for block in 0..3 {
        for copied in [
            "att.receptance.weight",
            "att.key.weight",
            "att.value.weight",
            "att.output.weight",
            "ffn.x_k",
            "ffn.key.weight",
            "ffn.value.weight",
        ] {
            let (new, old) = (
                format!("moba.{block}.{copied}"),
                format!("blocks.{block}.{copied}"),
            );
            assert_eq!(of(&expanded, &new), of(&base, &old), "{new}");
        }
        for norm in ["ln1", "ln2"] {
            assert_eq!(
                of(&expanded, &format!("moba.{block}.{norm}.weight")),
                vec![1.0; 64]
            );
            assert_eq!(
                of(&expanded, &format!("moba.{block}.{norm}.bias")),
                vec![0.0; 64]
            );
        }
    }
}

#[test]
fn a_fresh_block_asks_as_it_is_asked() {
    let (base, expanded) = expanded::<Flex>(SparseStart::Fresh);
    let (base, expanded) = (values(&base), values(&expanded));
    let receptance = of(&expanded, "moba.0.att.receptance.weight");
    assert_eq!(receptance, of(&expanded, "moba.0.att.key.weight"));
    assert_ne!(receptance, of(&expanded, "moba.1.att.key.weight"));
    assert!(base.iter().all(|(_, values)| *values != receptance));
}

#[test]
fn copies_are_parameters_of_their_own() {
    type B = Autodiff<Flex>;
    let base = golden_model::<B>("rwkv7_tiny.pth");
    let kept: Vec<_> = names::parameters(&base)
        .into_iter()
        .map(|param| param.id)
        .collect();
    let expanded = expand(base, 1, SHAPE, 0, SparseStart::Copy).unwrap();
    let (recurrent, sparse): (Vec<_>, Vec<_>) = names::parameters(&expanded)
        .into_iter()
        .partition(|param| !param.is_sparse());
    assert_eq!(
        recurrent.iter().map(|param| param.id).collect::<Vec<_>>(),
        kept
    );
    assert!(
        recurrent
            .iter()
            .all(|param| param.name.starts_with("rwkv."))
    );
    assert!(sparse.iter().all(|param| !kept.contains(&param.id)));

    // A gradient that reached a copy through the original would be found under both.
    let ids = Golden::read("rwkv7_tiny.safetensors").inputs::<B>();
    let gradients = expanded.forward(ids).sum().backward();
    let of_copy = expanded.moba[0]
        .att
        .receptance
        .weight
        .val()
        .grad(&gradients)
        .map(host);
    let of_original = expanded.rwkv.blocks[2]
        .att
        .receptance
        .weight
        .val()
        .grad(&gradients)
        .map(host);
    assert!(of_copy.is_some() && of_original.is_some());
    assert_ne!(of_copy, of_original);
}

#[test]
fn impossible_expansions_are_errors() {
    let base = || RwkvXConfig::rwkv7(9, 64, 4).init::<Flex>(&Default::default());
    let message = |model, n_sparse, shape| {
        expand(model, n_sparse, shape, 0, SparseStart::Zero)
            .unwrap_err()
            .to_string()
    };
    assert!(message(base(), 0, SHAPE).contains("n_sparse is 0"));
    assert!(message(base(), 3, SHAPE).contains("n_sparse 3"));
    assert!(message(base(), 2, ChunkTopK { top_k: 0, ..SHAPE }).contains("top_k"));
    let hybrid = expand(base(), 2, SHAPE, 0, SparseStart::Zero).unwrap();
    assert!(message(hybrid, 2, SHAPE).contains("2 sparse blocks already"));
}
