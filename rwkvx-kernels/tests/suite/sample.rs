//! Tokens chosen by logits: the same by all bodies, and those of the equations in f64.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flex::Flex;
use rwkvx_kernels::{
    BANNED, Draw, KernelBackend, NONE_LEFT, NOT_A_NUMBER, Sampled, reference, sample, sample_row,
};

use crate::support::{Array, Defined, Native};

/// One way of running the operator.
pub(crate) trait Body {
    type B: KernelBackend;
    fn sample(
        logits: Tensor<Self::B, 2>,
        counts: Option<Tensor<Self::B, 2>>,
        draws: &[Option<Draw>],
    ) -> Sampled<Self::B>;
}

impl<B: KernelBackend> Body for Native<B> {
    type B = B;
    fn sample(
        logits: Tensor<B, 2>,
        counts: Option<Tensor<B, 2>>,
        draws: &[Option<Draw>],
    ) -> Sampled<B> {
        sample(logits, counts, draws)
    }
}

impl<B: KernelBackend> Body for Defined<B> {
    type B = B;
    fn sample(
        logits: Tensor<B, 2>,
        counts: Option<Tensor<B, 2>>,
        draws: &[Option<Draw>],
    ) -> Sampled<B> {
        reference::sample(logits, counts, draws)
    }
}

/// Random numbers of 32 bits.
fn bits(seed: u32) -> u32 {
    let mut x = u64::from(seed)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) as u32 ^ (x >> 32) as u32
}

/// The likeliest token, without penalties.
const GREEDY: Draw = Draw {
    temperature: 0.0,
    top_p: 1.0,
    top_k: 0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    penalty_decay: 1.0,
    uniform: 0,
};

const WARM: Draw = Draw {
    temperature: 1.0,
    ..GREEDY
};

/// Kinds of draws that do not keep the same tokens.
fn kinds() -> Vec<Draw> {
    let mut kinds = vec![GREEDY];
    for temperature in [1e-4, 0.3, 1.0, 2.5, 1e6] {
        for (top_k, top_p) in [
            (0, 1.0),
            (1, 1.0),
            (5, 1.0),
            (300, 1.0),
            (100_000, 1.0),
            (0, 1e-9),
            (0, 0.3),
            (0, 0.9),
            (0, 0.999_99),
            (40, 0.7),
        ] {
            kinds.push(Draw {
                temperature,
                top_k,
                top_p,
                ..GREEDY
            });
        }
    }
    kinds
}

/// Rows of logits, spread as those of a model.
fn logits(rows: usize, vocab: usize) -> Vec<f32> {
    let normal = Array::normal([1, 1, rows, vocab], 5);
    normal
        .values
        .iter()
        .map(|&x| 4.0 * x as f32 - 3.0)
        .collect()
}

fn tensor<B: KernelBackend>(values: &[f32], shape: [usize; 2]) -> Tensor<B, 2> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::from_data(data, (&Default::default(), DType::F32))
}

fn numbers<B: KernelBackend>(ids: Tensor<B, 1, Int>) -> Vec<i32> {
    ids.into_data().iter().collect()
}

/// What the host chooses row by row; counts what it chose.
fn by_rows(logits: &[f32], counts: &mut [f32], draws: &[Option<Draw>]) -> Vec<i32> {
    let vocab = logits.len() / draws.len();
    let rows = draws.iter().enumerate().map(|(row, draw)| {
        let range = row * vocab..(row + 1) * vocab;
        let counts = match counts.is_empty() {
            true => &mut [],
            false => &mut counts[range.clone()],
        };
        draw.map_or(0, |draw| sample_row(&logits[range], counts, &draw))
    });
    rows.collect()
}

#[track_caller]
fn assert_tokens<O: Body>(what: &str, values: &[f32], draws: &[Option<Draw>]) {
    let (rows, vocab) = (draws.len(), values.len() / draws.len());
    let found = O::sample(tensor(values, [rows, vocab]), None, draws);
    assert!(found.counts.is_none());
    let expected = by_rows(values, &mut [], draws);
    assert_eq!(numbers(found.ids), expected, "{what}");
}

