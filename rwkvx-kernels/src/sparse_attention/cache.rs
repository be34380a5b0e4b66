//! Keys, values and chunk means of the tokens so far.

use burn::tensor::{DType, Int, Tensor, TensorCreationOptions, TensorData, backend::Backend};

use super::budget::{CacheBudget, most_observed};
use super::{ChunkTopK, check_sequences};
use crate::{KernelBackend, shapes};

/// The rows that queries attend to. All buffers may be longer than what they hold.
#[derive(Debug, Clone)]
pub struct CachedRows<B: Backend> {
    /// `[batch, heads, capacity, head_size]`; the capacity is a whole number of chunks.
    pub keys: Tensor<B, 4>,
    /// `[batch, heads, capacity, head_size]`
    pub values: Tensor<B, 4>,
    /// Mean key of each complete chunk, `[batch, heads, at least the complete chunks, head_size]`, f32. `None` while no chunk
    /// is complete.
    pub means: Option<Tensor<B, 4>>,
}

/// The keys and values of one sparse-attention layer, for inference.
///
/// Buffers double when full, so a token costs amortised constant time to append, and a chunk's mean is computed once, when
/// its last key arrives. Feeding a sequence in any pieces gives exactly what [`sparse_attention`](crate::sparse_attention()) gives for the whole.
///
/// With a [`CacheBudget`] the buffers grow no further than that, and a full cache lets tokens go.
///
/// A clone shares the buffers until one of the two appends, which then copies them.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    batch: usize,
    heads: usize,
    head_size: usize,
    shape: ChunkTopK,
    /// Of keys and values.
    options: TensorCreationOptions<B>,
    /// Rows held.
    len: usize,
    /// `None` until the first token.
    rows: Option<CachedRows<B>>,
    observed: Option<Observed<B>>,
}

/// What a cache holds, to be kept elsewhere.
#[derive(Debug, Clone)]
pub struct CacheContents<B: Backend> {
    /// `[batch, heads, rows, head_size]`
    pub keys: Tensor<B, 4>,
    /// `[batch, heads, rows, head_size]`
    pub values: Tensor<B, 4>,
    /// With a budget, the queries that will choose: `[batch, heads, observers, head_size]`.
    pub queries: Option<Tensor<B, 4>>,
    /// Tokens seen, those let go included.
    pub tokens: usize,
}

/// What a cache with a budget remembers to shrink by.
#[derive(Debug, Clone)]
struct Observed<B: Backend> {
    budget: CacheBudget,
    /// The last queries, `[batch, heads, observers, head_size]`, that of token `t` at `t % observers`.
    queries: Tensor<B, 4>,
    /// Tokens so far, those let go included.
    tokens: usize,
}

impl<B: KernelBackend> KvCache<B> {
    /// An empty cache on a device, `&device`, for keys and values of a type of one's own, `(&device, dtype)`, or the device's default.
    ///
    /// # Panics
    /// If a size is zero.
    pub fn new(
        batch: usize,
        heads: usize,
        head_size: usize,
        shape: ChunkTopK,
        options: impl Into<TensorCreationOptions<B>>,
    ) -> Self {
        shape.check();
        assert!(
            batch > 0 && heads > 0 && head_size > 0,
            "KvCache: [batch, heads, head_size] must not be zero, found [{batch}, {heads}, {head_size}]"
        );
        Self {
            batch,
            heads,
            head_size,
            shape,
            options: options.into(),
            len: 0,
            rows: None,
            observed: None,
        }
    }

    /// The same empty cache, which will never hold more than `budget` says.
    ///
    /// # Panics
    /// If the budget is impossible or the cache is not empty.
    pub fn with_budget(mut self, budget: CacheBudget) -> Self {
        if let Some(error) = budget.error() {
            panic!("KvCache: {error}");
        }
        assert!(
            self.is_empty(),
            "KvCache: a budget is set before the first token"
        );
        self.observed = Some(Observed {
            budget,
            queries: self.zeros(budget.observers, self.options.clone()),
            tokens: 0,
        });
        self
    }

    /// What it may hold, if that is bounded.
    pub fn budget(&self) -> Option<CacheBudget> {
        self.observed.as_ref().map(|observed| observed.budget)
    }

    /// What it holds; `None` before the first token.
    pub fn contents(&self) -> Option<CacheContents<B>> {
        let rows = self.rows.as_ref().filter(|_| self.len > 0)?;
        let held = |buffer: &Tensor<B, 4>| {
            let range = [0..self.batch, 0..self.heads, 0..self.len];
            buffer.clone().slice(range)
        };
        let observed = self.observed.as_ref();
        Some(CacheContents {
            keys: held(&rows.keys),
            values: held(&rows.values),
            queries: observed.map(|observed| observed.queries.clone()),
            tokens: observed.map_or(self.len, |observed| observed.tokens),
        })
    }

