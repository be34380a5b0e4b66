//! The operators under Burn's fusion give what they give without.

use crate::support::Native;
use crate::{attention_golden, cross_entropy, sample, time_mix, wkv7_golden};

type Fused = Native<burn_fusion::Fusion<crate::Vulkan>>;

#[test]
fn wkv7() {
    wkv7_golden::two_sequences_of_50_tokens::<Fused>();
}

#[test]
fn sparse_attention() {
    attention_golden::several_chunks_per_query::<Fused>();
}

#[test]
fn time_mix() {
    time_mix::outputs_and_gradients_are_those_of_the_equations::<Fused>();
}

#[test]
fn cross_entropy() {
    cross_entropy::losses_and_gradients_are_those_of_the_equations::<Fused>();
}

#[test]
fn sample() {
    sample::counts_are_kept_from_token_to_token::<Fused>();
}
