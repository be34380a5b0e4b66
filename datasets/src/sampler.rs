//! The order in which RWKV's training visits a token file.
//!
//! The file is cut into slots of `context` tokens. With a prime `p = 2 (mod 3)`, `x -> x^3 mod p` visits every slot
//! below `p` once before repeating, in an order that looks random, needs no memory and is the same on every machine.
//! `p` is the largest such prime not above `tokens / context - 1`, so that the `context + 1` tokens of a sample (inputs
//! and targets shifted by one) always exist.

use crate::{Error, Result};

/// Which published order to follow. Both are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleOrder {
    /// `slot = i^3 mod p`, the order of the RWKV-X code. The first slots are 0, 1, 8, 27.
    RwkvX,
    /// `slot = floor(p (sqrt 5 - 1) / 2) (i + 1)^3 mod p`, the order of current RWKV-LM code.
    RwkvLm,
}

/// Maps the index of a sample to where it starts.
///
/// ```
/// use rwkvx_datasets::sampler::{MagicPrimeSampler, SampleOrder};
///
/// let sampler = MagicPrimeSampler::new(1_498_226_207, 512, SampleOrder::RwkvX)?;
/// assert_eq!(sampler.prime(), 2_926_181);
/// assert_eq!(sampler.start(3), 27 * 512);
/// # Ok::<(), rwkvx_datasets::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MagicPrimeSampler {
    prime: u64,
    context: u64,
    order: SampleOrder,
}

impl MagicPrimeSampler {
    /// A sampler for a file of `tokens` tokens and samples of `context` inputs.
    ///
    /// # Errors
    ///
    /// If the file has fewer than three slots.
    pub fn new(tokens: u64, context: u64, order: SampleOrder) -> Result<Self> {
        Ok(Self {
            prime: magic_prime(tokens, context)?,
            context,
            order,
        })
    }

    /// The magic prime: after this many samples the order repeats.
    pub fn prime(&self) -> u64 {
        self.prime
    }

    /// First token of sample `index`; the sample is the `context + 1` tokens from there.
    ///
    /// `index` counts samples over all epochs and ranks: `epoch * samples_per_epoch + step * ranks + rank`.
    pub fn start(&self, index: u64) -> u64 {
        let prime = self.prime;
        let slot = match self.order {
            SampleOrder::RwkvX => cube_mod(index, prime),
            SampleOrder::RwkvLm => {
                // In f64 and truncated, as the published code computes it.
                let factor = (prime as f64 * ((5f64.sqrt() - 1.0) / 2.0)) as u64;
                mul_mod(factor, cube_mod(index.wrapping_add(1), prime), prime)
            }
        };
        slot * self.context
    }
}

/// The largest prime `p = 2 (mod 3)` with `p <= tokens / context - 1`.
///
/// # Errors
///
/// If there is none: `tokens` must be at least `3 * context`, and `context` at least 1.
pub fn magic_prime(tokens: u64, context: u64) -> Result<u64> {
    let slots = tokens.checked_div(context).unwrap_or(0);
    (2..slots)
        .rev()
        .find(|&candidate| candidate % 3 == 2 && is_prime(candidate))
        .ok_or(Error::TooFewTokens { tokens, context })
}

/// Deterministic Miller-Rabin for all of `u64` (these twelve bases suffice: Sorenson and Webster, 2015).
fn is_prime(candidate: u64) -> bool {
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if candidate < 2 {
        return false;
    }
    if let Some(base) = BASES
        .into_iter()
        .find(|base| candidate.is_multiple_of(*base))
    {
        return candidate == base;
    }
    let twos = (candidate - 1).trailing_zeros();
    let odd = (candidate - 1) >> twos;
    BASES.into_iter().all(|base| {
        let mut power = pow_mod(base, odd, candidate);
        if power == 1 || power == candidate - 1 {
            return true;
        }
        (1..twos).any(|_| {
            power = mul_mod(power, power, candidate);
            power == candidate - 1
        })
    })
}

fn pow_mod(mut base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let mut power = 1;
    while exponent > 0 {
        if exponent % 2 == 1 {
            power = mul_mod(power, base, modulus);
        }
        base = mul_mod(base, base, modulus);
        exponent /= 2;
    }
    power
}

fn cube_mod(base: u64, modulus: u64) -> u64 {
    pow_mod(base % modulus, 3, modulus)
}

/// The product in 128 bits: `p` is near 1e8 for large files, and its cube passes 64 bits.
fn mul_mod(left: u64, right: u64, modulus: u64) -> u64 {
    (u128::from(left) * u128::from(right) % u128::from(modulus)) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn published_data_sets_have_their_published_primes() {
        let known = [
            (1_498_226_207, 512, 2_926_181),
            (1_498_226_207, 1_024, 1_463_027),
            (1_498_226_207, 4_096, 365_759),
            (36_627_478_782, 64_000, 572_303),
            (332_115_325_534, 4_096, 81_082_817),
        ];
        for (tokens, context, prime) in known {
            assert_eq!(magic_prime(tokens, context).unwrap(), prime);
        }
    }

    #[test]
    fn both_orders_start_as_published() {
        let slots = |order| {
            let sampler = MagicPrimeSampler::new(1_498_226_207, 512, order).unwrap();
            (0..5)
                .map(|index| sampler.start(index) / 512)
                .collect::<Vec<_>>()
        };
        assert_eq!(slots(SampleOrder::RwkvX), [0, 1, 8, 27, 64]);
        assert_eq!(
            slots(SampleOrder::RwkvLm)[..4],
            [1_808_479, 2_763_108, 2_010_037, 1_621_597]
        );
    }

    #[test]
    fn every_slot_is_visited_once_and_every_sample_lies_inside() {
        let (tokens, context) = (20_000, 16);
        for order in [SampleOrder::RwkvX, SampleOrder::RwkvLm] {
            let sampler = MagicPrimeSampler::new(tokens, context, order).unwrap();
            let starts: HashSet<u64> = (0..sampler.prime())
                .map(|index| sampler.start(index))
                .collect();
            assert_eq!(starts.len() as u64, sampler.prime());
            assert!(starts.iter().all(|start| start + context < tokens));
        }
    }

    #[test]
    fn large_indices_do_not_overflow() {
        let sampler = MagicPrimeSampler::new(332_115_325_534, 4_096, SampleOrder::RwkvX).unwrap();
        let index = 81_082_817 * 5 + 3;
        assert_eq!(sampler.start(index), 27 * 4_096);
        assert!(sampler.start(u64::MAX) < 332_115_325_534);
    }

    #[test]
    fn three_slots_are_the_least() {
        assert_eq!(magic_prime(3 * 64, 64).unwrap(), 2);
        let message = magic_prime(3 * 64 - 1, 64).unwrap_err().to_string();
        assert!(
            message.contains("191 tokens") && message.contains("at least 192"),
            "{message}"
        );
        assert!(magic_prime(100, 0).is_err());
    }

    #[test]
    fn primality_agrees_with_trial_division() {
        let by_division = |candidate: u64| {
            candidate >= 2 && (2..candidate).all(|divisor| !candidate.is_multiple_of(divisor))
        };
        for candidate in 0..2_000 {
            assert_eq!(is_prime(candidate), by_division(candidate), "{candidate}");
        }
        // A strong pseudoprime to the bases 2, 3, 5 and 7.
        assert!(!is_prime(3_215_031_751));
        assert!(is_prime(18_446_744_073_709_551_557));
    }
}
