//! Outputs, block of queries by block of queries.

use pulp::{Arch, Simd, WithSimd};

use super::choices::Choices;
use super::choose::choose;
use super::tile::{Tile, transpose_in, transpose_out, width};
use super::{FEW, Problem, few};
use crate::cpu::{Disjoint, for_each};

/// Queries per task. Many, so that a chunk's keys serve many queries while they are in the cache and tiles are full.
const BLOCK: usize = 512;

/// The output `[batch, time, heads, head_size]` and what the backward pass needs, `[batch, time, heads, top_k]`: log-sum-exp of the scaled scores,
/// then the chosen chunks (zeros where a query sees all).
pub(super) fn run(problem: &Problem<'_>) -> (Vec<f32>, Vec<f32>) {
    let time = problem.end - problem.start;
    let queries = problem.batch * problem.heads * time;
    let mut output = vec![0.0; queries * problem.size];
    let mut saved = vec![0.0; queries * problem.saved_row()];
    {
        let output = Disjoint::new(&mut output);
        let saved = Disjoint::new(&mut saved);
        // Blocks start at multiples of their size, so that pieces of a sequence are cut alike.
        let first_block = problem.start / BLOCK;
        let blocks = problem.end.div_ceil(BLOCK) - first_block;
        let arch = Arch::new();
        for_each(
            problem.batch * problem.heads * blocks,
            problem.work(),
            |task| {
                let (head, block) = (task / blocks, first_block + task % blocks);
                arch.dispatch(Block {
                    problem,
                    head: (head / problem.heads, head % problem.heads),
                    start: (block * BLOCK).max(problem.start),
                    end: ((block + 1) * BLOCK).min(problem.end),
                    output: &output,
                    saved: &saved,
                });
            },
        );
    }
    (output, saved)
}

/// Some consecutive queries of one head.
struct Block<'a> {
    problem: &'a Problem<'a>,
    head: (usize, usize),
    start: usize,
    end: usize,
    output: &'a Disjoint<'a>,
    saved: &'a Disjoint<'a>,
}

impl Block<'_> {
    /// Index of a query over batch, time and heads.
    fn index(&self, time: usize) -> usize {
        let problem = self.problem;
        let length = problem.end - problem.start;
        (self.head.0 * length + time - problem.start) * problem.heads + self.head.1
    }

    /// A query's row of the output, which is its sum of weighted values until the end.
    ///
    /// One row is borrowed at a time.
    #[allow(clippy::mut_from_ref)]
    fn sum(&self, time: usize) -> &mut [f32] {
        let size = self.problem.size;
        // SAFETY: the block owns its queries' rows, and its methods hold one at a time.
        unsafe { self.output.part(self.index(time) * size, size) }
    }

    #[allow(clippy::mut_from_ref)]
    fn saved(&self, time: usize) -> &mut [f32] {
        let row = self.problem.saved_row();
        // SAFETY: as in `sum`.
        unsafe { self.saved.part(self.index(time) * row, row) }
    }

    fn single<'b>(&'b self, time: usize, statistics: &'b mut Statistics) -> few::Query<'b> {
        few::Query {
            row: self.problem.query(self.head, time),
            sum: self.sum(time),
            largest: &mut statistics.largest[time - self.start],
            weight: &mut statistics.weight[time - self.start],
        }
    }
}

/// Softmax statistics of a block's queries.
struct Statistics {
    largest: Vec<f32>,
    weight: Vec<f32>,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = width::<S>();
        let problem = self.problem;
        let mut statistics = Statistics {
            largest: vec![f32::NEG_INFINITY; self.end - self.start],
            weight: vec![0.0; self.end - self.start],
        };
        let mut tile = Tile::new(problem.size, width);
        let mut choices = Choices::default();
        let mut start = self.start;
        while start < self.end {
            let chunk_end = (start / problem.shape.chunk_size + 1) * problem.shape.chunk_size;
            let end = self.end.min(chunk_end).min(start + width);
            self.own_chunk(simd, start, end, &mut tile, &mut statistics, &mut choices);
            start = end;
        }
        choices.sort();
        for (chunk, pairs) in choices.by_chunk() {
            for pairs in pairs.chunks(width) {
                self.chosen_chunk(simd, chunk, pairs, &mut tile, &mut statistics);
            }
        }
        for time in self.start..self.end {
            let i = time - self.start;
            let weight = statistics.weight[i];
            self.sum(time).iter_mut().for_each(|x| *x /= weight);
            self.saved(time)[0] = statistics.largest[i] + weight.ln();
        }
    }
}

