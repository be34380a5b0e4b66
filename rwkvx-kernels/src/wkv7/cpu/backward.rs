//! Gradients, chunk by chunk from the last to the first.
//!
//! With `G_t` the gradient of `S_t` that comes from later tokens plus `dy_t receptance_t^T`, and `u_t = S_{t-1} removal_t`:
//!
//! ```text
//! d receptance = S_t^T dy        d value = G_t key           d key = G_t^T value
//! d u = G_t replacement          d replacement = G_t^T u     d removal = S_{t-1}^T d u
//! d log_decay = w (G_t . S_{t-1} summed over value)          gradient of S_{t-1} = G_t diag(w) + d u removal^T
//! ```

use pulp::{Arch, Simd, WithSimd};

use super::{CHUNK, Dims, ROWS, Sequences};
use crate::cpu::simd::{exp, vectors, vectors_mut};
use crate::cpu::{Disjoint, for_each, parts_to_fill_threads};

/// Rows whose states of one chunk are kept together: 17 * 16 * 64 * 4 bytes = 68 KiB for heads of 64.
const BLOCK: usize = 16;

/// Gradients of the six sequences in the order of [`Sequences`]; `d_state` is changed from the gradient of the last state to that of the
/// first. `saved` are the states before each chunk, as the forward pass left them.
pub(super) fn run(
    dims: Dims,
    sequences: Sequences<'_>,
    saved: &[f32],
    d_output: Option<&[f32]>,
    d_state: &mut [f32],
) -> [Vec<f32>; 6] {
    let heads = dims.batch * dims.heads;
    let parts = parts_to_fill_threads(heads, dims.size, BLOCK);
    let rows = dims.size / parts;
    let elements = dims.elements();
    // All but the value's gradient are sums over rows: each part has its own, added up at the end.
    let mut sums: [Vec<f32>; 5] = std::array::from_fn(|_| vec![0.0; parts * elements]);
    let mut d_value = vec![0.0; elements];
    {
        let d_state = Disjoint::new(d_state);
        let sums = sums.each_mut().map(|sum| Disjoint::new(sum));
        let d_value = Disjoint::new(&mut d_value);
        let saved_row = dims.chunks() * dims.size;
        let arch = Arch::new();
        for_each(heads * parts, dims.work(14), |task| {
            let (head, part) = (task / parts, task % parts);
            let first_row = part * rows;
            let at = head * dims.size + first_row;
            arch.dispatch(HeadRows {
                dims,
                sequences,
                head,
                first_row,
                rows,
                saved: &saved[at * saved_row..][..rows * saved_row],
                d_output,
                // SAFETY: each task has its own (head, rows), to which this range is in bijection.
                d_state: unsafe { d_state.part(at * dims.size, rows * dims.size) },
                sums: &sums,
                sums_at: part * elements,
                d_value: &d_value,
            });
        });
    }
    for sum in &mut sums {
        let (first, others) = sum.split_at_mut(elements);
        for other in others.chunks_exact(elements) {
            first.iter_mut().zip(other).for_each(|(x, y)| *x += y);
        }
        sum.truncate(elements);
    }
    let [d_receptance, d_log_decay, d_key, d_removal, d_replacement] = sums;
    [
        d_receptance,
        d_log_decay,
        d_key,
        d_value,
        d_removal,
        d_replacement,
    ]
}

/// Some rows of one head.
struct HeadRows<'a> {
    dims: Dims,
    sequences: Sequences<'a>,
    /// Index over batch and heads.
    head: usize,
    first_row: usize,
    rows: usize,
    /// `[rows, chunk, key]`
    saved: &'a [f32],
    d_output: Option<&'a [f32]>,
    /// `[rows, key]`
    d_state: &'a mut [f32],
    /// Of receptance, log_decay, key, removal, replacement.
    sums: &'a [Disjoint<'a>; 5],
    sums_at: usize,
    d_value: &'a Disjoint<'a>,
}

