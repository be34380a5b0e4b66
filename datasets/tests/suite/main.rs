//! Tests of the crate from outside: golden ids, files on disk, and the command.

mod bad_inputs;
mod bad_token_files;
mod chat;
mod command;
mod inputs;
mod prepare;
mod token_files;
mod tokenizers;
