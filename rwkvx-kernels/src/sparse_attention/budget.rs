//! How many tokens a cache holds, and which it lets go (after SnapKV, arXiv 2404.14469).

use burn::tensor::{Tensor, activation, backend::Backend};

/// Bounds on the tokens of a [`KvCache`](crate::KvCache).
///
/// A full cache shrinks before it takes in a token more. The last `window` rows stay. Of the earlier ones every head keeps those to which the
/// last `observers` queries attend most: by the sum over these queries of the softmax over the earlier rows. Kept rows stay in the order of
/// their tokens, and chunks are from then on chunks of kept rows.
///
/// When a cache shrinks depends on the number of tokens alone, not on the pieces they come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBudget {
    /// Rows at which the cache is full.
    pub max: usize,
    /// Rows that it shrinks to.
    pub min: usize,
    /// Last rows that always stay.
    pub window: usize,
    /// Last queries that choose among the others.
    pub observers: usize,
}

impl Default for CacheBudget {
    /// As published: 20000 to 16000, of which 2000 are the last.
    fn default() -> Self {
        Self::of(20_000)
    }
}

impl CacheBudget {
    /// A budget of at most `max` rows in the published proportions: it shrinks by a fifth, and a tenth are the last; up to 64 queries choose.
    pub fn of(max: usize) -> Self {
        let window = max / 10;
        Self {
            max,
            min: max / 5 * 4,
            window,
            observers: window.min(64),
        }
    }

    /// Why this budget is impossible, if it is.
    pub fn error(&self) -> Option<String> {
        let Self {
            max,
            min,
            window,
            observers,
        } = *self;
        let in_order = 0 < observers && observers <= window && window < min && min < max;
        (!in_order).then(|| {
            format!(
                "a cache of at most {max} tokens that shrinks to {min}, the last {window} among them, by the choice of {observers} queries: \
                 these numbers must fall from one to the next and end above 0"
            )
        })
    }
}

/// Per batch and head, the `count` rows of `keys` `[batch, heads, rows, head_size]` to which `queries` `[batch, heads, queries, head_size]` attend
/// most, in rising order. Of equal rows the earlier is taken.
pub fn most_observed<B: Backend>(
    queries: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    count: usize,
) -> Vec<Vec<usize>> {
    /// Elements of the scores of one block of queries: 16 MiB of f32.
    const BLOCK: usize = 1 << 22;
    let [batch, heads, rows, head_size] = keys.dims();
    let [_, _, observers, _] = queries.dims();
    let block = (BLOCK / (batch * heads * rows)).max(1);
    let queries = queries * (head_size as f64).powf(-0.5);
    let keys = keys.swap_dims(2, 3);
    let mut seen = Tensor::<B, 4>::zeros([batch, heads, 1, rows], &keys.device());
    for from in (0..observers).step_by(block) {
        let to = observers.min(from + block);
        let scores = queries
            .clone()
            .slice([0..batch, 0..heads, from..to])
            .matmul(keys.clone()); // [batch, heads, block, rows]
        seen = seen + activation::softmax(scores, 3).sum_dim(2);
    }
    let seen: Vec<f32> = seen.into_data().iter::<f32>().collect();
    seen.chunks_exact(rows)
        .map(|weights| {
            let mut order: Vec<usize> = (0..rows).collect();
            order.sort_by(|&i, &j| weights[j].total_cmp(&weights[i]));
            order.truncate(count);
            order.sort_unstable();
            order
        })
        .collect()
}
