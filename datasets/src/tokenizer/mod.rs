//! Text to token ids and back.
//!
//! Four kinds, chosen by a name that checkpoints store and the commands take as `--tokenizer`:
//!
//! | name | ids | what it is |
//! | --- | --- | --- |
//! | `rwkv-world` | 65,536 | the vocabulary of the published RWKV models, built in |
//! | `byte` | 257 | one id per byte, `byte + 1`; a subset of the ids of `rwkv-world` |
//! | `needles` | 2,816 | for models of a few million parameters that learn from this crate's [needles](crate::needles): most words are an id each, numbers are cut into pairs of digits |
//! | a path | its own | any `tokenizer.json` of the `tokenizers` library |
//!
//! Id 0 is [`END_OF_DOCUMENT`] in the first three and no text encodes to it.

mod stream;
mod world;

use std::path::Path;
use std::sync::Arc;

pub use stream::DecodeStream;
use world::WorldVocabulary;

use crate::{Error, Result};

/// The id that ends a document in token files. No text encodes to it, and it decodes to nothing.
pub const END_OF_DOCUMENT: u32 = 0;

/// Name of the built-in vocabulary of the published RWKV models.
pub const RWKV_WORLD: &str = "rwkv-world";

/// Name of the tokenizer with one id per byte.
pub const BYTE: &str = "byte";

/// Name of the built-in vocabulary of generated needles.
pub const NEEDLES: &str = "needles";

/// Ids a model has room for when it uses `rwkv-world`. The vocabulary itself ends at 65,529.
const WORLD_MODEL_VOCABULARY: usize = 65_536;

/// A tokenizer: encodes text to ids and decodes ids to bytes. Cheap to clone and to share between threads.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    spec: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    World,
    Byte,
    Json {
        inner: Arc<tokenizers::Tokenizer>,
        vocab_size: usize,
    },
}

impl Tokenizer {
    /// Opens `"rwkv-world"`, `"byte"`, `"needles"`, or the `tokenizer.json` at a path.
    ///
    /// # Errors
    ///
    /// If `spec` is none of the names and no readable `tokenizer.json` lies there.
    pub fn open(spec: &str) -> Result<Self> {
        let kind = match spec {
            RWKV_WORLD => Kind::World,
            BYTE => Kind::Byte,
            NEEDLES => json(NEEDLES, include_bytes!("../../data/needles.json"))?,
            path => open_json(path)?,
        };
        Ok(Self {
            spec: spec.to_owned(),
            kind,
        })
    }

    /// The name or path it was opened with, as a checkpoint stores it.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// Rows an embedding needs: one more than the largest id (65,536 for `rwkv-world`, whose last ids are unused).
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::World => WORLD_MODEL_VOCABULARY,
            Kind::Byte => 257,
            Kind::Json { vocab_size, .. } => *vocab_size,
        }
    }

    /// The ids of `text`. No special tokens are added.
    ///
    /// # Errors
    ///
    /// Only a `tokenizer.json` can refuse a text; the built-in tokenizers encode every string.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::World => Ok(WorldVocabulary::get().encode(text.as_bytes())),
            Kind::Byte => Ok(text.bytes().map(|byte| u32::from(byte) + 1).collect()),
            Kind::Json { inner, .. } => inner
                .encode_fast(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| Error::tokenizer(&self.spec, error)),
        }
    }

    /// The bytes of `ids`, which need not be valid UTF-8 when a character spans the first or last id.
    ///
    /// [`END_OF_DOCUMENT`] decodes to nothing, an id outside the vocabulary to U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        match &self.kind {
            Kind::Json { inner, .. } => inner
                .decode(ids, false)
                .unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string())
                .into_bytes(),
            Kind::World | Kind::Byte => {
                let mut bytes = Vec::with_capacity(ids.len() * 4);
                for &id in ids {
                    self.push_token_bytes(id, &mut bytes);
                }
                bytes
            }
        }
    }

    /// The text of `ids`, with U+FFFD wherever the bytes are not UTF-8.
    pub fn decode_lossy(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode(ids)).into_owned()
    }

    /// A decoder for ids that come one at a time: it holds bytes back until they complete a character.
    pub fn stream(&self) -> DecodeStream<'_> {
        match &self.kind {
            Kind::Json { inner, .. } => DecodeStream::json(inner),
            Kind::World | Kind::Byte => DecodeStream::bytes(self),
        }
    }

    /// Appends the bytes of one id of a byte-based tokenizer.
    fn push_token_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        if id == END_OF_DOCUMENT {
            return;
        }
        let world;
        let byte;
        let token: Option<&[u8]> = match &self.kind {
            Kind::World => {
                world = WorldVocabulary::get();
                world.token(id)
            }
            _ => {
                byte = u8::try_from(id - 1).map(|byte| [byte]);
                byte.as_ref().ok().map(<[u8; 1]>::as_slice)
            }
        };
        bytes.extend_from_slice(token.unwrap_or("\u{FFFD}".as_bytes()));
    }
}

