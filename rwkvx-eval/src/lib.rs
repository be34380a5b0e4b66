//! Evaluation of RWKV-X: needles in haystacks, and short benchmarks.
//!
//! | module | step |
//! | --- | --- |
//! | [`language_model`] | what is asked of a model: to go on greedily, to score a text |
//! | [`records`], [`tasks`] | records of published benchmarks, and how they become questions |
//! | [`requests`] | continuations to score after contexts |
//! | [`choice`], [`lambada`] | short benchmarks, from requests to scores |
//! | [`sniah`], [`passkey`] | needles in haystacks, from settings to answers |
//! | [`facts`] | many facts in one text |
//! | [`grid`], [`journal`] | answers by length and depth, counted, and kept while they come |
//! | [`latency`] | what reading and going on cost at a length |
//! | [`table`], [`heat_map`] | a grid as text, as CSV, as a picture |
//! | [`perplexity`] | loss on long texts |
//! | [`compare`] | two reports, question by question |
//! | [`statistics`] | means and their standard errors |
//! | [`page`] | all reports as one HTML page beside the paper's numbers |
//! | [`report`], [`provenance`] | a result with all that is needed to repeat it |
//! | [`runs`] | the newest trained model |
//!
//! A benchmark is deterministic: the same model, settings and seed give the same questions and the same answers.

#![deny(missing_docs)]

mod branches;
pub mod choice;
pub mod compare;
#[cfg(feature = "download")]
pub mod download;
mod error;
pub mod facts;
pub mod grid;
pub mod heat_map;
pub mod journal;
pub mod lambada;
pub mod language_model;
pub mod latency;
pub mod lengths;
pub mod page;
pub mod passkey;
pub mod perplexity;
pub mod provenance;
pub mod records;
pub mod report;
pub mod requests;
pub mod runs;
pub mod sniah;
pub mod statistics;
pub mod table;
pub mod tasks;

pub use error::{Error, Result};
