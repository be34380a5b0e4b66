//! Tests of the model crate from outside. Golden data comes from the PyTorch oracle, in float64, stored as f32.

mod bad_input;
mod checkpoint;
mod cli;
mod config;
mod expansion;
mod formats;
mod generate_command;
mod generation;
mod golden;
mod inference;
mod initial_values;
mod sampling;
mod scoring;
mod support;
