//! Which earlier chunks the queries of a tile see.

use pulp::Simd;

use super::tile::{Tile, width};
use super::{KEYS, Problem};
use crate::cpu::simd::{Strided, multiply_add};

/// The `count` best chunks of one query so far, best first.
#[derive(Clone)]
struct Ranking {
    chunks: Vec<u32>,
    scores: Vec<f32>,
}

/// Chooses for each of the first `lanes` queries of `tile` its `top_k - 1` best of the chunks before chunk `own`, of which there must be that many, into
/// `chosen[lane * (top_k - 1)..]`.
///
/// Of equal scores the earlier chunk comes first; a score that is not a number is the lowest. A lane's scores do not depend on the other lanes,
/// so a query chooses the same in whatever piece of the sequence it comes.
#[inline(always)]
pub(super) fn choose<S: Simd>(
    simd: S,
    problem: &Problem<'_>,
    head: (usize, usize),
    own: usize,
    tile: &mut Tile,
    lanes: usize,
    chosen: &mut [u32],
) {
    let width = width::<S>();
    let count = problem.shape.top_k - 1;
    debug_assert!(own >= count);
    if count == 0 {
        return;
    }
    let mut rankings = vec![
        Ranking {
            chunks: vec![0; count],
            scores: vec![0.0; count]
        };
        lanes
    ];
    for first in (0..own).step_by(KEYS) {
        let chunks = KEYS.min(own - first);
        let scores = &mut tile.scores[..chunks * width];
        scores.fill(0.0);
        let means = Strided {
            values: problem.means.from(head, first),
            row_stride: problem.means.time_stride,
            depth_stride: 1,
        };
        multiply_add(
            simd,
            (scores, width),
            means,
            (&tile.query, width),
            chunks,
            problem.size,
        );
        for (i, row) in scores.chunks_exact(width).enumerate() {
            let chunk = first + i;
            for (ranking, &score) in rankings.iter_mut().zip(row) {
                ranking.offer(
                    chunk,
                    if score.is_nan() {
                        f32::NEG_INFINITY
                    } else {
                        score
                    },
                );
            }
        }
    }
    for (ranking, chosen) in rankings.iter().zip(chosen.chunks_exact_mut(count)) {
        chosen.copy_from_slice(&ranking.chunks);
    }
}

impl Ranking {
    /// Takes `chunk` in if it is among the best. Chunks come in rising order.
    #[inline(always)]
    fn offer(&mut self, chunk: usize, score: f32) {
        let held = chunk.min(self.chunks.len());
        let full = held == self.chunks.len();
        if full && score <= self.scores[held - 1] {
            return;
        }
        let mut place = if full { held - 1 } else { held };
        while place > 0 && score > self.scores[place - 1] {
            self.scores[place] = self.scores[place - 1];
            self.chunks[place] = self.chunks[place - 1];
            place -= 1;
        }
        self.scores[place] = score;
        self.chunks[place] = chunk as u32;
    }
}
