//! Outputs and last state, or the states before every chunk.

use cubecl::prelude::*;

use super::Plan;
use super::chunk::{
    MATRIX, Place, Rows, TOKEN_STRIDE, TOKENS, Tiles, row, stride, tile, token_matrices,
};
use crate::cube::Quad;
use crate::cube::warp::{
    Pair, Warp, fast_math, left_as_right_transposed, no_sums, room, sums_as_left,
    sums_as_right_transposed,
};
use crate::wkv7::cube::Writes;

/// One cube of `2 size` units per (head, batch) or per (head, batch, span). Sequences are `[batch, time, heads, head_size]`, states end in
/// `[value, key]`. The rest depends on `writes`; what it does not name is neither read nor written:
///
/// * [`Writes::Output`]: all tokens from `state_before`, `[batch, heads]`. `states` receives the state before every span, `[batch, heads, span]`.
/// * [`Writes::ChunkStates`]: span `first / span + z`, from `state_before`, `[batch, heads, span]`. `states` receives the state before each chunk of the
///   launch's spans, `[batch, heads, z, chunk]`, in the type of the tiles.
/// * [`Writes::SpanMaps`]: span `z / 2`, from zeros if `z` is even, else from the identity and with zero values. `states` receives the last states,
///   `[batch, heads, span, 2]`: the second takes any state across the span, to which the first is added.
/// * [`Writes::SpanOutputs`]: span `z`, from `state_before`, `[batch, heads, span]`.
#[cube(launch_unchecked, fast_math = fast_math(plan.emulated))]
pub(super) fn wkv7_forward_tiled<F: Float, E: Float, S: Float>(
    receptance: &Array<Vector<F, Const<4>>>,
    log_decay: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    removal: &Array<Vector<F, Const<4>>>,
    replacement: &Array<Vector<F, Const<4>>>,
    state_before: &Array<Pair<f32>>,
    output: &mut Array<Pair<F>>,
    state_after: &mut Array<Pair<f32>>,
    states: &mut Array<Pair<S>>,
    time: usize,
    heads: usize,
    first: usize,
    span: usize,
    #[comptime] plan: Plan,
    #[comptime] writes: Writes,
    #[define(F, E, S)] _dtypes: [StorageType; 3],
) {
    let size = comptime!(plan.size);
    let stride = comptime!(stride(size));
    let gives_output = comptime!(matches!(writes, Writes::Output | Writes::SpanOutputs));
    let is_map = comptime!(writes == Writes::SpanMaps);
    let steps = comptime!(size / 16);
    let unrolled = comptime!(!plan.emulated);
    let mut warp = Warp::new(comptime!(size / 16), plan.emulated);
    let place = Place::of(&warp);
    let head = CUBE_POS_X as usize;
    let batch = CUBE_POS_Y as usize;
    let sequence = batch * heads + head;
    let spans = time.div_ceil(span);

    let mut tiles = Tiles::<E>::new(size, 1usize, false);
    let mut matrix_p = SharedMemory::<Pair<f32>>::new(comptime!(TOKENS * TOKENS / 2));
    // M, Q, E, F
    let mut matrices = room::<E>(comptime!(4 * MATRIX));

    // Rows `16 warp ..` of the state.
    let in_state = (warp.index * 16 + warp.group) * comptime!(size / 2) + warp.member;
    let part = CUBE_POS_Z as usize;
    let mut first = first;
    let mut end = time;
    let mut index = sequence; // of the first state
    let mut from_identity = false;
    if comptime!(writes != Writes::Output) {
        if comptime!(is_map) {
            from_identity = part % 2 == 1;
            first += part / 2 * span;
        } else {
            first += part * span;
        }
        end = min(first + span, time);
        index = sequence * spans + first / span;
    }
    let chunks = (end - first).div_ceil(TOKENS);
    let mut state = if comptime!(is_map) {
        diagonal(&warp, select(from_identity, 1.0f32, 0.0f32), size)
    } else {
        load_state(
            state_before,
            index * comptime!(size * size / 2) + in_state,
            size,
        )
    };

    let mut rows = Rows::<F>::new(6usize);
    let at = rows_at(&place, batch, head, first, end, time, heads, size);
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
    for chunk in 0..chunks {
        let start = first + chunk * TOKENS;
        tiles.stage(&rows, &place, end - start, size);
        let at = rows_at(&place, batch, head, start + TOKENS, end, time, heads, size);
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

        if comptime!(writes == Writes::Output) {
            let done = start - first;
            if done / span * span == done {
                let to = (sequence * spans + done / span) * comptime!(size * size / 2) + in_state;
                store_state(&state, states, to, size);
            }
        }
        if comptime!(writes == Writes::ChunkStates) {
            let chunk = (sequence * CUBE_COUNT_Z as usize + part) * (span / TOKENS) + chunk;
            store_state(
                &state,
                states,
                chunk * comptime!(size * size / 2) + in_state,
                size,
            );
        }
        sync_cube();

        // X^T = S A^T + V^T Q^T and Y = R S^T + E U + F V: what comes through the state.
        let mut x = no_sums(2usize);
        let mut y = no_sums(2usize);
        #[unroll(unrolled)]
        for step in 0..steps {
            let s = sums_as_left::<E>(&state, step);
            #[unroll(unrolled)]
            for half in 0..2usize {
                let a = warp.right_transposed(&tiles.lefts, 8 * half * stride, stride, step);
                warp.multiply_add(&s, &a, &mut x, half);
            }
            if comptime!(gives_output) {
                let r = warp.left(&tiles.lefts, comptime!(tile(size)), stride, step);
                #[unroll(unrolled)]
                for half in 0..2usize {
                    let s = sums_as_right_transposed::<E>(&state, step, half);
                    warp.multiply_add(&r, &s, &mut y, half);
                }
            }
        }
        token_matrices(
            &mut warp,
            &tiles,
            &mut matrix_p,
            &mut matrices,
            size,
            gives_output,
        );
        sync_cube();

        let mut v = warp.left_transposed(&tiles.values, warp.index * 8, stride, 0usize);
        if comptime!(is_map) {
            #[unroll]
            for i in 0..4usize {
                v[i] = select(from_identity, Pair::<E>::new(E::new(0.0)), v[i]);
            }
        }
        #[unroll(unrolled)]
        for half in 0..2usize {
            let at = MATRIX + 8 * half * TOKEN_STRIDE;
            let q = warp.right_transposed(&matrices, at, TOKEN_STRIDE, 0usize);
            warp.multiply_add(&v, &q, &mut x, half);
        }
        // U^T = X^T M^T
        let x = sums_as_left::<E>(&x, 0usize);
        let mut u = no_sums(2usize);
        #[unroll(unrolled)]
        for half in 0..2usize {
            let at = 8 * half * TOKEN_STRIDE;
            let m = warp.right_transposed(&matrices, at, TOKEN_STRIDE, 0usize);
            warp.multiply_add(&x, &m, &mut u, half);
        }
        if comptime!(gives_output) {
            let e = warp.left(&matrices, comptime!(2 * MATRIX), TOKEN_STRIDE, 0usize);
            let f = warp.left(&matrices, comptime!(3 * MATRIX), TOKEN_STRIDE, 0usize);
            #[unroll(unrolled)]
            for half in 0..2usize {
                let right = sums_as_right_transposed::<E>(&u, 0usize, half);
                warp.multiply_add(&e, &right, &mut y, half);
                let right = left_as_right_transposed(&v, half);
                warp.multiply_add(&f, &right, &mut y, half);
            }
            let channel = warp.index * 8 + warp.member;
            #[unroll]
            for i in 0..4usize {
                let token = start + warp.group + comptime!(i % 2 * 8);
                if token < end {
                    let at =
                        ((batch * time + token) * heads + head) * comptime!(size / 2) + channel;
                    output[at + comptime!(i / 2 * 4)] = Pair::<F>::cast_from(y[i]);
                }
            }
        }
        // S = (S + U^T B + V^T K) D
        let u = sums_as_left::<E>(&u, 0usize);
        #[unroll(unrolled)]
        for n in 0..comptime!(size / 8) {
            let at = 4 * n;
            let b = warp.right(&tiles.rights, at, stride, 0usize);
            warp.multiply_add(&u, &b, &mut state, n);
            let k = warp.right(&tiles.rights, comptime!(tile(size)) + at, stride, 0usize);
            warp.multiply_add(&v, &k, &mut state, n);
        }
        decay_columns(&warp, &tiles.decays, &mut state, size);
    }
    if comptime!(is_map) {
        let to = (index * 2 + part % 2) * comptime!(size * size / 2) + in_state;
        store_state(&state, states, to, size);
    }
    if comptime!(gives_output) {
        let to = sequence * comptime!(size * size / 2) + in_state;
        if end == time {
            store_state(&state, state_after, to, size);
        }
    }
}

