//! A block of rows in shared memory, and rows in registers.

use cubecl::prelude::*;

use super::rows::NO_ROW;
use super::{BLOCK, Plan, WARPS};
use crate::cube::warp::{LANES, Pair, Warp, no_sums, room};
use crate::sparse_attention::cube::problem::Problem;

/// Pairs between the rows of a block `[row, channel]`; the eight channels beyond the last keep rows in different banks.
pub(super) fn stride(size: usize) -> usize {
    (size + 8) / 2
}

/// Rows of a sequence `[row, channel]`, as right operands. Where there are not enough, the last is there once more, and must be given no weight.
#[derive(CubeType)]
pub(super) struct Block<E: Float> {
    rows: SharedMemory<Pair<E>>,
}

/// The part of a block that a unit brings in, or some of it, on its way from memory.
#[derive(CubeType)]
struct Part<F: Float> {
    quads: Array<Vector<F, Const<4>>>,
}

/// Quads that a unit gathers at once: more would not fit in its registers beside the sums of what gathers.
const MOST_QUADS: usize = 8;

/// Quads of a block that each unit brings in.
fn quads(size: usize) -> usize {
    BLOCK * size / 4 / (WARPS * LANES)
}

/// Row and quad of the unit's quad `i`.
#[cube]
fn place(i: usize, #[comptime] size: usize) -> (usize, usize) {
    let width = comptime!(size / 4);
    let index = i * comptime!(WARPS * LANES) + UNIT_POS as usize;
    (index / width, index % width)
}

#[cube]
impl<E: Float> Block<E> {
    pub(super) fn new(#[comptime] size: usize) -> Block<E> {
        Block::<E> {
            rows: room(comptime!(BLOCK * stride(size))),
        }
    }

    /// Puts `count` quads from the unit's quad `first` on in place. With `rests`, what rounding to `E` takes away from them.
    fn put<F: Float>(
        &mut self,
        part: &Part<F>,
        first: usize,
        #[comptime] count: usize,
        #[comptime] rests: bool,
        #[comptime] size: usize,
    ) {
        #[unroll]
        for i in 0..count {
            let (row, quad) = place(first + i, size);
            let at = row * comptime!(stride(size)) + 2 * quad;
            let mut values = part.quads[i];
            if comptime!(rests) {
                values -= Vector::cast_from(Vector::<E, Const<4>>::cast_from(values));
            }
            #[unroll]
            for j in 0..2usize {
                let mut pair = Pair::<E>::empty();
                pair[0] = E::cast_from(values[comptime!(2 * j)]);
                pair[1] = E::cast_from(values[comptime!(2 * j + 1)]);
                self.rows[at + j] = pair;
            }
        }
    }

    /// Brings in `count` rows from `from`, at least one, `at` being the first row's first quad and `stride` the quads from one to the next. With `rests`, what
    /// rounding to `E` takes away from them.
    pub(super) fn load<F: Float>(
        &mut self,
        from: &Array<Vector<F, Const<4>>>,
        at: usize,
        stride: usize,
        count: usize,
        #[comptime] rests: bool,
        #[comptime] size: usize,
    ) {
        let quads = comptime!(quads(size));
        let mut part = Part::<F>::new(quads);
        part.load(from, at, stride, 0, count, size);
        self.put::<F>(&part, 0, quads, rests, size);
    }

    /// Brings in the rows whose numbers are in `rows`, `count` of them, at least one.
    pub(super) fn gather<F: Float>(
        &mut self,
        from: &Array<Vector<F, Const<4>>>,
        rows: &SharedMemory<u32>,
        count: usize,
        #[comptime] size: usize,
    ) {
        let together = comptime!(quads(size).min(MOST_QUADS));
        #[unroll]
        for group in 0..comptime!(quads(size) / together) {
            let first = group * together;
            let mut part = Part::<F>::new(together);
            #[unroll]
            for i in 0..together {
                let (row, quad) = place(first + i, size);
                let row = rows[min(row, count - 1)] as usize;
                part.quads[i] = from[row * comptime!(size / 4) + quad];
            }
            self.put::<F>(&part, first, together, false, size);
        }
    }

    /// For products over channels `16 step ..`, with rows `8 tile ..` as columns.
    pub(super) fn over_channels(
        &self,
        warp: &Warp,
        tile: usize,
        step: usize,
        #[comptime] size: usize,
    ) -> Array<Pair<E>> {
        let stride = comptime!(stride(size));
        warp.right_transposed(&self.rows, 8 * tile * stride, stride, step)
    }

