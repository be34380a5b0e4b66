//! Gradients, chunk by chunk from the last to the first.
//!
//! The formulas are those of [`plain::backward`](crate::wkv7::cube::plain::backward). A warp owns 16 rows of the state's gradient for what sums over keys and tokens, and
//! 16 columns for what sums over values.

use cubecl::prelude::*;

use super::Plan;
use super::chunk::{
    MATRIX, Place, Rows, TOKEN_STRIDE, TOKENS, Tiles, between, lower, row, stride, tile,
    token_matrices, write,
};
use super::forward::{decay_columns, load_rows, load_state, rows_at, store_state};
use crate::cube::warp::{
    Pair, Warp, fast_math, left_as_right_transposed, no_sums, room, sums_as_left,
    sums_as_right_transposed,
};

/// One cube of `2 size` units per (head, batch, span): span `first / span + z`. Sequences are `[batch, time, heads, head_size]`, states end in
/// `[value, key]`; `states` holds those before each chunk of the launch's spans, `[batch, heads, z, chunk]`. `d_state_before` is `[batch, heads]`, and so is
/// `d_state_after`, for the one span of the launch; if spans run in `parallel`, it is `[batch, heads, span]`, and the first span alone writes
/// `d_state_before`.
#[cube(launch_unchecked, fast_math = fast_math(plan.emulated))]
pub(super) fn wkv7_backward_tiled<F: Float, E: Float>(
    receptance: &Array<Vector<F, Const<4>>>,
    log_decay: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    removal: &Array<Vector<F, Const<4>>>,
    replacement: &Array<Vector<F, Const<4>>>,
    states: &Array<Pair<E>>,
    d_output: &Array<Vector<F, Const<4>>>,
    d_state_after: &Array<Pair<f32>>,
    d_receptance: &mut Array<Pair<F>>,
    d_log_decay: &mut Array<Pair<F>>,
    d_key: &mut Array<Pair<F>>,
    d_value: &mut Array<Pair<F>>,
    d_removal: &mut Array<Pair<F>>,
    d_replacement: &mut Array<Pair<F>>,
    d_state_before: &mut Array<Pair<f32>>,
    time: usize,
    heads: usize,
    first: usize,
    span: usize,
    #[comptime] plan: Plan,
    #[comptime] parallel: bool,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let size = comptime!(plan.size);
    let steps = comptime!(size / 16);
    let unrolled = comptime!(!plan.emulated);
    let stride = comptime!(stride(size));
    let tile = comptime!(tile(size));
    let mut warp = Warp::new(comptime!(size / 16), plan.emulated);
    let place = Place::of(&warp);
    let head = CUBE_POS_X as usize;
    let batch = CUBE_POS_Y as usize;
    let sequence = batch * heads + head;
    let part = CUBE_POS_Z as usize;
    let first = first + part * span;
    let end = min(first + span, time);
    let chunks = (end - first).div_ceil(TOKENS);

    let mut tiles = Tiles::<E>::new(size, 2usize, true); // values: V and U
    let mut d_lefts = room::<E>(comptime!(2 * tile)); // dX and dY
    let mut matrix_p = SharedMemory::<Pair<f32>>::new(comptime!(TOKENS * TOKENS / 2));
    // M, Q, E, F; then dP, dQ, dE, dF
    let mut matrices = room::<E>(comptime!(4 * MATRIX));
    // S and G, [value, key]
    let mut state_tile = room::<E>(comptime!(size * stride));
    let mut d_state_tile = room::<E>(comptime!(size * stride));
    let mut columns = Columns::new(size);

    let own = warp.index * 8; // pairs before this warp's 16 channels
    let in_state = (warp.index * 16 + warp.group) * comptime!(size / 2) + warp.member;
    let mut from = sequence;
    if comptime!(parallel) {
        from = sequence * time.div_ceil(span) + first / span;
    }
    let from = from * comptime!(size * size / 2) + in_state;
    let mut d_state = load_state(d_state_after, from, size);

    let mut rows = Rows::<F>::new(7usize);
    let last = first + (chunks - 1) * TOKENS;
    let at = rows_at(&place, batch, head, last, end, time, heads, size);
    load_rows(
        &mut rows,
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        at,
    );
    rows.load(row::D_OUTPUT, d_output, at);

    for back in 0..chunks {
        let chunk = chunks - 1 - back;
        let start = first + chunk * TOKENS;
        tiles.stage(&rows, &place, end - start, size);
        #[unroll]
        for i in 0..2usize {
            let at = comptime!(tile) + (place.token + i) * stride + place.quad * 2;
            let d_output = rows.get_known(row::D_OUTPUT, i, &place, end - start);
            write(&mut d_lefts, at, d_output);
        }
        let state_at = (sequence * CUBE_COUNT_Z as usize + part) * (span / TOKENS) + chunk;
        let state_at = state_at * comptime!(size * size / 2) + in_state;
        let state = load_state(states, state_at, size);
        #[unroll(unrolled)]
        for n in 0..comptime!(size / 8) {
            warp.store(
                &state,
                n,
                &mut state_tile,
                warp.index * comptime!(16 * stride) + 4 * n,
                stride,
            );
        }
        if chunk > 0 {
            let before = start - TOKENS;
            let at = rows_at(&place, batch, head, before, end, time, heads, size);
            load_rows(
                &mut rows,
                receptance,
                log_decay,
                key,
                value,
                removal,
                replacement,
                at,
            );
            rows.load(row::D_OUTPUT, d_output, at);
        }
        sync_cube();

        // G = dS D
        decay_columns(&warp, &tiles.decays, &mut d_state, size);
        #[unroll(unrolled)]
        for n in 0..comptime!(size / 8) {
            warp.store(
                &d_state,
                n,
                &mut d_state_tile,
                warp.index * comptime!(16 * stride) + 4 * n,
                stride,
            );
        }
        // X^T = S A^T + V^T Q^T, dU^T = G B^T + dY^T E, dV = K G^T + F^T dY + Q^T dX: what comes through the states.
        let mut x = no_sums(2usize);
        let mut du = no_sums(2usize);
        let mut dv = no_sums(2usize);
        #[unroll(unrolled)]
        for step in 0..steps {
            let s = sums_as_left::<E>(&state, step);
            let g = sums_as_left::<E>(&d_state, step);
            let k = warp.left(&tiles.rights, tile, stride, step);
            #[unroll(unrolled)]
            for half in 0..2usize {
                let at = 8 * half * stride;
                let a = warp.right_transposed(&tiles.lefts, at, stride, step);
                warp.multiply_add(&s, &a, &mut x, half);
                let b = warp.right_transposed(&tiles.rights, at, stride, step);
                warp.multiply_add(&g, &b, &mut du, half);
                let g = sums_as_right_transposed::<E>(&d_state, step, half);
                warp.multiply_add(&k, &g, &mut dv, half);
            }
        }
        token_matrices(&mut warp, &tiles, &mut matrix_p, &mut matrices, size, true);
        sync_cube();

        let v = warp.left_transposed(&tiles.values, own, stride, 0usize);
        let dy = warp.left_transposed(&d_lefts, tile + own, stride, 0usize);
        #[unroll(unrolled)]
        for half in 0..2usize {
            let q = warp.right_transposed(
                &matrices,
                MATRIX + 8 * half * TOKEN_STRIDE,
                TOKEN_STRIDE,
                0usize,
            );
            warp.multiply_add(&v, &q, &mut x, half);
            let e = warp.right(&matrices, 2 * MATRIX + 4 * half, TOKEN_STRIDE, 0usize);
            warp.multiply_add(&dy, &e, &mut du, half);
        }
        // U = M X, dX = M^T dU, and dX^T
        let m = warp.left(&matrices, 0usize, TOKEN_STRIDE, 0usize);
        let m_transposed = warp.left_transposed(&matrices, 0usize, TOKEN_STRIDE, 0usize);
        let q_transposed = warp.left_transposed(&matrices, MATRIX, TOKEN_STRIDE, 0usize);
        let f_transposed =
            warp.left_transposed(&matrices, comptime!(3 * MATRIX), TOKEN_STRIDE, 0usize);
        let du_left = sums_as_left::<E>(&du, 0usize);
        let mut u = no_sums(2usize);
        let mut dx = no_sums(2usize);
        let mut dx_transposed = no_sums(2usize);
        #[unroll(unrolled)]
        for half in 0..2usize {
            let x = sums_as_right_transposed::<E>(&x, 0usize, half);
            warp.multiply_add(&m, &x, &mut u, half);
            warp.store(&u, half, &mut tiles.values, tile + own + 4 * half, stride);
            let du = sums_as_right_transposed::<E>(&du, 0usize, half);
            warp.multiply_add(&m_transposed, &du, &mut dx, half);
            warp.store(&dx, half, &mut d_lefts, own + 4 * half, stride);
            let m = warp.right(&matrices, 4 * half, TOKEN_STRIDE, 0usize);
            warp.multiply_add(&du_left, &m, &mut dx_transposed, half);
        }
        #[unroll(unrolled)]
        for half in 0..2usize {
            let dy = left_as_right_transposed(&dy, half);
            warp.multiply_add(&f_transposed, &dy, &mut dv, half);
            let dx = sums_as_right_transposed::<E>(&dx_transposed, 0usize, half);
            warp.multiply_add(&q_transposed, &dx, &mut dv, half);
        }
        let out_at = ((batch * time + start) * heads + head) * comptime!(size / 2) + own;
        write_rows(
            &warp,
            &dv,
            0usize,
            d_value,
            out_at,
            heads * comptime!(size / 2),
            end - start,
        );
        // dS = G + dY^T R + dX^T A
        let dx_left = sums_as_left::<E>(&dx_transposed, 0usize);
        #[unroll(unrolled)]
        for n in 0..comptime!(size / 8) {
            let r = warp.right(&tiles.lefts, tile + 4 * n, stride, 0usize);
            warp.multiply_add(&dy, &r, &mut d_state, n);
            let a = warp.right(&tiles.lefts, 4 * n, stride, 0usize);
            warp.multiply_add(&dx_left, &a, &mut d_state, n);
        }
        sync_cube();

        // dP = low(dX U^T), dQ = low(dX V^T), dE = tri(dY U^T), dF = tri(dY V^T)
        #[unroll(unrolled)]
        for round in 0..comptime!(4usize.div_ceil(steps)) {
            let matrix = warp.index + round * steps;
            if matrix < 4 {
                let value_at = (1 - matrix % 2) * tile;
                let mut sums = between(
                    &mut warp,
                    &d_lefts,
                    matrix / 2 * tile,
                    &tiles.values,
                    value_at,
                    size,
                );
                lower(&warp, &mut sums, matrix < 2);
                #[unroll(unrolled)]
                for half in 0..2usize {
                    warp.store(
                        &sums,
                        half,
                        &mut matrices,
                        matrix * MATRIX + 4 * half,
                        TOKEN_STRIDE,
                    );
                }
            }
        }
        sync_cube();

        // Columns of this warp. Those of dA = dX S + dP B + dQ K, then of dR = dY S + dE B + dF K.
        let mut d_reads = no_sums(4usize);
        // Of V G, then of U G.
        let mut through = no_sums(4usize);
        #[unroll(unrolled)]
        for step in 0..steps {
            #[unroll(unrolled)]
            for half in 0..2usize {
                let s = warp.right(&state_tile, own + 4 * half, stride, step);
                let g = warp.right(&d_state_tile, own + 4 * half, stride, step);
                #[unroll(unrolled)]
                for i in 0..2usize {
                    let d = warp.left(&d_lefts, i * tile, stride, step);
                    warp.multiply_add(&d, &s, &mut d_reads, 2 * i + half);
                    let value = warp.left(&tiles.values, i * tile, stride, step);
                    warp.multiply_add(&value, &g, &mut through, 2 * i + half);
                }
            }
        }
        // The rest of dB = U G + dP^T A + dE^T R, then of dK = V G + dQ^T A + dF^T R.
        let mut d_writes = no_sums(4usize);
        #[unroll(unrolled)]
        for matrix in 0..4usize {
            let d = warp.left(&matrices, matrix * MATRIX, TOKEN_STRIDE, 0usize);
            let d_transposed =
                warp.left_transposed(&matrices, matrix * MATRIX, TOKEN_STRIDE, 0usize);
            #[unroll(unrolled)]
            for half in 0..2usize {
                let at = own + 4 * half;
                let write = warp.right(&tiles.rights, matrix % 2 * tile + at, stride, 0usize);
                warp.multiply_add(&d, &write, &mut d_reads, matrix / 2 * 2 + half);
                let read = warp.right(&tiles.lefts, matrix / 2 * tile + at, stride, 0usize);
                warp.multiply_add(&d_transposed, &read, &mut d_writes, matrix % 2 * 2 + half);
            }
        }
        columns.add_products(&warp, &tiles, &mut d_reads, &mut d_writes, &through, size);
        columns.add_states(&state_tile, &d_state_tile, size);
        let out_stride = heads * comptime!(size / 2);
        write_rows(
            &warp,
            &d_reads,
            0usize,
            d_removal,
            out_at,
            out_stride,
            end - start,
        );
        write_rows(
            &warp,
            &d_reads,
            2usize,
            d_receptance,
            out_at,
            out_stride,
            end - start,
        );
        write_rows(
            &warp,
            &d_writes,
            0usize,
            d_replacement,
            out_at,
            out_stride,
            end - start,
        );
        write_rows(
            &warp,
            &d_writes,
            2usize,
            d_key,
            out_at,
            out_stride,
            end - start,
        );
        sync_cube();
        columns.write_log_decays(d_log_decay, out_at - own, out_stride, end - start, size);
    }
    if comptime!(!parallel) || first == 0 {
        let to = sequence * comptime!(size * size / 2) + in_state;
        store_state(&d_state, d_state_before, to, size);
    }
}

