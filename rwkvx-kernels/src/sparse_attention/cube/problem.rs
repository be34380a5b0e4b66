//! What is asked of the kernels, and where things lie.

use cubecl::prelude::*;

/// One call. A sequence is one head of one batch element, `batch * heads + head`; strides count rows of `head_size` numbers.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug)]
pub(super) struct Problem {
    /// The first sequence of the launch.
    pub(super) first: usize,
    pub(super) heads: usize,
    /// Queries of a sequence; they are `[batch, query, heads, head_size]`.
    pub(super) queries: usize,
    /// Time of the first query.
    pub(super) start: usize,
    pub(super) chunk_size: usize,
    /// Most chunks that a query chooses.
    pub(super) slots: usize,
    /// Of the scores: true head size^-1/2.
    pub(super) scale: f32,
    /// From one batch element's keys to the next's.
    pub(super) key_batch: usize,
    /// From one head's keys to the next's.
    pub(super) key_head: usize,
    /// From one key to the next.
    pub(super) key_time: usize,
}

/// Queries of a tile, all of one chunk.
#[derive(CubeType)]
pub(super) struct OwnTile {
    pub(super) chunk: usize,
    /// Time of the first.
    pub(super) first: usize,
    /// Time after the last.
    pub(super) end: usize,
}

#[cube]
impl Problem {
    /// The sequence that this cube works on.
    pub(super) fn sequence(&self) -> usize {
        self.first + CUBE_POS_Y as usize
    }

    /// The number of a query among those of all sequences.
    pub(super) fn query(&self, sequence: usize, query: usize) -> usize {
        sequence * self.queries + query
    }

    /// The row of a query, or of its output.
    pub(super) fn query_row(&self, sequence: usize, query: usize) -> usize {
        let batch = sequence / self.heads;
        (batch * self.queries + query) * self.heads + sequence % self.heads
    }

    /// The row of a key, or of its value.
    pub(super) fn key_row(&self, sequence: usize, time: usize) -> usize {
        let batch = sequence / self.heads;
        batch * self.key_batch + sequence % self.heads * self.key_head + time * self.key_time
    }

    /// Where what is saved of a query begins, whose number is that of [`query`](Self::query): its log-sum-exp, then its choices.
    pub(super) fn saved(&self, query: usize) -> usize {
        query * (self.slots + 1)
    }

    /// The slot of this cube's sequence among those of the launch.
    pub(super) fn slot(&self, slot: usize) -> usize {
        CUBE_POS_Y as usize * (self.queries * self.slots) + slot
    }

    /// Tile `CUBE_POS_X` of `rows` queries, chunk after chunk.
    pub(super) fn own_tile(&self, #[comptime] rows: usize) -> OwnTile {
        let per_chunk = self.chunk_size.div_ceil(rows);
        let tile = CUBE_POS_X as usize;
        let chunk = self.start / self.chunk_size + tile / per_chunk;
        let first = chunk * self.chunk_size + tile % per_chunk * rows;
        let chunk_end = min((chunk + 1) * self.chunk_size, self.start + self.queries);
        OwnTile {
            chunk,
            first,
            end: min(chunk_end, first + rows),
        }
    }
}

impl Problem {
    /// With as many slots as there are chunks to choose, but its own is one of a query's `top_k`.
    pub(super) fn with_top_k(self, top_k: usize) -> Self {
        Self {
            slots: self.last_chunk().min(top_k - 1),
            ..self
        }
    }

    /// The chunk of the last query: chunks before it can be chosen.
    pub(super) fn last_chunk(&self) -> usize {
        (self.start + self.queries - 1) / self.chunk_size
    }

    /// Tiles of `rows` queries of one chunk that cover all queries.
    pub(super) fn own_tiles(&self, rows: usize) -> usize {
        let chunks = self.last_chunk() + 1 - self.start / self.chunk_size;
        chunks * self.chunk_size.div_ceil(rows)
    }

    /// As an argument of a kernel.
    pub(super) fn launch<R: Runtime>(self) -> ProblemLaunch<R> {
        ProblemLaunch::new(
            self.first,
            self.heads,
            self.queries,
            self.start,
            self.chunk_size,
            self.slots,
            self.scale,
            self.key_batch,
            self.key_head,
            self.key_time,
        )
    }
}
