//! The queries, or keys, of a tile: which each lane has.

use cubecl::prelude::*;

use super::Plan;
use crate::cube::warp::Warp;
use crate::sparse_attention::cube::lists::ListArrays;
use crate::sparse_attention::cube::problem::Problem;

/// In the place of a row that a tile does not have.
pub(super) const NO_ROW: u32 = u32::MAX;

/// The rows of a lane, `2 row_tiles` of them: `2 m + i` is row `16 m + 8 i + group` of the warp's.
#[derive(CubeType)]
pub(super) struct Rows {
    /// Row in its buffer, or [`NO_ROW`].
    pub(super) rows: Array<u32>,
    /// In a list, the slot among those of the launch; else the query among those of all sequences; or [`NO_ROW`].
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
    lists: &ListArrays,
    problem: &Problem,
    #[comptime] plan: Plan,
) -> Rows {
    let count = comptime!(2 * plan.row_tiles);
    let sequence = problem.sequence();
    let list = lists.of_tile(comptime!(plan.rows()));
    let chunk_end = (list.chunk + 1) * problem.chunk_size;
    let mut rows = Array::<u32>::new(count);
    let mut slots = Array::<u32>::new(count);
    let mut seen = Array::<u32>::new(count);
    #[unroll]
    for r in 0..count {
        let at = list.first + row_in_tile(warp, r, plan);
        let here = at < list.end;
        let slot = lists.slot(select(here, at, list.first));
        let row = problem.query_row(sequence, slot / problem.slots) as u32;
        rows[r] = select(here, row, NO_ROW);
        slots[r] = select(here, problem.slot(slot) as u32, NO_ROW);
        seen[r] = chunk_end as u32;
    }
    Rows {
        rows,
        slots,
        seen,
        chunk: list.chunk,
        end: chunk_end,
        all_see: chunk_end,
    }
}

/// The queries of tile `CUBE_POS_X` of the queries, chunk after chunk.
#[cube]
pub(super) fn own_rows(warp: &Warp, problem: &Problem, #[comptime] plan: Plan) -> Rows {
    let count = comptime!(2 * plan.row_tiles);
    let sequence = problem.sequence();
    let tile = problem.own_tile(comptime!(plan.rows()));
    let mut rows = Array::<u32>::new(count);
    let mut slots = Array::<u32>::new(count);
    let mut seen = Array::<u32>::new(count);
    #[unroll]
    for r in 0..count {
        let time = tile.first + row_in_tile(warp, r, plan);
        let here = time >= problem.start && time < tile.end;
        let query = select(here, time - problem.start, 0usize.runtime());
        let row = problem.query_row(sequence, query) as u32;
        let number = problem.query(sequence, query) as u32;
        rows[r] = select(here, row, NO_ROW);
        slots[r] = select(here, number, NO_ROW);
        seen[r] = (time + 1) as u32;
    }
    Rows {
        rows,
        slots,
        seen,
        chunk: tile.chunk,
        end: tile.end,
        all_see: tile.first + 1,
    }
}
