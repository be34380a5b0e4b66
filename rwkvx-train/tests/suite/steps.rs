//! A training step: accumulation, clipping, freezing.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::Tensor;
use rwkvx_model::{RwkvX, names};
use rwkvx_train::gradient;
use rwkvx_train::longce::LongCe;
use rwkvx_train::optimizer::{GroupedAdamW, OptimizerConfig};
use rwkvx_train::phase::Phase;
use rwkvx_train::relay::Relay;
use rwkvx_train::step::{StepSettings, Trainee};
use rwkvx_train::weights::trainable;
use rwkvx_train::workers::Workers;

use crate::support::{Ad, B, PLAIN, assert_close, batch, floats, rows, small_model, values};

fn trainee(phase: Phase, settings: StepSettings) -> Trainee<Ad> {
    let model = RwkvX::<Ad>::from_inner(small_model(1));
    Trainee::new(
        trainable(model, phase),
        settings,
        Workers::default(),
        Relay::default(),
    )
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

/// Frozen parameters and those of all other phases; LongCE, whose short passes run beside.
#[test]
fn computing_layers_again_changes_no_gradient() {
    let longce = LongCe {
        context: 8,
        stride: 4,
        gamma: 5.0,
        first: 0,
    };
    let batch = batch(rows(3, 25, 50), 2);
    for phase in [Phase::Base, Phase::Stage1, Phase::Stage2] {
        let settings = StepSettings {
            longce: (phase == Phase::Stage2).then_some(longce),
            l2_wrap: true,
            ..PLAIN
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
    let settings = StepSettings {
        longce: Some(LongCe {
            context: 8,
            stride: 4,
            gamma: 5.0,
            first: 0,
        }),
        ..PLAIN
    };
    let trainee = trainee(Phase::Stage2, settings);
    let mut whole = batch(rows(4, 25, 50), 4);
    // Unequal weights, so that a mean of means would be wrong.
    for (row, sample) in whole.samples.iter_mut().enumerate() {
        sample.weights[3 * row..].fill(1.0 + row as f32);
    }
    let mut pieces = whole.clone();
    let (expected, expected_report) = trainee.gradients(&whole).unwrap();
    for micro_batch in [1, 3] {
        pieces.micro_batch = micro_batch;
        let (found, report) = trainee.gradients(&pieces).unwrap();
        assert!((report.loss - expected_report.loss).abs() < 1e-5);
        assert!((report.nll - expected_report.nll).abs() < 1e-5);
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
    let free = trainee(Phase::Stage2, PLAIN);
    let (unclipped, report) = free.gradients(&batch).unwrap();
    let limit = report.grad_norm / 4.0;
    let settings = StepSettings {
        clip_norm: Some(limit),
        ..PLAIN
    };
    let clipped = Trainee::new(
        free.model.clone(),
        settings,
        Workers::default(),
        Relay::default(),
    );
    let (clipped, clipped_report) = clipped.gradients(&batch).unwrap();
    assert_eq!(
        clipped_report, report,
        "the norm before clipping is what is reported"
    );
    let norm = floats(gradient::global_norm(&free.model, &clipped).unwrap())[0];
    assert!((f64::from(norm) / limit - 1.0).abs() < 1e-4);
    let unclipped = gradients(&free.model, &unclipped);
    for ((name, found), (_, expected)) in gradients(&free.model, &clipped).iter().zip(unclipped) {
        let quarter: Vec<f32> = expected.unwrap().iter().map(|value| value / 4.0).collect();
        assert_close(name, found.as_ref().unwrap(), &quarter, 1e-5);
    }
}

#[test]
fn a_small_gradient_is_not_clipped() {
    let settings = StepSettings {
        clip_norm: Some(1e9),
        ..PLAIN
    };
    let batch = batch(rows(2, 13, 50), 2);
    let free = trainee(Phase::Stage2, PLAIN);
    let limited = Trainee::new(
        free.model.clone(),
        settings,
        Workers::default(),
        Relay::default(),
    );
    let (expected, _) = free.gradients(&batch).unwrap();
    let (found, _) = limited.gradients(&batch).unwrap();
    assert_eq!(
        gradients(&free.model, &found),
        gradients(&free.model, &expected)
    );
}

#[test]
fn stage_one_leaves_frozen_parameters_bit_identical_and_without_gradient_or_state() {
    let mut trainee = trainee(Phase::Stage1, PLAIN);
    let config = OptimizerConfig {
        beta_1: 0.9,
        beta_2: 0.99,
        epsilon: 1e-18,
        weight_decay: 0.1,
        clip_norm: None,
    };
    let parameters = names::parameters(&trainee.model);
    let mut optimizer = GroupedAdamW::<B>::new(&config, &parameters);
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
