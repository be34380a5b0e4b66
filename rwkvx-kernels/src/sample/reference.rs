//! The definition, on the host.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::rule::{IMPOSSIBLE, Rule, distance, faded, penalised, weight};
use super::{Draw, NONE_LEFT, NOT_A_NUMBER, Sampled};

/// The body of [`KernelBackend::sample`](crate::KernelBackend::sample).
pub fn sample<B: Backend>(
    logits: Tensor<B, 2>,
    counts: Option<Tensor<B, 2>>,
    draws: &[Option<Draw>],
) -> Sampled<B> {
    let device = logits.device();
    let [rows, vocab] = logits.dims();
    let numbers = |tensor: Tensor<B, 2>| -> Vec<f32> {
        let data = tensor.cast(DType::F32).into_data();
        data.into_vec().expect("cast to f32")
    };
    let logits = numbers(logits);
    let mut counts = counts.map(numbers);
    let ids = (0..rows).map(|row| {
        let range = row * vocab..(row + 1) * vocab;
        let counts = counts.as_mut().map(|counts| &mut counts[range.clone()]);
        let draw = draws[row].as_ref();
        draw.map_or(0, |draw| {
            sample_row(&logits[range], counts.unwrap_or_default(), draw)
        })
    });
    let ids: Vec<i32> = ids.collect();
    Sampled {
        ids: Tensor::from_data(TensorData::new(ids, [rows]), &device),
        counts: counts
            .map(|counts| Tensor::from_data(TensorData::new(counts, [rows, vocab]), &device)),
    }
}

/// Chooses a token by its row of logits, as [`sample`](crate::sample()) does, and counts it; `counts` may be empty, for no penalties.
///
/// # Panics
/// If `counts` are neither as many as the logits nor empty.
pub fn sample_row(logits: &[f32], counts: &mut [f32], draw: &Draw) -> i32 {
    assert!(
        counts.is_empty() || counts.len() == logits.len(),
        "sample_row: {} counts for {} logits",
        counts.len(),
        logits.len()
    );
    let rule = Rule::from(draw);
    let value = |id: usize| {
        let count = counts.get(id).copied().unwrap_or(0.0);
        penalised(logits[id], count, &rule)
    };
    let mut best = f32::MIN;
    for id in 0..logits.len() {
        let value = value(id);
        if !value.is_finite() {
            return NOT_A_NUMBER;
        }
        best = best.max(value);
    }
    if best == f32::MIN {
        return NONE_LEFT;
    }
    let mut distances = (0..logits.len()).map(|id| distance(best, value(id)));
    let token = match rule.top_k {
        1 => distances.position(|distance| distance == 0),
        _ => drawn(&distances.collect::<Vec<u32>>(), &rule),
    };
    // The likeliest token is always there.
    let token = token.unwrap_or(0);
    counts
        .iter_mut()
        .for_each(|count| *count = faded(*count, rule.decay));
    if let Some(count) = counts.get_mut(token) {
        *count += 1.0;
    }
    token as i32
}

/// The token at which the sum of the kept weights passes the drawn share of it.
fn drawn(distances: &[u32], rule: &Rule) -> Option<usize> {
    let last = last_kept(distances, rule);
    let kept = distances.iter().enumerate();
    let kept = kept.filter(|&(id, &distance)| order(id, distance) <= last);
    let weights = kept.map(|(id, &distance)| (id, u64::from(weight(distance, rule.sharpness))));
    let total: u64 = weights.clone().map(|(_, weight)| weight).sum();
    let at = share(total, rule.uniform);
    let mut sum = 0;
    let mut passes = weights.skip_while(|(_, weight)| {
        sum += weight;
        sum <= at
    });
    passes.next().map(|(id, _)| id)
}

/// Tokens in the order in which they are kept.
fn order(id: usize, distance: u32) -> u64 {
    u64::from(distance) << 32 | id as u64
}

/// So many 2^-32 of `total`.
fn share(total: u64, fraction: u32) -> u64 {
    ((u128::from(total) * u128::from(fraction)) >> 32) as u64
}

/// The last token that is kept, as [`order`] has it.
fn last_kept(distances: &[u32], rule: &Rule) -> u64 {
    let last_possible = order(0, IMPOSSIBLE) - 1;
    if rule.top_p == 0 && rule.top_k == u32::MAX {
        return last_possible;
    }
    let weight = |distance| u64::from(weight(distance, std::f32::consts::LOG2_E));
    let enough = match rule.top_p {
        0 => u64::MAX,
        top_p => share(distances.iter().map(|&d| weight(d)).sum(), top_p).max(1),
    };
    let tokens = distances.iter().enumerate();
    let tokens = tokens.filter(|&(_, &distance)| distance < IMPOSSIBLE);
    // Few are kept as a rule, so that they need not all be sorted.
    let mut nearest: BinaryHeap<_> = tokens.map(|(id, &d)| Reverse(order(id, d))).collect();
    let (mut count, mut sum) = (0, 0);
    while let Some(Reverse(token)) = nearest.pop() {
        count += 1;
        sum += weight((token >> 32) as u32);
        if count >= rule.top_k || sum >= enough {
            return token;
        }
    }
    last_possible
}
