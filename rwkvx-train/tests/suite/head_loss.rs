//! The fused head and loss against cross-entropy written out, and L2Wrap against finite differences.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use rwkvx_train::head_loss::{HeadLoss, Objective, head_loss, head_loss_in_pieces};
use rwkvx_train::longce::ShortLosses;

use crate::support::{Ad, B, assert_close, floats, tensor};

const BATCH: usize = 2;
const TIME: usize = 7;
const CHANNELS: usize = 5;
const VOCAB: usize = 11;
const TOKENS: usize = BATCH * TIME;

fn wave(length: usize, scale: f32) -> Vec<f32> {
    (0..length)
        .map(|at| scale * (at as f32 * 1.7).sin())
        .collect()
}

fn targets() -> Tensor<B, 2, Int> {
    let device = Default::default();
    let ids = Tensor::<B, 1, Int>::arange(0..TOKENS as i64, &device);
    (ids * 5 % VOCAB as i64).reshape([BATCH, TIME])
}

fn hidden() -> Tensor<Ad, 3> {
    tensor::<Ad, 3>(wave(TOKENS * CHANNELS, 1.0), [BATCH, TIME, CHANNELS]).require_grad()
}

fn weight() -> Tensor<Ad, 2> {
    tensor::<Ad, 2>(wave(VOCAB * CHANNELS, 0.8), [VOCAB, CHANNELS]).require_grad()
}

fn objective(l2_wrap: f64) -> Objective<B> {
    let shares = (0..TOKENS).map(|at| (1 + at % 3) as f32 / 27.0).collect();
    Objective {
        targets: targets(),
        shares: tensor(shares, [BATCH, TIME]),
        short: None,
        l2_wrap,
    }
}

/// Gradients of hidden and weight for `scale` times the loss.
fn gradients(
    scale: f64,
    loss: impl Fn(Tensor<Ad, 3>, Tensor<Ad, 2>) -> Tensor<Ad, 1>,
) -> (Vec<f32>, Vec<f32>) {
    let (hidden, weight) = (hidden(), weight());
    let gradients = (loss(hidden.clone(), weight.clone()) * scale).backward();
    (
        floats(hidden.grad(&gradients).unwrap()),
        floats(weight.grad(&gradients).unwrap()),
    )
}

/// The loss written out: all logits at once, differentiated by autodiff, L2Wrap as a constant times the logits.
fn written_out(
    hidden: Tensor<Ad, 3>,
    weight: Tensor<Ad, 2>,
    objective: Objective<B>,
) -> Tensor<Ad, 1> {
    let logits = hidden
        .reshape([TOKENS, CHANNELS])
        .matmul(weight.transpose());
    let targets = Tensor::<Ad, 2, Int>::from_inner(objective.targets.reshape([TOKENS, 1]));
    let nll = -log_softmax(logits.clone(), 1).gather(1, targets);
    let shares = Tensor::from_inner(objective.shares.reshape([TOKENS, 1]));
    let top = logits.clone().detach().max_dim(1);
    let at_top = logits
        .clone()
        .detach()
        .equal(top.clone().expand([TOKENS, VOCAB]))
        .float();
    let pull = (logits * at_top * top * objective.l2_wrap).sum();
    // The value stays that of the cross-entropy: only the gradient of `pull` counts.
    (nll * shares).sum() + pull.clone() - pull.detach()
}

#[test]
fn value_and_gradients_are_those_of_the_loss_written_out() {
    for l2_wrap in [0.0, 0.01] {
        let fused = head_loss(hidden(), weight(), objective(l2_wrap));
        let plain = floats(written_out(hidden(), weight(), objective(l2_wrap)));
        assert_close("value", &floats(fused.value), &plain, 1e-6);
        assert_close("differentiable value", &floats(fused.loss), &plain, 1e-6);
        let found = gradients(1.0, |h, w| head_loss(h, w, objective(l2_wrap)).loss);
        let expected = gradients(1.0, |h, w| written_out(h, w, objective(l2_wrap)));
        assert_close("gradient of hidden", &found.0, &expected.0, 1e-6);
        assert_close("gradient of weight", &found.1, &expected.1, 1e-6);
    }
}

