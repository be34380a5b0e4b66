//! Words and values that needles are made of.

use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;

pub(crate) static ADJECTIVES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("../data/adjectives.txt")
        .split_whitespace()
        .collect()
});

pub(crate) static NOUNS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("../data/nouns.txt")
        .split_whitespace()
        .collect()
});

/// One of a list that is never empty.
pub(crate) fn pick<'a>(words: &[&'a str], rng: &mut impl Rng) -> &'a str {
    words.choose(rng).copied().unwrap_or_default()
}

/// A needle's key: an adjective and a noun, joined by a hyphen as in RULER.
pub(crate) fn key(rng: &mut impl Rng) -> String {
    format!("{}-{}", pick(&ADJECTIVES, rng), pick(&NOUNS, rng))
}

/// A decimal number of exactly `digits` digits, at most 9, the first of them not 0.
pub(crate) fn number(digits: u32, rng: &mut impl Rng) -> String {
    let low = 10u32.pow(digits - 1);
    rng.random_range(low..low * 10).to_string()
}

/// Eight hexadecimal digits.
pub(crate) fn hex(rng: &mut impl Rng) -> String {
    format!("{:08x}", rng.random::<u32>())
}

/// A random UUID, version 4 (RFC 9562).
pub(crate) fn uuid(rng: &mut impl Rng) -> String {
    let random: u128 = rng.random();
    let version_and_variant = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{version_and_variant:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..]
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn word_lists_are_large_plain_and_without_repeats() {
        for (words, least) in [(&ADJECTIVES, 200), (&NOUNS, 400)] {
            assert!(words.len() >= least);
            assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len());
            assert!(
                words
                    .iter()
                    .all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()))
            );
        }
    }

    #[test]
    fn uuids_say_version_4_and_the_rfc_variant() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..100 {
            let uuid = uuid(&mut rng);
            let groups: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{uuid}");
            assert_eq!(&uuid[14..15], "4");
            assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"));
        }
    }

    #[test]
    fn numbers_have_the_digits_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for digits in 1..=9 {
            assert_eq!(number(digits, &mut rng).len(), digits as usize);
        }
    }
}