fn every_kind_of_draw_chooses_what_the_host_does<O: Body>() {
    let sizes = [
        (1, 1),
        (1, 257),
        (7, 257),
        (3, 4099),
        (1, 65536),
        (7, 65536),
    ];
    for (rows, vocab) in sizes {
        let values = logits(rows, vocab);
        for (index, kind) in kinds().into_iter().enumerate() {
            let draws = (0..rows).map(|row| {
                let uniform = match (index + row) % 5 {
                    0 => 0,
                    1 => u32::MAX,
                    _ => bits((index * 10 + row) as u32),
                };
                Some(Draw { uniform, ..kind })
            });
            let draws: Vec<_> = draws.collect();
            assert_tokens::<O>(&format!("[{rows}, {vocab}], {draws:?}"), &values, &draws);
        }
    }
}

fn rows_may_have_different_draws<O: Body>() {
    let kinds = kinds();
    let values = logits(kinds.len(), 1000);
    let draws = kinds.iter().enumerate();
    let draws: Vec<_> = draws
        .map(|(row, &kind)| {
            let uniform = bits(row as u32);
            (row % 7 != 3).then_some(Draw { uniform, ..kind })
        })
        .collect();
    assert_tokens::<O>("kinds", &values, &draws);
}

/// Logits of few bits are often equal, also where the cut is.
fn ties_fall_to_the_lower_ids<O: Body>() {
    for (vocab, steps) in [(257, 2.0), (5000, 8.0), (5000, 0.01)] {
        let rounded = logits(1, vocab)
            .into_iter()
            .map(|x| (x * steps).round() / steps);
        let values: Vec<f32> = rounded.collect();
        for (index, kind) in kinds().into_iter().enumerate() {
            let uniform = bits(index as u32);
            let draws = [Some(Draw { uniform, ..kind })];
            assert_tokens::<O>(&format!("{vocab}, {steps}, {draws:?}"), &values, &draws);
        }
    }
    let equal = vec![-2.5; 4099];
    for (top_k, uniform, expected) in [(0, 0, 0), (0, u32::MAX, 4098), (10, u32::MAX, 9)] {
        let draw = Draw {
            top_k,
            uniform,
            ..WARM
        };
        let found = O::sample(tensor(&equal, [1, 4099]), None, &[Some(draw)]);
        assert_eq!(numbers(found.ids), [expected]);
    }
}

pub(crate) fn counts_are_kept_from_token_to_token<O: Body>() {
    let (rows, vocab) = (5, 260);
    let mut expected = vec![0.0; rows * vocab];
    // Bans of different tokens in each row.
    for row in 0..rows {
        (0..row).for_each(|i| expected[row * vocab + 7 * i] = BANNED);
    }
    let mut counts = tensor::<O::B>(&expected, [rows, vocab]);
    for step in 0..25 {
        let values: Vec<f32> = Array::normal([1, 1, rows, vocab], 90 + step / 5)
            .values
            .iter()
            .map(|&x| 2.0 * x as f32)
            .collect();
        let draws = (0..rows as u32).map(|row| {
            // The last row ends.
            (row < 4 || step < 10).then(|| Draw {
                temperature: row as f32 / 2.0,
                top_p: 0.8,
                top_k: 50,
                presence_penalty: 0.3 * row as f32,
                frequency_penalty: 0.7 - 0.31 * row as f32,
                penalty_decay: [0.996, 0.9, 0.0, 1.0, 0.37][row as usize],
                uniform: bits(step as u32 * 5 + row),
            })
        });
        let draws: Vec<_> = draws.collect();
        let sampled = O::sample(tensor(&values, [rows, vocab]), Some(counts), &draws);
        counts = sampled.counts.expect("counts come back");
        let tokens = by_rows(&values, &mut expected, &draws);
        assert_eq!(numbers(sampled.ids), tokens, "step {step}");
        let found: Vec<f32> = counts.clone().into_data().iter().collect();
        assert_eq!(found, expected, "step {step}");
    }
    assert!(expected.iter().any(|&count| count > 1.0));
}

