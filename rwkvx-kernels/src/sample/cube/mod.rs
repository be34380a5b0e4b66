//! The choice as one CubeCL kernel.
//!
//! A cube takes a row and reads it some ten times, from the caches: for the largest logit; for what the tokens up to a distance weigh together, a
//! bisection that ends at the last distance that is kept; and for the token at which the sum of the kept weights passes the drawn share. Nothing is sorted, and
//! nothing is written before the token but, at the end, the counts.

mod row;
mod shared;
mod wide;

use burn::tensor::{DType, Int as Integer, Tensor, TensorData};
use cubecl::prelude::*;

use self::row::{Row, weight};
use self::shared::{Shared, Tally};
use self::wide::Wide;
use super::rule::{FAINTEST, IMPOSSIBLE, Rule};
use super::{Draw, NONE_LEFT, NOT_A_NUMBER, Sampled};
use crate::cube::rows::Grid;
use crate::cube::{CubeMemory, allocate, dense, dense_int, tensor};

/// Numbers of a [`Rule`], as the kernel reads them.
const WORDS: usize = 7;

/// Beyond this distance weights are 0: the bits of 22.5, as 22.5 / ln 2 > 32.
const WEIGHTLESS: u32 = 0x41b4_0000;

/// The least number there is, as [`ordered`](row::ordered) has it.
const LEAST: u32 = !f32::MIN.to_bits();

impl Rule {
    fn words(&self) -> [u32; WORDS] {
        [
            self.top_k,
            self.top_p,
            self.sharpness.to_bits(),
            self.presence.to_bits(),
            self.frequency.to_bits(),
            self.decay.to_bits(),
            self.uniform,
        ]
    }
}

/// The body of [`KernelBackend::sample`](crate::KernelBackend::sample).
pub(crate) fn sample<B: CubeMemory>(
    logits: Tensor<B, 2>,
    counts: Option<Tensor<B, 2>>,
    draws: &[Option<Draw>],
) -> Sampled<B> {
    let device = logits.device();
    let dims @ [rows, _] = logits.dims();
    // A row that keeps no token has no draw.
    let words = draws.iter().flat_map(|draw| match draw {
        Some(draw) => Rule::from(draw).words(),
        None => [0; WORDS],
    });
    let words: Vec<i32> = words.map(u32::cast_signed).collect();
    let words = TensorData::new(words, [rows, WORDS]);
    let rules = dense_int(Tensor::<B, 2, Integer>::from_data(words, &device));
    let logits = dense(logits);
    let ids = allocate(&logits, [rows], rules.dtype);
    let counted = counts.is_some();
    let counts = match counts {
        Some(counts) => {
            let counts = dense(counts.cast(DType::F32));
            match counts.can_mut() {
                true => counts,
                false => counts.copy(),
            }
        }
        // Not looked at.
        None => allocate(&logits, [4], DType::F32),
    };
    let grid = Grid::new(&logits, dims, 1);
    let dtypes = [logits.dtype.into(), rules.dtype.into()];
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        sample_tokens::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            logits.into_array_arg(),
            counts.clone().into_array_arg(),
            rules.into_array_arg(),
            ids.clone().into_array_arg(),
            grid.rows,
            grid.columns,
            grid.units,
            counted,
            dtypes,
        );
    }
    Sampled {
        ids: Tensor::from_primitive(ids),
        counts: counted.then(|| tensor(counts)),
    }
}

/// `logits` is `[rows, columns]`, and so is `counts` if they are `counted`; `rules` is `[rows, WORDS]`, `ids` `[rows]`.
#[cube(launch_unchecked)]
fn sample_tokens<F: Float, I: Int>(
    logits: &Array<F>,
    counts: &mut Array<f32>,
    rules: &Array<I>,
    ids: &mut Array<I>,
    rows: usize,
    columns: usize,
    #[comptime] units: usize,
    #[comptime] counted: bool,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let mut shared = Shared::new(units);
    let mut index = CUBE_POS;
    while index < rows {
        let rule = index * WORDS;
        let top_k = u32::cast_from(rules[rule]);
        if top_k == 0 {
            if UNIT_POS == 0 {
                ids[index] = I::cast_from(0u32);
            }
        } else {
            let mut row = Row {
                first: index * columns,
                columns,
                presence: f32::reinterpret(u32::cast_from(rules[rule + 3])),
                frequency: f32::reinterpret(u32::cast_from(rules[rule + 4])),
                best: 0.0f32.runtime(),
                units,
                counted,
            };
            let mine = row.best_of_unit(logits, counts);
            let best = shared.largest(mine, units);
            let failed = best == u32::MAX || best == LEAST;
            if failed {
                if UNIT_POS == 0 {
                    let code = select(
                        best == u32::MAX,
                        NOT_A_NUMBER.runtime(),
                        NONE_LEFT.runtime(),
                    );
                    ids[index] = I::cast_from(code);
                }
            } else {
                row.best = row::unordered(best);
                let kept = cut(
                    logits,
                    counts,
                    &row,
                    &mut shared,
                    top_k,
                    u32::cast_from(rules[rule + 1]),
                );
                let token = pick(
                    logits,
                    counts,
                    &row,
                    &mut shared,
                    &kept,
                    f32::reinterpret(u32::cast_from(rules[rule + 2])),
                    u32::cast_from(rules[rule + 6]),
                );
                if UNIT_POS == 0 {
                    ids[index] = I::cast_from(token);
                }
                if comptime!(counted) {
                    let decay = f32::reinterpret(u32::cast_from(rules[rule + 5]));
                    count_token(counts, &row, token, decay);
                }
            }
        }
        index += CUBE_COUNT;
    }
}

