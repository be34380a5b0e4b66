//! Gradients, chunk of keys by chunk of keys.
//!
//! With weights `p = exp(scale q.k - log_sum_exp)` recomputed, `d_weight = d_output . value` and `delta = d_output . output` of a query:
//!
//! ```text
//! d value += p d_output      ds = p (d_weight - delta) scale      d key += ds query      d query += ds key
//! ```

use pulp::{Arch, Simd, WithSimd};

use super::choices::Choices;
use super::tile::{hide_later, score, transpose_in, width};
use super::{KEYS, Problem, Rows};
use crate::cpu::simd::{Strided, dot, exp, multiply_add, vectors, vectors_mut};
use crate::cpu::{Disjoint, for_each, parts_to_fill_threads};

/// Gradients of query, key and value, each `[batch, time, heads, head_size]`; `saved` is what the forward pass saved.
pub(super) fn run(
    problem: &Problem<'_>,
    output: &[f32],
    saved: &[f32],
    d_output: &[f32],
) -> [Vec<f32>; 3] {
    let (time, heads, size) = (problem.end, problem.heads, problem.size);
    let chunks = time.div_ceil(problem.shape.chunk_size);
    let all_heads = problem.batch * heads;
    let parts = parts_to_fill_threads(all_heads, chunks, 1);
    let elements = all_heads * time * size;
    // Every part of the chunks has its own sum over keys, added up at the end.
    let mut d_query = vec![0.0; parts * elements];
    let mut d_key = vec![0.0; elements];
    let mut d_value = vec![0.0; elements];
    {
        let d_query = Disjoint::new(&mut d_query);
        let d_key = Disjoint::new(&mut d_key);
        let d_value = Disjoint::new(&mut d_value);
        let arch = Arch::new();
        for_each(all_heads * parts, problem.work() * 5 / 2, |task| {
            let (head, part) = (task / parts, task % parts);
            arch.dispatch(HeadChunks {
                problem,
                head: (head / heads, head % heads),
                part,
                parts,
                output: Rows::sequence(output, time, heads, size),
                saved: Rows::sequence(saved, time, heads, problem.saved_row()),
                d_output: Rows::sequence(d_output, time, heads, size),
                d_query: &d_query,
                d_query_at: part * elements,
                d_key: &d_key,
                d_value: &d_value,
            });
        });
    }
    let (first, others) = d_query.split_at_mut(elements);
    for other in others.chunks_exact(elements) {
        first.iter_mut().zip(other).for_each(|(x, y)| *x += y);
    }
    d_query.truncate(elements);
    [d_query, d_key, d_value]
}

/// The chunks `part, part + parts, ..` of one head.
struct HeadChunks<'a> {
    problem: &'a Problem<'a>,
    head: (usize, usize),
    part: usize,
    parts: usize,
    output: Rows<'a>,
    saved: Rows<'a>,
    d_output: Rows<'a>,
    d_query: &'a Disjoint<'a>,
    d_query_at: usize,
    d_key: &'a Disjoint<'a>,
    d_value: &'a Disjoint<'a>,
}

/// Working memory. Lane matrices have rows of `width` queries, row matrices one row per query or key.
struct Scratch {
    /// `[head_size, lane]`
    query: Vec<f32>,
    /// `[head_size, lane]`
    d_output: Vec<f32>,
    /// `[head_size, lane]`
    d_query: Vec<f32>,
    /// `[lane, head_size]`
    query_rows: Vec<f32>,
    /// `[lane, head_size]`
    d_output_rows: Vec<f32>,
    /// `[lane]`
    log_sum_exp: Vec<f32>,
    /// `[lane]`
    delta: Vec<f32>,
    /// `[key, lane]`
    weights: Vec<f32>,
    /// `[key, lane]`
    d_scores: Vec<f32>,
    /// `[key of the chunk, head_size]`
    d_key: Vec<f32>,
    /// `[key of the chunk, head_size]`
    d_value: Vec<f32>,
}

impl WithSimd for HeadChunks<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = width::<S>();
        let problem = self.problem;
        let shape = problem.shape;
        let time = problem.end;
        let size = problem.size;
        let dense_end = time.min(shape.top_k * shape.chunk_size);

        let mut choices = Choices::default();
        for query in dense_end..time {
            for &chunk in &self.saved.row(self.head, query)[1..] {
                if chunk as usize % self.parts == self.part {
                    choices.push(chunk as u32, query);
                }
            }
        }
        choices.sort();
        let mut chosen = choices.by_chunk().peekable();

        let longest = shape.chunk_size.min(time);
        let mut scratch = Scratch {
            query: vec![0.0; size * width],
            d_output: vec![0.0; size * width],
            d_query: vec![0.0; size * width],
            query_rows: vec![0.0; size * width],
            d_output_rows: vec![0.0; size * width],
            log_sum_exp: vec![0.0; width],
            delta: vec![0.0; width],
            weights: vec![0.0; KEYS * width],
            d_scores: vec![0.0; KEYS * width],
            d_key: vec![0.0; longest * size],
            d_value: vec![0.0; longest * size],
        };
        let mut queries: Vec<usize> = Vec::with_capacity(width);
        for chunk in (self.part..time.div_ceil(shape.chunk_size)).step_by(self.parts) {
            let (start, end) = (
                chunk * shape.chunk_size,
                time.min((chunk + 1) * shape.chunk_size),
            );
            scratch.d_key.fill(0.0);
            scratch.d_value.fill(0.0);
            for first in (start..end).step_by(width) {
                queries.clear();
                queries.extend(first..end.min(first + width));
                let keys = start..end.min(first + width);
                self.tile(simd, &queries, keys, start, Some(first), &mut scratch);
            }
            for first in (end..dense_end).step_by(width) {
                queries.clear();
                queries.extend(first..dense_end.min(first + width));
                self.tile(simd, &queries, start..end, start, None, &mut scratch);
            }
            if let Some((_, pairs)) = chosen.next_if(|&(c, _)| c == chunk) {
                for pairs in pairs.chunks(width) {
                    queries.clear();
                    queries.extend(pairs.iter().map(|&(_, query)| query as usize));
                    self.tile(simd, &queries, start..end, start, None, &mut scratch);
                }
            }
            for t in start..end {
                let from = (t - start) * size..(t - start + 1) * size;
                let at = self.gradient_row(t);
                // SAFETY: each task has its own (head, chunks), and this is one key's row of them.
                let (d_key, d_value) =
                    unsafe { (self.d_key.part(at, size), self.d_value.part(at, size)) };
                d_key.copy_from_slice(&scratch.d_key[from.clone()]);
                d_value.copy_from_slice(&scratch.d_value[from]);
            }
        }
    }
}

