//! Outputs and last state, token by token, on any device.
//!
//! Rows of the state do not depend on each other. A unit keeps its part of one row in registers, `lanes` units share a row, and a
//! cube holds `rows` rows of one head; the tokens of a tile go through shared memory, so that a cube waits for memory once per
//! tile. `S_{t-1} removal_t` is summed up while `S_{t-1}` is written, which walks the state once per token instead of twice.

use cubecl::prelude::*;

use crate::cube::{Quad, sum_over_lanes};
use crate::wkv7::cube::Writes;

/// How the kernel is cut; part of its identity, so that each combination is compiled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ForwardPlan {
    /// Head size, a multiple of 32.
    pub(super) size: usize,
    /// Rows of the state per cube.
    pub(super) rows: usize,
    /// Units that share a row, neighbours in one plane.
    pub(super) lanes: usize,
    /// Tokens that go through shared memory together.
    pub(super) tile: usize,
    /// Tokens between chunk states, a divisor of `tile`.
    pub(super) chunk: usize,
    /// What comes out.
    pub(super) writes: Writes,
}

/// One cube per (rows, head, batch). Sequences are `[batch, time, heads, key/4]` quads. What `state_before` and `states` are, `writes` says:
///
/// * [`Writes::Output`]: all tokens, from `state_before`, `[batch, heads, value, key/4]`; `states` receives the state before every span,
///   `[batch, heads, span, value, key/4]`.
/// * [`Writes::ChunkStates`]: tokens `first ..` of one span, from the span states in `state_before`; `states` receives the state before each of its
///   chunks, `[batch, heads, chunk, key/4, value]`, and nothing else is written.
#[cube(launch_unchecked)]
pub(super) fn wkv7_forward<F: Float>(
    receptance: &Array<Vector<F, Const<4>>>,
    log_decay: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<F>,
    removal: &Array<Vector<F, Const<4>>>,
    replacement: &Array<Vector<F, Const<4>>>,
    state_before: &Array<Quad>,
    output: &mut Array<F>,
    state_after: &mut Array<Quad>,
    states: &mut Array<Quad>,
    time: usize,
    heads: usize,
    first: usize,
    span: usize,
    #[comptime] plan: ForwardPlan,
    #[define(F)] _dtype: StorageType,
) {
    let width = comptime!(plan.size / 4); // quads per row
    let quads = comptime!(width / plan.lanes); // of which a unit holds these many
    let unit = UNIT_POS as usize;
    let lane = unit % plan.lanes;
    let row = CUBE_POS_X as usize * plan.rows + unit / plan.lanes;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let sequence = batch * heads + head;

    let mut receptances = SharedMemory::<Quad>::new(comptime!(plan.tile * width));
    let mut decays = SharedMemory::<Quad>::new(comptime!(plan.tile * width));
    let mut keys = SharedMemory::<Quad>::new(comptime!(plan.tile * width));
    let mut next_removals = SharedMemory::<Quad>::new(comptime!(plan.tile * width));
    let mut replacements = SharedMemory::<Quad>::new(comptime!(plan.tile * width));

    let gives_output = comptime!(plan.writes == Writes::Output);
    let spans = time.div_ceil(span);
    let in_state = row * width + lane;
    let mut end = time;
    let mut state_at = sequence * plan.size * width + in_state;
    if comptime!(!gives_output) {
        end = min(first + span, time);
        state_at += (sequence * (spans - 1) + first / span) * plan.size * width;
    }
    let mut state = Array::<Quad>::new(quads);
    let first_at = ((batch * time + first) * heads + head) * width + lane;
    let mut removed_quad = Quad::new(0.0);
    #[unroll]
    for j in 0..quads {
        state[j] = state_before[state_at + j * plan.lanes];
        removed_quad += state[j] * Quad::cast_from(removal[first_at + j * plan.lanes]);
    }
    let mut removed = sum_over_lanes(removed_quad, plan.lanes);

    let tiles = (end - first).div_ceil(plan.tile);
    for tile in 0..tiles {
        let start = first + tile * plan.tile;
        sync_cube();
        let mut i = unit;
        while i < comptime!(plan.tile * width) {
            let token = start + i / width;
            let at = ((batch * time + token) * heads + head) * width + i % width;
            if token < end {
                receptances[i] = Quad::cast_from(receptance[at]);
                decays[i] = Quad::cast_from(log_decay[at]).exp();
                keys[i] = Quad::cast_from(key[at]);
                replacements[i] = Quad::cast_from(replacement[at]);
            }
            if token + 1 < end {
                next_removals[i] = Quad::cast_from(removal[at + heads * width]);
            }
            i += CUBE_DIM as usize;
        }
        sync_cube();

        let tokens = min(end - start, plan.tile);
        for t in 0..tokens {
            let done = start + t - first;
            if comptime!(gives_output) {
                if done / span * span == done {
                    let to = (sequence * spans + done / span) * plan.size * width + in_state;
                    #[unroll]
                    for j in 0..quads {
                        states[to + j * plan.lanes] = state[j];
                    }
                }
            } else if t % plan.chunk == 0 {
                let chunks = span / plan.chunk;
                let chunk = sequence * chunks + done / plan.chunk;
                #[unroll]
                for j in 0..quads {
                    states[(chunk * width + j * plan.lanes + lane) * plan.size + row] = state[j];
                }
            }
            let at = ((batch * time + start + t) * heads + head) * plan.size + row;
            let value_quad = Quad::cast_from(f32::cast_from(value[at]));
            let removed_before = Quad::cast_from(removed);
            let mut read = Quad::new(0.0);
            let mut removed_next = Quad::new(0.0);
            #[unroll]
            for j in 0..quads {
                let i = t * width + j * plan.lanes + lane;
                let s =
                    state[j] * decays[i] + removed_before * replacements[i] + value_quad * keys[i];
                state[j] = s;
                read += s * receptances[i];
                removed_next += s * next_removals[i];
            }
            removed = sum_over_lanes(removed_next, plan.lanes);
            if comptime!(gives_output) {
                let read = sum_over_lanes(read, plan.lanes);
                if lane == 0 {
                    output[at] = F::cast_from(read);
                }
            }
        }
    }
    if comptime!(gives_output) {
        #[unroll]
        for j in 0..quads {
            state_after[state_at + j * plan.lanes] = state[j];
        }
    }
}
