//! A chunk of 16 tokens in shared memory.

use cubecl::prelude::*;

use crate::cube::Quad;
use crate::cube::warp::{Pair, Warp, no_sums, room};

/// Tokens of a chunk.
pub(in super::super) const TOKENS: usize = 16;

/// Pairs between the rows of a matrix over two tokens; the eight columns beyond the tokens keep rows in different banks.
pub(super) const TOKEN_STRIDE: usize = (TOKENS + 8) / 2;

/// Pairs of a matrix over two tokens.
pub(super) const MATRIX: usize = TOKENS * TOKEN_STRIDE;

/// Pairs between the rows of a tile `[token, channel]` or `[value, key]`.
pub(super) fn stride(size: usize) -> usize {
    (size + 8) / 2
}

/// Pairs of a tile `[token, channel]`.
pub(super) fn tile(size: usize) -> usize {
    TOKENS * stride(size)
}

/// The next chunk, on its way from memory: four channels of two tokens per unit, of each sequence.
#[derive(CubeType)]
pub(super) struct Rows<F: Float> {
    quads: Array<Vector<F, Const<4>>>,
}

/// Positions of the sequences in [`Rows`].
pub(super) mod row {
    pub(in super::super) const RECEPTANCE: usize = 0;
    pub(in super::super) const LOG_DECAY: usize = 1;
    pub(in super::super) const KEY: usize = 2;
    pub(in super::super) const VALUE: usize = 3;
    pub(in super::super) const REMOVAL: usize = 4;
    pub(in super::super) const REPLACEMENT: usize = 5;
    pub(in super::super) const D_OUTPUT: usize = 6;
}

/// Tiles `[token, channel]`, two in one array so that a warp can choose between them.
#[derive(CubeType)]
pub(super) struct Tiles<E: Float> {
    /// A W, with W up to the token before, and R W.
    pub(super) lefts: SharedMemory<Pair<E>>,
    /// B / W and K / W.
    pub(super) rights: SharedMemory<Pair<E>>,
    /// V, and room for U.
    pub(super) values: SharedMemory<Pair<E>>,
    /// Sums of two tokens' log decays, `[token/2, channel/4]`.
    log_decays: SharedMemory<Quad>,
    /// ln W, `[token, channel/4]`, if they are kept.
    pub(super) log_products: SharedMemory<Quad>,
    /// W at the end, `[channel/4]`.
    pub(super) decays: SharedMemory<Quad>,
    /// Whether `log_products` are kept.
    #[cube(comptime)]
    keeps_products: bool,
}

/// Which part of a chunk a unit brings in: tokens `token` and `token + 1`, channels `4 quad ..`. A warp brings in 16 channels of all tokens.
#[derive(CubeType)]
pub(super) struct Place {
    pub(super) token: usize,
    pub(super) quad: usize,
}

#[cube]
impl Place {
    pub(super) fn of(warp: &Warp) -> Place {
        Place {
            token: warp.lane / 4 * 2,
            quad: warp.index * 4 + warp.lane % 4,
        }
    }
}

#[cube]
impl<F: Float> Rows<F> {
    pub(super) fn new(#[comptime] sequences: usize) -> Rows<F> {
        Rows::<F> {
            quads: Array::<Vector<F, Const<4>>>::new(comptime!(2 * sequences)),
        }
    }

    /// Starts to load sequence `index`'s rows at these quads. Without a condition, for under one the values would be waited for here.
    pub(super) fn load(
        &mut self,
        #[comptime] index: usize,
        sequence: &Array<Vector<F, Const<4>>>,
        at: (usize, usize),
    ) {
        self.quads[comptime!(2 * index)] = sequence[at.0];
        self.quads[comptime!(2 * index + 1)] = sequence[at.1];
    }

    /// [`get`](Self::get), or zeros if the token is none of the `count` first of its chunk.
    pub(super) fn get_known(
        &self,
        #[comptime] index: usize,
        #[comptime] i: usize,
        place: &Place,
        count: usize,
    ) -> Quad {
        select(place.token + i < count, self.get(index, i), Quad::new(0.0))
    }

    /// Token `i` of sequence `index`.
    pub(super) fn get(&self, #[comptime] index: usize, #[comptime] i: usize) -> Quad {
        Quad::cast_from(self.quads[comptime!(2 * index + i)])
    }
}

#[cube]
impl<E: Float> Tiles<E> {
    pub(super) fn new(
        #[comptime] size: usize,
        #[comptime] value_tiles: usize,
        #[comptime] keeps_products: bool,
    ) -> Tiles<E> {
        let products = comptime!(if keeps_products { TOKENS * size / 4 } else { 1 });
        Tiles::<E> {
            lefts: room(comptime!(2 * tile(size))),
            rights: room(comptime!(2 * tile(size))),
            values: room(comptime!(value_tiles * tile(size))),
            log_decays: SharedMemory::new(comptime!(TOKENS / 2 * size / 4)),
            log_products: SharedMemory::new(products),
            decays: SharedMemory::new(comptime!(size / 4)),
            keeps_products,
        }
    }

