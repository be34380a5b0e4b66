//! Ids of a byte-level BPE tokenizer (GPT-2, Llama 3) back to text, byte by byte.
//!
//! The library's own decoder puts U+FFFD where bytes are not UTF-8. Here it matters which bytes these are: a document
//! that was cut to a number of tokens may begin or end within a character, and anything else is damage.

use std::collections::HashMap;
use std::path::Path;

use crate::{Error, Result};

pub(super) struct ByteLevelVocabulary {
    /// The bytes of each id. Special tokens have none; `None` where the vocabulary has a gap.
    tokens: Vec<Option<Box<[u8]>>>,
}

impl ByteLevelVocabulary {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let spec = path.display().to_string();
        let tokenizer = tokenizers::Tokenizer::from_file(path).map_err(|error| {
            Error::tokenizer(&spec, format!("not a usable tokenizer.json: {error}"))
        })?;
        let bytes = byte_characters();
        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens = Vec::new();
        for (token, id) in tokenizer.get_vocab(true) {
            let token: Option<Box<[u8]>> = match added.get(&id) {
                Some(added) if added.special => Some(Box::default()),
                Some(added) => Some(added.content.as_bytes().into()),
                None => token
                    .chars()
                    .map(|char| bytes.get(&char).copied())
                    .collect(),
            };
            let id = id as usize;
            if token.is_none() {
                let reason =
                    format!("not a byte-level BPE tokenizer: token {id} is not written in bytes");
                return Err(Error::tokenizer(&spec, reason));
            }
            if tokens.len() <= id {
                tokens.resize(id + 1, None);
            }
            tokens[id] = token;
        }
        Ok(Self { tokens })
    }

    /// The text of a document's ids, without what is left of characters cut at its ends.
    pub(super) fn text(&self, ids: &[u32]) -> Result<String, String> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            let token = self.tokens.get(*id as usize).and_then(Option::as_deref);
            bytes.extend_from_slice(token.ok_or_else(|| {
                format!("token {id} is not in the vocabulary; is this the tokenizer of the data?")
            })?);
        }
        // A character is at most four bytes long, so at most three are left of it.
        let continues = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
        let start = bytes.iter().take(3).take_while(continues).count();
        let whole = &bytes[start..];
        match std::str::from_utf8(whole) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) if error.error_len().is_none() => {
                let valid = whole[..error.valid_up_to()].to_vec();
                String::from_utf8(valid).map_err(|error| error.to_string())
            }
            Err(error) => {
                let place = start + error.valid_up_to();
                Err(format!(
                    "its tokens are not valid UTF-8 at byte {place} of a document"
                ))
            }
        }
    }
}

/// The characters that stand for bytes in the vocabulary: themselves where printable, others from U+0100 on.
fn byte_characters() -> HashMap<char, u8> {
    let mut next = 0x100;
    let characters = (0..=u8::MAX).map(|byte| {
        let character = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
            }
        };
        (character, byte)
    });
    characters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> ByteLevelVocabulary {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer.json");
        ByteLevelVocabulary::open(&path).unwrap()
    }

    /// The id of the token that is this byte alone.
    fn id(vocabulary: &ByteLevelVocabulary, byte: u8) -> u32 {
        let same = |token: &Option<Box<[u8]>>| token.as_deref() == Some(&[byte]);
        vocabulary.tokens.iter().position(same).unwrap() as u32
    }

    #[test]
    fn every_byte_has_its_character() {
        let characters = byte_characters();
        assert_eq!(characters.len(), 256);
        for (character, byte) in [('A', b'A'), ('Ġ', b' '), ('Ċ', b'\n'), ('Ń', 0xad)] {
            assert_eq!(characters[&character], byte, "{character}");
        }
    }

    #[test]
    fn characters_cut_at_the_ends_are_left_out_and_damage_within_is_told() {
        let vocabulary = fixture();
        let text = |bytes: &[u8]| {
            let ids: Vec<u32> = bytes.iter().map(|byte| id(&vocabulary, *byte)).collect();
            vocabulary.text(&ids)
        };
        let whole = "é日😀".as_bytes();
        assert_eq!(text(whole).unwrap(), "é日😀");
        assert_eq!(text(&whole[1..]).unwrap(), "日😀");
        assert_eq!(text(&whole[3..whole.len() - 1]).unwrap(), "");
        assert_eq!(text(&whole[..4]).unwrap(), "é");
        assert!(text(b"a\xffb").unwrap_err().contains("byte 1"));
        assert!(text(b"a\xe6b").unwrap_err().contains("byte 1"));
    }

    #[test]
    fn special_tokens_have_no_text_and_unknown_ids_are_named() {
        let vocabulary = fixture();
        assert_eq!(
            vocabulary.text(&[0, id(&vocabulary, b'x'), 1]).unwrap(),
            "x"
        );
        assert!(vocabulary.text(&[100_000]).unwrap_err().contains("100000"));
    }
}
