//! A training step: accumulation, precision, clipping, freezing, bad numbers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::DeviceId;
use rwkvx_model::checkpoint::Metadata;
use rwkvx_model::{RwkvX, names};
use rwkvx_train::checkpoint::{CheckpointStore, Position};
use rwkvx_train::data::{Batch, Sample};
use rwkvx_train::gradient;
use rwkvx_train::journal::{self, Journal};
use rwkvx_train::longce::LongCe;
use rwkvx_train::optimizer::{GroupedAdamW, OptimizerConfig};
use rwkvx_train::outcome::{StepReport, Sums};
use rwkvx_train::phase::Phase;
use rwkvx_train::precision::Precision;
use rwkvx_train::relay::Relay;
use rwkvx_train::session::{Recorded, Session};
use rwkvx_train::shards::Shards;
use rwkvx_train::step::{StepSettings, Trainee};
use rwkvx_train::weights::trainable;
use rwkvx_train::workers::Workers;

use crate::support::{Ad, B, PLAIN, assert_close, batch, floats, rows, small_model, values};

/// Short passes of 12 tokens.
const LONGCE: LongCe = LongCe {
    context: 8,
    stride: 4,
    gamma: 5.0,
    first: 0,
    every: 1,
};

/// Token weights and chunks taught.
const WEIGHED: StepSettings = StepSettings {
    longce: Some(LONGCE),
    choice_weight: 0.5,
    ..PLAIN
};

fn trainee(phase: Phase, settings: StepSettings) -> Trainee<Ad> {
    let model = RwkvX::<Ad>::from_inner(small_model(1));
    Trainee::new(
        trainable(model, phase),
        settings,
        Workers::default(),
        Relay::default(),
    )
}

fn optimizer(trainee: &Trainee<Ad>) -> GroupedAdamW<B> {
    let config = OptimizerConfig {
        beta_1: 0.9,
        beta_2: 0.99,
        epsilon: 1e-18,
        weight_decay: 0.1,
        clip_norm: None,
    };
    GroupedAdamW::new(&config, &names::parameters(&trainee.model))
}

/// Every gradient, flattened, by name; `None` where there is none.
fn gradients(model: &RwkvX<Ad>, gradients: &GradientsParams) -> Vec<(String, Option<Vec<f32>>)> {
    names::parameters(model)
        .into_iter()
        .map(|parameter| {
            let id = parameter.id;
            let values = match parameter.shape.len() {
                1 => gradients
                    .get::<B, 1>(id)
                    .map(|gradient: Tensor<B, 1>| floats(gradient)),
                _ => gradients
                    .get::<B, 2>(id)
                    .map(|gradient: Tensor<B, 2>| floats(gradient)),
            };
            (parameter.name, values)
        })
        .collect()
}

/// Burn frees, after every backward pass, what nothing refers to in the graphs of all threads. The second micro-batch is the one in danger: its graph does
/// not hold the parameters any more.
#[test]
fn backward_passes_of_other_threads_lose_no_gradient() {
    let trainee = trainee(Phase::Stage2, PLAIN);
    let batch = batch(rows(4, 25, 50), 1);
    let gradients = || {
        let (found, _) = trainee.gradients(&batch).unwrap();
        gradients(&trainee.model, &found)
    };
    let expected = gradients();
    let done = AtomicBool::new(false);
    let found: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let x = Tensor::<Ad, 1>::ones([1], &Default::default()).require_grad();
                x.sum().backward();
            }
        });
        let found = (0..20).map(|_| gradients()).collect();
        done.store(true, Ordering::Relaxed);
        found
    });
    for found in found {
        for ((name, found), (_, expected)) in found.into_iter().zip(&expected) {
            let (found, expected) = (found.unwrap(), expected.as_ref().unwrap());
            assert_close(&name, &found, expected, 1e-6);
        }
    }
}

#[test]
fn workers_change_no_bit() {
    let alone = trainee(Phase::Stage2, PLAIN);
    let workers = Workers::new(2).unwrap();
    let together = Trainee::new(alone.model.clone(), PLAIN, workers, Relay::default());
    let batch = batch(rows(5, 25, 50), 1);
    let (expected, expected_report) = alone.gradients(&batch).unwrap();
    let (found, report) = together.gradients(&batch).unwrap();
    assert_eq!(report, expected_report);
    assert_eq!(
        gradients(&together.model, &found),
        gradients(&alone.model, &expected)
    );
}

