//! Training, prefill and decoding compute one function.

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rwkvx_kernels::{ChunkTopK, KernelBackend};
use rwkvx_model::{CacheBudget, RwkvX, SparseStart, State, expand};

use crate::support::{Golden, assert_close, distance, golden_model, host, on_backends};

on_backends! {
    prefill_in_two_pieces_equals_forward_at_every_split;
    prefill_in_ragged_pieces_equals_forward;
    steps_equal_forward;
    branches_of_a_state_go_their_own_ways;
    a_batch_equals_its_rows_alone;
    a_later_token_changes_nothing_before_it;
    pieces_with_a_cache_budget_equal_steps_with_it;
    a_cache_budget_beyond_the_text_changes_nothing;
}

const MODELS: [&str; 3] = ["rwkv7_tiny", "rwkvx_tiny", "rwkvx_tiny_key_conv"];

/// The plain golden model with sparse blocks whose keys are convolved.
fn with_key_conv<B: KernelBackend>() -> RwkvX<B> {
    let shape = ChunkTopK {
        chunk_size: 16,
        top_k: 3,
    };
    let base = golden_model::<B>("rwkv7_tiny.pth");
    let mut model = expand(base, 3, shape, 4, SparseStart::Copy).unwrap();
    let device = model.device();
    for block in &mut model.moba {
        block.att.key_conv = block.att.key_conv.take().map(|weight| {
            let values = (0..weight.shape().num_elements()).map(|at| (at as f32).sin());
            let data = TensorData::new(values.collect::<Vec<f32>>(), weight.shape());
            Param::from_tensor(Tensor::from_data(data, &device))
        });
    }
    model
}

/// A golden model, its ids `[batch, time]` and its logits by `forward`. The hybrid's time, 112, is well past its dense
/// range of 16 * 3 tokens.
fn case<B: KernelBackend>(name: &str) -> (RwkvX<B>, Tensor<B, 2, Int>, Tensor<B, 3>) {
    let (model, golden) = match name {
        "rwkvx_tiny_key_conv" => (with_key_conv(), "rwkvx_tiny"),
        _ => (golden_model::<B>(&format!("{name}.pth")), name),
    };
    let ids = Golden::read(&format!("{golden}.safetensors")).inputs();
    let logits = model.forward(ids.clone());
    (model, ids, logits)
}

fn prefill_in_two_pieces_equals_forward_at_every_split<B: KernelBackend>() {
    for name in MODELS {
        let (model, ids, logits) = case::<B>(name);
        let [batch, time] = ids.dims();
        let whole = host(logits.clone());
        for split in 1..time {
            let mut state = model.state(batch);
            let first = model.prefill_all(ids.clone().slice([0..batch, 0..split]), &mut state);
            let second = model.prefill_all(ids.clone().slice([0..batch, split..time]), &mut state);
            let pieces = host(Tensor::cat(vec![first, second], 1));
            assert_close(&format!("{name} split at {split}"), &pieces, &whole);
            assert_eq!(state.tokens(), time);

            let mut state = model.state(batch);
            model.prefill(ids.clone().slice([0..batch, 0..split]), &mut state);
            let last = model.prefill(ids.clone().slice([0..batch, split..time]), &mut state);
            assert_close(
                &format!("{name} last of {split}"),
                &host(last),
                &last_of(&logits, time - 1),
            );
        }
    }
}

/// The logits of one position, `[batch, vocab]` in row-major order.
fn last_of<B: Backend>(logits: &Tensor<B, 3>, position: usize) -> Vec<f32> {
    let [batch, ..] = logits.dims();
    host(logits.clone().slice([0..batch, position..position + 1]))
}

fn prefill_in_ragged_pieces_equals_forward<B: KernelBackend>() {
    let (model, ids, logits) = case::<B>("rwkvx_tiny");
    let [batch, _] = ids.dims();
    let mut state = model.state(batch);
    let mut pieces = Vec::new();
    let mut start = 0;
    for length in [1, 15, 1, 17, 3, 16, 31, 1, 27] {
        pieces.push(model.prefill_all(
            ids.clone().slice([0..batch, start..start + length]),
            &mut state,
        ));
        start += length;
    }
    assert_close(
        "ragged pieces",
        &host(Tensor::cat(pieces, 1)),
        &host(logits),
    );
}