/// Writes tiles `tile` and `tile + 1` of sums, `[token, channel]` of the warp's 16 channels, without the rows from `count` on; `at` and `stride` count
/// pairs.
#[cube]
fn write_rows<F: Float>(
    warp: &Warp,
    sums: &Array<Pair<f32>>,
    #[comptime] tile: usize,
    to: &mut Array<Pair<F>>,
    at: usize,
    stride: usize,
    count: usize,
) {
    #[unroll(!warp.emulated)]
    for i in 0..4usize {
        let token = warp.group + i % 2 * 8;
        if token < count {
            let to_at = at + token * stride + warp.member + i / 2 * 4;
            to[to_at] = Pair::<F>::cast_from(sums[2 * tile + i]);
        }
    }
}

/// What the gradient of the log decays is summed up from:
///
/// ```text
/// d ln w_t = sum over values of (G S) + sum_{s < t} through_s + sum_{s >= t} scaled_s + sum_{s > t} removed_s
/// ```
///
/// where the first two are the column sums of `dS_after S_after` less what the tokens from `t` on brought in.
#[derive(CubeType)]
struct Columns {
    /// `(U G) B + (V G) K`, `[token, channel/2]`
    through: SharedMemory<Pair<f32>>,
    /// `R dR` less the rest of `B dB` and of `K dK`
    scaled: SharedMemory<Pair<f32>>,
    /// `A dA`
    removed: SharedMemory<Pair<f32>>,
    /// Four parts of the column sums of `G S`, `[part, channel/2]`
    states: SharedMemory<Pair<f32>>,
}