impl HeadChunks<'_> {
    /// Adds what one tile of queries and the keys of one chunk, which starts at `chunk_start`, have in common to the gradients of both. With
    /// `causal`, the time of the first query, the queries are neighbours who do not see later keys.
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        simd: S,
        queries: &[usize],
        keys: std::ops::Range<usize>,
        chunk_start: usize,
        causal: Option<usize>,
        scratch: &mut Scratch,
    ) {
        let width = width::<S>();
        let problem = self.problem;
        let (head, size) = (self.head, problem.size);
        let s = scratch;
        transpose_in(
            queries.iter().map(|&t| problem.query(head, t)),
            &mut s.query,
            width,
        );
        transpose_in(
            queries.iter().map(|&t| self.d_output.row(head, t)),
            &mut s.d_output,
            width,
        );
        // Lanes without a query get weights exp(-inf) = 0, and so do nothing.
        s.log_sum_exp.fill(f32::INFINITY);
        s.delta.fill(0.0);
        for (lane, &t) in queries.iter().enumerate() {
            let d_output = self.d_output.row(head, t);
            s.query_rows[lane * size..][..size].copy_from_slice(problem.query(head, t));
            s.d_output_rows[lane * size..][..size].copy_from_slice(d_output);
            s.log_sum_exp[lane] = self.saved.row(head, t)[0];
            s.delta[lane] = dot(simd, d_output, self.output.row(head, t));
        }
        s.d_query.fill(0.0);
        let scale = simd.splat_f32s(problem.scale);
        for first in keys.clone().step_by(KEYS) {
            let count = KEYS.min(keys.end - first);
            let weights = &mut s.weights[..count * width];
            score(simd, problem, head, first, &s.query, weights);
            for row in vectors_mut(simd, weights).chunks_exact_mut(2) {
                for (x, &log_sum_exp) in row.iter_mut().zip(vectors(simd, &s.log_sum_exp)) {
                    *x = simd.sub_f32s(simd.mul_f32s(*x, scale), log_sum_exp);
                }
            }
            exp(simd, weights);
            if let Some(time) = causal {
                hide_later(weights, first, time, width, 0.0);
            }

            let d_scores = &mut s.d_scores[..count * width];
            d_scores.fill(0.0);
            let values = Strided {
                values: problem.value.from(head, first),
                row_stride: problem.value.time_stride,
                depth_stride: 1,
            };
            multiply_add(
                simd,
                (d_scores, width),
                values,
                (&s.d_output, width),
                count,
                size,
            );
            let d_rows = vectors_mut(simd, d_scores).chunks_exact_mut(2);
            for (d_row, row) in d_rows.zip(vectors(simd, weights).chunks_exact(2)) {
                for (v, (d, &weight)) in d_row.iter_mut().zip(row).enumerate() {
                    let centred = simd.sub_f32s(*d, vectors(simd, &s.delta)[v]);
                    *d = simd.mul_f32s(simd.mul_f32s(weight, centred), scale);
                }
            }

            let keys_t = Strided {
                values: problem.key.from(head, first),
                row_stride: 1,
                depth_stride: problem.key.time_stride,
            };
            multiply_add(
                simd,
                (&mut s.d_query, width),
                keys_t,
                (d_scores, width),
                size,
                count,
            );
            let by_key = |values| Strided {
                values,
                row_stride: width,
                depth_stride: 1,
            };
            let at = (first - chunk_start) * size;
            for column in (0..size).step_by(width) {
                let d_value = (&mut s.d_value[at + column..], size);
                let d_output = (&s.d_output_rows[column..], size);
                multiply_add(
                    simd,
                    d_value,
                    by_key(weights),
                    d_output,
                    count,
                    queries.len(),
                );
                let d_key = (&mut s.d_key[at + column..], size);
                let query = (&s.query_rows[column..], size);
                multiply_add(simd, d_key, by_key(d_scores), query, count, queries.len());
            }
        }
        for (lane, &t) in queries.iter().enumerate() {
            let at = self.d_query_at + self.gradient_row(t);
            // SAFETY: each task has its own (head, part), and this is one query's row of them.
            let d_query = unsafe { self.d_query.part(at, size) };
            for (sum, lanes) in d_query.iter_mut().zip(s.d_query.chunks_exact(width)) {
                *sum += lanes[lane];
            }
        }
    }

    /// Where the row of a time starts in `[batch, time, heads, head_size]`.
    fn gradient_row(&self, time: usize) -> usize {
        let problem = self.problem;
        ((self.head.0 * problem.end + time) * problem.heads + self.head.1) * problem.size
    }
}
