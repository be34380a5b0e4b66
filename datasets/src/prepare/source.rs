//! What every input format gives: records in the order of the input, and the documents in a record.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::jsonl::Jsonl;
use super::parquet::Parquet;
use super::prolong::Prolong;
use super::text::Text;
use super::{Format, PrepareOptions};
use crate::{Error, Result};

/// Input files of one format.
///
/// Records are read by one thread, in order and without looking into them; their documents are parsed by many.
pub(super) trait Source: Sync {
    /// The files with the records, in order.
    fn files(&self) -> Vec<&Path>;

    /// About how many bytes all records have.
    fn bytes(&self) -> u64;

    /// The records of a file.
    fn records(&self, file: usize) -> Result<Records<'_>>;

    /// The documents of a record.
    fn documents<'a>(&self, record: &'a Record) -> Result<Vec<Cow<'a, str>>>;
}

pub(super) type Records<'a> = Box<dyn Iterator<Item = Result<Record>> + Send + 'a>;

/// The bytes of a record, and where they lie.
#[derive(Clone)]
pub(super) struct Record {
    /// Number of its file, from 0.
    pub(super) file: usize,
    pub(super) path: Arc<Path>,
    /// What the format calls its records.
    pub(super) unit: &'static str,
    /// From 1.
    pub(super) number: u64,
    pub(super) bytes: Bytes,
}

impl Record {
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Document {
            path: self.path.to_path_buf(),
            unit: self.unit,
            number: self.number,
            reason: reason.into(),
        }
    }
}

/// Finds the input files and checks what can be known without reading their records.
pub(super) fn open(
    format: Format,
    inputs: &[PathBuf],
    options: &PrepareOptions,
) -> Result<Box<dyn Source>> {
    let column = options.column.as_deref();
    let tokenizer = options.source_tokenizer.as_deref();
    let refused = |field, what| {
        let name = format.name();
        Err(Error::value(field, format!("{name} input {what}")))
    };
    match (format, column, tokenizer) {
        (Format::Jsonl | Format::Text, Some(_), _) => refused("column", "has no columns"),
        (Format::Jsonl | Format::Text | Format::Minipile, _, Some(_)) => refused(
            "source-tokenizer",
            "is text already, there is nothing to decode",
        ),
        (Format::Prolong, _, None) => refused(
            "source-tokenizer",
            "holds token ids; give the tokenizer.json that made them",
        ),
        (Format::Jsonl, None, None) => Ok(Box::new(Jsonl::open(inputs)?)),
        (Format::Text, None, None) => Ok(Box::new(Text::open(inputs)?)),
        (Format::Minipile, _, None) => {
            Ok(Box::new(Parquet::open(inputs, column.unwrap_or("text"))?))
        }
        (Format::Prolong, _, Some(tokenizer)) => Ok(Box::new(Prolong::open(
            inputs,
            column.unwrap_or("input_ids"),
            tokenizer,
        )?)),
    }
}

/// How far the input is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    file: usize,
    /// Records of that file which were read.
    records: usize,
    /// Bytes of all records which were read.
    pub(super) bytes: u64,
}

/// Some records, and the position after them.
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    pub(super) end: Position,
}

/// Reads the records of all files from a position on.
pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    files: usize,
    position: Position,
    /// Of the file at `position`, once it is open.
    records: Option<Records<'a>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Source, position: Position) -> Self {
        Self {
            source,
            files: source.files().len(),
            position,
            records: None,
        }
    }

    /// Records of at least `bytes` bytes together; fewer at the end of the input, none after it.
    pub(super) fn batch(&mut self, bytes: usize) -> Result<Batch> {
        let mut records = Vec::new();
        let enough = self.position.bytes + bytes as u64;
        while self.position.bytes < enough {
            let Some(record) = self.record()? else {
                break;
            };
            records.push(record);
        }
        Ok(Batch {
            records,
            end: self.position,
        })
    }

    fn record(&mut self) -> Result<Option<Record>> {
        while self.position.file < self.files {
            let mut records = match self.records.take() {
                Some(records) => records,
                None => {
                    let records = self.source.records(self.position.file)?;
                    Box::new(records.skip(self.position.records))
                }
            };
            if let Some(record) = records.next().transpose()? {
                self.position.records += 1;
                self.position.bytes += record.bytes.len() as u64;
                self.records = Some(records);
                return Ok(Some(record));
            }
            self.position.file += 1;
            self.position.records = 0;
        }
        Ok(None)
    }
}