    /// Takes in what another cache held, in place of what this one holds.
    ///
    /// # Panics
    /// If the sizes or budgets of the two differ.
    pub fn restore(&mut self, contents: CacheContents<B>) {
        let CacheContents {
            keys,
            values,
            queries,
            tokens,
        } = contents;
        let [_, _, rows, _] = keys.dims();
        let expected = [self.batch, self.heads, rows, self.head_size];
        for (name, tensor) in [("keys", &keys), ("values", &values)] {
            let axes = "[batch, heads, rows, head_size]";
            shapes::expect("KvCache::restore", name, axes, tensor, expected);
        }
        (self.len, self.rows) = (0, None);
        let mut held = self.grown(None, rows);
        held.keys = B::write_rows(held.keys, 0, keys.swap_dims(1, 2));
        held.values = B::write_rows(held.values, 0, values.swap_dims(1, 2));
        self.len = rows;
        held.means = self.with_new_means(None, &held.keys, 0);
        self.rows = Some(held);
        match (&mut self.observed, queries) {
            (None, None) => {}
            (Some(observed), Some(queries)) => {
                let axes = "[batch, heads, observers, head_size]";
                let expected = observed.queries.dims();
                shapes::expect("KvCache::restore", "queries", axes, &queries, expected);
                (observed.queries, observed.tokens) = (queries, tokens);
            }
            _ => panic!("KvCache::restore: one cache has a budget, the other has none"),
        }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the buffers, what they hold and what they could hold.
    pub fn bytes(&self) -> usize {
        let rows = self.rows.iter();
        let buffers =
            rows.flat_map(|rows| [Some(&rows.keys), Some(&rows.values), rows.means.as_ref()]);
        buffers
            .flatten()
            .chain(self.observed.iter().map(|observed| &observed.queries))
            .map(|buffer| buffer.shape().num_elements() * buffer.dtype().size())
            .sum()
    }

    /// Bytes of keys, values and chunk means that the next token reads, all heads and texts together.
    pub fn step_bytes(&self) -> usize {
        let Some(rows) = &self.rows else {
            return 0;
        };
        let visible = self.len.min(self.shape.top_k * self.shape.chunk_size);
        let scored = match self.len > visible {
            true => self.len / self.shape.chunk_size,
            false => 0,
        };
        let row = self.batch * self.heads * self.head_size;
        row * (2 * visible * rows.keys.dtype().size() + scored * size_of::<f32>())
    }

    /// Makes room for `tokens` in all, so that no later append has to move the buffers until then.
    pub fn reserve(&mut self, tokens: usize) {
        let rows = self.rows.take();
        self.rows = Some(self.grown(rows, tokens));
    }

    /// Appends T keys and values and attends for the T queries; all are `[batch, T, heads, head_size]`, T >= 1.
    ///
    /// For inference: no gradient flows through the cache to earlier pieces.
    ///
    /// # Panics
    /// If the three differ in shape, or their batch, heads or head size are not those of the cache.
    pub fn attend(
        &mut self,
        query: Tensor<B, 4>,
        key: Tensor<B, 4>,
        value: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        check_sequences(
            "sparse_attention",
            &query,
            &[("key", &key), ("value", &value)],
        );
        let [_, time, _, _] = query.dims();
        let expected = [self.batch, time, self.heads, self.head_size];
        shapes::expect(
            "KvCache::attend",
            "query",
            "[batch, time, heads, head_size]",
            &query,
            expected,
        );

        let Some(max) = self.observed.as_ref().map(|observed| observed.budget.max) else {
            return self.append(query, key, value);
        };
        let mut outputs = Vec::new();
        let mut from = 0;
        while from < time {
            if self.len == max {
                self.shrink();
            }
            let to = time.min(from + max - self.len);
            let [query, key, value] =
                [&query, &key, &value].map(|x| x.clone().slice([0..self.batch, from..to]));
            self.remember(query.clone());
            outputs.push(self.append(query, key, value));
            from = to;
        }
        Tensor::cat(outputs, 1)
    }

    /// [`attend`](Self::attend) where there is room.
    fn append(
        &mut self,
        query: Tensor<B, 4>,
        key: Tensor<B, 4>,
        value: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let [_, time, _, _] = query.dims();
        let start = self.len;
        let rows = self.rows.take();
        let mut rows = self.grown(rows, start + time);
        let dtype = rows.keys.dtype();
        rows.keys = B::write_rows(rows.keys, start, key.cast(dtype));
        rows.values = B::write_rows(rows.values, start, value.cast(dtype));
        self.len += time;
        rows.means = self.with_new_means(rows.means, &rows.keys, start);
        let output = B::attend_cached(query, start, &rows, self.shape);
        self.rows = Some(rows);
        output
    }

    /// Keeps the last of these queries, `[batch, time, heads, head_size]`, in place of the oldest.
    fn remember(&mut self, query: Tensor<B, 4>) {
        let Some(mut observed) = self.observed.take() else {
            return;
        };
        let [batch, time, _, _] = query.dims();
        let observers = observed.budget.observers;
        let mut from = time.saturating_sub(observers);
        while from < time {
            let at = (observed.tokens + from) % observers;
            let to = time.min(from + observers - at);
            let queries = query.clone().slice([0..batch, from..to]);
            observed.queries = B::write_rows(observed.queries, at, queries);
            from = to;
        }
        observed.tokens += time;
        self.observed = Some(observed);
    }

    /// Lets go of the rows that the last queries attended to least.
    fn shrink(&mut self) {
        let (Some(observed), Some(mut rows)) = (&self.observed, self.rows.take()) else {
            return;
        };
        let CacheBudget { min, window, .. } = observed.budget;
        let old = self.len - window;
        let dtype = observed.queries.dtype();
        let earlier = rows
            .keys
            .clone()
            .slice([0..self.batch, 0..self.heads, 0..old])
            .cast(dtype);
        let kept = most_observed(observed.queries.clone(), earlier, min - window);
        // Indices into all rows of all heads, one after the other.
        let capacity = rows.keys.dims()[2];
        let index: Vec<i64> = kept
            .iter()
            .enumerate()
            .flat_map(|(head, kept)| {
                let kept = kept.iter().copied().chain(old..self.len);
                kept.map(move |row| (head * capacity + row) as i64)
            })
            .collect();
        let index = TensorData::new(index, [self.batch * self.heads * min]);
        let index = Tensor::<B, 1, Int>::from_data(index, &self.options.device);
        let shrunk = |buffer: Tensor<B, 4>| {
            let [batch, heads, capacity, size] = buffer.dims();
            let kept = buffer
                .clone()
                .reshape([batch * heads * capacity, size])
                .select(0, index.clone())
                .reshape([batch, heads, min, size]);
            B::write_rows(buffer, 0, kept.swap_dims(1, 2))
        };
        rows.keys = shrunk(rows.keys);
        rows.values = shrunk(rows.values);
        self.len = min;
        rows.means = self.with_new_means(rows.means, &rows.keys, 0);
        self.rows = Some(rows);
    }

    /// Buffers that hold `tokens`: the same, or twice as long or more.
    fn grown(&self, rows: Option<CachedRows<B>>, tokens: usize) -> CachedRows<B> {
        let capacity = |buffer: &Tensor<B, 4>| buffer.dims()[2];
        let Some(rows) = rows else {
            let time = self.capacity_for(tokens);
            return CachedRows {
                keys: self.zeros(time, self.options.clone()),
                values: self.zeros(time, self.options.clone()),
                means: None,
            };
        };
        if capacity(&rows.keys) >= self.capacity_for(tokens) {
            return rows;
        }
        let time = self.capacity_for(tokens.max(2 * capacity(&rows.keys)));
        CachedRows {
            keys: self.moved(rows.keys, self.len, time),
            values: self.moved(rows.values, self.len, time),
            means: rows.means,
        }
    }

    /// Rows of buffers for so many tokens: whole chunks, and no more than the budget needs.
    fn capacity_for(&self, tokens: usize) -> usize {
        let most = self
            .observed
            .as_ref()
            .map_or(tokens, |observed| observed.budget.max);
        tokens.min(most).next_multiple_of(self.shape.chunk_size)
    }

    /// Adds the means of the chunks that were completed since the cache held `start` tokens.
    fn with_new_means(
        &self,
        means: Option<Tensor<B, 4>>,
        keys: &Tensor<B, 4>,
        start: usize,
    ) -> Option<Tensor<B, 4>> {
        let size = self.shape.chunk_size;
        let (old, complete) = (start / size, self.len / size);
        if old == complete {
            return means;
        }
        let new_means = B::mean_rows(keys, old..complete, size).swap_dims(1, 2);
        let buffer = match means {
            Some(buffer) if buffer.dims()[2] >= complete => buffer,
            Some(buffer) => self.moved(buffer, old, complete.max(2 * old)),
            None => self.zeros(complete, (&self.options.device, DType::F32)),
        };
        Some(B::write_rows(buffer, old, new_means))
    }

    /// The first `held` rows of `buffer` in a new one of `capacity` rows.
    fn moved(&self, buffer: Tensor<B, 4>, held: usize, capacity: usize) -> Tensor<B, 4> {
        /// Rows at a time: what lies between the two buffers stays small.
        const BLOCK: usize = 4096;
        let options = (&self.options.device, buffer.dtype());
        let mut target = self.zeros(capacity, options);
        for from in (0..held).step_by(BLOCK) {
            let to = held.min(from + BLOCK);
            let rows = buffer
                .clone()
                .slice([0..self.batch, 0..self.heads, from..to]);
            target = B::write_rows(target, from, rows.swap_dims(1, 2));
        }
        target
    }

    fn zeros(&self, capacity: usize, options: impl Into<TensorCreationOptions<B>>) -> Tensor<B, 4> {
        Tensor::zeros([self.batch, self.heads, capacity, self.head_size], options)
    }
}
