//! JSON lines: the records are the lines, each one document.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::source::{Record, Records, Source};
use crate::Result;
use crate::files::{filled_lines, map};

pub(super) struct Jsonl {
    files: Vec<(PathBuf, Bytes)>,
}

/// A line; what else it holds is not needed.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

impl Jsonl {
    pub(super) fn open(inputs: &[PathBuf]) -> Result<Self> {
        let files = inputs.iter().map(|path| Ok((path.clone(), map(path)?)));
        Ok(Self {
            files: files.collect::<Result<_>>()?,
        })
    }
}

impl Source for Jsonl {
    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(|(path, _)| path.as_path()).collect()
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    fn records(&self, file: usize) -> Result<Records<'_>> {
        let (path, bytes) = &self.files[file];
        let path: Arc<Path> = path.as_path().into();
        Ok(Box::new(filled_lines(bytes).map(move |(number, bytes)| {
            Ok(Record {
                file,
                path: path.clone(),
                unit: "line",
                number,
                bytes,
            })
        })))
    }

    fn documents<'a>(&self, record: &'a Record) -> Result<Vec<Cow<'a, str>>> {
        match serde_json::from_slice(&record.bytes) {
            Ok(Line { text }) => Ok(vec![text]),
            Err(error) => {
                let reason = format!("not a JSON object with a string \"text\": {error}");
                Err(record.error(reason))
            }
        }
    }
}