    /// Scales the rows and writes them; after the first `count` tokens there is nothing, which neither decays a state nor adds to one. All units must be done
    /// with the tiles of the chunk before; what is written may be read after the next `sync_cube`.
    pub(super) fn stage<F: Float>(
        &mut self,
        rows: &Rows<F>,
        place: &Place,
        count: usize,
        #[comptime] size: usize,
    ) {
        let width = comptime!(size / 4);
        let first = rows.get_known(row::LOG_DECAY, 0usize, place, count);
        let second = rows.get_known(row::LOG_DECAY, 1usize, place, count);
        self.log_decays[place.token / 2 * width + place.quad] = first + second;
        sync_cube();
        let mut before = Quad::new(0.0); // ln W
        #[unroll]
        for i in 0..comptime!(TOKENS / 2 - 1) {
            let two = self.log_decays[i * width + place.quad];
            if i < place.token / 2 {
                before += two;
            }
        }
        #[unroll]
        for i in 0..2usize {
            let up_to = before + if comptime!(i == 0) { first } else { second };
            let decay = up_to.exp();
            // CUDA has no negative of a vector.
            let growth = (Quad::new(0.0) - up_to).exp();
            if comptime!(self.keeps_products) {
                self.log_products[(place.token + i) * width + place.quad] = up_to;
            }
            let at = (place.token + i) * comptime!(stride(size)) + place.quad * 2;
            write(
                &mut self.lefts,
                at,
                rows.get(row::REMOVAL, i) * before.exp(),
            );
            write(
                &mut self.lefts,
                at + comptime!(tile(size)),
                rows.get(row::RECEPTANCE, i) * decay,
            );
            let replacement = rows.get_known(row::REPLACEMENT, i, place, count);
            write(&mut self.rights, at, replacement * growth);
            let key = rows.get_known(row::KEY, i, place, count);
            write(&mut self.rights, at + comptime!(tile(size)), key * growth);
            write(&mut self.values, at, rows.get(row::VALUE, i));
            before = up_to;
        }
        if place.token == TOKENS - 2 {
            self.decays[place.quad] = before.exp();
        }
    }
}

/// Writes four values as two pairs.
#[cube]
pub(super) fn write<E: Float>(tile: &mut SharedMemory<Pair<E>>, at: usize, quad: Quad) {
    #[unroll]
    for i in 0..2usize {
        let mut pair = Pair::<f32>::new(0.0);
        pair[0] = quad[comptime!(2 * i)];
        pair[1] = quad[comptime!(2 * i + 1)];
        tile[at + i] = Pair::<E>::cast_from(pair);
    }
}

/// `left right^T` over all channels, of the tiles `[token, channel]` that begin there, as two tiles of sums.
#[cube]
pub(super) fn between<E: Float>(
    warp: &mut Warp,
    left: &SharedMemory<Pair<E>>,
    left_at: usize,
    right: &SharedMemory<Pair<E>>,
    right_at: usize,
    #[comptime] size: usize,
) -> Array<Pair<f32>> {
    let stride = comptime!(stride(size));
    let unrolled = comptime!(!warp.emulated);
    let mut sums = no_sums(2usize);
    #[unroll(unrolled)]
    for step in 0..comptime!(size / 16) {
        let l = warp.left(left, left_at, stride, step);
        #[unroll(unrolled)]
        for half in 0..2usize {
            let r = warp.right_transposed(right, right_at + 8 * half * stride, stride, step);
            warp.multiply_add(&l, &r, &mut sums, half);
        }
    }
    sums
}

/// Sets what lies above the diagonal of a token matrix to zero, and with `strict` also the diagonal.
#[cube]
pub(super) fn lower(warp: &Warp, sums: &mut Array<Pair<f32>>, strict: bool) {
    #[unroll(!warp.emulated)]
    for i in 0..4usize {
        let later = warp.group + i % 2 * 8 + select(strict, 0usize, 1usize);
        let earlier = 2 * warp.member + i / 2 * 8;
        let mut pair = sums[i];
        pair[0] = select(earlier < later, pair[0], 0.0f32);
        pair[1] = select(earlier + 1 < later, pair[1], 0.0f32);
        sums[i] = pair;
    }
}