/// Where in a token's scratch row the sums over rows of each sequence lie; in the order of `HeadRows::sums`.
const SUMS: usize = 5;

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
    /// All chunks of the rows; `size` is the head size.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, size: usize) {
        let dims = self.dims;
        let (batch, head) = (self.head / dims.heads, self.head % dims.heads);
        let mut decays = vec![0.0; CHUNK * size]; // [token, key]
        let mut states = vec![0.0; (CHUNK + 1) * BLOCK * size]; // [token, row, key], before each token and after the last
        let mut removed = vec![0.0; CHUNK * BLOCK]; // [token, row]
        let mut sums = vec![0.0; CHUNK * SUMS * size]; // [token, sequence, key]
        for chunk in (0..dims.chunks()).rev() {
            let start = chunk * CHUNK;
            let len = CHUNK.min(dims.time - start);
            let row_at = |t: usize| dims.row(batch, start + t, head);
            for t in 0..len {
                let log_decay = &self.sequences.log_decay[row_at(t)..][..size];
                decays[t * size..][..size].copy_from_slice(log_decay);
            }
            exp(simd, &mut decays[..len * size]);
            sums.fill(0.0);
            for block in (0..self.rows).step_by(BLOCK) {
                let history = dims.chunks() * size;
                for (i, row) in states[..BLOCK * size].chunks_exact_mut(size).enumerate() {
                    row.copy_from_slice(
                        &self.saved[(block + i) * history + chunk * size..][..size],
                    );
                }
                for t in 0..len {
                    let (before, after) = states[t * BLOCK * size..].split_at_mut(BLOCK * size);
                    let token = Token::new(
                        simd,
                        self.sequences,
                        row_at(t),
                        size,
                        &decays[t * size..][..size],
                    );
                    let value =
                        &self.sequences.value[row_at(t) + self.first_row + block..][..BLOCK];
                    token.advance(
                        simd,
                        before,
                        &mut after[..BLOCK * size],
                        value,
                        &mut removed[t * BLOCK..][..BLOCK],
                    );
                }
                let d_state = &mut self.d_state[block * size..][..BLOCK * size];
                for t in (0..len).rev() {
                    let at = row_at(t);
                    let rows_at = at + self.first_row + block;
                    let token =
                        Token::new(simd, self.sequences, at, size, &decays[t * size..][..size]);
                    let (before, after) = states[t * BLOCK * size..].split_at(BLOCK * size);
                    // SAFETY: each task has its own (head, rows), and this is one token's part of them.
                    let d_value = unsafe { self.d_value.part(rows_at, BLOCK) };
                    let d_output = match self.d_output {
                        Some(d_output) => &d_output[rows_at..][..BLOCK],
                        None => &[0.0; BLOCK],
                    };
                    for first in (0..BLOCK).step_by(ROWS) {
                        let (rows, elements) =
                            (first..first + ROWS, first * size..(first + ROWS) * size);
                        token.retreat(
                            simd,
                            Group {
                                before: &before[elements.clone()],
                                after: &after[elements.clone()],
                                d_state: &mut d_state[elements],
                                value: &self.sequences.value[rows_at + first..][..ROWS],
                                removed: &removed[t * BLOCK + first..][..ROWS],
                                d_output: &d_output[rows.clone()],
                                d_value: &mut d_value[rows],
                            },
                            &mut sums[t * SUMS * size..][..SUMS * size],
                        );
                    }
                }
            }
            for t in 0..len {
                // d ln w = w dw
                let decay_sum = &mut sums[(t * SUMS + 1) * size..][..size];
                decay_sum
                    .iter_mut()
                    .zip(&decays[t * size..])
                    .for_each(|(sum, decay)| *sum *= decay);
                for (sum, target) in sums[t * SUMS * size..].chunks_exact(size).zip(self.sums) {
                    // SAFETY: each task has its own (head, part), and this is one token's row of them.
                    let row = unsafe { target.part(self.sums_at + row_at(t), size) };
                    row.copy_from_slice(sum);
                }
            }
        }
    }
}

/// What all rows of a head share in one step.
struct Token<'a, V> {
    decay: &'a [V],
    receptance: &'a [V],
    key: &'a [V],
    removal: &'a [V],
    replacement: &'a [V],
}

/// Four rows in one step back.
struct Group<'a> {
    before: &'a [f32],
    after: &'a [f32],
    d_state: &'a mut [f32],
    value: &'a [f32],
    removed: &'a [f32],
    d_output: &'a [f32],
    d_value: &'a mut [f32],
}

impl<'a, V: Copy> Token<'a, V> {
    #[inline(always)]
    fn new<S: Simd<f32s = V>>(
        simd: S,
        s: Sequences<'a>,
        at: usize,
        size: usize,
        decay: &'a [f32],
    ) -> Self {
        let row = |sequence: &'a [f32]| vectors(simd, &sequence[at..][..size]);
        Self {
            decay: vectors(simd, decay),
            receptance: row(s.receptance),
            key: row(s.key),
            removal: row(s.removal),
            replacement: row(s.replacement),
        }
    }