/// The queries and keys of the last sparse block learn from it, and what comes after them does not.
#[test]
fn the_choice_of_chunks_is_taught_as_much_as_it_weighs() {
    let batch = batch(rows(3, 25, 50), 2);
    let of_weight = |choice_weight| {
        let settings = StepSettings {
            choice_weight,
            ..PLAIN
        };
        let trainee = trainee(Phase::Stage2, settings);
        let (found, _) = trainee.gradients(&batch).unwrap();
        gradients(&trainee.model, &found)
    };
    let [none, one, three] = [0.0, 1.0, 3.0].map(of_weight);
    for (((name, none), (_, one)), (_, three)) in none.into_iter().zip(one).zip(three) {
        let [none, one, three] = [none, one, three].map(Option::unwrap);
        let added = |to: Vec<f32>| -> Vec<f32> {
            to.iter().zip(&none).map(|(to, from)| to - from).collect()
        };
        let [one, three] = [added(one), added(three)];
        let is_taught = one.iter().any(|&d| d != 0.0);
        let last = ["moba.0.att.receptance.weight", "moba.0.att.key.weight"];
        let after = [
            "moba.0.att.value.weight",
            "moba.0.ffn.key.weight",
            "head.weight",
        ];
        assert!(
            is_taught || !last.iter().any(|last| name.ends_with(last)),
            "{name}"
        );
        assert!(
            !is_taught || !after.iter().any(|after| name.ends_with(after)),
            "{name}"
        );
        if is_taught {
            let thrice: Vec<f32> = one.iter().map(|d| 3.0 * d).collect();
            assert_close(&name, &three, &thrice, 1e-3);
        }
    }
}