/// Parts that the rows of a state are cut into; with as many parts of two channels each they are all units.
const PARTS: usize = 4;

#[cube]
impl Columns {
    fn new(#[comptime] size: usize) -> Columns {
        Columns {
            through: SharedMemory::new(comptime!(TOKENS * size / 2)),
            scaled: SharedMemory::new(comptime!(TOKENS * size / 2)),
            removed: SharedMemory::new(comptime!(TOKENS * size / 2)),
            states: SharedMemory::new(comptime!(PARTS * size / 2)),
        }
    }

    /// Takes the products down, completes dB and dK, and scales dA, dR (in `d_reads`), dB and dK (in `d_writes`) back.
    fn add_products<E: Float>(
        &mut self,
        warp: &Warp,
        tiles: &Tiles<E>,
        d_reads: &mut Array<Pair<f32>>,
        d_writes: &mut Array<Pair<f32>>,
        through: &Array<Pair<f32>>,
        #[comptime] size: usize,
    ) {
        let tile = comptime!(tile(size));
        #[unroll(!warp.emulated)]
        for i in 0..4usize {
            let token = warp.group + i % 2 * 8;
            let channel = warp.index * 8 + warp.member + i / 2 * 4; // in pairs
            let at = token * comptime!(stride(size)) + channel;
            let a = Pair::<f32>::cast_from(tiles.lefts[at]);
            let r = Pair::<f32>::cast_from(tiles.lefts[tile + at]);
            let b = Pair::<f32>::cast_from(tiles.rights[at]);
            let k = Pair::<f32>::cast_from(tiles.rights[tile + at]);
            let (da, dr) = (d_reads[i], d_reads[4 + i]);
            let (db, dk) = (d_writes[i], d_writes[4 + i]);
            let (through_k, through_b) = (through[i], through[4 + i]);
            let to = token * comptime!(size / 2) + channel;
            self.through[to] = through_b * b + through_k * k;
            self.scaled[to] = r * dr - b * db - k * dk;
            self.removed[to] = a * da;

            let up_to = log_product(tiles, token, channel, size);
            let mut before = Pair::<f32>::new(0.0);
            if token > 0 {
                before = log_product(tiles, token - 1, channel, size);
            }
            let growth = (Pair::<f32>::new(0.0) - up_to).exp();
            d_reads[i] = da * before.exp();
            d_reads[4 + i] = dr * up_to.exp();
            d_writes[i] = (db + through_b) * growth;
            d_writes[4 + i] = (dk + through_k) * growth;
        }
    }

