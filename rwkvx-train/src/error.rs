//! What can stop a training run, said so that the reader knows what to mend.

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

    /// A configuration file is not JSON of the right form.
    #[error("{}: {reason}", path.display())]
    ConfigFile {
        /// The file read.
        path: PathBuf,
        /// What is wrong; names the field and the line.
        reason: String,
    },

    /// A value of the configuration is impossible.
    #[error("{field}: {reason}")]
    Field {
        /// Path of the field in the JSON, for example `stages.stage1.micro_batch`.
        field: String,
        /// The value found and the values allowed.
        reason: String,
    },

    /// A combination of command line options makes no sense.
    #[error("{option}: {reason}")]
    Option {
        /// The option as typed.
        option: &'static str,
        /// What is wrong and what to do instead.
        reason: String,
    },

    /// A training checkpoint or a file of a run directory cannot be used.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file or the directory.
        path: PathBuf,
        /// What is wrong and what to do about it.
        reason: String,
    },

    /// The loss or the gradient is no longer a number.
    #[error(
        "{phase}, step {step}: the {what} is {value}{}; {}; lower `learning_rate`, lengthen `warmup_steps`, or pass `--skip-bad-steps`",
        match skipped {
            0 => String::new(),
            _ => format!(", after {skipped} skipped steps in a row"),
        },
        match last_checkpoint {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".to_owned(),
        }
    )]
    Diverged {
        /// Phase of the run.
        phase: &'static str,
        /// The step that failed, from 1.
        step: u64,
        /// "loss" or "gradient norm".
        what: &'static str,
        /// The value found.
        value: f64,
        /// Steps skipped just before this one.
        skipped: u64,
        /// Directory of the newest checkpoint.
        last_checkpoint: Option<PathBuf>,
    },

    /// The user stopped the run, from the dashboard or by a signal. Nothing is lost.
    #[error(
        "stopped in {phase} after step {step}; go on with `--resume --out {}`",
        run.display()
    )]
    Stopped {
        /// Phase of the run.
        phase: &'static str,
        /// Steps done in the phase.
        step: u64,
        /// The run directory.
        run: PathBuf,
    },

    /// The system does not let the program handle Ctrl-C.
    #[error("cannot handle SIGINT and SIGTERM: {error}")]
    Signals {
        /// What the system said. Part of the message, and so not also its source.
        error: io::Error,
    },

    /// The loss curve could not be drawn.
    #[error("{}: cannot draw the loss curve: {reason}", path.display())]
    Curve {
        /// The picture.
        path: PathBuf,
        /// What the drawing library said.
        reason: String,
    },

    /// An error of the model crate: a weights file, a shape, token ids.
    #[error(transparent)]
    Model(#[from] rwkvx_model::Error),

    /// An error of the data crate: a token file, a tokenizer, a generator's settings.
    #[error(transparent)]
    Data(#[from] rwkvx_datasets::Error),
}

impl Error {
    /// An I/O error about `path`, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |error| Self::Io {
            path: path.to_path_buf(),
            error,
        }
    }

    pub(crate) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
