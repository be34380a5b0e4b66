//! MosaicML's MDS: folders of shards, described by an `index.json`.
//!
//! A shard is, in little-endian numbers,
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | samples `n`, `u32` |
//! | 4 (n + 1) | where each sample starts in the file, and where the last one ends, `u32` |
//! | | the columns as JSON, which the index repeats |
//! | | the samples |
//!
//! and may be compressed with zstd as a whole. A sample is a `u32` size for each column without a fixed one, then the
//! values of all columns.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;

use crate::files::map;
use crate::{Error, Result};

/// Version of the format, of the index and of its shards.
const VERSION: u32 = 2;

#[derive(Deserialize)]
struct Index {
    version: u32,
    shards: Vec<ShardEntry>,
}

#[derive(Deserialize)]
struct ShardEntry {
    format: String,
    version: u32,
    column_names: Vec<String>,
    column_encodings: Vec<String>,
    /// Null for columns whose values differ in size.
    column_sizes: Vec<Option<u32>>,
    compression: Option<String>,
    raw_data: FileEntry,
    zip_data: Option<FileEntry>,
    samples: u32,
}

#[derive(Deserialize)]
struct FileEntry {
    basename: String,
    bytes: u64,
}

/// A shard and what the index says of it.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    compressed: bool,
    /// Bytes without compression.
    pub(super) bytes: u64,
    samples: u32,
    columns: Vec<Column>,
}

struct Column {
    name: String,
    encoding: String,
    /// `None` if every sample says its own.
    size: Option<u32>,
}

/// The shards of a folder, in the order of its index.
pub(super) fn shards(folder: &Path) -> Result<Vec<Shard>> {
    let path = folder.join("index.json");
    let json = fs::read(&path).map_err(Error::io(&path))?;
    let index: Index = serde_json::from_slice(&json)
        .map_err(|error| Error::input(&path, format!("not an index of MDS shards: {error}")))?;
    if index.version != VERSION {
        let reason = format!("MDS version {} is not {VERSION}", index.version);
        return Err(Error::input(&path, reason));
    }
    let shards = index.shards.into_iter().enumerate();
    let shards = shards.map(|(number, entry)| {
        Shard::new(folder, entry)
            .map_err(|reason| Error::input(&path, format!("shard {number}: {reason}")))
    });
    shards.collect()
}

impl Shard {
    fn new(folder: &Path, entry: ShardEntry) -> Result<Self, String> {
        if (entry.format.as_str(), entry.version) != ("mds", VERSION) {
            let (format, version) = (entry.format, entry.version);
            return Err(format!(
                "{format:?} version {version} is not \"mds\" version {VERSION}"
            ));
        }
        let names = entry.column_names.len();
        if entry.column_encodings.len() != names || entry.column_sizes.len() != names {
            return Err("its lists of columns differ in length".to_owned());
        }
        let raw = folder.join(&entry.raw_data.basename);
        // Where a shard was unpacked beside its compressed form, either will do.
        let (path, compressed) = match (entry.zip_data, entry.compression) {
            (Some(zip), Some(compression)) if !raw.exists() => {
                if compression.split(':').next() != Some("zstd") {
                    return Err(format!(
                        "compression {compression:?} is not zstd; unpack it first"
                    ));
                }
                (folder.join(zip.basename), true)
            }
            _ => (raw, false),
        };
        let columns = entry.column_names.into_iter().zip(entry.column_encodings);
        let columns = columns.zip(entry.column_sizes);
        let columns = columns.map(|((name, encoding), size)| Column {
            name,
            encoding,
            size,
        });
        Ok(Self {
            path,
            compressed,
            bytes: entry.raw_data.bytes,
            samples: entry.samples,
            columns: columns.collect(),
        })
    }

    /// The bytes of every sample.
    pub(super) fn samples(&self) -> Result<Vec<Bytes>> {
        let shard = if self.compressed {
            self.decompress()?
        } else {
            map(&self.path)?
        };
        let split = self.split(&shard);
        split.map_err(|reason| {
            Error::input(&self.path, format!("not the shard of its index: {reason}"))
        })
    }

    fn decompress(&self) -> Result<Bytes> {
        let file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let mut bytes = Vec::new();
        // One byte more than the index promises shows that there are more.
        zstd::Decoder::new(file)
            .and_then(|decoder| {
                decoder
                    .take(self.bytes.saturating_add(1))
                    .read_to_end(&mut bytes)
            })
            .map_err(|error| Error::input(&self.path, format!("not readable as zstd: {error}")))?;
        Ok(bytes.into())
    }