fn what_others_hold_stays_as_it_is<O: Body>() {
    let around = tensor::<O::B>(&logits(6, 30), [6, 30]);
    let counts = tensor::<O::B>(&[1.5; 40], [4, 10]);
    let (logits, before) = (
        around.clone().slice([1..5, 8..18]),
        around.clone().into_data(),
    );
    let draws = [Some(Draw {
        presence_penalty: 1.0,
        ..GREEDY
    }); 4];
    let values: Vec<f32> = logits.clone().into_data().iter().collect();
    let mut expected = vec![1.5; 40];
    let tokens = by_rows(&values, &mut expected, &draws);
    let sampled = O::sample(logits, Some(counts.clone()), &draws);
    assert_eq!(numbers(sampled.ids), tokens);
    let found: Vec<f32> = sampled.counts.expect("counts").into_data().iter().collect();
    assert_eq!(found, expected);
    assert_eq!(around.into_data(), before);
    let held: Vec<f32> = counts.into_data().iter().collect();
    assert_eq!(held, [1.5; 40]);
}

fn what_cannot_be_chosen_is_told<O: Body>() {
    let vocab = 1000;
    let mut values = logits(6, vocab);
    values[17] = f32::NAN;
    values[vocab + 999] = f32::INFINITY;
    values[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
    let mut counts = vec![0.0; 6 * vocab];
    counts[3 * vocab..4 * vocab].fill(BANNED);
    // A ban and an excluded word leave one.
    values[4 * vocab + 1..5 * vocab].fill(f32::NEG_INFINITY);
    values[4 * vocab + 77] = -1e30;
    counts[4 * vocab] = BANNED;
    for draw in [GREEDY, WARM, Draw { top_p: 0.5, ..WARM }] {
        let draw = Draw {
            uniform: bits(3),
            ..draw
        };
        let draws = [Some(draw); 6];
        let expected = by_rows(&values, &mut counts.clone(), &draws);
        assert_eq!(
            expected[..5],
            [NOT_A_NUMBER, NOT_A_NUMBER, NONE_LEFT, NONE_LEFT, 77]
        );
        let counts = tensor::<O::B>(&counts, [6, vocab]);
        let found = O::sample(tensor(&values, [6, vocab]), Some(counts), &draws);
        assert_eq!(numbers(found.ids), expected);
    }
}

fn huge_logits_overflow_nothing<O: Body>() {
    for scale in [1e4, 1e30, 1e-30, 1e-42] {
        let values: Vec<f32> = logits(3, 500).into_iter().map(|x| x * scale).collect();
        for top_k in [0, 20] {
            let uniform = bits(8);
            let draws = [Some(Draw {
                top_k,
                uniform,
                ..WARM
            }); 3];
            assert_tokens::<O>(&format!("{scale:e}"), &values, &draws);
        }
    }
}

fn logits_may_have_fewer_bits<O: Body>(dtype: DType) {
    for vocab in [1001, 4096] {
        let narrow = tensor::<O::B>(&logits(3, vocab), [3, vocab]).cast(dtype);
        let values: Vec<f32> = narrow.clone().cast(DType::F32).into_data().iter().collect();
        for (index, kind) in kinds().into_iter().enumerate() {
            let uniform = bits(index as u32);
            let draws = [Some(Draw { uniform, ..kind }); 3];
            let found = O::sample(narrow.clone(), None, &draws);
            let expected = by_rows(&values, &mut [], &draws);
            assert_eq!(numbers(found.ids), expected, "{dtype:?} {vocab} {kind:?}");
        }
    }
}

crate::on_all_bodies!(
    every_kind_of_draw_chooses_what_the_host_does,
    rows_may_have_different_draws,
    ties_fall_to_the_lower_ids,
    counts_are_kept_from_token_to_token,
    what_others_hold_stays_as_it_is,
    what_cannot_be_chosen_is_told,
    huge_logits_overflow_nothing,
);

#[test]
fn logits_may_have_fewer_bits_on_flex() {
    logits_may_have_fewer_bits::<Native<Flex>>(DType::F16);
    logits_may_have_fewer_bits::<Native<Flex>>(DType::BF16);
}

#[cfg(feature = "cuda")]
#[test]
fn logits_may_have_fewer_bits_on_cuda() {
    logits_may_have_fewer_bits::<Native<burn::backend::Cuda>>(DType::F16);
    logits_may_have_fewer_bits::<Native<burn::backend::Cuda>>(DType::BF16);
}

/// The software Vulkan has no bf16.
#[cfg(feature = "vulkan")]
#[test]
fn logits_may_have_fewer_bits_on_vulkan() {
    logits_may_have_fewer_bits::<Native<crate::Vulkan>>(DType::F16);
}

/// The tokens that top-k and top-p keep, and between which shares of the sum in the order of ids each is chosen, in f64.
fn shares(logits: &[f32], draw: &Draw) -> Vec<(usize, f64, f64)> {
    let probability = |x: f32| f64::from(x).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a])); // stable
    let total: f64 = logits.iter().map(|&x| probability(x)).sum();
    let mut sum = 0.0;
    let reached = order.iter().position(|&id| {
        sum += probability(logits[id]) / total;
        sum >= f64::from(draw.top_p)
    });
    let kept = reached.map_or(order.len(), |last| last + 1);
    order.truncate(match draw.top_k {
        0 => kept,
        most => kept.min(most),
    });
    order.sort_unstable();
    let weight = |id: usize| probability(logits[id]).powf(1.0 / f64::from(draw.temperature));
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut sum = 0.0;
    let interval = |&id: &usize| {
        let from = sum;
        sum += weight(id) / total;
        (id, from, sum)
    };
    order.iter().map(interval).collect()
}

