//! Lengths as people write them: `65536`, `64K`, `1M`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A number of tokens. `K` and `M` are 1024 and 1024 x 1024, as context lengths are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Length(pub usize);

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.char_indices().next_back() {
            Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
            Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
            _ => (text, 1),
        };
        let number = digits.parse::<usize>().ok();
        match number.and_then(|number| number.checked_mul(unit)) {
            None | Some(0) => {
                Err("a length is a number of tokens, such as 4096, 4K or 1M".to_owned())
            }
            Some(tokens) => Ok(Self(tokens)),
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            tokens if tokens > 0 && tokens.is_multiple_of(1 << 20) => format!("{}M", tokens >> 20),
            tokens if tokens > 0 && tokens.is_multiple_of(1 << 10) => format!("{}K", tokens >> 10),
            tokens => tokens.to_string(),
        };
        out.pad(&text)
    }
}

/// Lengths from the shortest to the longest, each once.
pub fn rising(lengths: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let lengths: BTreeSet<usize> = lengths.into_iter().collect();
    lengths.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written_as_people_do() {
        for (text, tokens, shown) in [
            ("512", 512, "512"),
            ("1K", 1024, "1K"),
            ("64k", 65_536, "64K"),
            ("65536", 65_536, "64K"),
            ("1000", 1000, "1000"),
            ("2M", 2_097_152, "2M"),
        ] {
            let length: Length = text.parse().unwrap();
            assert_eq!((length.0, length.to_string().as_str()), (tokens, shown));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "K",
            "0",
            "0K",
            "-1",
            "1.5K",
            "1G",
            "4 K",
            "99999999999999999999",
            "18446744073709551615K",
            "é",
        ] {
            assert!(text.parse::<Length>().is_err(), "{text:?}");
        }
    }
}
