//! What a unit reads of a row; [`rule`](crate::sample::rule) has the same for the host.

use cubecl::prelude::*;

use super::{Shared, Tally};
use crate::sample::rule::{EXP2, IMPOSSIBLE, LEAST_NORMAL};

/// A row of logits and what is taken from them.
#[derive(CubeType)]
pub(super) struct Row {
    /// Where it starts.
    pub(super) first: usize,
    /// Its logits.
    pub(super) columns: usize,
    pub(super) presence: f32,
    pub(super) frequency: f32,
    /// The largest logit after penalties.
    pub(super) best: f32,
    #[cube(comptime)]
    pub(super) units: usize,
    /// Whether there are counts.
    #[cube(comptime)]
    pub(super) counted: bool,
}

#[cube]
impl Row {
    /// A logit after penalties; of what is impossible the least number there is.
    fn penalised<F: Float>(&self, logits: &Array<F>, counts: &Array<f32>, column: usize) -> f32 {
        let mut x = f32::cast_from(logits[self.first + column]);
        if x < f32::min_value() {
            x = f32::min_value();
        }
        if comptime!(self.counted) {
            let count = counts[self.first + column];
            if count < 0.0 {
                x = f32::min_value();
            } else if count > 0.0 && x != f32::min_value() {
                // The product stays apart from the sum; see the host's.
                x -= self.presence + max(count * self.frequency, f32::min_value());
            }
        }
        x
    }

    /// The largest logit of this unit's columns, as [`ordered`] has it.
    pub(super) fn best_of_unit<F: Float>(&self, logits: &Array<F>, counts: &Array<f32>) -> u32 {
        let mut best = 0u32.runtime();
        let mut column = UNIT_POS as usize;
        while column < self.columns {
            best = max(best, ordered(self.penalised(logits, counts, column)));
            column += self.units;
        }
        best
    }

    /// The bits of a logit's distance to the largest.
    pub(super) fn distance<F: Float>(
        &self,
        logits: &Array<F>,
        counts: &Array<f32>,
        column: usize,
    ) -> u32 {
        let x = self.penalised(logits, counts, column);
        let mut bits = u32::reinterpret(self.best - x);
        if bits < LEAST_NORMAL {
            bits = 0u32.runtime();
        }
        if x == f32::min_value() {
            bits = IMPOSSIBLE.runtime();
        }
        bits
    }

    /// What all units find up to the distance `bound`.
    pub(super) fn tally<F: Float>(
        &self,
        logits: &Array<F>,
        counts: &Array<f32>,
        shared: &mut Shared,
        bound: u32,
    ) -> Tally {
        let mut count = 0u32.runtime();
        let mut weight_high = 0u32.runtime();
        let mut weight_low = 0u32.runtime();
        let mut inside = 0u32.runtime();
        let mut outside = IMPOSSIBLE.runtime();
        let mut column = UNIT_POS as usize;
        while column < self.columns {
            let distance = self.distance(logits, counts, column);
            if distance <= bound {
                let weight = weight(distance, std::f32::consts::LOG2_E);
                count += 1;
                weight_low += weight;
                weight_high += u32::cast_from(weight_low < weight);
                inside = max(inside, distance);
            } else {
                outside = min(outside, distance);
            }
            column += self.units;
        }
        let mine = Tally {
            count,
            weight_high,
            weight_low,
            inside,
            outside,
        };
        shared.join(&mine, self.units)
    }
}

/// Bits in the order of the numbers; the largest for what is infinite or no number.
#[cube]
pub(super) fn ordered(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let mut key = bits | 0x8000_0000u32;
    if bits >= 0x8000_0000u32 {
        key = bits ^ 0xffff_ffffu32;
    }
    if (bits & 0x7f80_0000) == 0x7f80_0000 {
        key = u32::MAX.runtime();
    }
    key
}

/// The number of [`ordered`] bits.
#[cube]
pub(super) fn unordered(key: u32) -> f32 {
    let mut bits = key ^ 0xffff_ffffu32;
    if key >= 0x8000_0000u32 {
        bits = key ^ 0x8000_0000u32;
    }
    f32::reinterpret(bits)
}

/// `2^31 2^(-distance sharpness)`
#[cube]
pub(super) fn weight(distance: u32, sharpness: f32) -> u32 {
    let halvings = f32::reinterpret(distance) * sharpness;
    let mut weight = 0u32.runtime();
    if halvings < 32.0 {
        // In 2^-27.
        let halvings = u32::cast_from(halvings * comptime!(2f32.powi(27)));
        let fraction = halvings << 5;
        let mut part = comptime!(EXP2[5]).runtime();
        part = comptime!(EXP2[4]).runtime() - part.mul_hi(fraction);
        part = comptime!(EXP2[3]).runtime() - part.mul_hi(fraction);
        part = comptime!(EXP2[2]).runtime() - part.mul_hi(fraction);
        part = comptime!(EXP2[1]).runtime() - part.mul_hi(fraction);
        part = comptime!(EXP2[0]).runtime() - part.mul_hi(fraction);
        weight = (0x8000_0000u32.runtime() - part.mul_hi(fraction)) >> (halvings >> 27);
    }
    weight
}