fn steps_equal_forward<B: KernelBackend>() {
    for name in MODELS {
        let (model, ids, logits) = case::<B>(name);
        let [batch, time] = ids.dims();
        let mut state: State<B> = model.state(batch);
        for position in 0..time {
            let token = ids
                .clone()
                .slice([0..batch, position..position + 1])
                .reshape([batch]);
            let step = host(model.step(token, &mut state));
            assert_close(
                &format!("{name} step {position}"),
                &step,
                &last_of(&logits, position),
            );
        }
    }
}

fn branches_of_a_state_go_their_own_ways<B: KernelBackend>() {
    let (model, ids, logits) = case::<B>("rwkvx_tiny");
    let [_, time] = ids.dims();
    let mut trunk = model.state(2);
    trunk.reserve(time);
    model.prefill(ids.clone().narrow(1, 0, 50), &mut trunk);
    let rest = ids.narrow(1, 50, time - 50);
    let expected = host(logits.narrow(1, 50, time - 50));
    let mut branch = trunk.clone();
    model.prefill(rest.clone().flip([1]), &mut branch);
    for state in [&mut trunk.clone(), &mut trunk] {
        assert_close(
            "branch",
            &host(model.prefill_all(rest.clone(), state)),
            &expected,
        );
    }
}

fn a_batch_equals_its_rows_alone<B: KernelBackend>() {
    for name in MODELS {
        let (model, ids, logits) = case::<B>(name);
        let [batch, time] = ids.dims();
        for row in 0..batch {
            let alone = model.forward(ids.clone().slice([row..row + 1, 0..time]));
            let together = logits.clone().narrow(0, row, 1);
            assert_close(&format!("{name} row {row}"), &host(alone), &host(together));
        }
    }
}

fn a_later_token_changes_nothing_before_it<B: KernelBackend>() {
    for name in MODELS {
        let (model, ids, logits) = case::<B>(name);
        let [batch, time] = ids.dims();
        let changed_at = time / 2;
        let changed =
            (ids.clone().slice([0..batch, changed_at..changed_at + 1]) + 1).remainder_scalar(97);
        let ids = ids.slice_assign([0..batch, changed_at..changed_at + 1], changed);
        let changed = model.forward(ids);
        for position in 0..time {
            let (before, after) = (last_of(&logits, position), last_of(&changed, position));
            match position < changed_at {
                true => assert!(distance(&after, &before) <= 1e-6, "{name} at {position}"),
                false => assert!(distance(&after, &before) > 1e-4, "{name} at {position}"),
            }
        }
    }
}

fn pieces_with_a_cache_budget_equal_steps_with_it<B: KernelBackend>() {
    let (model, ids, whole) = case::<B>("rwkvx_tiny");
    let [batch, time] = ids.dims();
    let run = |piece: usize| {
        let mut state = model.state(batch).with_cache_budget(CacheBudget::of(40));
        let pieces = ids.clone().split(piece, 1);
        let logits = pieces
            .into_iter()
            .map(|ids| model.prefill_all(ids, &mut state));
        let logits = host(Tensor::cat(logits.collect(), 1));
        (logits, state.bytes())
    };
    let (steps, bytes) = run(1);
    assert!(distance(&steps, &host(whole)) > 1e-3, "nothing was let go");
    for piece in [7, 40, 41, time] {
        let (pieces, held) = run(piece);
        assert_close(&format!("pieces of {piece}"), &pieces, &steps);
        assert_eq!(held, bytes);
    }
}

fn a_cache_budget_beyond_the_text_changes_nothing<B: KernelBackend>() {
    let (model, ids, whole) = case::<B>("rwkvx_tiny");
    let mut state = model.state(2).with_cache_budget(CacheBudget::default());
    assert_close(
        "large budget",
        &host(model.prefill_all(ids, &mut state)),
        &host(whole),
    );
}

#[test]
fn the_state_of_rwkv7_does_not_grow_and_that_of_the_hybrid_does() {
    use crate::support::Flex;

    let bytes = |name: &str| {
        let (model, ids, _) = case::<Flex>(name);
        let mut state = model.state(2);
        let empty = state.bytes();
        for _ in 0..8 {
            model.prefill(ids.clone(), &mut state);
        }
        (empty, state.bytes())
    };
    let (empty, full) = bytes("rwkv7_tiny");
    // Three layers, two texts: a 64 x 64 state for one head, two carries of 64, four bytes each.
    assert_eq!(empty, 3 * 2 * (64 * 64 + 2 * 64) * 4);
    assert_eq!(full, empty);
    let (empty, full) = bytes("rwkvx_tiny");
    // Two sparse layers, two texts, 896 tokens, keys and values of 64.
    assert!(
        full - empty >= 2 * 2 * 896 * 2 * 64 * 4,
        "{empty} -> {full}"
    );
}