#[test]
fn tokens_are_chosen_by_their_probabilities() {
    // What integers of 31 bits and a factor in f32 may be off, in shares of the whole.
    const SLACK: f64 = 1e-5;
    let values = logits(1, 5000);
    for (temperature, top_k, top_p) in [
        (1.0, 0, 1.0),
        (0.5, 0, 0.9),
        (2.0, 0, 0.5),
        (1.3, 30, 1.0),
        (0.8, 12, 0.99),
        (5.0, 0, 1.0),
    ] {
        let mut chosen = std::collections::HashSet::new();
        for seed in 0..200 {
            let draw = Draw {
                temperature,
                top_k,
                top_p,
                uniform: bits(seed),
                ..GREEDY
            };
            let token = sample_row(&values, &mut [], &draw) as usize;
            let at = f64::from(draw.uniform) / 2f64.powi(32);
            let shares = shares(&values, &draw);
            let (_, from, to) = shares
                .into_iter()
                .find(|&(id, ..)| id == token)
                .unwrap_or_else(|| panic!("{token} is not kept by {draw:?}"));
            assert!(
                from - SLACK <= at && at <= to + SLACK,
                "{token} of {draw:?}: {at} is not from {from} to {to}"
            );
            chosen.insert(token);
        }
        assert!(chosen.len() > 2, "{chosen:?}");
    }
}

#[test]
fn wrong_shapes_are_named() {
    fn message(run: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(run).expect_err("a wrong shape");
        *panic.downcast::<String>().expect("a message with numbers")
    }
    let zeros = |shape: [usize; 2]| Tensor::<Flex, 2>::zeros(shape, &Default::default());
    for (logits, counts, draws, expected) in [
        (
            [0, 5],
            [0, 5],
            0,
            "`logits` must be [rows, vocab] with no axis empty, found [0, 5]",
        ),
        (
            [3, 5],
            [3, 5],
            2,
            "`draws` must be one for each of 3 rows, found 2",
        ),
        (
            [3, 5],
            [3, 4],
            3,
            "`counts` must be [rows, vocab] = [3, 5], found [3, 4]",
        ),
    ] {
        let found = message(move || {
            sample(
                zeros(logits),
                Some(zeros(counts)),
                &vec![Some(GREEDY); draws],
            );
        });
        assert_eq!(found, format!("sample: {expected}"));
    }
}
