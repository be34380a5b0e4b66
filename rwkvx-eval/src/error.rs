//! Everything that can go wrong, each naming the place and the mend.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model could not be loaded, or refused its input.
    #[error(transparent)]
    Model(#[from] rwkvx_model::Error),

    /// A prompt could not be made, or a tokenizer failed.
    #[error(transparent)]
    Data(#[from] rwkvx_datasets::Error),

    /// The value of an option is impossible.
    #[error("{option}: {reason}")]
    Option {
        /// The option as typed.
        option: &'static str,
        /// What is wrong and how to mend it.
        reason: String,
    },

    /// A file could not be opened, read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said. Part of the message, and so not also its source.
        error: io::Error,
    },

    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A record of a benchmark's file is not what the benchmark needs.
    #[error("{}, {unit} {number}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is counted: `line` or `row`.
        unit: &'static str,
        /// Which one of the file, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },

    /// A data set could not be fetched.
    #[error("--download: {repository}: {reason}; datasets/README.md says how to get it by hand")]
    Download {
        /// The data set.
        repository: String,
        /// What went wrong.
        reason: String,
    },

    /// Two reports cannot be compared.
    #[error("compare: {0}")]
    Comparison(String),

    /// A picture could not be drawn.
    #[error("{}: the heat map could not be drawn: {reason}", path.display())]
    Picture {
        /// The picture.
        path: PathBuf,
        /// What the drawing library said.
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

    pub(crate) fn option(option: &'static str, reason: impl Into<String>) -> Self {
        Self::Option {
            option,
            reason: reason.into(),
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
