//! Finding the documents of the input files and reading their text.

use std::borrow::Cow;
use std::path::PathBuf;

use memmap2::Mmap;
use serde::Deserialize;

use crate::files::map;
use crate::{Error, Result};

/// What the input files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A JSON object a line, with the document in its field `text`; blank lines are skipped.
    Jsonl,
    /// One document a file.
    Text,
}

/// The input files, mapped into memory, and where their documents lie.
pub(super) struct Documents {
    format: Format,
    files: Vec<(PathBuf, Mmap)>,
    documents: Vec<Document>,
}

/// Where a document lies.
#[derive(Clone, Copy)]
pub(super) struct Document {
    file: usize,
    /// From 1.
    line: u64,
    start: usize,
    end: usize,
}

impl Document {
    /// Bytes it takes in its file.
    pub(super) fn bytes(&self) -> usize {
        self.end - self.start
    }
}

/// A line of a JSON lines file; what else it holds is not needed.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

impl Documents {
    pub(super) fn open(format: Format, inputs: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::with_capacity(inputs.len());
        let mut documents = Vec::new();
        for (file, path) in inputs.iter().enumerate() {
            let bytes = map(path)?;
            match format {
                Format::Jsonl => documents.extend(lines(file, &bytes)),
                Format::Text if bytes.is_empty() => {}
                Format::Text => documents.push(Document {
                    file,
                    line: 1,
                    start: 0,
                    end: bytes.len(),
                }),
            }
            files.push((path.clone(), bytes));
        }
        if documents.is_empty() {
            let inputs: Vec<_> = inputs
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Err(Error::NoDocuments {
                inputs: inputs.join(", "),
            });
        }
        Ok(Self {
            format,
            files,
            documents,
        })
    }

    /// Every document, in the order of the input.
    pub(super) fn all(&self) -> Vec<Document> {
        self.documents.clone()
    }

    /// Bytes of all documents in their files.
    pub(super) fn bytes(&self) -> u64 {
        self.documents
            .iter()
            .map(|document| document.bytes() as u64)
            .sum()
    }

    /// The text of a document.
    pub(super) fn text(&self, document: &Document) -> Result<Cow<'_, str>> {
        let bytes = &self.files[document.file].1[document.start..document.end];
        match self.format {
            Format::Jsonl => serde_json::from_slice(bytes)
                .map(|Line { text }| text)
                .map_err(|error| {
                    let reason = format!("not a JSON object with a string \"text\": {error}");
                    self.error(document, reason)
                }),
            Format::Text => std::str::from_utf8(bytes)
                .map(Cow::Borrowed)
                .map_err(|error| {
                    let valid = &bytes[..error.valid_up_to()];
                    let breaks = valid.iter().filter(|byte| **byte == b'\n').count();
                    let place = Document {
                        line: document.line + breaks as u64,
                        ..*document
                    };
                    self.error(&place, "not valid UTF-8; convert the file first".to_owned())
                }),
        }
    }

    /// An error about a document.
    pub(super) fn error(&self, document: &Document, reason: String) -> Error {
        Error::Document {
            path: self.files[document.file].0.clone(),
            line: document.line,
            reason,
        }
    }
}

/// The lines of a file that are not blank.
fn lines(file: usize, bytes: &[u8]) -> impl Iterator<Item = Document> {
    let mut start = 0;
    let spans = bytes
        .split(|byte| *byte == b'\n')
        .zip(1..)
        .map(move |(line, number)| {
            let end = start + line.len();
            let document = Document {
                file,
                line: number,
                start,
                end,
            };
            start = end + 1;
            document
        });
    spans.filter(|document| !bytes[document.start..document.end].trim_ascii().is_empty())
}
