//! What lets spans run in parallel: what a span does to the gradient of a state, and the states between spans from that.

use cubecl::prelude::*;

use super::Plan;
use super::chunk::{
    MATRIX, Place, Rows, TOKEN_STRIDE, TOKENS, Tiles, row, stride, tile, token_matrices, write,
};
use super::forward::{decay_columns, load_rows, rows_at, store_state};
use crate::cube::warp::{Pair, Warp, fast_math, no_sums, room, sums_as_left};

/// The gradient of each span's first state if that of its last is zero: [`wkv7_backward_tiled`](super::backward::wkv7_backward_tiled) without all the rest. One cube of `2 size`
/// units per (head, batch, span); `d_state` is `[batch, heads, span, value, key]`.
#[cube(launch_unchecked, fast_math = fast_math(plan.emulated))]
pub(super) fn wkv7_span_gradient_tiled<F: Float, E: Float>(
    receptance: &Array<Vector<F, Const<4>>>,
    log_decay: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    removal: &Array<Vector<F, Const<4>>>,
    replacement: &Array<Vector<F, Const<4>>>,
    d_output: &Array<Vector<F, Const<4>>>,
    d_state_to: &mut Array<Pair<f32>>,
    time: usize,
    heads: usize,
    span: usize,
    #[comptime] plan: Plan,
    #[define(F, E)] _dtypes: [StorageType; 2],
) {
    let size = comptime!(plan.size);
    let stride = comptime!(stride(size));
    let tile = comptime!(tile(size));
    let unrolled = comptime!(!plan.emulated);
    let mut warp = Warp::new(comptime!(size / 16), plan.emulated);
    let place = Place::of(&warp);
    let head = CUBE_POS_X as usize;
    let batch = CUBE_POS_Y as usize;
    let sequence = batch * heads + head;
    let first = CUBE_POS_Z as usize * span;
    let end = min(first + span, time);
    let chunks = (end - first).div_ceil(TOKENS);

    let mut tiles = Tiles::<E>::new(size, 1usize, false);
    let mut d_outputs = room::<E>(tile);
    let mut matrix_p = SharedMemory::<Pair<f32>>::new(comptime!(TOKENS * TOKENS / 2));
    let mut matrices = room::<E>(comptime!(4 * MATRIX)); // M, Q, E, F
    let mut d_state = no_sums(comptime!(size / 8));
    let mut rows = Rows::<F>::new(7usize);
    for back in 0..chunks {
        let start = first + (chunks - 1 - back) * TOKENS;
        let at = rows_at(&place, batch, head, start, end, time, heads, size);
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
        tiles.stage(&rows, &place, end - start, size);
        #[unroll]
        for i in 0..2usize {
            let at = (place.token + i) * stride + place.quad * 2;
            let d_output = rows.get_known(row::D_OUTPUT, i, &place, end - start);
            write(&mut d_outputs, at, d_output);
        }
        sync_cube();

        // dU^T = G B^T + dY^T E
        decay_columns(&warp, &tiles.decays, &mut d_state, size);
        let mut du = no_sums(2usize);
        #[unroll(unrolled)]
        for step in 0..comptime!(size / 16) {
            let g = sums_as_left::<E>(&d_state, step);
            #[unroll(unrolled)]
            for half in 0..2usize {
                let b = warp.right_transposed(&tiles.rights, 8 * half * stride, stride, step);
                warp.multiply_add(&g, &b, &mut du, half);
            }
        }
        token_matrices(&mut warp, &tiles, &mut matrix_p, &mut matrices, size, true);
        sync_cube();

        let dy = warp.left_transposed(&d_outputs, warp.index * 8, stride, 0usize);
        #[unroll(unrolled)]
        for half in 0..2usize {
            let e = warp.right(&matrices, 2 * MATRIX + 4 * half, TOKEN_STRIDE, 0usize);
            warp.multiply_add(&dy, &e, &mut du, half);
        }
        // dX^T = dU^T M
        let du = sums_as_left::<E>(&du, 0usize);
        let mut dx = no_sums(2usize);
        #[unroll(unrolled)]
        for half in 0..2usize {
            let m = warp.right(&matrices, 4 * half, TOKEN_STRIDE, 0usize);
            warp.multiply_add(&du, &m, &mut dx, half);
        }
        // dS = G + dY^T R + dX^T A
        let dx = sums_as_left::<E>(&dx, 0usize);
        #[unroll(unrolled)]
        for n in 0..comptime!(size / 8) {
            let r = warp.right(&tiles.lefts, tile + 4 * n, stride, 0usize);
            warp.multiply_add(&dy, &r, &mut d_state, n);
            let a = warp.right(&tiles.lefts, 4 * n, stride, 0usize);
            warp.multiply_add(&dx, &a, &mut d_state, n);
        }
    }
    let of_span = sequence * time.div_ceil(span) + first / span;
    let in_state = (warp.index * 16 + warp.group) * comptime!(size / 2) + warp.member;
    store_state(
        &d_state,
        d_state_to,
        of_span * comptime!(size * size / 2) + in_state,
        size,
    );
}

/// Rows of a state that a cube of [`wkv7_join_spans`] takes.
pub(super) const JOINED_ROWS: usize = 8;

/// States at one end of each span, `[batch * heads, span, value, key]`, by one recurrence over the spans: forwards `S -> S T + C` from the state before
/// the first; `backwards`, of gradients, `G -> G T^T + C` from the one after the last. The maps `T` are the second of each pair in `maps`,
/// `[batch * heads, span, 2, value, key]`; `added` holds one `C` per span, or is `maps` again. In f32; one cube of `size` units per 8 rows.
#[cube(launch_unchecked)]
pub(super) fn wkv7_join_spans(
    from: &Array<f32>,
    maps: &Array<f32>,
    added: &Array<f32>,
    states: &mut Array<f32>,
    spans: usize,
    #[comptime] size: usize,
    #[comptime] backwards: bool,
) {
    let area = comptime!(size * size);
    let column = UNIT_POS as usize;
    let first_row = CUBE_POS_X as usize * JOINED_ROWS;
    let sequence = CUBE_POS_Y as usize;
    let mut rows = SharedMemory::<f32>::new(comptime!(JOINED_ROWS * size));
    let mut sums = Array::<f32>::new(JOINED_ROWS);
    #[unroll]
    for r in 0..JOINED_ROWS {
        sums[r] = from[sequence * area + (first_row + r) * size + column];
    }
    for i in 0..spans {
        let mut span = sequence * spans + i;
        if comptime!(backwards) {
            span = sequence * spans + spans - 1 - i;
        }
        let mut added_at = 2 * span * area;
        if comptime!(backwards) {
            added_at = span * area;
        }
        #[unroll]
        for r in 0..JOINED_ROWS {
            let at = (first_row + r) * size + column;
            rows[r * size + column] = sums[r];
            states[span * area + at] = sums[r];
            sums[r] = added[added_at + at];
        }
        sync_cube();
        let map_at = (2 * span + 1) * area;
        for k in 0..size {
            let mut at = map_at + k * size + column;
            if comptime!(backwards) {
                at = map_at + column * size + k;
            }
            let map = maps[at];
            #[unroll]
            for r in 0..JOINED_ROWS {
                sums[r] += rows[r * size + k] * map;
            }
        }
        sync_cube();
    }
}