impl Block<'_> {
    /// Attends the queries of times `start..end`, neighbours in one chunk, to that chunk or, while they may see everything, to everything; then
    /// chooses their other chunks.
    #[inline(always)]
    fn own_chunk<S: Simd>(
        &self,
        simd: S,
        start: usize,
        end: usize,
        tile: &mut Tile,
        statistics: &mut Statistics,
        choices: &mut Choices,
    ) {
        let width = width::<S>();
        let problem = self.problem;
        let shape = problem.shape;
        let own = start / shape.chunk_size;
        let dense = own < shape.top_k;
        let first_key = if dense { 0 } else { own * shape.chunk_size };
        if !dense || end - start >= FEW {
            let queries = (start..end).map(|time| problem.query(self.head, time));
            transpose_in(queries, &mut tile.query, width);
        }
        if end - start < FEW {
            for time in start..end {
                let query = self.single(time, statistics);
                query.absorb(simd, problem, self.head, first_key..time + 1);
            }
        } else {
            tile.reset();
            tile.absorb(simd, problem, self.head, first_key..end, Some(start));
            for (lane, time) in (start..end).enumerate() {
                let i = time - self.start;
                transpose_out(&tile.sum, lane, width, self.sum(time));
                statistics.largest[i] = tile.largest[lane];
                statistics.weight[i] = tile.weight[lane];
            }
        }
        if dense || shape.top_k == 1 {
            return;
        }
        let mut chosen = vec![0; (end - start) * (shape.top_k - 1)];
        choose(
            simd,
            problem,
            self.head,
            own,
            tile,
            end - start,
            &mut chosen,
        );
        for (time, chosen) in (start..end).zip(chosen.chunks_exact(shape.top_k - 1)) {
            for (&chunk, saved) in chosen.iter().zip(&mut self.saved(time)[1..]) {
                choices.push(chunk, time - self.start);
                *saved = chunk as f32;
            }
        }
    }

    /// Attends queries that chose `chunk`, at most a tile of them, to it.
    #[inline(always)]
    fn chosen_chunk<S: Simd>(
        &self,
        simd: S,
        chunk: usize,
        pairs: &[(u32, u32)],
        tile: &mut Tile,
        statistics: &mut Statistics,
    ) {
        let width = width::<S>();
        let problem = self.problem;
        let size = problem.shape.chunk_size;
        let keys = chunk * size..(chunk + 1) * size;
        let queries = || pairs.iter().map(|&(_, query)| query as usize);
        if pairs.len() < FEW {
            for i in queries() {
                let query = self.single(self.start + i, statistics);
                query.absorb(simd, problem, self.head, keys.clone());
            }
            return;
        }
        tile.reset();
        transpose_in(
            queries().map(|i| problem.query(self.head, self.start + i)),
            &mut tile.query,
            width,
        );
        transpose_in(
            queries().map(|i| &*self.sum(self.start + i)),
            &mut tile.sum,
            width,
        );
        for (lane, i) in queries().enumerate() {
            tile.largest[lane] = statistics.largest[i];
            tile.weight[lane] = statistics.weight[i];
        }
        tile.absorb(simd, problem, self.head, keys, None);
        for (lane, i) in queries().enumerate() {
            transpose_out(&tile.sum, lane, width, self.sum(self.start + i));
            statistics.largest[i] = tile.largest[lane];
            statistics.weight[i] = tile.weight[lane];
        }
    }
}
