//! The RWKV World vocabulary: greedy longest match over bytes.
//!
//! Every single byte is a token, so the leftmost-longest matches of an Aho-Corasick automaton cover the text
//! without gaps and are exactly what walking the published trie gives.

use std::sync::LazyLock;

use daachorse::{DoubleArrayAhoCorasick, DoubleArrayAhoCorasickBuilder, MatchKind};

/// One token a line: `<id> <Python literal> <length in bytes>`, ids from 1 without gaps.
const VOCABULARY_FILE: &str = include_str!("../../data/rwkv_vocab_v20230424.txt");

/// Built once per process, at the first text: it takes tens of milliseconds.
static VOCABULARY: LazyLock<WorldVocabulary> = LazyLock::new(|| {
    WorldVocabulary::parse(VOCABULARY_FILE)
        .expect("the embedded vocabulary is well formed, as its test shows")
});

pub(super) struct WorldVocabulary {
    /// All tokens back to back, in order of their ids.
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id - 1]..ends[id]]`; `ends[0]` is 0.
    ends: Vec<u32>,
    automaton: DoubleArrayAhoCorasick<u32>,
}

impl WorldVocabulary {
    pub(super) fn get() -> &'static Self {
        &VOCABULARY
    }

    fn parse(file: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(file.len() / 2);
        let mut ends = vec![0];
        for line in file.lines() {
            let (id, rest) = line.split_once(' ')?;
            let (literal, length) = rest.rsplit_once(' ')?;
            let start = bytes.len();
            push_python_literal(literal, &mut bytes)?;
            let right_length = length.parse() == Ok(bytes.len() - start);
            let right_id = id.parse() == Ok(ends.len());
            if !right_length || !right_id {
                return None;
            }
            ends.push(u32::try_from(bytes.len()).ok()?);
        }
        let tokens = ends.windows(2).zip(1..).map(|(span, id)| {
            let token = &bytes[span[0] as usize..span[1] as usize];
            (token, id)
        });
        let automaton = DoubleArrayAhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .build_with_values(tokens)
            .ok()?;
        Some(Self {
            bytes,
            ends,
            automaton,
        })
    }

    pub(super) fn encode(&self, text: &[u8]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        ids.extend(
            self.automaton
                .leftmost_find_iter(text)
                .map(|found| found.value()),
        );
        ids
    }

    /// The bytes of token `id`; `None` for 0 and past the end of the vocabulary.
    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let start = *self.ends.get(id.checked_sub(1)?)?;
        let end = *self.ends.get(id)?;
        self.bytes.get(start as usize..end as usize)
    }
}

/// Appends the bytes of a Python literal: `'…'` or `"…"` (UTF-8), or `b'…'` (raw bytes).
fn push_python_literal(literal: &str, bytes: &mut Vec<u8>) -> Option<()> {
    let (raw, quoted) = match literal.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let quote = quoted
        .chars()
        .next()
        .filter(|quote| matches!(quote, '\'' | '"'))?;
    let mut chars = quoted.strip_prefix(quote)?.strip_suffix(quote)?.chars();
    while let Some(char) = chars.next() {
        let char = match char {
            '\\' => match chars.next()? {
                'x' => hex_escape(&mut chars, 2)?,
                'u' => hex_escape(&mut chars, 4)?,
                'U' => hex_escape(&mut chars, 8)?,
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                same @ ('\\' | '\'' | '"') => same,
                _ => return None,
            },
            plain => plain,
        };
        if raw {
            bytes.push(u8::try_from(char).ok()?);
        } else {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(())
}

fn hex_escape(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let mut value = 0;
    for _ in 0..digits {
        value = value * 16 + chars.next()?.to_digit(16)?;
    }
    char::from_u32(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_vocabulary_has_its_65529_tokens_and_every_byte() {
        let vocabulary = WorldVocabulary::parse(VOCABULARY_FILE).unwrap();
        assert_eq!(vocabulary.ends.len(), 65_530);
        for byte in 0..=255u8 {
            assert_eq!(
                vocabulary.token(u32::from(byte) + 1),
                Some([byte].as_slice())
            );
        }
        assert_eq!(vocabulary.token(65_529), Some([b' '; 128].as_slice()));
        assert_eq!(
            (vocabulary.token(0), vocabulary.token(65_530)),
            (None, None)
        );
    }

    #[test]
    fn published_vectors_encode_exactly() {
        let vocabulary = WorldVocabulary::get();
        let vectors: [(&str, &[u32]); 6] = [
            (" 12345", &[3485, 654, 54]),
            ("User:", &[24281, 59]),
            ("Assistant:", &[5585, 41693, 59]),
            ("1234567", &[632, 654, 676, 56]),
            (
                "The pass key is 43568.",
                &[6699, 31635, 21952, 4600, 3516, 676, 57, 47],
            ),
            ("100", &[630, 49]),
        ];
        for (text, ids) in vectors {
            assert_eq!(vocabulary.encode(text.as_bytes()), ids, "{text:?}");
        }
        assert_eq!(vocabulary.encode(b"<|endoftext|>").len(), 7);
    }

    #[test]
    fn python_literals_are_read_with_all_their_escapes() {
        let mut bytes = Vec::new();
        push_python_literal(r#"'\\\'"\n\x41\u00e9\U0001f600'"#, &mut bytes).unwrap();
        assert_eq!(bytes, "\\'\"\nAé😀".as_bytes());
        let mut raw = Vec::new();
        push_python_literal(r"b'\xf0\x9f'", &mut raw).unwrap();
        assert_eq!(raw, [0xf0, 0x9f]);
    }

    #[test]
    fn a_malformed_vocabulary_is_refused() {
        for file in ["1 'a'", "2 'a' 1", "1 'a' 2", "1 'a 1", r"1 '\q' 1", "x"] {
            assert!(WorldVocabulary::parse(file).is_none(), "{file}");
        }
    }
}
