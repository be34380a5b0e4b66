//! Evaluation of RWKV-X: needles in haystacks, and short benchmarks.
//!
//! | module | step |
//! | --- | --- |
//! | [`language_model`] | what is asked of a model: to go on greedily, to score a text |
//! | [`sniah`], [`passkey`], [`lambada`] | the benchmarks, from settings to answers |
//! | [`grid`] | answers by length and depth, asked in batches and counted |
//! | [`table`], [`heat_map`] | a grid as text, as CSV, as a picture |
//! | [`report`] | a result with all that is needed to repeat it |
//! | [`runs`] | the newest trained model |
//!
//! A benchmark is deterministic: the same model, settings and seed give the same questions and the same answers.

#![deny(missing_docs)]

mod error;
pub mod grid;
pub mod heat_map;
pub mod lambada;
pub mod language_model;
pub mod lengths;
pub mod passkey;
pub mod report;
pub mod runs;
pub mod sniah;
pub mod table;

pub use error::{Error, Result};
