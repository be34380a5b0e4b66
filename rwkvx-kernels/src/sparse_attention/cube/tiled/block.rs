//! A block of rows in shared memory, and rows in registers.

use cubecl::prelude::*;

use super::rows::NO_ROW;
use super::{BLOCK, Plan, WARPS};
use crate::cube::warp::{LANES, Pair, Warp, no_sums};
use crate::sparse_attention::cube::problem::Problem;

/// Pairs between the rows of a block `[row, channel]`; the eight channels beyond the last keep rows in different banks.
pub(super) fn stride(size: usize) -> usize {
    (size + 8) / 2
}

/// Pairs between the rows of a transposed block `[channel, row]`.
const TRANSPOSED_STRIDE: usize = BLOCK / 2;

/// Rows of a sequence, as right operands: where products run over channels, and where they run over rows.
#[derive(CubeType)]
pub(super) struct Block<E: Float> {
    /// `[row, channel]`
    rows: SharedMemory<Pair<E>>,
    /// `[channel, row]`, each row of it with its pairs exchanged as [`swizzle`] says.
    transposed: SharedMemory<Pair<E>>,
    /// Whether `rows` and `transposed` are there.
    #[cube(comptime)]
    has: [bool; 2],
}

/// What the positions of pairs in row `channel` of a transposed block are exclusive-ored with: neither the units that write four channels each nor the
/// lanes of an operand, which read eight, meet in a bank.
#[cube]
fn swizzle(channel: usize) -> usize {
    (channel + channel / 8) % 8 * 4
}

#[cube]
impl<E: Float> Block<E> {
    pub(super) fn new(#[comptime] size: usize, #[comptime] has: [bool; 2]) -> Block<E> {
        let rows = comptime!(if has[0] { BLOCK * stride(size) } else { 1usize });
        let transposed = comptime!(if has[1] {
            size * TRANSPOSED_STRIDE
        } else {
            1usize
        });
        Block::<E> {
            rows: SharedMemory::new(rows),
            transposed: SharedMemory::new(transposed),
            has,
        }
    }

    /// Puts four channels of rows `2 pair` and `2 pair + 1` in place.
    fn put<F: Float>(
        &mut self,
        upper: Vector<F, Const<4>>,
        lower: Vector<F, Const<4>>,
        pair: usize,
        quad: usize,
        #[comptime] size: usize,
    ) {
        if comptime!(self.has[0]) {
            let stride = comptime!(stride(size));
            let at = 2 * pair * stride + 2 * quad;
            #[unroll]
            for i in 0..2usize {
                let mut above = Pair::<E>::empty();
                let mut below = Pair::<E>::empty();
                above[0] = E::cast_from(upper[comptime!(2 * i)]);
                above[1] = E::cast_from(upper[comptime!(2 * i + 1)]);
                below[0] = E::cast_from(lower[comptime!(2 * i)]);
                below[1] = E::cast_from(lower[comptime!(2 * i + 1)]);
                self.rows[at + i] = above;
                self.rows[at + stride + i] = below;
            }
        }
        if comptime!(self.has[1]) {
            #[unroll]
            for i in 0..4usize {
                let mut both = Pair::<E>::empty();
                both[0] = E::cast_from(upper[i]);
                both[1] = E::cast_from(lower[i]);
                let channel = 4 * quad + i;
                self.transposed[channel * TRANSPOSED_STRIDE + (pair ^ swizzle(channel))] = both;
            }
        }
    }

    /// Brings in `count` rows from `from`, `at` being the first row's first quad and `stride` the quads from one to the next; zeros after them. With
    /// `rests`, what rounding to `E` takes away from them.
    pub(super) fn load<F: Float>(
        &mut self,
        from: &Array<Vector<F, Const<4>>>,
        at: usize,
        stride: usize,
        count: usize,
        #[comptime] rests: bool,
        #[comptime] size: usize,
    ) {
        let width = comptime!(size / 4);
        let mut i = UNIT_POS as usize;
        while i < comptime!(BLOCK / 2 * size / 4) {
            let pair = i / width;
            let quad = i % width;
            let mut upper = Vector::<F, Const<4>>::new(F::new(0.0));
            let mut lower = Vector::<F, Const<4>>::new(F::new(0.0));
            if 2 * pair < count {
                upper = from[at + 2 * pair * stride + quad];
            }
            if 2 * pair + 1 < count {
                lower = from[at + (2 * pair + 1) * stride + quad];
            }
            if comptime!(rests) {
                upper -= Vector::cast_from(Vector::<E, Const<4>>::cast_from(upper));
                lower -= Vector::cast_from(Vector::<E, Const<4>>::cast_from(lower));
            }
            self.put::<F>(upper, lower, pair, quad, size);
            i += comptime!(WARPS * LANES);
        }
    }

    /// Brings in the rows whose numbers are in `rows`, `count` of them; zeros after them.
    pub(super) fn gather<F: Float>(
        &mut self,
        from: &Array<Vector<F, Const<4>>>,
        rows: &SharedMemory<u32>,
        count: usize,
        #[comptime] size: usize,
    ) {
        let width = comptime!(size / 4);
        let mut i = UNIT_POS as usize;
        while i < comptime!(BLOCK / 2 * size / 4) {
            let pair = i / width;
            let quad = i % width;
            let mut upper = Vector::<F, Const<4>>::new(F::new(0.0));
            let mut lower = Vector::<F, Const<4>>::new(F::new(0.0));
            if 2 * pair < count {
                upper = from[rows[2 * pair] as usize * width + quad];
            }
            if 2 * pair + 1 < count {
                lower = from[rows[2 * pair + 1] as usize * width + quad];
            }
            self.put::<F>(upper, lower, pair, quad, size);
            i += comptime!(WARPS * LANES);
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
    pub(super) fn over_rows(&self, warp: &Warp, tile: usize, step: usize) -> Array<Pair<E>> {
        let mut right = Array::<Pair<E>>::new(2usize);
        let channel = 8 * tile + warp.group;
        #[unroll(!warp.emulated)]
        for i in 0..2usize {
            let pair = 8 * step + 4 * i + warp.member;
            right[i] = self.transposed[channel * TRANSPOSED_STRIDE + (pair ^ swizzle(channel))];
        }
        right
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
            let right = block.over_rows(warp, n, first * steps + step);
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

#[cube]
impl<E: Float> KeyBlock<E> {
    /// `keys` and `values` say what is needed of each; see [`Block`].
    pub(super) fn new(
        #[comptime] size: usize,
        #[comptime] keys: [bool; 2],
        #[comptime] values: [bool; 2],
    ) -> KeyBlock<E> {
        KeyBlock::<E> {
            keys: Block::<E>::new(size, keys),
            values: Block::<E>::new(size, values),
        }
    }

    /// Brings in `count` of them from time `first` on, once all units are done with the ones before; zeros after them.
    pub(super) fn load<F: Float>(
        &mut self,
        key: &Array<Vector<F, Const<4>>>,
        value: &Array<Vector<F, Const<4>>>,
        problem: &Problem,
        first: usize,
        count: usize,
        #[comptime] size: usize,
    ) {
        let width = comptime!(size / 4);
        let stride = problem.key_time * width;
        let at = problem.key_row(problem.sequence(), first) * width;
        sync_cube();
        self.keys.load::<F>(key, at, stride, count, false, size);
        self.values.load::<F>(value, at, stride, count, false, size);
        sync_cube();
    }
}
