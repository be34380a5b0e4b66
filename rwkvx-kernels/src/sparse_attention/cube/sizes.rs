//! Where things lie.

use cubecl::prelude::*;

/// The sizes of one call. A sequence is one head of one batch element, `batch * heads + head`; strides count rows of `head_size` numbers.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// The first sequence of the launch.
    pub(super) first: usize,
    pub(super) heads: usize,
    /// Queries of a sequence; they are `[batch, query, heads, head_size]`.
    pub(super) queries: usize,
    /// Time of the first query.
    pub(super) start: usize,
    pub(super) chunk_size: usize,
    /// From one batch element's keys to the next's.
    pub(super) key_batch: usize,
    /// From one head's keys to the next's.
    pub(super) key_head: usize,
    /// From one key to the next.
    pub(super) key_time: usize,
}

#[cube]
impl Sizes {
    /// The sequence that this cube works on.
    pub(super) fn sequence(&self) -> usize {
        self.first + CUBE_POS_Y as usize
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
}

impl Sizes {
    /// The chunk of the last query.
    pub(super) fn last_chunk(&self) -> usize {
        (self.start + self.queries - 1) / self.chunk_size
    }

    /// Tiles of `tile` queries within one chunk that cover all queries.
    pub(super) fn own_tiles(&self, tile: usize) -> usize {
        let chunks = self.last_chunk() + 1 - self.start / self.chunk_size;
        chunks * self.chunk_size.div_ceil(tile)
    }

    /// As an argument of a kernel.
    pub(super) fn launch<R: Runtime>(self) -> SizesLaunch<R> {
        SizesLaunch::new(
            self.first,
            self.heads,
            self.queries,
            self.start,
            self.chunk_size,
            self.key_batch,
            self.key_head,
            self.key_time,
        )
    }
}
