//! One binary for all tests, because each takes long to link.

mod bad_input;
mod binary;
mod grids;
mod lambada;
mod scores;
mod support;
