//! Decoding ids as they are generated, a whole character at a time.

use std::mem;

use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use super::Tokenizer;

/// The library's own stream, which knows how its decoders join tokens.
type JsonStream<'a> = tokenizers::DecodeStream<
    'a,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Turns ids into text one at a time, holding back the bytes of an unfinished UTF-8 character.
///
/// ```
/// let tokenizer = rwkvx_datasets::Tokenizer::open("byte")?;
/// let mut stream = tokenizer.stream();
/// let pieces: Vec<String> = "né".bytes().map(|byte| stream.push(u32::from(byte) + 1)).collect();
/// assert_eq!(pieces, ["n", "", "é"]);
/// assert_eq!(stream.finish(), "");
/// # Ok::<(), rwkvx_datasets::Error>(())
/// ```
pub struct DecodeStream<'a>(Source<'a>);

enum Source<'a> {
    Bytes {
        tokenizer: &'a Tokenizer,
        /// The beginning of a character, at most three bytes between calls.
        pending: Vec<u8>,
    },
    Json {
        tokenizer: &'a tokenizers::Tokenizer,
        stream: Box<JsonStream<'a>>,
        /// Ids pushed since text last came out.
        pending: Vec<u32>,
    },
}

impl<'a> DecodeStream<'a> {
    pub(super) fn bytes(tokenizer: &'a Tokenizer) -> Self {
        Self(Source::Bytes {
            tokenizer,
            pending: Vec::new(),
        })
    }

    pub(super) fn json(tokenizer: &'a tokenizers::Tokenizer) -> Self {
        Self(Source::Json {
            tokenizer,
            stream: Box::new(tokenizer.decode_stream(false)),
            pending: Vec::new(),
        })
    }

    /// Takes the next id and returns the text it completes, which may be empty. Bytes that can no longer become a
    /// character come out as U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        match &mut self.0 {
            Source::Bytes { tokenizer, pending } => {
                tokenizer.push_token_bytes(id, pending);
                take_characters(pending)
            }
            Source::Json {
                stream, pending, ..
            } => {
                pending.push(id);
                match stream.step(id) {
                    Ok(Some(text)) => {
                        pending.clear();
                        text
                    }
                    Ok(None) => String::new(),
                    Err(_) => {
                        pending.clear();
                        char::REPLACEMENT_CHARACTER.to_string()
                    }
                }
            }
        }
    }

    /// What is left at the end: U+FFFD for an unfinished character, otherwise nothing.
    pub fn finish(self) -> String {
        match self.0 {
            Source::Bytes { pending, .. } => String::from_utf8_lossy(&pending).into_owned(),
            Source::Json {
                tokenizer, pending, ..
            } => tokenizer.decode(&pending, false).unwrap_or_default(),
        }
    }
}

/// Takes everything but an unfinished last character out of `pending`.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let unfinished = pending.utf8_chunks().last().map_or(0, |chunk| {
        let tail = chunk.invalid();
        let may_continue =
            std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
        if may_continue { tail.len() } else { 0 }
    });
    let rest = pending.split_off(pending.len() - unfinished);
    let complete = mem::replace(pending, rest);
    String::from_utf8(complete)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{BYTE, END_OF_DOCUMENT};

    fn streamed(bytes: &[u8]) -> (Vec<String>, String) {
        let tokenizer = Tokenizer::open(BYTE).unwrap();
        let mut stream = tokenizer.stream();
        let pieces = bytes
            .iter()
            .map(|&byte| stream.push(u32::from(byte) + 1))
            .collect();
        (pieces, stream.finish())
    }

    #[test]
    fn a_character_comes_out_with_its_last_byte() {
        let (pieces, rest) = streamed("a😀b".as_bytes());
        assert_eq!(pieces, ["a", "", "", "", "😀", "b"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn broken_bytes_come_out_as_the_replacement_character_at_once() {
        let (pieces, rest) = streamed(&[0xff, b'a', 0xf0, b'b', 0xe2, 0x82]);
        assert_eq!(pieces, ["\u{FFFD}", "a", "", "\u{FFFD}b", "", ""]);
        assert_eq!(rest, "\u{FFFD}");
    }

    #[test]
    fn the_end_of_a_document_decodes_to_nothing() {
        let tokenizer = Tokenizer::open(BYTE).unwrap();
        let mut stream = tokenizer.stream();
        assert_eq!(stream.push(END_OF_DOCUMENT), "");
        assert_eq!(stream.push(66), "A");
    }
}
