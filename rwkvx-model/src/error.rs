//! Everything that can go wrong with what comes from outside, each naming the place and the mend.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size of the configuration, or a combination of two, is impossible.
    #[error("config: {0}")]
    Config(String),

    /// A backend that was asked for does not work on this machine.
    #[error("--backend {name}: {reason}; install its driver or choose another backend")]
    Backend {
        /// Its name.
        name: &'static str,
        /// What is missing.
        reason: String,
    },

    /// A tokenizer is missing or cannot be opened.
    #[error("--tokenizer: {0}")]
    Tokenizer(String),

    /// A file could not be opened, read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said. Part of the message, and so not also its source.
        error: std::io::Error,
    },

    /// A file is not what its name promises, or is damaged.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        reason: String,
    },

    /// A checkpoint lacks a tensor that its other tensors call for.
    #[error("{}: tensor `{name}` {expected:?} is missing{}", path.display(), and_others(*others))]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The first missing tensor.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// How many further tensors are missing.
        others: usize,
    },

    /// A checkpoint holds a tensor that no part of the model takes.
    #[error("{}: unexpected tensor `{name}` {found:?}{}; it belongs to no RWKV-7 or RWKV-X parameter", path.display(), and_others(*others))]
    UnexpectedTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The first unexpected tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// How many further tensors are unexpected.
        others: usize,
    },

    /// A tensor has another shape than the rest of the checkpoint calls for.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },

    /// A tensor is stored in a number format that weights do not use.
    #[error("{}: tensor `{name}` is {found}; expected F32, BF16 or F16", path.display())]
    TensorDtype {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its number format.
        found: String,
    },

    /// A token id past the vocabulary.
    #[error("token id {id} at position {position} is not below the vocabulary size {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Where in its row it stands, from 0.
        position: usize,
        /// The vocabulary size of the model.
        vocab_size: usize,
    },

    /// Rows of token ids that do not form a batch.
    #[error("token ids: {0}")]
    TokenRows(String),

    /// A sampling option is impossible, or the logits leave nothing to choose from.
    #[error("sampling: {0}")]
    Sampling(String),

    /// A text that cannot be scored, or a score that is not a number.
    #[error("scoring: {0}")]
    Scoring(String),
}

fn and_others(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " (and 1 other)".to_owned(),
        n => format!(" (and {n} others)"),
    }
}
