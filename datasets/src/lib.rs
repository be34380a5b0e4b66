//! Text to token ids to token files, and texts made for training and testing retrieval.
//!
//! The crate knows no model. What it gives to the others is plain data: ids are `u32`, texts are `String`.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`tokenizer`] | `rwkv-world`, `byte` and any `tokenizer.json` |
//! | [`binidx`] | token files on disk, the format RWKV and Megatron train from |
//! | [`sampler`] | the order in which RWKV's training visits a token file |
//! | [`ruler`], [`passkey`] | needle-in-a-haystack prompts, worded as their published evaluations word them |
//! | [`prose`] | generated essay-like text |
//! | [`needles`] | an endless seeded stream of retrieval documents to train on |
//! | [`chat`] | conversations to fine-tune on, and which of their tokens are to be learned |
//! | [`prepare`] | JSON lines, plain text, Parquet or MDS shards into a token file |

#![deny(missing_docs)]

pub mod binidx;
pub mod chat;
mod error;
mod files;
mod haystack;
pub mod needles;
pub mod passkey;
pub mod prepare;
pub mod prose;
pub mod ruler;
pub mod sampler;
pub mod tokenizer;
mod words;

pub use error::{Error, Result};
pub use tokenizer::{END_OF_DOCUMENT, Tokenizer};
