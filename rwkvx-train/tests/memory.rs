//! The memory that a step and its parts take, which tests of a process of their own can count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::backend::{Autodiff, Flex};
use burn::module::AutodiffModule;
use burn::tensor::{Distribution, Int, Tensor};
use rwkvx_model::{RwkvX, RwkvXConfig};
use rwkvx_train::config::StageConfig;
use rwkvx_train::data::{Batch, Sample};
use rwkvx_train::head_loss::{LOGITS_BYTES, Objective, head_loss};
use rwkvx_train::phase::Phase;
use rwkvx_train::plan::{Need, Place};
use rwkvx_train::precision::Precision;
use rwkvx_train::presets;
use rwkvx_train::relay::Relay;
use rwkvx_train::step::{StepSettings, Trainee};
use rwkvx_train::weights::trainable;
use rwkvx_train::workers::Workers;

/// Counts the bytes that are allocated, and the most there were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: memory comes from the system's allocator and goes back to it unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Every test holds this from its first to its last allocation.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of `work`, and the most bytes that were allocated during it beyond those before.
fn most_during<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = work();
    (result, MOST.load(Ordering::Relaxed) - before)
}

/// Of a step's gradients, in each phase, with layers kept and computed again, in both precisions, long and short.
#[test]
fn a_step_takes_what_the_plan_says() {
    let _alone = alone();
    for (phase, recompute, precision, context, layers) in [
        (Phase::Base, false, Precision::F32, 1024, 4),
        (Phase::Stage1, false, Precision::F32, 1024, 4),
        (Phase::Stage2, false, Precision::F32, 1024, 4),
        (Phase::Stage2, false, Precision::F32, 4096, 4),
        (Phase::Stage2, true, Precision::F32, 1024, 12),
        (Phase::Stage2, true, Precision::F32, 4096, 12),
        (Phase::Stage2, true, Precision::Bf16, 1024, 12),
        (Phase::Stage2, false, Precision::Bf16, 1024, 4),
    ] {
        let model = RwkvXConfig {
            n_sparse: if phase == Phase::Base { 0 } else { 2 },
            chunk_size: 128,
            ..RwkvXConfig::rwkv7(512, 128, layers)
        };
        let mut config = presets::preset("demo").unwrap();
        config.model = model.clone();
        config.precision = precision;
        let stage = StageConfig {
            context,
            batch: 1,
            micro_batch: 1,
            threads: 1,
            recompute,
            longce: None,
            ..config.stages.base.clone().unwrap()
        };
        let place = Place {
            devices: 1,
            cpu: true,
        };
        let memory = Need::of(&config, phase, &stage, place).memory;
        let settings = StepSettings {
            longce: None,
            choice_weight: 0.0,
            l2_wrap: true,
            recompute,
            precision,
        };
        let found = most_in_a_step(&model, phase, settings, context);
        let copy = match precision {
            Precision::F32 => 0,
            Precision::Bf16 => memory.parameters / 3,
        };
        let planned = copy + memory.gradients + memory.activations + memory.head.max(memory.layer);
        let share = found as f64 / planned as f64;
        let case = format!("{phase}, {precision:?}, {context} tokens, recompute {recompute}");
        println!("{case}: {found} bytes, {share:.2} of what is planned");
        // Gradients come one by one, so that few are there when the most activations are.
        assert!(
            (0.8..1.1).contains(&share),
            "{case}: {found} bytes, planned {memory:?}"
        );
    }
}

/// The most bytes that the gradients of a step take, of one text of so many tokens.
fn most_in_a_step(
    model: &RwkvXConfig,
    phase: Phase,
    settings: StepSettings,
    context: usize,
) -> usize {
    let trained = trainable(
        RwkvX::<Autodiff<Flex>>::from_inner(model.init(&Default::default())),
        phase,
    );
    let trainee = Trainee::new(trained, settings, Workers::default(), Relay::default());
    let ids = (0..=context as u32).map(|at| (at * at) % 509).collect();
    let weights = vec![1.0; context];
    let batch = Batch::new(vec![Sample { ids, weights }], 1);
    most_during(|| trainee.gradients(&batch).unwrap()).1
}

/// However long the text: some tensors of the scores that are computed at once, 8 MiB each, and of the queries.
#[test]
fn teaching_the_choice_takes_a_bounded_amount() {
    let _alone = alone();
    let model = RwkvXConfig {
        n_sparse: 1,
        chunk_size: 128,
        ..RwkvXConfig::rwkv7(512, 128, 1)
    };
    for context in [1024, 4096, 16384] {
        let [without, with] = [0.0, 1.0].map(|choice_weight| {
            let settings = StepSettings {
                longce: None,
                choice_weight,
                l2_wrap: true,
                recompute: true,
                precision: Precision::F32,
            };
            most_in_a_step(&model, Phase::Stage2, settings, context)
        });
        let added = with.saturating_sub(without);
        println!("{context} tokens: {added} bytes more than {without}");
        assert!(added <= (80 << 20) + 8 * context * model.channels * size_of::<f32>());
    }
}

/// Bytes that the head's loss and its gradients take beyond the gradients, with a vocabulary of 65536.
fn beyond_gradients(tokens: usize, channels: usize) -> usize {
    type Train = Autodiff<Flex>;
    let device = Default::default();
    let normal = Distribution::Normal(0.0, 1.0);
    let hidden = Tensor::<Train, 3>::random([1, tokens, channels], normal, &device).require_grad();
    let weight = Tensor::<Train, 2>::random([VOCAB, channels], normal, &device).require_grad();
    let objective = Objective {
        targets: Tensor::<Flex, 1, Int>::arange(0..tokens as i64, &device).reshape([1, tokens]),
        shares: Tensor::ones([1, tokens], &device) / tokens as f32,
        short: None,
        l2_wrap: 1e-4,
    };
    let (gradients, most) = most_during(|| {
        let loss = head_loss(hidden.clone(), weight.clone(), objective).loss;
        loss.backward()
    });
    assert!(hidden.grad(&gradients).is_some() && weight.grad(&gradients).is_some());
    let returned = (VOCAB + tokens) * channels * size_of::<f32>();
    let beyond = most - returned;
    println!(
        "{tokens} tokens, {channels} channels: {beyond} bytes beyond the {returned} of the gradients"
    );
    beyond
}

const VOCAB: usize = 65536;

#[test]
fn loss_and_gradients_take_a_piece_of_logits_and_a_weight_gradient() {
    let _alone = alone();
    let (tokens, channels) = (1024, 64); // four pieces
    let of_weight = VOCAB * channels * size_of::<f32>();
    let beyond = beyond_gradients(tokens, channels);
    // Twice a piece's logits, as Flex allocates room for a matrix product twice; and what a piece adds to the weight's gradient.
    assert!(
        beyond <= 2 * LOGITS_BYTES + of_weight + (4 << 20),
        "{beyond} bytes beyond the gradients"
    );
}

#[test]
#[ignore = "takes minutes: cargo test -p rwkvx-train --test memory -- --ignored --nocapture"]
fn loss_and_gradients_of_65536_tokens_take_less_than_256_mib() {
    let _alone = alone();
    assert!(beyond_gradients(65536, 768) <= 256 << 20);
}