/// `number` on the diagonal.
#[cube]
fn diagonal(warp: &Warp, number: f32, #[comptime] size: usize) -> Array<Pair<f32>> {
    let mut state = Array::<Pair<f32>>::new(comptime!(size / 4));
    #[unroll]
    for i in 0..comptime!(size / 4) {
        let row = warp.index * 16 + warp.group + comptime!(i % 2 * 8);
        let column = 2 * warp.member + comptime!(i / 2 * 8);
        let mut pair = Pair::<f32>::new(0.0);
        pair[0] = select(column == row, number, 0.0f32);
        pair[1] = select(column + 1 == row, number, 0.0f32);
        state[i] = pair;
    }
    state
}

/// Starts to load the inputs at the quads that [`rows_at`] gives.
#[cube]
pub(super) fn load_rows<F: Float>(
    rows: &mut Rows<F>,
    receptance: &Array<Vector<F, Const<4>>>,
    log_decay: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    removal: &Array<Vector<F, Const<4>>>,
    replacement: &Array<Vector<F, Const<4>>>,
    at: (usize, usize),
) {
    rows.load(row::RECEPTANCE, receptance, at);
    rows.load(row::LOG_DECAY, log_decay, at);
    rows.load(row::KEY, key, at);
    rows.load(row::VALUE, value, at);
    rows.load(row::REMOVAL, removal, at);
    rows.load(row::REPLACEMENT, replacement, at);
}

