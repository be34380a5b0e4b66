//! Plain text: a file is one record and one document.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::source::{Record, Records, Source};
use crate::Result;
use crate::files::map;

pub(super) struct Text {
    files: Vec<(PathBuf, Bytes)>,
}

impl Text {
    pub(super) fn open(inputs: &[PathBuf]) -> Result<Self> {
        let files = inputs.iter().map(|path| Ok((path.clone(), map(path)?)));
        Ok(Self {
            files: files.collect::<Result<_>>()?,
        })
    }
}

impl Source for Text {
    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(|(path, _)| path.as_path()).collect()
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    fn records(&self, file: usize) -> Result<Records<'_>> {
        let (path, bytes) = &self.files[file];
        let record = (!bytes.is_empty()).then(|| {
            Ok(Record {
                file,
                path: path.as_path().into(),
                unit: "line",
                number: 1,
                bytes: bytes.clone(),
            })
        });
        Ok(Box::new(record.into_iter()))
    }

    fn documents<'a>(&self, record: &'a Record) -> Result<Vec<Cow<'a, str>>> {
        match std::str::from_utf8(&record.bytes) {
            Ok(text) => Ok(vec![Cow::Borrowed(text)]),
            Err(error) => {
                let valid = &record.bytes[..error.valid_up_to()];
                let breaks = valid.iter().filter(|byte| **byte == b'\n').count();
                let mut place = record.clone();
                place.number += breaks as u64;
                Err(place.error("not valid UTF-8; convert the file first"))
            }
        }
    }
}
