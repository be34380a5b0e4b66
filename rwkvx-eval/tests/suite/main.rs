//! One binary for all tests, because each takes long to link.

mod bad_input;
mod binary;
mod choices;
mod comparisons;
#[cfg(feature = "download")]
mod download;
mod facts;
mod grids;
mod harness;
mod lambada;
mod latency;
mod page;
mod perplexity;
mod prompts;
mod support;