    fn add_states<E: Float>(
        &mut self,
        state: &SharedMemory<Pair<E>>,
        d_state: &SharedMemory<Pair<E>>,
        #[comptime] size: usize,
    ) {
        let unit = UNIT_POS as usize;
        let channel = unit % comptime!(size / 2);
        let first = unit / comptime!(size / 2) * comptime!(size / PARTS);
        let mut sum = Pair::<f32>::new(0.0);
        for row in 0..comptime!(size / PARTS) {
            let at = (first + row) * comptime!(stride(size)) + channel;
            sum += Pair::<f32>::cast_from(state[at]) * Pair::<f32>::cast_from(d_state[at]);
        }
        self.states[unit] = sum;
    }

    /// Four tokens per unit.
    fn write_log_decays<F: Float>(
        &self,
        to: &mut Array<Pair<F>>,
        at: usize,
        stride: usize,
        count: usize,
        #[comptime] size: usize,
    ) {
        let unit = UNIT_POS as usize;
        let channel = unit % comptime!(size / 2);
        let first = unit / comptime!(size / 2) * comptime!(TOKENS / PARTS);
        let mut before = Pair::<f32>::new(0.0); // what the tokens before these give
        #[unroll]
        for part in 0..PARTS {
            before += self.states[comptime!(part * size / 2) + channel];
        }
        let mut after = Pair::<f32>::new(0.0); // and those behind them
        for t in 0..first {
            before += self.through[t * comptime!(size / 2) + channel];
        }
        for t in first + comptime!(TOKENS / PARTS)..TOKENS {
            let i = t * comptime!(size / 2) + channel;
            after += self.scaled[i] + self.removed[i];
        }
        let mut through = Array::<Pair<f32>>::new(comptime!(TOKENS / PARTS));
        #[unroll]
        for t in 0..comptime!(TOKENS / PARTS) {
            through[t] = before;
            before += self.through[(first + t) * comptime!(size / 2) + channel];
        }
        #[unroll]
        for back in 0..comptime!(TOKENS / PARTS) {
            let t = comptime!(TOKENS / PARTS - 1 - back);
            let token = first + t;
            let i = token * comptime!(size / 2) + channel;
            after += self.scaled[i];
            if token < count {
                to[at + token * stride + channel] = Pair::<F>::cast_from(through[t] + after);
            }
            after += self.removed[i];
        }
    }
}

/// ln W of a pair of channels.
#[cube]
fn log_product<E: Float>(
    tiles: &Tiles<E>,
    token: usize,
    pair: usize,
    #[comptime] size: usize,
) -> Pair<f32> {
    let quad = tiles.log_products[token * comptime!(size / 4) + pair / 2];
    let high = pair % 2 == 1;
    let mut product = Pair::<f32>::new(0.0);
    product[0] = select(high, quad[2], quad[0]);
    product[1] = select(high, quad[3], quad[1]);
    product
}
