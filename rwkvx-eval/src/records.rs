//! The records of a benchmark as Hugging Face or its authors publish them: rows of Parquet files, lines of JSON.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// A record, and where it stands.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its fields by name.
    pub fields: Map<String, Value>,
    path: Arc<Path>,
    /// `row` or `line`.
    unit: &'static str,
    /// From 1.
    number: usize,
}

impl Record {
    /// An error about this record.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Record {
            path: self.path.to_path_buf(),
            unit: self.unit,
            number: self.number,
            reason: reason.into(),
        }
    }
}

/// Reads the first `limit` records of files, in order: rows of those called `.parquet`, lines of the others.
///
/// # Errors
///
/// If a file cannot be read, is damaged, or there are no records.
pub fn read(files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Record>> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut records = Vec::new();
    for path in files {
        let left = limit - records.len();
        match path.extension().is_some_and(|ending| ending == "parquet") {
            true => records.extend(rows(path, left)?),
            false => records.extend(lines(path, left)?),
        }
    }
    match (records.is_empty(), files.first()) {
        (true, Some(path)) => Err(Error::Input {
            path: path.clone(),
            reason: "holds no records".to_owned(),
        }),
        _ => Ok(records),
    }
}

fn lines(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let shared: Arc<Path> = path.into();
    let mut records = Vec::new();
    for (line, number) in BufReader::new(file).lines().zip(1..) {
        if records.len() == limit {
            break;
        }
        let mut record = Record {
            fields: Map::new(),
            path: shared.clone(),
            unit: "line",
            number,
        };
        let line = line.map_err(|error| record.error(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        record.fields = serde_json::from_str(&line)
            .map_err(|error| record.error(format!("not a JSON object: {error}")))?;
        records.push(record);
    }
    Ok(records)
}

fn rows(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let shared: Arc<Path> = path.into();
    let read = || -> parquet::errors::Result<Vec<Record>> {
        let reader = SerializedFileReader::new(file)?;
        let rows = reader.get_row_iter(None)?.take(limit).zip(1..);
        let record = |(row, number): (parquet::errors::Result<parquet::record::Row>, usize)| {
            Ok(Record {
                fields: match row?.to_json_value() {
                    Value::Object(fields) => fields,
                    _ => Map::new(),
                },
                path: shared.clone(),
                unit: "row",
                number,
            })
        };
        rows.map(record).collect()
    };
    // The library asserts some of what damaged files break.
    let reason = match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(records)) => return Ok(records),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it is damaged".to_owned(),
    };
    Err(Error::Input {
        path: path.to_path_buf(),
        reason: format!("not a readable Parquet file: {reason}"),
    })
}

/// Documents: the field `text` of the records of `.parquet` and `.jsonl` files, and other files as they are.
///
/// # Errors
///
/// As [`read`], or if a record has no text.
pub fn texts(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for path in files {
        let ending = path.extension().and_then(|ending| ending.to_str());
        if !matches!(ending, Some("parquet" | "jsonl")) {
            texts.push(fs::read_to_string(path).map_err(Error::io(path))?);
            continue;
        }
        for record in read(std::slice::from_ref(path), None)? {
            match record.fields.get("text") {
                Some(Value::String(text)) => texts.push(text.clone()),
                _ => return Err(record.error("no field `text` with a text")),
            }
        }
    }
    Ok(texts)
}

/// The files of a split in a folder that is laid out as Hugging Face does it: `test-00000-of-00001.parquet`,
/// `test.jsonl` or `test/0000.parquet`, in the folder itself or in its `config` or `data`.
pub fn split_files(folder: &Path, config: &str, split: &str) -> Vec<PathBuf> {
    let listed = |folder: &Path, belongs: &dyn Fn(&str) -> bool| {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let ending = path.extension().and_then(|ending| ending.to_str());
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                matches!(ending, Some("parquet" | "jsonl")) && stem.is_some_and(belongs)
            })
            .collect();
        files.sort();
        files
    };
    let of_split = |stem: &str| {
        stem.strip_prefix(split)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
    };
    [
        folder.to_path_buf(),
        folder.join(config),
        folder.join("data"),
    ]
    .iter()
    .flat_map(|folder| {
        [
            listed(folder, &of_split),
            listed(&folder.join(split), &|_| true),
        ]
    })
    .find(|files| !files.is_empty())
    .unwrap_or_default()
}
