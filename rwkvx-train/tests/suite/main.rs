//! Tests of training. One binary, because every binary that trains a model takes a minute to compile.

mod bad_input;
mod binary;
mod golden;
mod head_loss;
mod resume;
mod steps;
mod support;
