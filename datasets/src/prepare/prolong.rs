//! ProLong's data: MDS samples of token ids that another tokenizer made.
//!
//! A sample is a sequence of documents. Its column `indices` holds where each one begins and ends; without that column
//! the sample is one document. Documents without text, of special tokens only, are left out.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::byte_level::ByteLevelVocabulary;
use super::mds::{self, Shard};
use super::source::{Record, Records, Source};
use crate::{Error, Result};

/// Column of the documents' bounds, pairs of first and end.
const BOUNDS: &str = "indices";

pub(super) struct Prolong {
    shards: Vec<Shard>,
    column: String,
    vocabulary: ByteLevelVocabulary,
}

impl Prolong {
    pub(super) fn open(folders: &[PathBuf], column: &str, tokenizer: &Path) -> Result<Self> {
        let mut shards = Vec::new();
        for folder in folders {
            let mut found = mds::shards(folder)?;
            if found.iter().any(|shard| !shard.has(column)) {
                let reason = format!("its shards have no column {column:?}");
                return Err(Error::input(&folder.join("index.json"), reason));
            }
            shards.append(&mut found);
        }
        Ok(Self {
            shards,
            column: column.to_owned(),
            vocabulary: ByteLevelVocabulary::open(tokenizer)?,
        })
    }

    fn texts(&self, record: &Record) -> Result<Vec<String>, String> {
        let shard = &self.shards[record.file];
        let ids = shard.numbers(&record.bytes, &self.column)?;
        let bounds = if shard.has(BOUNDS) {
            shard.numbers(&record.bytes, BOUNDS)?
        } else {
            vec![0, ids.len() as u32]
        };
        let mut texts = Vec::with_capacity(bounds.len() / 2);
        for bounds in bounds.chunks(2) {
            let document = match *bounds {
                [start, end] => ids.get(start as usize..end as usize),
                _ => None,
            };
            let document = document.ok_or_else(|| {
                let count = ids.len();
                format!("column {BOUNDS:?}: {bounds:?} are not the bounds of a document in {count} tokens")
            })?;
            let text = self.vocabulary.text(document)?;
            if !text.is_empty() {
                texts.push(text);
            }
        }
        Ok(texts)
    }
}

impl Source for Prolong {
    fn files(&self) -> Vec<&Path> {
        self.shards
            .iter()
            .map(|shard| shard.path.as_path())
            .collect()
    }

    fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    fn records(&self, file: usize) -> Result<Records<'_>> {
        let shard = &self.shards[file];
        let path: Arc<Path> = shard.path.as_path().into();
        let samples = shard.samples()?.into_iter().zip(1..);
        Ok(Box::new(samples.map(move |(bytes, number)| {
            Ok(Record {
                file,
                path: path.clone(),
                unit: "sample",
                number,
                bytes,
            })
        })))
    }

    fn documents<'a>(&self, record: &'a Record) -> Result<Vec<Cow<'a, str>>> {
        match self.texts(record) {
            Ok(texts) => Ok(texts.into_iter().map(Cow::Owned).collect()),
            Err(reason) => Err(record.error(reason)),
        }
    }
}