/// Frozen parameters and those of all other phases; LongCE, whose short passes run beside.
#[test]
fn computing_layers_again_changes_no_gradient() {
    let batch = batch(rows(3, 25, 50), 2);
    for phase in [Phase::Base, Phase::Stage1, Phase::Stage2] {
        let settings = match phase {
            Phase::Stage2 => WEIGHED,
            _ => PLAIN,
        };
        let kept = trainee(phase, settings);
        let settings = StepSettings {
            recompute: true,
            ..settings
        };
        let model = kept.model.clone();
        let again = Trainee::new(model, settings, Workers::default(), Relay::default());
        let (expected, expected_report) = kept.gradients(&batch).unwrap();
        let (found, report) = again.gradients(&batch).unwrap();
        assert_eq!(report.loss, expected_report.loss, "{phase:?}");
        let expected = gradients(&kept.model, &expected);
        for ((name, found), (_, expected)) in gradients(&again.model, &found).iter().zip(expected) {
            assert_eq!(found.is_some(), expected.is_some(), "{phase:?}: {name}");
            if let (Some(found), Some(expected)) = (found, expected) {
                assert_close(name, found, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn accumulating_micro_batches_equals_one_big_batch() {
    let trainee = trainee(Phase::Stage2, WEIGHED);
    let mut whole = batch(rows(4, 25, 50), 4);
    // Unequal weights, so that a mean of means would be wrong.
    for (row, sample) in whole.samples.iter_mut().enumerate() {
        sample.weights[3 * row..].fill(1.0 + row as f32);
    }
    let whole = Batch::new(whole.samples, 4);
    let mut pieces = whole.clone();
    let (expected, expected_report) = trainee.gradients(&whole).unwrap();
    for micro_batch in [1, 3] {
        pieces.micro_batch = micro_batch;
        let (found, report) = trainee.gradients(&pieces).unwrap();
        assert!((report.loss - expected_report.loss).abs() < 1e-5);
        // A sum over all tokens, so that its mean is what should agree: the last bit of the sum is 3e-5.
        let targets = expected_report.targets as f64;
        assert!((report.nll - expected_report.nll).abs() / targets < 1e-6);
        assert_eq!(report.tokens, 4 * 24);
        let expected = gradients(&trainee.model, &expected);
        for ((name, found), (_, expected)) in gradients(&trainee.model, &found).iter().zip(expected)
        {
            let (found, expected) = (found.as_ref().unwrap(), expected.unwrap());
            assert_close(name, found, &expected, 1e-4);
        }
    }
}

#[test]
fn clipping_limits_the_norm_of_the_whole_gradient_and_keeps_its_direction() {
    let batch = batch(rows(2, 13, 50), 2);
    let trainee = trainee(Phase::Stage2, PLAIN);
    let (mut clipped, _) = trainee.gradients(&batch).unwrap();
    let norm = |gradients: &GradientsParams| gradient::global_norm(&trainee.model, gradients);
    let whole = norm(&clipped);
    let before = gradients(&trainee.model, &clipped);
    gradient::clip(&trainee.model, &mut clipped, whole, 1e9);
    assert_eq!(
        gradients(&trainee.model, &clipped),
        before,
        "it is small enough"
    );

    gradient::clip(&trainee.model, &mut clipped, whole, whole / 4.0);
    assert!((norm(&clipped) / whole * 4.0 - 1.0).abs() < 1e-4);
    for ((name, found), (_, before)) in gradients(&trainee.model, &clipped).iter().zip(before) {
        let quarter: Vec<f32> = before.unwrap().iter().map(|value| value / 4.0).collect();
        assert_close(name, found.as_ref().unwrap(), &quarter, 1e-5);
    }
}

#[test]
fn the_shares_of_devices_add_up_to_the_batch() {
    let trainee = trainee(Phase::Stage2, WEIGHED);
    let mut whole = batch(rows(6, 25, 50), 2);
    for (row, sample) in whole.samples.iter_mut().enumerate() {
        sample.weights[3 * row..].fill(1.0 + row as f32);
    }
    let whole = Batch::new(whole.samples, 2);
    let (expected, expected_sums) = trainee.gradients(&whole).unwrap();
    let expected = gradients(&trainee.model, &expected);

    let mut accumulator = GradientsAccumulator::new();
    let mut sums = Sums::default();
    for rank in 0..3 {
        let share = whole.clone().share(rank, 3);
        let dealt = [rank, rank + 3].map(|row| whole.samples[row].clone());
        assert_eq!(share.samples, dealt);
        let (gradients, of_share) = trainee.gradients(&share).unwrap();
        accumulator.accumulate(&trainee.model, gradients);
        sums += of_share;
    }
    assert!((sums.loss - expected_sums.loss).abs() < 1e-5);
    assert!((sums.nll - expected_sums.nll).abs() < 1e-3);
    assert_eq!(sums.tokens, expected_sums.tokens);
    assert_eq!(sums.answers, expected_sums.answers);
    let found = accumulator.grads();
    for ((name, found), (_, expected)) in gradients(&trainee.model, &found).iter().zip(expected) {
        assert_close(name, found.as_ref().unwrap(), &expected.unwrap(), 1e-4);
    }
}

/// Rounding of 8 bits, added up through the layers; what is frozen stays so.
#[test]
fn gradients_in_bf16_are_those_of_f32_but_for_rounding() {
    let batch = batch(rows(3, 25, 50), 2);
    for (phase, recompute) in [
        (Phase::Stage1, false),
        (Phase::Stage2, false),
        (Phase::Stage2, true),
    ] {
        let exact = trainee(phase, PLAIN);
        let settings = StepSettings {
            precision: Precision::Bf16,
            recompute,
            ..PLAIN
        };
        let model = exact.model.clone();
        let rounded = Trainee::new(model, settings, Workers::default(), Relay::default());
        let (expected, expected_sums) = exact.gradients(&batch).unwrap();
        let (found, sums) = rounded.gradients(&batch).unwrap();
        assert!((sums.loss / expected_sums.loss - 1.0).abs() < 2e-3);
        let (mut all_found, mut all_expected) = (Vec::new(), Vec::new());
        let expected = gradients(&exact.model, &expected);
        // `floats` takes f32 only.
        for ((name, found), (_, expected)) in
            gradients(&rounded.model, &found).into_iter().zip(expected)
        {
            assert_eq!(found.is_some(), expected.is_some(), "{phase:?}: {name}");
            all_found.extend(found.unwrap_or_default());
            all_expected.extend(expected.unwrap_or_default());
        }
        assert_close("all gradients", &all_found, &all_expected, 2e-2);
    }
}

#[test]
fn training_in_bf16_follows_training_in_f32() {
    let losses = [Precision::F32, Precision::Bf16].map(|precision| {
        let settings = StepSettings { precision, ..PLAIN };
        let mut trainee = trainee(Phase::Stage2, settings);
        let mut optimizer = optimizer(&trainee);
        let batch = batch(rows(4, 25, 50), 4);
        let losses = (0..40).map(|_| {
            let (gradients, sums) = trainee.gradients(&batch).unwrap();
            trainee = optimizer.step(3e-3, trainee.clone(), gradients);
            sums.loss
        });
        losses.collect::<Vec<_>>()
    });
    let [exact, rounded] = &losses;
    assert!(exact[39] < 0.5 * exact[0], "it learns: {exact:?}");
    for (step, (exact, rounded)) in exact.iter().zip(rounded).enumerate() {
        assert!(
            (rounded - exact).abs() < 0.05 * exact,
            "step {step}: {exact} {rounded}"
        );
    }
}

/// What is padded or has no weight leaves no trace but in the tokens read; conversations of unequal length share a micro-batch.
#[test]
fn padding_and_what_is_not_learned_change_nothing() {
    let settings = StepSettings {
        l2_wrap: false,
        ..PLAIN
    };
    let trainee = trainee(Phase::Stage2, settings);
    let sample = |row: u32, length: u32| {
        let mut weights = vec![1.0; length as usize - 1];
        weights[..4].fill(0.0);
        Sample {
            ids: rows(row + 1, length, 50).pop().unwrap(),
            weights,
        }
    };
    let samples = [sample(0, 25), sample(1, 9), sample(2, 17)];
    let (one_by_one, expected) = trainee.gradients(&Batch::new(samples.to_vec(), 1)).unwrap();
    let (together, found) = trainee.gradients(&Batch::new(samples.to_vec(), 3)).unwrap();
    assert_eq!(found.targets, 20 + 4 + 12);
    assert_eq!(
        (found.targets, found.tokens),
        (expected.targets, expected.tokens)
    );
    assert!((found.loss / expected.loss - 1.0).abs() < 1e-5);
    assert!((found.nll / expected.nll - 1.0).abs() < 1e-5);
    let expected = gradients(&trainee.model, &one_by_one);
    for ((name, found), (_, expected)) in gradients(&trainee.model, &together).iter().zip(expected)
    {
        assert_close(name, found.as_ref().unwrap(), &expected.unwrap(), 1e-4);
    }
}

/// A session over `directory` that starts at step 0 of 100.
fn session(directory: &Path, trainee: &Trainee<Ad>, relay: &Relay) -> Arc<Mutex<Session>> {
    Arc::new(Mutex::new(Session {
        position: Position::start(Phase::Stage2),
        steps: 100,
        clip_norm: None,
        skip_bad_steps: true,
        skipped_in_a_row: 0,
        flops_per_token: 1e6,
        peak_flops: Some(1e12),
        checkpoint_every: 100,
        journal: Journal::open(directory, Phase::Stage2, 0).unwrap(),
        checkpoints: CheckpointStore::open(directory, 1, Metadata::default()).unwrap(),
        parameters: names::parameters(&trainee.model),
        relay: relay.clone(),
        last_step: Instant::now(),
        last_report: StepReport::default(),
    }))
}

/// The optimiser over three devices, which on a CPU are one.
fn recorded(trainee: &Trainee<Ad>, session: &Arc<Mutex<Session>>) -> Recorded<B> {
    let parameters = names::parameters(&trainee.model);
    let shards = Shards::new(&[Default::default(); 3], &parameters);
    Recorded::new(optimizer(trainee), shards, session.clone())
}

/// What two GPUs hand in, in whatever order they are done: the same bits as from one device that does their shares one after the other.
#[test]
fn gradients_of_several_devices_add_up_in_the_order_of_the_devices() {
    let model = trainee(Phase::Stage2, PLAIN).model;
    let batch = batch(rows(2, 25, 50), 1);
    let after = |ranks: &[usize]| {
        let place = tempfile::tempdir().unwrap();
        let relay = Relay::default();
        let trainee = Trainee::new(model.clone(), PLAIN, Workers::default(), relay.clone());
        let mut recorded = recorded(&trainee, &session(place.path(), &trainee, &relay));
        let shares = ranks.iter().map(|&rank| {
            let share = batch.clone().share(rank, ranks.len());
            let (gradients, sums) = trainee.gradients(&share).unwrap();
            relay.put(sums);
            (gradients, DeviceId::new(0, rank as u16))
        });
        let grads = shares.collect();
        let trainee = recorded.step_multi(1e-3, trainee.clone(), MultiGradientsParams { grads });
        values(&trainee.model)
    };
    let expected = after(&[0]);
    assert_ne!(expected, values(&model));
    for ranks in [[0, 1], [1, 0]] {
        assert_eq!(after(&ranks), expected, "{ranks:?}");
    }
}

/// As evenly as the plan counts them, of what the phase trains.
#[test]
fn every_device_owns_its_part_of_the_parameters() {
    for (phase, devices) in [(Phase::Stage1, 2), (Phase::Stage2, 2), (Phase::Stage2, 3)] {
        let parameters = names::parameters(&trainee(phase, PLAIN).model);
        let trained = || {
            parameters
                .iter()
                .filter(|parameter| phase.trains(parameter))
        };
        let shards = Shards::<B>::new(&vec![Default::default(); devices], trained());
        let mut held = vec![0; devices];
        for parameter in trained() {
            held[shards.owner(parameter.id)] += parameter.shape.iter().product::<usize>();
        }
        let all: usize = held.iter().sum();
        let most = held.iter().max().unwrap();
        assert!(
            *most as f64 <= 1.02 * all as f64 / devices as f64,
            "{phase}, {devices} devices: {held:?}"
        );
    }
}

#[test]
fn bad_steps_are_skipped_and_counted_and_too_many_in_a_row_end_the_run() {
    let place = tempfile::tempdir().unwrap();
    let mut trainee = trainee(Phase::Stage2, PLAIN);
    let batch = batch(rows(2, 25, 50), 2);
    let relay = Relay::default();
    let session = session(place.path(), &trainee, &relay);
    let mut recorded = recorded(&trainee, &session);
    let before = values(&trainee.model);
    let mut step = |trainee: Trainee<Ad>, loss: Option<f64>| {
        let (gradients, mut sums) = trainee.gradients(&batch).unwrap();
        sums.loss = loss.unwrap_or(sums.loss);
        relay.put(sums);
        recorded.step(1e-3, trainee, gradients)
    };

    for bad in [f64::NAN, f64::INFINITY] {
        trainee = step(trainee, Some(bad));
    }
    assert_eq!(values(&trainee.model), before, "a bad step changes nothing");
    trainee = step(trainee, None);
    assert_ne!(values(&trainee.model), before);
    let lines = journal::read(&place.path().join(journal::FILE)).unwrap();
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].step, lines[0].skipped), (3, 2));
    assert_eq!(lines[0].tokens, 2 * 24);
    let speed = lines[0].speed;
    assert!((speed.tflops - speed.tokens_per_second * 1e-6).abs() < 1e-9);
    assert!(
        speed
            .mfu
            .is_some_and(|mfu| (mfu - speed.tflops).abs() < 1e-9)
    );
    assert!(speed.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));

    for _ in 0..10 {
        trainee = step(trainee, Some(f64::NAN));
    }
    assert!(!relay.has_failed());
    step(trainee, Some(f64::NAN));
    let error = relay.take_error().unwrap().to_string();
    assert!(
        error.contains("stage2, step 14: the loss is NaN, after 10 skipped steps in a row"),
        "{error}"
    );
}

#[test]
fn stage_one_leaves_frozen_parameters_bit_identical_and_without_gradient_or_state() {
    let mut trainee = trainee(Phase::Stage1, PLAIN);
    let parameters = names::parameters(&trainee.model);
    let mut optimizer = optimizer(&trainee);
    let before = values(&trainee.model);
    let batch = batch(rows(2, 25, 50), 2);
    for _ in 0..3 {
        let (step, _) = trainee.gradients(&batch).unwrap();
        for (name, gradient) in gradients(&trainee.model, &step) {
            assert_eq!(gradient.is_some(), name.starts_with("moba."), "{name}");
        }
        trainee = optimizer.step(1e-2, trainee, step);
    }
    for ((name, found), (_, expected)) in values(&trainee.model).iter().zip(before) {
        let same = found
            .iter()
            .zip(&expected)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert_eq!(same, !name.starts_with("moba."), "{name}");
    }
    let sparse: usize = parameters
        .iter()
        .filter(|parameter| parameter.is_sparse())
        .map(|parameter| parameter.shape.iter().product::<usize>())
        .sum();
    assert_eq!(optimizer.state_values(), 2 * sparse);
}

#[test]
fn after_stage_one_everything_trains_again() {
    let stage1 = trainee(Phase::Stage1, PLAIN).model;
    let stage2 = Trainee::new(
        trainable(stage1, Phase::Stage2),
        PLAIN,
        Workers::default(),
        Relay::default(),
    );
    let (step, _) = stage2.gradients(&batch(rows(2, 25, 50), 2)).unwrap();
    for (name, gradient) in gradients(&stage2.model, &step) {
        assert!(gradient.is_some(), "{name}");
    }
}