/// The tokens that are kept: all nearer than `farthest`, and of those at it the first `ties`.
#[derive(CubeType)]
struct Kept {
    farthest: u32,
    ties: u32,
}

/// How far tokens are kept.
#[cube]
fn cut<F: Float>(
    logits: &Array<F>,
    counts: &Array<f32>,
    row: &Row,
    shared: &mut Shared,
    top_k: u32,
    top_p: u32,
) -> Kept {
    // The answer is from `low` to `high`; so many tokens, of such a weight, are nearer than `low`.
    let mut low = 0u32.runtime();
    let mut high = comptime!(IMPOSSIBLE - 1).runtime();
    let mut count = 0u32.runtime();
    let mut weight_high = 0u32.runtime();
    let mut weight_low = 0u32.runtime();
    let mut ties = u32::MAX.runtime();
    if top_k == 1 {
        high = 0u32.runtime();
        ties = 1u32.runtime();
    } else if top_k < u32::MAX || top_p > 0 {
        if top_p > 0 {
            high = WEIGHTLESS.runtime();
        }
        let all = row.tally(logits, counts, shared, high);
        high = all.inside;
        let mut enough = all.weight().scaled(top_p);
        if top_p == 0 {
            enough = Wide::largest();
        } else if enough.high == 0 && enough.low == 0 {
            enough = Wide::small(1u32.runtime());
        }
        let mut high_count = all.count;
        while low < high && high_count - count > 1 {
            let middle = low + (high - low) / 2;
            let near = row.tally(logits, counts, shared, middle);
            if near.count >= top_k || near.weight().at_least(&enough) {
                high = near.inside;
                high_count = near.count;
            } else {
                low = near.outside;
                count = near.count;
                weight_high = near.weight_high;
                weight_low = near.weight_low;
            }
        }
        // The least number of ties that makes it enough; all of them if nothing does.
        let nearer = Wide {
            high: weight_high,
            low: weight_low,
        };
        let each = weight(high, std::f32::consts::LOG2_E);
        let mut least = 1u32.runtime();
        ties = high_count - count;
        while least < ties {
            let middle = least + (ties - least) / 2;
            let sum = nearer.plus(&Wide::product(middle, each));
            if count + middle >= top_k || sum.at_least(&enough) {
                ties = middle;
            } else {
                least = middle + 1;
            }
        }
    }
    Kept {
        farthest: high,
        ties,
    }
}

/// The token at which the sum of the kept weights passes `uniform` of it. Each unit has some neighbouring columns.
#[cube]
fn pick<F: Float>(
    logits: &Array<F>,
    counts: &Array<f32>,
    row: &Row,
    shared: &mut Shared,
    kept: &Kept,
    sharpness: f32,
    uniform: u32,
) -> u32 {
    let unit = UNIT_POS as usize;
    let share = row.columns.div_ceil(row.units);
    let first = min(unit * share, row.columns);
    let end = min(first + share, row.columns);
    let mut ties = 0u32.runtime();
    let mut sum = Wide::small(0u32.runtime());
    for column in first..end {
        let distance = row.distance(logits, counts, column);
        if distance < kept.farthest {
            sum = sum.plus(&Wide::small(weight(distance, sharpness)));
        } else if distance == kept.farthest {
            ties += 1;
        }
    }
    let ties_before = shared.before(&Wide::small(ties), row.units).low;
    let mut ties_left = 0u32.runtime();
    if ties_before < kept.ties {
        ties_left = min(ties, kept.ties - ties_before);
    }
    let each = weight(kept.farthest, sharpness);
    sum = sum.plus(&Wide::product(ties_left, each));
    let mut passed = shared.before(&sum, row.units);
    let at = shared.last(row.units).scaled(uniform);
    // One unit's part of the sum passes it.
    if at.at_least(&passed) && !at.at_least(&passed.plus(&sum)) {
        let mut found = false;
        for column in first..end {
            let distance = row.distance(logits, counts, column);
            let mut weight = 0u32.runtime();
            if distance < kept.farthest {
                weight = row::weight(distance, sharpness);
            } else if distance == kept.farthest && ties_left > 0 {
                ties_left -= 1;
                weight = each;
            }
            passed = passed.plus(&Wide::small(weight));
            if !found && !at.at_least(&passed) {
                found = true;
                shared.choose(column as u32);
            }
        }
    }
    shared.chosen()
}

/// Counts the token, and lets the others fade.
#[cube]
fn count_token(counts: &mut Array<f32>, row: &Row, token: u32, decay: f32) {
    let mut column = UNIT_POS as usize;
    while column < row.columns {
        let mut count = counts[row.first + column];
        if count > 0.0 {
            count = max(count * decay, FAINTEST);
        }
        if column as u32 == token {
            count += 1.0;
        }
        counts[row.first + column] = count;
        column += row.units;
    }
}
