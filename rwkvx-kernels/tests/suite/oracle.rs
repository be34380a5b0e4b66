//! The operators as their equations read, in f64: a plain recurrence, and attention over every visible key.

use crate::support::Array;
use rwkvx_kernels::ChunkTopK;

/// Inputs `[receptance, log_decay, key, value, removal, replacement]` and the first state; output and last state.
pub(crate) fn wkv7(inputs: &[Array; 6], state: Option<&Array>) -> (Array, Array) {
    let [r, log_w, k, v, a, b] = inputs;
    let [batch, time, heads, n] = r.shape;
    let mut states = match state {
        Some(state) => state.values.clone(),
        None => vec![0.0; batch * heads * n * n],
    };
    let mut output = vec![0.0; r.values.len()];
    for bi in 0..batch {
        for t in 0..time {
            for h in 0..heads {
                let at = ((bi * time + t) * heads + h) * n..((bi * time + t) * heads + h) * n + n;
                let row = |x: &Array| x.values[at.clone()].to_vec();
                let (r, log_w, k, v, a, b) = (row(r), row(log_w), row(k), row(v), row(a), row(b));
                let state = &mut states[(bi * heads + h) * n * n..][..n * n];
                for i in 0..n {
                    let s = &mut state[i * n..][..n];
                    let removed: f64 = s.iter().zip(&a).map(|(s, a)| s * a).sum();
                    for j in 0..n {
                        s[j] = s[j] * log_w[j].exp() + removed * b[j] + v[i] * k[j];
                    }
                    output[at.start + i] = s.iter().zip(&r).map(|(s, r)| s * r).sum();
                }
            }
        }
    }
    (
        Array {
            shape: r.shape,
            values: output,
        },
        Array {
            shape: [batch, heads, n, n],
            values: states,
        },
    )
}

/// Which chunks each query sees: `[batch, heads, time, chunks]` of zeros and ones. Inputs are `[batch, time, heads, head_size]`.
pub(crate) fn chosen_chunks(q: &Array, k: &Array, shape: ChunkTopK) -> Array {
    let [batch, time, heads, n] = q.shape;
    let chunks = time.div_ceil(shape.chunk_size);
    let row = |x: &Array, b: usize, t: usize, h: usize| {
        x.values[((b * time + t) * heads + h) * n..][..n].to_vec()
    };
    let mut mask = vec![0.0; batch * heads * time * chunks];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..time {
                let own = t / shape.chunk_size;
                let query = row(q, b, t, h);
                let mut scores: Vec<(usize, f64)> = (0..own)
                    .map(|c| {
                        let mean_score = (0..shape.chunk_size)
                            .map(|i| dot(&query, &row(k, b, c * shape.chunk_size + i, h)))
                            .sum::<f64>();
                        (c, mean_score)
                    })
                    .collect();
                scores.sort_by(|x, y| y.1.total_cmp(&x.1)); // stable: of equal scores the earlier chunk first
                let seen = &mut mask[((b * heads + h) * time + t) * chunks..][..chunks];
                seen[own] = 1.0;
                for (c, _) in scores.into_iter().take(shape.top_k - 1) {
                    seen[c] = 1.0;
                }
            }
        }
    }
    Array {
        shape: [batch, heads, time, chunks],
        values: mask,
    }
}

/// Attention to the keys that `mask` (see [`chosen_chunks`]) and causality leave.
pub(crate) fn attention(q: &Array, k: &Array, v: &Array, mask: &Array, chunk_size: usize) -> Array {
    let [batch, time, heads, n] = q.shape;
    let chunks = mask.shape[3];
    let row = |x: usize, t: usize, h: usize| ((x * time + t) * heads + h) * n;
    let mut output = vec![0.0; q.values.len()];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..time {
                let query = &q.values[row(b, t, h)..][..n];
                let seen = &mask.values[((b * heads + h) * time + t) * chunks..][..chunks];
                let visible: Vec<usize> = (0..=t).filter(|s| seen[s / chunk_size] == 1.0).collect();
                let scores: Vec<f64> = visible
                    .iter()
                    .map(|&s| dot(query, &k.values[row(b, s, h)..][..n]) / (n as f64).sqrt())
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (&s, weight) in visible.iter().zip(&weights) {
                    for i in 0..n {
                        output[row(b, t, h) + i] += weight / total * v.values[row(b, s, h) + i];
                    }
                }
            }
        }
    }
    Array {
        shape: q.shape,
        values: output,
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