/// `M = (I - low(A B^T))^-1`, `Q = low(A K^T)` and with `all` also `E = tri(R B^T)` and `F = tri(R K^T)` into `matrices`, one after another. They may be read
/// after the next `sync_cube`.
#[cube]
pub(super) fn token_matrices<E: Float>(
    warp: &mut Warp,
    tiles: &Tiles<E>,
    matrix_p: &mut SharedMemory<Pair<f32>>,
    matrices: &mut SharedMemory<Pair<E>>,
    #[comptime] size: usize,
    #[comptime] all: bool,
) {
    let warps = comptime!(size / 16);
    let unrolled = comptime!(!warp.emulated);
    let count = comptime!(if all { 4usize } else { 2usize });
    #[unroll(unrolled)]
    for round in 0..comptime!(count.div_ceil(warps)) {
        let matrix = warp.index + round * warps;
        if matrix < count {
            let left_at = matrix / 2 * comptime!(tile(size));
            let right_at = matrix % 2 * comptime!(tile(size));
            let mut sums = between(warp, &tiles.lefts, left_at, &tiles.rights, right_at, size);
            lower(warp, &mut sums, matrix < 2);
            #[unroll(unrolled)]
            for half in 0..2usize {
                let at = 4 * half;
                if matrix == 0 {
                    warp.store(&sums, half, matrix_p, at, comptime!(TOKENS / 2));
                } else {
                    warp.store(&sums, half, matrices, at + matrix * MATRIX, TOKEN_STRIDE);
                }
            }
        }
    }
    warp.sync();
    invert(warp, matrix_p, matrices);
}

/// Half of the tokens.
const HALF: usize = TOKENS / 2;

/// The first warp writes `(I - P)^-1` for `P`, strictly lower, `[later, earlier/2]` pairs, which are lost. By halves,
///
/// ```text
/// P = [P1  0 ]      (I - P)^-1 = [M1       0 ]      M1 = (I - P1)^-1
///     [P21 P2]                   [M2 P21 M1 M2]     M2 = (I - P2)^-1
/// ```
///
/// where those of the halves are found by substitution, two columns per lane. In f32, and not with powers of `P` on the tensor cores, for their terms would
/// cancel: for a text of one repeated token they reach 6435 where the result is 1.
#[cube]
fn invert<E: Float>(warp: &Warp, p: &mut SharedMemory<Pair<f32>>, to: &mut SharedMemory<Pair<E>>) {
    let width = comptime!(TOKENS / 2); // pairs of a row of P
    let half = warp.lane / 4; // for the first eight lanes
    let pair = warp.member;
    let substitutes = warp.index == 0 && warp.lane < HALF;
    let at = half * comptime!(HALF * TOKENS / 2 + HALF / 2);
    let mut inverse = Array::<Pair<f32>>::new(HALF);
    if substitutes {
        #[unroll]
        for t in 0..HALF {
            let mut sum = Pair::<f32>::new(0.0);
            sum[0] = select(2 * pair == t, 1.0f32, 0.0f32);
            sum[1] = select(2 * pair + 1 == t, 1.0f32, 0.0f32);
            #[unroll]
            for s in 0..t {
                let two = p[at + comptime!(t * TOKENS / 2 + s / 2)];
                sum += Pair::<f32>::new(two[comptime!(s % 2)]) * inverse[s];
            }
            inverse[t] = sum;
        }
    }
    warp.sync();
    if substitutes {
        #[unroll]
        for t in 0..HALF {
            p[at + t * width + pair] = inverse[t];
            let to_at = (half * HALF + t) * TOKEN_STRIDE + pair;
            to[to_at + half * comptime!(HALF / 2)] = Pair::<E>::cast_from(inverse[t]);
            if half == 0 {
                to[to_at + comptime!(HALF / 2)] = Pair::<E>::new(E::new(0.0));
            }
        }
    }
    warp.sync();
    // P21 M1, two numbers per lane, to where P has zeros; then M2 times that.
    let row = warp.group;
    let lower = HALF * width;
    let right = comptime!(HALF / 2);
    if warp.index == 0 {
        p[row * width + right + pair] = product(p, lower + row * width, pair);
    }
    warp.sync();
    if warp.index == 0 {
        let product = product(p, lower + row * width + right, right + pair);
        to[(HALF + row) * TOKEN_STRIDE + pair] = Pair::<E>::cast_from(product);
    }
}

/// The four pairs at `row` times the column of pairs at `column` of the first half of the rows.
#[cube]
fn product(p: &SharedMemory<Pair<f32>>, row: usize, column: usize) -> Pair<f32> {
    let mut sum = Pair::<f32>::new(0.0);
    #[unroll]
    for s in 0..HALF {
        let two = p[row + comptime!(s / 2)];
        sum += Pair::<f32>::new(two[comptime!(s % 2)]) * p[column + comptime!(s * TOKENS / 2)];
    }
    sum
}
