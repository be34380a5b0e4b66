//! Numbers that the host and the devices calculate with alike.
//!
//! A token's distance is how far its logit is below the largest, in f32: one subtraction, rounded alike everywhere. As it is never negative, distances are
//! ordered as their bits. The weight of a distance is `2^31 exp(-distance)`, rounded to an integer by operations on integers alone.

use super::Draw;

/// The distance of what is impossible: infinity.
pub(crate) const IMPOSSIBLE: u32 = 0x7f80_0000;

/// The bits of the least normal f32: what is smaller is 0 on some devices, and here on all.
pub(crate) const LEAST_NORMAL: u32 = 0x0080_0000;

/// The least count of a token that has occurred: however long ago, it has.
pub(crate) const FAINTEST: f32 = 1e-30;

/// `2^-x = 1 - x (c1 - x (c2 - ...))` for `x` in [0, 1), within 1.2e-8, in 2^-31: the least of the errors at Chebyshev's nodes.
pub(crate) const EXP2: [u32; 6] = [
    1_488_522_224,
    515_881_603,
    119_183_688,
    20_609_476,
    2_773_769,
    246_789,
];

/// A [`Draw`] as the bodies take it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// At most so many tokens are kept.
    pub(crate) top_k: u32,
    /// The share that kept tokens must reach, in 2^-32; 0 is all.
    pub(crate) top_p: u32,
    /// `log2(e) / temperature`
    pub(crate) sharpness: f32,
    pub(crate) presence: f32,
    pub(crate) frequency: f32,
    pub(crate) decay: f32,
    pub(crate) uniform: u32,
}

impl From<&Draw> for Rule {
    fn from(draw: &Draw) -> Self {
        let top_k = match (draw.temperature, draw.top_k) {
            (0.0, _) => 1,
            (_, 0) => u32::MAX,
            (_, most) => u32::try_from(most).unwrap_or(u32::MAX),
        };
        let top_p = match (draw.temperature, draw.top_p) {
            (0.0, _) | (_, 1.0..) => 0,
            (_, share) => ((f64::from(share) * 2f64.powi(32)) as u32).max(1),
        };
        // Of the one token that a temperature of 0 keeps, the sharpness does not matter. Compilers may multiply `2^27 sharpness` first
        // (see `weight`), which must not be infinite.
        let sharpness = std::f64::consts::LOG2_E / f64::from(draw.temperature);
        Self {
            top_k,
            top_p,
            sharpness: sharpness.min(2f64.powi(96)) as f32,
            presence: draw.presence_penalty,
            frequency: draw.frequency_penalty,
            decay: draw.penalty_decay,
            uniform: draw.uniform,
        }
    }
}

/// A logit after penalties; of what is impossible the least number there is. On both sides of every product stands what keeps compilers from
/// joining it with the sum after it, which would be rounded otherwise.
pub(crate) fn penalised(logit: f32, count: f32, rule: &Rule) -> f32 {
    if count < 0.0 || logit <= f32::MIN {
        f32::MIN
    } else if count > 0.0 {
        logit - (rule.presence + (count * rule.frequency).max(f32::MIN))
    } else {
        logit
    }
}

/// The bits of a distance; never those of -0, which is what is left of -0 and 0.
pub(crate) fn distance(best: f32, logit: f32) -> u32 {
    match (best - logit + 0.0).to_bits() {
        _ if logit == f32::MIN => IMPOSSIBLE,
        ..LEAST_NORMAL => 0,
        bits => bits,
    }
}

/// `2^31 2^(-distance sharpness)`
pub(crate) fn weight(distance: u32, sharpness: f32) -> u32 {
    let halvings = f32::from_bits(distance) * sharpness;
    if halvings >= 32.0 {
        return 0;
    }
    // In 2^-27.
    let halvings = (halvings * 2f32.powi(27)) as u32;
    let fraction = u64::from(halvings << 5);
    let part = EXP2
        .iter()
        .rev()
        .fold(0, |part, &next| u64::from(next) - ((part * fraction) >> 32));
    ((1 << 31) - ((part * fraction) >> 32) as u32) >> (halvings >> 27)
}

/// A count after one more token.
pub(crate) fn faded(count: f32, decay: f32) -> f32 {
    match count > 0.0 {
        true => (count * decay).max(FAINTEST),
        false => count,
    }
}