    /// The states `[row, key]` after the token from those before, and `S removal` of each row.
    #[inline(always)]
    fn advance<S: Simd<f32s = V>>(
        &self,
        simd: S,
        before: &[f32],
        after: &mut [f32],
        value: &[f32],
        removed: &mut [f32],
    ) {
        let n = self.decay.len();
        let before = vectors(simd, before).chunks_exact(n);
        let after = vectors_mut(simd, after).chunks_exact_mut(n);
        for (i, (before, after)) in before.zip(after).enumerate() {
            let mut sum = simd.splat_f32s(0.0);
            for (&s, &removal) in before.iter().zip(self.removal) {
                sum = simd.mul_add_e_f32s(s, removal, sum);
            }
            removed[i] = simd.reduce_sum_f32s(sum);
            let (removal, value) = (simd.splat_f32s(removed[i]), simd.splat_f32s(value[i]));
            for (j, (&before, after)) in before.iter().zip(after).enumerate() {
                let mut s = simd.mul_f32s(before, self.decay[j]);
                s = simd.mul_add_e_f32s(removal, self.replacement[j], s);
                *after = simd.mul_add_e_f32s(value, self.key[j], s);
            }
        }
    }

    /// Turns the gradient of the state after the token into that of the state before, and adds to the token's sums.
    #[inline(always)]
    fn retreat<S: Simd<f32s = V>>(&self, simd: S, group: Group<'_>, sums: &mut [f32]) {
        let n = self.decay.len();
        let before = &vectors(simd, group.before)[..ROWS * n];
        let after = &vectors(simd, group.after)[..ROWS * n];
        let d_state = &mut vectors_mut(simd, group.d_state)[..ROWS * n];
        let (d_receptance, sums) = vectors_mut(simd, sums).split_at_mut(n);
        let (d_decay, sums) = sums.split_at_mut(n);
        let (d_key, sums) = sums.split_at_mut(n);
        let (d_removal, d_replacement) = sums.split_at_mut(n);
        let d_replacement = &mut d_replacement[..n];
        let (receptance, key) = (&self.receptance[..n], &self.key[..n]);
        let (removal, replacement) = (&self.removal[..n], &self.replacement[..n]);

        let zero = simd.splat_f32s(0.0);
        let splat = |row: &[f32]| -> [V; ROWS] { std::array::from_fn(|i| simd.splat_f32s(row[i])) };
        let (values, d_outputs, removals) = (
            splat(group.value),
            splat(group.d_output),
            splat(group.removed),
        );
        let mut d_removed = [zero; ROWS];
        let mut d_values = [zero; ROWS];
        for j in 0..n {
            let (mut dr, mut dw, mut dk, mut db) =
                (d_receptance[j], d_decay[j], d_key[j], d_replacement[j]);
            for i in 0..ROWS {
                let g = simd.mul_add_e_f32s(d_outputs[i], receptance[j], d_state[i * n + j]);
                d_state[i * n + j] = g;
                dr = simd.mul_add_e_f32s(d_outputs[i], after[i * n + j], dr);
                dw = simd.mul_add_e_f32s(g, before[i * n + j], dw);
                dk = simd.mul_add_e_f32s(g, values[i], dk);
                db = simd.mul_add_e_f32s(g, removals[i], db);
                d_removed[i] = simd.mul_add_e_f32s(g, replacement[j], d_removed[i]);
                d_values[i] = simd.mul_add_e_f32s(g, key[j], d_values[i]);
            }
            (d_receptance[j], d_decay[j], d_key[j], d_replacement[j]) = (dr, dw, dk, db);
        }
        for i in 0..ROWS {
            group.d_value[i] = simd.reduce_sum_f32s(d_values[i]);
            d_removed[i] = simd.splat_f32s(simd.reduce_sum_f32s(d_removed[i]));
        }
        for j in 0..n {
            let mut da = d_removal[j];
            for i in 0..ROWS {
                da = simd.mul_add_e_f32s(d_removed[i], before[i * n + j], da);
                let g = simd.mul_f32s(d_state[i * n + j], self.decay[j]);
                d_state[i * n + j] = simd.mul_add_e_f32s(d_removed[i], removal[j], g);
            }
            d_removal[j] = da;
        }
    }
}