    /// For products over rows `16 step ..`, with channels `8 tile ..` as columns.
    pub(super) fn over_rows(
        &self,
        warp: &Warp,
        tile: usize,
        step: usize,
        #[comptime] size: usize,
    ) -> Array<Pair<E>> {
        warp.right(&self.rows, 4 * tile, comptime!(stride(size)), step)
    }
}

#[cube]
impl<F: Float> Part<F> {
    fn new(#[comptime] quads: usize) -> Part<F> {
        Part::<F> {
            quads: Array::new(quads),
        }
    }

    /// Starts to load rows from number `first` on, with number `end - 1` in the place of those after it, row 0 being `at` and `stride` the quads from one to
    /// the next.
    fn load(
        &mut self,
        from: &Array<Vector<F, Const<4>>>,
        at: usize,
        stride: usize,
        first: usize,
        end: usize,
        #[comptime] size: usize,
    ) {
        #[unroll]
        for i in 0..comptime!(quads(size)) {
            let (row, quad) = place(i, size);
            self.quads[i] = from[at + min(first + row, end - 1) * stride + quad];
        }
    }
}

/// This lane's part of rows of `size` channels as left operands; operand `step` is of channels `16 step ..` and rows
/// `16 (warp * row_tiles + m) ..`. In the place of [`NO_ROW`] it reads row 0.
#[cube]
pub(super) fn load_lefts<F: Float, E: Float>(
    warp: &Warp,
    from: &Array<Pair<F>>,
    rows: &Array<u32>,
    #[comptime] plan: Plan,
) -> Array<Pair<E>> {
    let steps = comptime!(plan.size / 16);
    let mut lefts = Array::<Pair<E>>::new(comptime!(plan.row_tiles * steps * 4));
    #[unroll(!plan.emulated)]
    for m in 0..plan.row_tiles {
        #[unroll(!plan.emulated)]
        for step in 0..steps {
            #[unroll(!plan.emulated)]
            for i in 0..4usize {
                let number = rows[2 * m + i % 2];
                let row = select(number == NO_ROW, 0u32, number) as usize;
                let at = row * comptime!(plan.size / 2) + 8 * step + i / 2 * 4 + warp.member;
                lefts[(m * steps + step) * 4 + i] = Pair::<E>::cast_from(from[at]);
            }
        }
    }
    lefts
}

/// Operand `index` of [`load_lefts`], which counts `m * steps + step`.
#[cube]
pub(super) fn left<E: Float>(lefts: &Array<Pair<E>>, index: usize) -> Array<Pair<E>> {
    let mut left = Array::<Pair<E>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        left[i] = lefts[4 * index + i];
    }
    left
}

/// Products of rows in registers with rows `8 tiles first ..` of a block: sums `m * tiles + n`.
#[cube]
pub(super) fn multiply_rows<E: Float>(
    warp: &mut Warp,
    lefts: &Array<Pair<E>>,
    block: &Block<E>,
    first: usize,
    #[comptime] tiles: usize,
    #[comptime] plan: Plan,
) -> Array<Pair<f32>> {
    let mut sums = no_sums(comptime!(plan.row_tiles * tiles));
    add_products(warp, lefts, block, first, &mut sums, tiles, plan);
    sums
}

/// Adds what [`multiply_rows`] gives.
#[cube]
pub(super) fn add_products<E: Float>(
    warp: &mut Warp,
    lefts: &Array<Pair<E>>,
    block: &Block<E>,
    first: usize,
    sums: &mut Array<Pair<f32>>,
    #[comptime] tiles: usize,
    #[comptime] plan: Plan,
) {
    let steps = comptime!(plan.size / 16);
    #[unroll(!plan.emulated)]
    for n in 0..tiles {
        #[unroll(!plan.emulated)]
        for step in 0..steps {
            let right = block.over_channels(warp, first * tiles + n, step, plan.size);
            #[unroll(!plan.emulated)]
            for m in 0..plan.row_tiles {
                let left = left(lefts, m * steps + step);
                warp.multiply_add(&left, &right, sums, m * tiles + n);
            }
        }
    }
}

