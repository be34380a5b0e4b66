//! The passkey test of the RWKV-X repository (`evaluation/pass_key_rwkvx.py`), to the character.
//!
//! It differs from RULER's passkey: the garbage is one line cut after a number of characters, wherever that falls; the
//! needle has a fixed sentence; the keys are five fixed numbers; and the length is nominal, 3.75 characters a token.

use crate::haystack::NOISE;
use crate::{Error, Result};

/// The five keys: the first `randint(1, 50000)` of NumPy's `RandomState` with seeds 0 to 4.
pub const KEYS: [u32; 5] = [2733, 33004, 23721, 5995, 17531];

/// Sentences in the script's garbage, and so the limit on its length.
const REPEATS: usize = 10_000;

/// The first line of the prompt.
pub(crate) const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will \
                    quiz you about the important information there.";

/// The last line of the prompt.
pub(crate) const QUESTION: &str = "What is the pass key? The pass key is";

/// The prompt of nominally `length` tokens, with `key` behind `depth` percent of the garbage.
///
/// The answer is the key in decimal. The model is given exactly as many tokens as the key has, and is right if they
/// equal it, white space at the ends aside. The script uses depths 0, 10, ... 90.
///
/// # Errors
///
/// If `length` is below 267 or above 240,000 (the script's garbage has 899,999 characters), or if `depth` is not a
/// percentage.
pub fn prompt(length: usize, depth: f32, key: u32) -> Result<String> {
    if !(0.0..=100.0).contains(&depth) {
        return Err(Error::value(
            "depth",
            format!("{depth} is not a percentage from 0 to 100"),
        ));
    }
    // floor(3.75 length / 1000) thousands of characters.
    let chars = length.saturating_mul(15) / 4_000 * 1_000;
    if chars == 0 {
        return Err(Error::PromptTooShort {
            what: "passkey",
            asked: length,
            minimum: 267,
        });
    }
    let garbage_chars = REPEATS * (NOISE.len() + 1) - 1;
    if chars > garbage_chars {
        return Err(Error::PromptLength {
            what: "passkey",
            asked: length,
            reason: format!(
                "the test's text ends after {garbage_chars} characters; ask for at most 240000 tokens"
            ),
        });
    }
    let before = (chars as f64 * f64::from(depth) / 100.0) as usize;
    Ok(format!(
        "{TASK}\n{}\n{}\n{}\n{QUESTION}",
        garbage(before),
        statement(key),
        garbage(chars - before)
    ))
}

/// The needle.
pub(crate) fn statement(key: u32) -> String {
    format!("The pass key is {key}. Remember it. {key} is the pass key.")
}

/// The first `chars` characters of the garbage, which are ASCII.
fn garbage(chars: usize) -> String {
    let mut text = format!("{NOISE} ").repeat(chars / (NOISE.len() + 1) + 1);
    text.truncate(chars);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    #[test]
    fn token_counts_are_those_of_the_published_script() {
        let tokenizer = Tokenizer::open("rwkv-world").unwrap();
        let known = [
            (2_000, 1_931),
            (4_000, 4_063),
            (8_000, 8_063),
            (16_000, 16_063),
            (28_000, 28_063),
            (32_000, 32_063),
            (64_000, 64_063),
            (128_000, 128_063),
        ];
        for (length, tokens) in known {
            let text = prompt(length, 50.0, KEYS[1]).unwrap();
            assert_eq!(tokenizer.encode(&text).unwrap().len(), tokens, "{length}");
        }
    }

    #[test]
    fn both_stretches_of_garbage_start_at_its_beginning_and_are_cut_anywhere() {
        let text = prompt(2_000, 10.0, 43568).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!((lines[1].len(), lines[3].len()), (700, 6_300));
        assert!(lines[1].starts_with(NOISE) && lines[3].starts_with(NOISE));
        assert_eq!(
            lines[2],
            "The pass key is 43568. Remember it. 43568 is the pass key."
        );
        assert_eq!(lines[4], "What is the pass key? The pass key is");
    }

    #[test]
    fn lengths_the_script_cannot_make_are_refused() {
        assert!(prompt(266, 0.0, 1).is_err());
        assert!(prompt(267, 0.0, 1).is_ok());
        assert!(prompt(239_999, 0.0, 1).is_ok());
        assert!(prompt(241_000, 0.0, 1).is_err());
        assert!(prompt(usize::MAX, 0.0, 1).is_err());
        assert!(prompt(2_000, 101.0, 1).is_err());
    }
}
