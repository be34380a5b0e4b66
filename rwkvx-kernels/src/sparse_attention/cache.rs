//! Keys, values and chunk means of the tokens so far.

use burn::tensor::{DType, Tensor, TensorCreationOptions, backend::Backend};

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
/// A clone shares the buffers until one of the two appends, which then copies them.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    batch: usize,
    heads: usize,
    head_size: usize,
    shape: ChunkTopK,
    /// Of keys and values.
    options: TensorCreationOptions<B>,
    len: usize,
    /// `None` until the first token.
    rows: Option<CachedRows<B>>,
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
        self.rows.as_ref().map_or(0, |rows| {
            [Some(&rows.keys), Some(&rows.values), rows.means.as_ref()]
                .into_iter()
                .flatten()
                .map(|buffer| buffer.shape().num_elements() * buffer.dtype().size())
                .sum()
        })
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
        check_sequences(&query, &key, &value);
        let [_, time, _, _] = query.dims();
        let expected = [self.batch, time, self.heads, self.head_size];
        shapes::expect(
            "KvCache::attend",
            "query",
            "[batch, time, heads, head_size]",
            &query,
            expected,
        );

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

    /// Buffers that hold `tokens`: the same, or twice as long or more.
    fn grown(&self, rows: Option<CachedRows<B>>, tokens: usize) -> CachedRows<B> {
        let capacity = |buffer: &Tensor<B, 4>| buffer.dims()[2];
        let Some(rows) = rows else {
            let time = tokens.next_multiple_of(self.shape.chunk_size);
            return CachedRows {
                keys: self.zeros(time, self.options.clone()),
                values: self.zeros(time, self.options.clone()),
                means: None,
            };
        };
        if capacity(&rows.keys) >= tokens {
            return rows;
        }
        let time = tokens
            .max(2 * capacity(&rows.keys))
            .next_multiple_of(self.shape.chunk_size);
        CachedRows {
            keys: self.moved(rows.keys, self.len, time),
            values: self.moved(rows.values, self.len, time),
            means: rows.means,
        }
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