/// Adds the product of `weights`, sums as [`multiply_rows`] gives them, with the block's rows: to sums `m * size/8 + n` of rows' channels.
#[cube]
pub(super) fn add_weighted<E: Float>(
    warp: &mut Warp,
    weights: &Array<Pair<f32>>,
    block: &Block<E>,
    first: usize,
    sums: &mut Array<Pair<f32>>,
    #[comptime] tiles: usize,
    #[comptime] plan: Plan,
) {
    let steps = comptime!(tiles / 2);
    let channel_tiles = comptime!(plan.size / 8);
    let mut lefts = Array::<Pair<E>>::new(comptime!(plan.row_tiles * tiles * 2));
    #[unroll(!plan.emulated)]
    for i in 0..comptime!(plan.row_tiles * tiles * 2) {
        lefts[i] = Pair::<E>::cast_from(weights[i]);
    }
    #[unroll(!plan.emulated)]
    for step in 0..steps {
        #[unroll(!plan.emulated)]
        for n in 0..channel_tiles {
            let right = block.over_rows(warp, n, first * steps + step, plan.size);
            #[unroll(!plan.emulated)]
            for m in 0..plan.row_tiles {
                let left = left(&lefts, m * steps + step);
                warp.multiply_add(&left, &right, sums, m * channel_tiles + n);
            }
        }
    }
}

/// Writes sums `m * size/8 + n` of channels, `factors` times each row, to `rows`, except [`NO_ROW`].
#[cube]
pub(super) fn store_rows<F: Float>(
    warp: &Warp,
    sums: &Array<Pair<f32>>,
    factors: &Array<f32>,
    to: &mut Array<Pair<F>>,
    rows: &Array<u32>,
    #[comptime] plan: Plan,
) {
    let channel_tiles = comptime!(plan.size / 8);
    #[unroll(!plan.emulated)]
    for m in 0..plan.row_tiles {
        #[unroll(!plan.emulated)]
        for i in 0..2usize {
            let row = rows[2 * m + i];
            if row != NO_ROW {
                let row = row as usize * comptime!(plan.size / 2) + warp.member;
                #[unroll(!plan.emulated)]
                for n in 0..channel_tiles {
                    let sum = sums[2 * (m * channel_tiles + n) + i];
                    to[row + 4 * n] = Pair::cast_from(sum * Pair::new(factors[2 * m + i]));
                }
            }
        }
    }
}

/// Keys and values in shared memory, [`BLOCK`] of them at a time.
#[derive(CubeType)]
pub(super) struct KeyBlock<E: Float> {
    pub(super) keys: Block<E>,
    pub(super) values: Block<E>,
}

/// This unit's part of a [`KeyBlock`], on its way from memory.
#[derive(CubeType)]
pub(super) struct KeyPart<F: Float> {
    keys: Part<F>,
    values: Part<F>,
}

#[cube]
impl<E: Float> KeyBlock<E> {
    pub(super) fn new(#[comptime] size: usize) -> KeyBlock<E> {
        KeyBlock::<E> {
            keys: Block::<E>::new(size),
            values: Block::<E>::new(size),
        }
    }

    pub(super) fn put<F: Float>(&mut self, part: &KeyPart<F>, #[comptime] size: usize) {
        let quads = comptime!(quads(size));
        self.keys.put::<F>(&part.keys, 0, quads, false, size);
        self.values.put::<F>(&part.values, 0, quads, false, size);
    }
}

#[cube]
impl<F: Float> KeyPart<F> {
    pub(super) fn new(#[comptime] size: usize) -> KeyPart<F> {
        KeyPart::<F> {
            keys: Part::<F>::new(comptime!(quads(size))),
            values: Part::<F>::new(comptime!(quads(size))),
        }
    }

    /// Starts to load those from time `first` to `end`, which is not before the first of the chunk.
    pub(super) fn load(
        &mut self,
        key: &Array<Vector<F, Const<4>>>,
        value: &Array<Vector<F, Const<4>>>,
        problem: &Problem,
        first: usize,
        end: usize,
        #[comptime] size: usize,
    ) {
        let width = comptime!(size / 4);
        let at = problem.key_row(problem.sequence(), 0) * width;
        let stride = problem.key_time * width;
        // Without a condition, for under one the values would be waited for here.
        self.keys.load(key, at, stride, first, end, size);
        self.values.load(value, at, stride, first, end, size);
    }
}
