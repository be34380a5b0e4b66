//! What can go wrong, said so that the reader knows what to mend.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. Each message names the file, the option or the field, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read, write or rename a file.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file it was about.
        path: PathBuf,
        /// What the system said. Part of the message, and so not also its source.
        error: io::Error,
    },

    /// A tokenizer could not be opened, or could not encode a text.
    #[error("tokenizer {spec:?}: {reason}")]
    Tokenizer {
        /// The name or path given to [`Tokenizer::open`](crate::Tokenizer::open).
        spec: String,
        /// What is wrong.
        reason: String,
    },

    /// A token file (`.idx` or `.bin`) is not what its format says, or a request does not fit it.
    #[error("{}: {reason}", path.display())]
    TokenFile {
        /// The `.idx` or `.bin` file.
        path: PathBuf,
        /// What is wrong, with the value expected and the value found.
        reason: String,
    },

    /// An input file, or what an interrupted run left, is not what it should be.
    #[error("{}: {reason}", path.display())]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, with the place in the file where there is one.
        reason: String,
    },

    /// A document of an input file is not usable.
    #[error("{}, {unit} {number}: {reason}", path.display())]
    Document {
        /// The input file.
        path: PathBuf,
        /// What is counted: `line`, `row` or `sample`.
        unit: &'static str,
        /// Which one of the file, from 1.
        number: u64,
        /// What is wrong.
        reason: String,
    },

    /// The inputs together hold no document at all.
    #[error("the input holds no documents: {inputs}")]
    NoDocuments {
        /// The input files, as given.
        inputs: String,
    },

    /// Too few tokens for magic-prime sampling.
    #[error(
        "{tokens} tokens are too few for samples of {context} tokens: magic-prime sampling needs at least {} tokens; \
         give more data (or more epochs) or a shorter context",
        context.saturating_mul(3)
    )]
    TooFewTokens {
        /// Tokens in the file.
        tokens: u64,
        /// Tokens per sample.
        context: u64,
    },

    /// A prompt cannot be made as short as asked.
    #[error(
        "a {what} prompt of {asked} tokens is too short: its fixed text and the answer take {minimum} tokens; \
         ask for at least {minimum}, or leave less room for the answer"
    )]
    PromptTooShort {
        /// Which prompt.
        what: &'static str,
        /// Tokens asked for, the answer's included.
        asked: usize,
        /// Least number of tokens that works, the answer's included.
        minimum: usize,
    },

    /// A prompt cannot be made as long as asked, or not exactly so.
    #[error("a {what} prompt of {asked} tokens: {reason}")]
    PromptLength {
        /// Which prompt.
        what: &'static str,
        /// Tokens asked for.
        asked: usize,
        /// Why not.
        reason: String,
    },

    /// A value of a configuration or an argument is out of its range.
    #[error("{field}: {reason}")]
    Value {
        /// Name of the field, as written in the configuration.
        field: &'static str,
        /// The value found and the range allowed.
        reason: String,
    },
}

impl Error {
    /// An I/O error about `path`, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |error| Self::Io {
            path: path.to_path_buf(),
            error,
        }
    }

    pub(crate) fn tokenizer(spec: &str, reason: impl ToString) -> Self {
        Self::Tokenizer {
            spec: spec.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn token_file(path: &Path, reason: impl Into<String>) -> Self {
        Self::TokenFile {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    pub(crate) fn input(path: &Path, reason: impl Into<String>) -> Self {
        Self::Input {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    pub(crate) fn value(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Value {
            field,
            reason: reason.into(),
        }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