fn open_json(path: &str) -> Result<Kind> {
    if !Path::new(path).is_file() {
        return Err(Error::tokenizer(
            path,
            "no such file; use \"rwkv-world\", \"byte\", \"needles\" or the path of a tokenizer.json",
        ));
    }
    let text = std::fs::read(path).map_err(|error| Error::tokenizer(path, error))?;
    json(path, &text)
}

fn json(name: &str, text: &[u8]) -> Result<Kind> {
    let inner = tokenizers::Tokenizer::from_bytes(text)
        .map_err(|error| Error::tokenizer(name, format!("not a usable tokenizer.json: {error}")))?;
    // Ids may have gaps, so the count of tokens is not the bound on the ids.
    let largest = inner.get_vocab(true).into_values().max();
    let Some(largest) = largest else {
        return Err(Error::tokenizer(name, "its vocabulary is empty"));
    };
    Ok(Kind::Json {
        inner: Arc::new(inner),
        vocab_size: largest as usize + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_ids_are_the_bytes_plus_one() {
        let tokenizer = Tokenizer::open(BYTE).unwrap();
        assert_eq!(tokenizer.encode("\0Aé").unwrap(), [1, 66, 196, 170]);
        assert_eq!(tokenizer.decode_lossy(&[1, 66, 196, 170, 0]), "\0Aé");
        assert_eq!(tokenizer.vocab_size(), 257);
    }

    #[test]
    fn byte_ids_mean_the_same_in_the_world_vocabulary() {
        let world = Tokenizer::open(RWKV_WORLD).unwrap();
        let byte = Tokenizer::open(BYTE).unwrap();
        let every: Vec<u32> = (0..=256).collect();
        assert_eq!(world.decode(&every), byte.decode(&every));
    }

    #[test]
    fn an_id_outside_the_vocabulary_decodes_to_the_replacement_character() {
        for (spec, id) in [(BYTE, 257), (RWKV_WORLD, 65_530), (BYTE, u32::MAX)] {
            let tokenizer = Tokenizer::open(spec).unwrap();
            assert_eq!(tokenizer.decode_lossy(&[66, id]), "A\u{FFFD}");
        }
    }

    #[test]
    fn words_of_needles_are_an_id_each() {
        let tokenizer = Tokenizer::open(NEEDLES).unwrap();
        assert_eq!(tokenizer.vocab_size(), 2_816);
        let text = "What is able-acorn? able-acorn is 40931.";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), 13, "{ids:?}");
        assert_eq!(tokenizer.decode_lossy(&ids), text);
        assert!(!ids.contains(&END_OF_DOCUMENT));
    }

    #[test]
    fn a_missing_tokenizer_file_is_named_with_the_alternatives() {
        let error = Tokenizer::open("nowhere/tokenizer.json").unwrap_err();
        let message = error.to_string();
        assert!(message.contains("nowhere/tokenizer.json") && message.contains("rwkv-world"));
    }
}
