//! Outputs and last state, token by token.

use pulp::{Arch, Simd, WithSimd};

use super::{CHUNK, Dims, ROWS, Sequences};
use crate::cpu::simd::{dot, exp, vectors, vectors_mut};
use crate::cpu::{Disjoint, for_each, parts_to_fill_threads};

/// Advances `state` `[batch, heads, value, key]` over all tokens and fills `output`. Where `saved` is not empty, it receives the state before
/// each chunk, `[batch, heads, value, chunk, key]`.
pub(super) fn run(
    dims: Dims,
    sequences: Sequences<'_>,
    state: &mut [f32],
    output: &mut [f32],
    saved: &mut [f32],
) {
    let heads = dims.batch * dims.heads;
    let parts = parts_to_fill_threads(heads, dims.size, ROWS);
    let rows = dims.size / parts;
    let saved_row = if saved.is_empty() {
        0
    } else {
        dims.chunks() * dims.size
    };
    let state = Disjoint::new(state);
    let output = Disjoint::new(output);
    let saved = Disjoint::new(saved);
    let arch = Arch::new();
    for_each(heads * parts, dims.work(5), |task| {
        let (head, first_row) = (task / parts, task % parts * rows);
        let at = head * dims.size + first_row;
        // SAFETY: each task has its own (head, rows), to which these ranges are in bijection.
        let (state, saved) = unsafe {
            (
                state.part(at * dims.size, rows * dims.size),
                saved.part(at * saved_row, rows * saved_row),
            )
        };
        arch.dispatch(HeadRows {
            dims,
            sequences,
            head,
            first_row,
            rows,
            state,
            saved,
            output: &output,
        });
    });
}

/// Some rows of one head's state, from the first token to the last.
struct HeadRows<'a> {
    dims: Dims,
    sequences: Sequences<'a>,
    /// Index over batch and heads.
    head: usize,
    first_row: usize,
    rows: usize,
    /// `[rows, key]`
    state: &'a mut [f32],
    /// `[rows, chunk, key]` or empty
    saved: &'a mut [f32],
    output: &'a Disjoint<'a>,
}

impl WithSimd for HeadRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The usual head sizes as constants, which the compiler carries into the inner loops.
        match self.dims.size {
            32 => self.run(simd, 32),
            64 => self.run(simd, 64),
            128 => self.run(simd, 128),
            size => self.run(simd, size),
        }
    }
}

impl HeadRows<'_> {
    /// All tokens of the rows; `size` is the head size.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, size: usize) {
        let Self {
            dims,
            sequences,
            head,
            first_row,
            rows,
            state,
            saved,
            output,
        } = self;
        let (batch, head) = (head / dims.heads, head % dims.heads);
        /// Room for the decays and products of one token of the usual heads, so that decoding does not allocate.
        const SMALL: usize = 256;
        let mut small = [0.0; SMALL];
        let mut large = Vec::new();
        let scratch = if size + rows <= SMALL {
            &mut small[..size + rows]
        } else {
            large.resize(size + rows, 0.0);
            &mut large[..]
        };
        let (decay, removed) = scratch.split_at_mut(size);

        let row_at = |time: usize| dims.row(batch, time, head);
        let first = &sequences.removal[row_at(0)..][..size];
        for (removed, row) in removed.iter_mut().zip(state.chunks_exact(size)) {
            *removed = dot(simd, row, first);
        }
        for time in 0..dims.time {
            if !saved.is_empty() && time % CHUNK == 0 {
                let chunks = dims.chunks();
                for (row, history) in state
                    .chunks_exact(size)
                    .zip(saved.chunks_exact_mut(chunks * size))
                {
                    history[time / CHUNK * size..][..size].copy_from_slice(row);
                }
            }
            let at = row_at(time);
            let next = row_at((time + 1).min(dims.time - 1));
            decay.copy_from_slice(&sequences.log_decay[at..][..size]);
            exp(simd, decay);
            let token = Token {
                decay: vectors(simd, decay),
                key: vectors(simd, &sequences.key[at..][..size]),
                replacement: vectors(simd, &sequences.replacement[at..][..size]),
                receptance: vectors(simd, &sequences.receptance[at..][..size]),
                next_removal: vectors(simd, &sequences.removal[next..][..size]),
            };
            let value = &sequences.value[at + first_row..][..rows];
            // SAFETY: each task has its own (head, rows), and this is one token's part of them.
            let output = unsafe { output.part(at + first_row, rows) };
            for first in (0..rows).step_by(ROWS) {
                let group = first..first + ROWS;
                token.advance(
                    simd,
                    &mut state[first * size..][..ROWS * size],
                    &value[group.clone()],
                    &mut removed[group.clone()],
                    &mut output[group],
                );
            }
        }
    }
}

/// What all rows of a head share in one step.
struct Token<'a, V> {
    decay: &'a [V],
    key: &'a [V],
    replacement: &'a [V],
    receptance: &'a [V],
    next_removal: &'a [V],
}

impl<V: Copy> Token<'_, V> {
    /// One step of [`ROWS`] rows. `removed` holds `S_{t-1} removal_t` and leaves as `S_t removal_{t+1}`, which saves a second walk over the state.
    #[inline(always)]
    fn advance<S: Simd<f32s = V>>(
        &self,
        simd: S,
        state: &mut [f32],
        value: &[f32],
        removed: &mut [f32],
        output: &mut [f32],
    ) {
        let n = self.decay.len();
        let state = &mut vectors_mut(simd, state)[..ROWS * n];
        let (key, replacement) = (&self.key[..n], &self.replacement[..n]);
        let (receptance, next_removal) = (&self.receptance[..n], &self.next_removal[..n]);
        let zero = simd.splat_f32s(0.0);
        let splat = |row: &[f32]| -> [V; ROWS] { std::array::from_fn(|i| simd.splat_f32s(row[i])) };
        let (values, removals) = (splat(value), splat(removed));
        let mut read = [zero; ROWS];
        let mut removed_next = [zero; ROWS];
        for j in 0..n {
            for i in 0..ROWS {
                let mut s = simd.mul_f32s(state[i * n + j], self.decay[j]);
                s = simd.mul_add_e_f32s(removals[i], replacement[j], s);
                s = simd.mul_add_e_f32s(values[i], key[j], s);
                state[i * n + j] = s;
                read[i] = simd.mul_add_e_f32s(s, receptance[j], read[i]);
                removed_next[i] = simd.mul_add_e_f32s(s, next_removal[j], removed_next[i]);
            }
        }
        for i in 0..ROWS {
            output[i] = simd.reduce_sum_f32s(read[i]);
            removed[i] = simd.reduce_sum_f32s(removed_next[i]);
        }
    }
}