#[test]
fn pieces_of_any_size_give_the_same() {
    let whole = gradients(1.0, |h, w| head_loss(h, w, objective(0.01)).loss);
    for rows in [1, 3, 13, 14, 100] {
        let fused = || head_loss_in_pieces(hidden(), weight(), objective(0.01), rows);
        let HeadLoss { value, nll, .. } = fused();
        let expected = head_loss(hidden(), weight(), objective(0.01));
        assert_close("value", &floats(value), &floats(expected.value), 1e-6);
        assert_close("nll", &floats(nll), &floats(expected.nll), 1e-6);
        let found = gradients(1.0, |h, w| {
            head_loss_in_pieces(h, w, objective(0.01), rows).loss
        });
        assert_close("gradient of hidden", &found.0, &whole.0, 1e-6);
        assert_close("gradient of weight", &found.1, &whole.1, 1e-6);
    }
}

#[test]
fn an_incoming_gradient_scales_everything_l2_wrap_included() {
    let once = gradients(1.0, |h, w| head_loss(h, w, objective(0.01)).loss);
    let thrice = gradients(3.0, |h, w| head_loss(h, w, objective(0.01)).loss);
    let scaled = |values: &[f32]| values.iter().map(|value| value * 3.0).collect::<Vec<_>>();
    assert_close("gradient of hidden", &thrice.0, &scaled(&once.0), 1e-6);
    assert_close("gradient of weight", &thrice.1, &scaled(&once.1), 1e-6);
}

#[test]
fn l2_wrap_is_the_gradient_of_half_the_squared_largest_logits() {
    const FACTOR: f64 = 0.5;
    // With no share in the loss, only L2Wrap's gradient is left.
    let silent = || Objective {
        shares: tensor(vec![0.0; TOKENS], [BATCH, TIME]),
        ..objective(FACTOR)
    };
    let (found, _) = gradients(1.0, |h, w| head_loss(h, w, silent()).loss);
    let penalty = |hidden: Vec<f32>| -> f64 {
        let hidden = tensor::<B, 2>(hidden, [TOKENS, CHANNELS]);
        let logits = hidden.matmul(weight().inner().transpose());
        floats(logits.max_dim(1))
            .iter()
            .map(|top| 0.5 * FACTOR * f64::from(top * top))
            .sum()
    };
    let step = 1e-2;
    let differences: Vec<f32> = (0..TOKENS * CHANNELS)
        .map(|at| {
            let shifted = |by: f32| {
                let mut values = wave(TOKENS * CHANNELS, 1.0);
                values[at] += by;
                penalty(values)
            };
            ((shifted(step) - shifted(-step)) / f64::from(2.0 * step)) as f32
        })
        .collect();
    assert_close("gradient of hidden", &found, &differences, 2e-4);
}

#[test]
fn longce_weights_scale_the_gradient_and_carry_none() {
    let short = ShortLosses {
        nll: tensor(wave(TOKENS, 6.0), [BATCH, TIME]),
        early: tensor::<B, 2>(vec![0.0; TOKENS], [BATCH, TIME]).equal_elem(1.0),
        gamma: 2.0,
    };
    let with_short = || Objective {
        short: Some(short.clone()),
        ..objective(0.0)
    };
    // The same weights given as constants.
    let nll = head_loss(hidden(), weight(), objective(0.0)).nll;
    let weights = short.clone().weights(nll);
    let constant = || Objective {
        shares: objective(0.0).shares * weights.clone(),
        ..objective(0.0)
    };
    let kept = floats(weights.clone());
    assert!(
        kept.contains(&2.0) && kept.iter().any(|weight| *weight < 2.0),
        "{kept:?}"
    );
    let found = gradients(1.0, |h, w| head_loss(h, w, with_short()).loss);
    let expected = gradients(1.0, |h, w| written_out(h, w, constant()));
    assert_close("gradient of hidden", &found.0, &expected.0, 1e-6);
    assert_close("gradient of weight", &found.1, &expected.1, 1e-6);
}

#[test]
fn a_frozen_head_gets_no_gradient() {
    let frozen = weight().detach().set_require_grad(false);
    let hidden = hidden();
    let gradients = head_loss(hidden.clone(), frozen.clone(), objective(0.01))
        .loss
        .backward();
    assert!(hidden.grad(&gradients).is_some());
    assert!(frozen.grad(&gradients).is_none());
}
