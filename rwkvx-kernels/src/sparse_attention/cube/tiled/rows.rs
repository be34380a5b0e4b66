//! The queries, or keys, of a tile: which each lane has.

use cubecl::prelude::*;

use super::Plan;
use crate::cube::warp::Warp;
use crate::sparse_attention::cube::sizes::Sizes;

/// In the place of a row that a tile does not have.
pub(super) const NO_ROW: u32 = u32::MAX;

/// The rows of a lane, `2 row_tiles` of them: `2 m + i` is row `16 m + 8 i + group` of the warp's.
#[derive(CubeType)]
pub(super) struct Rows {
    /// Row in its buffer, or [`NO_ROW`].
    pub(super) rows: Array<u32>,
    /// In a list, the slot, counted over the sequences of the launch; else `sequence * queries + query`; or [`NO_ROW`].
    pub(super) slots: Array<u32>,
    /// Time of the first key that it does not see.
    pub(super) seen: Array<u32>,
    /// The chunk whose keys they meet.
    pub(super) chunk: usize,
    /// Time of the last row, plus one.
    pub(super) end: usize,
    /// Keys before this time are seen by all.
    pub(super) all_see: usize,
}

/// Row `r` of this lane in the tile.
#[cube]
pub(super) fn row_in_tile(warp: &Warp, r: usize, #[comptime] plan: Plan) -> usize {
    (warp.index * plan.row_tiles + r / 2) * 16 + r % 2 * 8 + warp.group
}

/// The queries of tile `CUBE_POS_X` of the lists.
#[cube]
pub(super) fn list_rows(
    warp: &Warp,
    lists: &Array<u32>,
    starts: &Array<u32>,
    lengths: &Array<u32>,
    tile_chunks: &Array<u32>,
    sizes: &Sizes,
    chunks: usize,
    slots: usize,
    #[comptime] plan: Plan,
) -> Rows {
    let count = comptime!(2 * plan.row_tiles);
    let tile = CUBE_POS_X as usize;
    let tiles = CUBE_COUNT_X as usize;
    let local = CUBE_POS_Y as usize;
    let sequence = sizes.sequence();
    let chunk = tile_chunks[local * tiles + tile] as usize;
    let end = (starts[local * (chunks + 1) + chunk] + lengths[local * chunks + chunk]) as usize;
    let chunk_end = (chunk + 1) * sizes.chunk_size;
    let mut rows = Array::<u32>::new(count);
    let mut own_slots = Array::<u32>::new(count);
    let mut seen = Array::<u32>::new(count);
    #[unroll]
    for r in 0..count {
        let first = tile * comptime!(plan.rows());
        let index = first + row_in_tile(warp, r, plan);
        let at = select(index < end, index, first);
        let slot = lists[local * (tiles * comptime!(plan.rows())) + at] as usize;
        let row = sizes.query_row(sequence, slot / slots) as u32;
        let own_slot = (local * sizes.queries * slots + slot) as u32;
        rows[r] = select(index < end, row, NO_ROW);
        own_slots[r] = select(index < end, own_slot, NO_ROW);
        seen[r] = chunk_end as u32;
    }
    Rows {
        rows,
        slots: own_slots,
        seen,
        chunk,
        end: chunk_end,
        all_see: chunk_end,
    }
}

/// The queries of tile `CUBE_POS_X` of the queries, chunk after chunk.
#[cube]
pub(super) fn own_rows(warp: &Warp, sizes: &Sizes, #[comptime] plan: Plan) -> Rows {
    let count = comptime!(2 * plan.row_tiles);
    let per_chunk = sizes.chunk_size.div_ceil(comptime!(plan.rows()));
    let tile = CUBE_POS_X as usize;
    let sequence = sizes.sequence();
    let chunk = sizes.start / sizes.chunk_size + tile / per_chunk;
    let first = chunk * sizes.chunk_size + tile % per_chunk * comptime!(plan.rows());
    let chunk_end = min((chunk + 1) * sizes.chunk_size, sizes.start + sizes.queries);
    let mut rows = Array::<u32>::new(count);
    let mut slots = Array::<u32>::new(count);
    let mut seen = Array::<u32>::new(count);
    #[unroll]
    for r in 0..count {
        let time = first + row_in_tile(warp, r, plan);
        let here = time >= sizes.start && time < chunk_end;
        let query = select(here, time - sizes.start, 0usize.runtime());
        let row = sizes.query_row(sequence, query) as u32;
        rows[r] = select(here, row, NO_ROW);
        let own = (sequence * sizes.queries + query) as u32;
        slots[r] = select(here, own, NO_ROW);
        seen[r] = (time + 1) as u32;
    }
    Rows {
        rows,
        slots,
        seen,
        chunk,
        end: min(chunk_end, first + comptime!(plan.rows())),
        all_see: first + 1,
    }
}