    fn split(&self, shard: &Bytes) -> Result<Vec<Bytes>, String> {
        if shard.len() as u64 != self.bytes {
            let (found, told) = (shard.len(), self.bytes);
            return Err(format!("it has {found} bytes, the index says {told}"));
        }
        let mut header = &shard[..];
        let samples = take_u32(&mut header).ok_or("it ends in its header")?;
        if samples != self.samples {
            let told = self.samples;
            return Err(format!("it has {samples} samples, the index says {told}"));
        }
        let table = (u64::from(samples) + 1) * 4;
        if header.len() as u64 <= table {
            return Err(format!("it ends in the offsets of its {samples} samples"));
        }
        let offsets: Vec<u32> = (0..=samples).map_while(|_| take_u32(&mut header)).collect();
        let first = u64::from(offsets[0]);
        if first < 4 + table {
            return Err(format!(
                "byte 4: its first sample starts at {first}, in the header"
            ));
        }
        let last = u64::from(offsets[samples as usize]);
        if last != self.bytes {
            let (place, end) = (table, self.bytes);
            return Err(format!(
                "byte {place}: its last sample ends at {last}, the file at {end}"
            ));
        }
        let spans = offsets.windows(2).zip(1..);
        let samples = spans.map(|(span, number)| {
            let (start, end) = (span[0] as usize, span[1] as usize);
            if start > end || end > shard.len() {
                let place = 4 * number;
                return Err(format!(
                    "byte {place}: sample {number} spans bytes {start}..{end}"
                ));
            }
            Ok(shard.slice(start..end))
        });
        samples.collect()
    }

    pub(super) fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|found| found.name == column)
    }

    /// The whole numbers that a sample holds in a column, whatever their shape.
    pub(super) fn numbers(&self, sample: &[u8], column: &str) -> Result<Vec<u32>, String> {
        let (encoding, value) = self.value(sample, column)?;
        array(encoding, value).map_err(|reason| format!("column {column:?} ({encoding}): {reason}"))
    }

    fn value<'a>(&self, mut sample: &'a [u8], name: &str) -> Result<(&str, &'a [u8]), String> {
        let mut sizes = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let size = column.size.or_else(|| take_u32(&mut sample));
            sizes.push(size.ok_or("it ends in the sizes of its columns")?);
        }
        let mut found = None;
        for (column, size) in self.columns.iter().zip(sizes) {
            let value = take(&mut sample, size as usize).ok_or_else(|| {
                let (name, left) = (&column.name, sample.len());
                format!("column {name:?} has {size} bytes, {left} are left")
            })?;
            if column.name == name {
                found = Some((column.encoding.as_str(), value));
            }
        }
        if !sample.is_empty() {
            return Err(format!("{} bytes follow its last column", sample.len()));
        }
        found.ok_or_else(|| format!("it has no column {name:?}"))
    }
}

/// The values of an array of whole numbers: `ndarray`, `ndarray:TYPE` or `ndarray:TYPE:SHAPE`. What the encoding does
/// not say, the bytes do: a code for the type, then `dimensions * 4 + s` and the shape in numbers of `2^s` bytes.
fn array(encoding: &str, mut bytes: &[u8]) -> Result<Vec<u32>, String> {
    let short = "it ends before its values";
    let mut parts = encoding.split(':');
    if parts.next() != Some("ndarray") {
        return Err("not an array".to_owned());
    }
    let width = match parts.next() {
        Some(name) => match name {
            "uint16" => 2,
            "uint32" | "int32" => 4,
            "uint64" | "int64" => 8,
            _ => return Err("not an array of token ids".to_owned()),
        },
        None => match take(&mut bytes, 1).ok_or(short)?[0] {
            16 => 2,
            32 | 33 => 4,
            64 | 65 => 8,
            code => return Err(format!("type code {code} is not one of token ids")),
        },
    };
    let values: u64 = match parts.next() {
        Some(shape) => shape
            .split(',')
            .try_fold(1u64, |product, size| {
                product.checked_mul(size.parse().ok()?)
            })
            .ok_or("its shape is not one")?,
        None => {
            let dimensions = take(&mut bytes, 1).ok_or(short)?[0];
            let mut product = Some(1);
            for _ in 0..dimensions >> 2 {
                let size = number(take(&mut bytes, 1 << (dimensions & 3)).ok_or(short)?);
                product = product.and_then(|product: u64| product.checked_mul(size));
            }
            product.ok_or("its shape is too large")?
        }
    };
    if values.checked_mul(width) != Some(bytes.len() as u64) {
        let found = bytes.len();
        return Err(format!(
            "{values} values of {width} bytes are not its {found} bytes"
        ));
    }
    let values = bytes.chunks_exact(width as usize).map(number);
    values
        .map(|value| u32::try_from(value).map_err(|_| format!("{value} is not a token id")))
        .collect()
}

/// The little-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(number)
}

/// Splits the first `count` bytes off.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(head)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*head))
}
