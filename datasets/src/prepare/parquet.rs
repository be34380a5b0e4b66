//! Parquet files as Hugging Face stores text data sets: the records are the rows of one string column.
//!
//! Rows are read a few at a time, so that memory holds one page and not a whole row group. A row without text (null)
//! holds no document.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::source::{Record, Records, Source};
use crate::files::{folder, map};
use crate::{Error, Result};

/// Rows decoded at a time.
const ROWS: usize = 256;

pub(super) struct Parquet {
    files: Vec<PathBuf>,
    column: String,
    bytes: u64,
}

impl Parquet {
    /// Opens every file once, so that a missing column is told before any work is done.
    pub(super) fn open(inputs: &[PathBuf], column: &str) -> Result<Self> {
        let mut files = Vec::new();
        for input in inputs {
            if !input.is_dir() {
                files.push(input.clone());
                continue;
            }
            let mut found = folder(input)?;
            found.retain(|path| path.extension().is_some_and(|name| name == "parquet"));
            if found.is_empty() {
                return Err(Error::input(input, "the folder holds no *.parquet files"));
            }
            files.append(&mut found);
        }
        let mut bytes = 0;
        for path in &files {
            let (reader, index) = open(path, column)?;
            for group in reader.metadata().row_groups() {
                let uncompressed = group.column(index).uncompressed_size();
                bytes += u64::try_from(uncompressed).unwrap_or(0);
            }
        }
        Ok(Self {
            files,
            column: column.to_owned(),
            bytes,
        })
    }
}

impl Source for Parquet {
    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(PathBuf::as_path).collect()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn records(&self, file: usize) -> Result<Records<'_>> {
        let path = &self.files[file];
        let (reader, column) = open(path, &self.column)?;
        Ok(Box::new(Rows {
            file,
            path: path.as_path().into(),
            reader,
            column,
            row_group: 0,
            values: None,
            row: 0,
            ready: VecDeque::new(),
        }))
    }

    fn documents<'a>(&self, record: &'a Record) -> Result<Vec<Cow<'a, str>>> {
        match std::str::from_utf8(&record.bytes) {
            Ok(text) => Ok(vec![Cow::Borrowed(text)]),
            Err(_) => Err(record.error(format!("column {:?} is not valid UTF-8", self.column))),
        }
    }
}

/// A file's reader and the index of a string column.
fn open(path: &Path, column: &str) -> Result<(SerializedFileReader<Bytes>, usize)> {
    let bytes = map(path)?;
    let reader = guarded(path, || SerializedFileReader::new(bytes))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let columns = schema.columns();
    let Some(index) = columns
        .iter()
        .position(|found| found.path().string() == column)
    else {
        let names: Vec<_> = columns.iter().map(|found| found.path().string()).collect();
        let reason = format!(
            "has no column {column:?}; its columns are {}",
            names.join(", ")
        );
        return Err(Error::input(path, reason));
    };
    let found = &columns[index];
    let strings = found.physical_type() == parquet::basic::Type::BYTE_ARRAY;
    if !strings || found.max_rep_level() > 0 {
        let reason = format!("column {column:?} does not hold one string a row");
        return Err(Error::input(path, reason));
    }
    Ok((reader, index))
}

/// Runs a step of the library, which asserts some of what damaged files break.
fn guarded<T>(path: &Path, step: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it is damaged".to_owned(),
    };
    let reason = format!("not a readable Parquet file: {reason}");
    Err(Error::input(path, reason))
}

/// The rows of a file.
struct Rows {
    file: usize,
    path: Arc<Path>,
    reader: SerializedFileReader<Bytes>,
    column: usize,
    /// The next one to open.
    row_group: usize,
    /// Of the row group that is being read.
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows decoded so far.
    row: u64,
    ready: VecDeque<Record>,
}

impl Rows {
    /// Decodes the next rows. `false` after the last.
    fn decode(&mut self) -> parquet::errors::Result<bool> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        // The level of a value that is there.
        let present = schema.column(self.column).max_def_level();
        let values = match &mut self.values {
            Some(values) => values,
            None if self.row_group == self.reader.num_row_groups() => return Ok(false),
            None => {
                let group = self.reader.get_row_group(self.row_group)?;
                self.row_group += 1;
                match group.get_column_reader(self.column)? {
                    ColumnReader::ByteArrayColumnReader(values) => self.values.insert(values),
                    _ => unreachable!("the column's type was checked when the file was opened"),
                }
            }
        };
        let (mut texts, mut levels) = (Vec::with_capacity(ROWS), Vec::new());
        let (rows, ..) = values.read_records(ROWS, Some(&mut levels), None, &mut texts)?;
        if rows == 0 {
            self.values = None;
            return Ok(true);
        }
        let mut texts = texts.into_iter();
        for row in 0..rows {
            self.row += 1;
            // A column that cannot be null has no levels.
            if levels.get(row).is_none_or(|level| *level == present) {
                let text = texts
                    .next()
                    .ok_or_else(|| ParquetError::EOF(format!("row {} is missing", self.row)))?;
                self.ready.push_back(Record {
                    file: self.file,
                    path: self.path.clone(),
                    unit: "row",
                    number: self.row,
                    bytes: Bytes::from_owner(text),
                });
            }
        }
        Ok(true)
    }
}

impl Iterator for Rows {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            let path = self.path.clone();
            match guarded(&path, || self.decode()) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