/// Where in sequences `[batch, time, heads, channel/4]` the quads of this unit's two tokens are, in the chunk from token `start`; in the place of tokens from `end` on
/// those of the last before it.
#[cube]
pub(super) fn rows_at(
    place: &Place,
    batch: usize,
    head: usize,
    start: usize,
    end: usize,
    time: usize,
    heads: usize,
    #[comptime] size: usize,
) -> (usize, usize) {
    let stride = heads * comptime!(size / 4);
    let at = batch * time * stride + head * comptime!(size / 4) + place.quad;
    let token = start + place.token;
    (
        at + min(token, end - 1) * stride,
        at + min(token + 1, end - 1) * stride,
    )
}

/// Reads this lane's part of rows `16 warp ..` of a state from `at` on.
#[cube]
pub(super) fn load_state<S: Float>(
    from: &Array<Pair<S>>,
    at: usize,
    #[comptime] size: usize,
) -> Array<Pair<f32>> {
    let mut state = no_sums(comptime!(size / 8));
    #[unroll]
    for i in 0..comptime!(size / 4) {
        state[i] = Pair::<f32>::cast_from(from[at + comptime!(in_rows(i, size))]);
    }
    state
}

/// Writes what [`load_state`] reads.
#[cube]
pub(super) fn store_state<S: Float>(
    state: &Array<Pair<f32>>,
    to: &mut Array<Pair<S>>,
    at: usize,
    #[comptime] size: usize,
) {
    #[unroll]
    for i in 0..comptime!(size / 4) {
        to[at + comptime!(in_rows(i, size))] = Pair::<S>::cast_from(state[i]);
    }
}

/// Where pair `i` of a lane's sums lies from its first on, in pairs.
fn in_rows(i: usize, size: usize) -> usize {
    i / 2 * 4 + i % 2 * 8 * (size / 2)
}

/// Multiplies column `i` of the sums by number `i`.
#[cube]
pub(super) fn decay_columns(
    warp: &Warp,
    decays: &SharedMemory<Quad>,
    sums: &mut Array<Pair<f32>>,
    #[comptime] size: usize,
) {
    let unrolled = comptime!(!warp.emulated);
    #[unroll(unrolled)]
    for n in 0..comptime!(size / 8) {
        let quad = decays[2 * n + warp.member / 2];
        let high = warp.member % 2 == 1;
        let mut decay = Pair::<f32>::new(0.0);
        decay[0] = select(high, quad[2], quad[0]);
        decay[1] = select(high, quad[3], quad[1]);
        sums[2 * n] *= decay;
        sums[2 * n + 1] *= decay;
    }
}
