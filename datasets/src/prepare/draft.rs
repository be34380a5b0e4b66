//! Tokenised documents on their way to a token file, in the order of the input, and the journal to go on from.
//!
//! Three files lie beside the token file until it is complete: `PREFIX.part.bin` has the ids, `PREFIX.part.sizes` the
//! length of each document, and `PREFIX.part.json`, the journal, says how much of both is certain. A batch is on the
//! disk before the journal counts it; what lies beyond the journal is cut off when a run goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::source::Position;
use crate::binidx::{Dtype, require_folder};
use crate::files::{append, map};
use crate::{Error, Result};

/// Everything that decides the ids of the documents, by the name of the argument.
pub(super) type Job = Map<String, Value>;

/// The ids of some documents.
#[derive(Default)]
pub(super) struct Encoded {
    /// As they are stored.
    pub(super) ids: Vec<u8>,
    /// Tokens of each document.
    pub(super) sizes: Vec<i32>,
}

#[derive(Serialize, Deserialize)]
struct Journal {
    job: Job,
    position: Position,
    documents: u64,
    tokens: u64,
}

pub(super) struct Draft {
    bin: Part,
    sizes: Part,
    journal_path: PathBuf,
    journal: Journal,
    dtype: Dtype,
    /// Whether there is anything to go on from.
    keep: bool,
}

impl Draft {
    /// Goes on from what an interrupted run of the same job left, unless it is to `restart`.
    pub(super) fn open(out: &Path, dtype: Dtype, job: Job, restart: bool) -> Result<Self> {
        require_folder(out)?;
        let journal_path = append(out, ".part.json");
        let bin = Part::open(append(out, ".part.bin"))?;
        // Two runs with the same output would overwrite each other.
        bin.file.try_lock().map_err(|error| {
            Error::input(
                &bin.path,
                format!("another run is writing it, or it cannot be locked: {error}"),
            )
        })?;
        let mut draft = Self {
            bin,
            sizes: Part::open(append(out, ".part.sizes"))?,
            journal_path,
            journal: Journal {
                job,
                position: Position::default(),
                documents: 0,
                tokens: 0,
            },
            dtype,
            keep: false,
        };
        if !restart && draft.journal_path.exists() {
            // Whatever is wrong with it is for the user to decide.
            draft.keep = true;
            draft.resume()?;
        }
        draft.bin.cut(draft.bytes())?;
        draft.sizes.cut(draft.journal.documents * 4)?;
        if !draft.keep {
            draft.remove_journal();
        }
        Ok(draft)
    }

    fn resume(&mut self) -> Result<()> {
        let path = &self.journal_path;
        let refused = |reason: String| {
            let mend =
                "continue with the same arguments, or discard the interrupted run with --restart";
            Error::input(path, format!("{reason}; {mend}"))
        };
        let json = fs::read(path).map_err(Error::io(path))?;
        let journal: Journal = serde_json::from_slice(&json)
            .map_err(|error| refused(format!("not the journal of an interrupted run: {error}")))?;
        let job = self.journal.job.iter();
        let other: Vec<_> = job
            .filter(|(name, value)| journal.job.get(*name) != Some(value))
            .map(|(name, _)| name.as_str())
            .collect();
        if !other.is_empty() {
            let other = other.join(", ");
            return Err(refused(format!("the interrupted run differs in: {other}")));
        }
        self.journal = journal;
        let (bytes, sizes) = (self.bytes(), self.journal.documents.saturating_mul(4));
        if self.bin.len()? < bytes || self.sizes.len()? < sizes {
            return Err(refused("its data is shorter than it says".to_owned()));
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.journal
            .tokens
            .saturating_mul(self.dtype.bytes() as u64)
    }

    /// Where to read on.
    pub(super) fn position(&self) -> Position {
        self.journal.position
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Adds the documents of a batch that ends at `position` of the input.
    pub(super) fn push(&mut self, batch: &[Encoded], position: Position) -> Result<()> {
        for encoded in batch {
            self.bin.write(&encoded.ids)?;
            let sizes: Vec<u8> = encoded
                .sizes
                .iter()
                .flat_map(|size| size.to_le_bytes())
                .collect();
            self.sizes.write(&sizes)?;
            self.journal.documents += encoded.sizes.len() as u64;
            self.journal.tokens += (encoded.ids.len() / self.dtype.bytes()) as u64;
        }
        self.bin.sync()?;
        self.sizes.sync()?;
        self.journal.position = position;
        let json = serde_json::to_vec(&self.journal).expect("a journal has no keys but strings");
        let next = append(&self.journal_path, ".new");
        fs::write(&next, json).map_err(Error::io(&next))?;
        fs::rename(&next, &self.journal_path).map_err(Error::io(&self.journal_path))?;
        self.keep = true;
        Ok(())
    }

    /// The ids of all documents as they are stored, and which bytes of them each document has.
    pub(super) fn documents(&self) -> Result<(Bytes, Vec<Range<usize>>)> {
        let (ids, sizes) = (map(&self.bin.path)?, map(&self.sizes.path)?);
        let (sizes, _) = sizes.as_chunks();
        let mut end = 0;
        let spans: Vec<_> = sizes
            .iter()
            .map(|size| {
                let start = end;
                end += u32::from_le_bytes(*size) as usize * self.dtype.bytes();
                start..end
            })
            .collect();
        if end != ids.len() {
            let reason = "its documents are not those of the .part.bin; start anew with --restart";
            return Err(Error::input(&self.sizes.path, reason));
        }
        Ok((ids, spans))
    }

    /// Removes the draft, whose documents are in their token file.
    pub(super) fn remove(mut self) {
        self.keep = false;
    }

    fn remove_journal(&self) {
        // Mostly there is none, and nobody to tell if removing fails.
        let _ = fs::remove_file(&self.journal_path);
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.keep {
            // The journal first: it must not speak of data that is gone.
            self.remove_journal();
            let _ = fs::remove_file(&self.sizes.path);
            let _ = fs::remove_file(&self.bin.path);
        }
    }
}

/// A growing file.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn open(path: PathBuf) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(&path))?;
        Ok(Self { path, file })
    }

    fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(Error::io(&self.path))?;
        Ok(metadata.len())
    }

    /// Keeps the first `bytes` bytes and writes on from there.
    fn cut(&mut self, bytes: u64) -> Result<()> {
        let cut = self.file.set_len(bytes);
        cut.and_then(|()| self.file.seek(SeekFrom::Start(bytes)))
            .map_err(Error::io(&self.path))?;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}
