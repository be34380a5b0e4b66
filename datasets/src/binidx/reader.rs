//! Reading token files through a memory map.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Dtype, HEADER_BYTES, MAGIC, VERSION, paths};
use crate::files::map;
use crate::{Error, Result};

/// A token file, mapped into memory: opening checks the index, reading touches only the pages it needs.
///
/// The files must not be changed while they are open; [`TokenFileWriter`](super::TokenFileWriter) replaces whole
/// files and never changes one in place.
#[derive(Debug)]
pub struct TokenFile {
    bin_path: PathBuf,
    index: Bytes,
    bin: Bytes,
    layout: Layout,
    tokens: u64,
}

/// Where the parts of a checked `.idx` lie.
#[derive(Clone, Copy, Debug)]
struct Layout {
    dtype: Dtype,
    items: usize,
    boundaries: usize,
}

impl TokenFile {
    /// Opens `PREFIX.idx` and `PREFIX.bin` and checks that they belong together.
    ///
    /// # Errors
    ///
    /// If a file is missing, if the index is not of this format, version and length, or if it does not describe
    /// exactly the bytes of `.bin`.
    pub fn open(prefix: &Path) -> Result<Self> {
        let (idx_path, bin_path) = paths(prefix);
        let index = map(&idx_path)?;
        let bin = map(&bin_path)?;
        let layout =
            Layout::parse(&index).map_err(|reason| Error::token_file(&idx_path, reason))?;
        let bytes = layout
            .check(&index)
            .map_err(|reason| Error::token_file(&idx_path, reason))?;
        if bytes != bin.len() as u64 {
            let reason = format!(
                "holds {} bytes, but {} describes {bytes}; one of the two is truncated or belongs to other data",
                bin.len(),
                idx_path.display()
            );
            return Err(Error::token_file(&bin_path, reason));
        }
        let tokens = bytes / layout.dtype.bytes() as u64;
        Ok(Self {
            bin_path,
            index,
            bin,
            layout,
            tokens,
        })
    }

    /// Tokens of all documents together.
    pub fn len(&self) -> u64 {
        self.tokens
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.layout.boundaries - 1
    }

    /// How ids are stored.
    pub fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// The tokens of a document, as offsets for [`read`](Self::read); `None` past the last.
    pub fn document(&self, document: usize) -> Option<Range<u64>> {
        if document >= self.documents() {
            return None;
        }
        let offset_of = |boundary: usize| {
            let item = self.layout.boundary(&self.index, boundary) as usize;
            if item == self.layout.items {
                self.tokens
            } else {
                self.layout.pointer(&self.index, item) as u64 / self.layout.dtype.bytes() as u64
            }
        };
        Some(offset_of(document)..offset_of(document + 1))
    }

    /// Fills `out` with the ids from token `offset` on, across document boundaries.
    ///
    /// # Errors
    ///
    /// If that goes past the end, or if a stored number is no id (negative, or above `u32`).
    pub fn read(&self, offset: u64, out: &mut [u32]) -> Result<()> {
        let width = self.layout.dtype.bytes();
        let end = offset
            .checked_add(out.len() as u64)
            .filter(|&end| end <= self.tokens);
        if end.is_none() {
            let reason = format!(
                "holds {} tokens; {} from token {offset} on were asked for",
                self.tokens,
                out.len()
            );
            return Err(Error::token_file(&self.bin_path, reason));
        }
        let start = offset as usize * width;
        let bytes = &self.bin[start..start + out.len() * width];
        let bad = match self.layout.dtype {
            Dtype::U8 => convert(bytes, out, u8::from_le_bytes),
            Dtype::I8 => convert(bytes, out, i8::from_le_bytes),
            Dtype::I16 => convert(bytes, out, i16::from_le_bytes),
            Dtype::U16 => convert(bytes, out, u16::from_le_bytes),
            Dtype::I32 => convert(bytes, out, i32::from_le_bytes),
            Dtype::I64 => convert(bytes, out, i64::from_le_bytes),
        };
        match bad {
            None => Ok(()),
            Some((place, value)) => {
                let reason = format!(
                    "token {} is {value}, which is no token id",
                    offset + place as u64
                );
                Err(Error::token_file(&self.bin_path, reason))
            }
        }
    }
}

impl Layout {
    fn parse(index: &[u8]) -> std::result::Result<Self, String> {
        let Some(header) = index.first_chunk::<HEADER_BYTES>() else {
            return Err(format!(
                "is {} bytes long, shorter than its header of {HEADER_BYTES}; it is empty or truncated",
                index.len()
            ));
        };
        if !header.starts_with(MAGIC) {
            return Err(
                "does not start with MMIDIDX; it is not the index of a token file".to_owned(),
            );
        }
        let version = le_u64(header, 9);
        if version != VERSION {
            return Err(format!(
                "has version {version}; only version {VERSION} is known"
            ));
        }
        let code = header[17];
        let dtype = Dtype::from_code(code).ok_or_else(|| {
            format!("has data type code {code}; integer types are 1 to 5 and 8 (6 and 7 are floats, not ids)")
        })?;
        let items = le_u64(header, 18);
        let boundaries = le_u64(header, 26);
        let expected = expected_bytes(items, boundaries);
        if expected != Some(index.len() as u64) {
            return Err(format!(
                "is {} bytes long, but {items} items and {boundaries} document boundaries take {}; it is truncated \
                 or corrupt",
                index.len(),
                expected.map_or("more than any file".to_owned(), |bytes| bytes.to_string()),
            ));
        }
        // Both counts are below the length of a mapped file, so they fit usize.
        Ok(Self {
            dtype,
            items: items as usize,
            boundaries: boundaries as usize,
        })
    }

    /// Checks sizes, pointers and boundaries against each other; returns the bytes `.bin` must have.
    fn check(&self, index: &[u8]) -> std::result::Result<u64, String> {
        let width = self.dtype.bytes() as i64;
        let mut end = 0i64;
        for item in 0..self.items {
            let size = self.size(index, item);
            if size < 0 {
                return Err(format!("gives item {item} the size {size}; it is corrupt"));
            }
            let pointer = self.pointer(index, item);
            if pointer != end {
                return Err(format!(
                    "puts item {item} at byte {pointer}, but the sizes before it add up to {end}; it is corrupt"
                ));
            }
            end = end
                .checked_add(i64::from(size) * width)
                .ok_or("describes more bytes than any file; it is corrupt")?;
        }
        let mut last = 0;
        for boundary in 0..self.boundaries {
            let item = self.boundary(index, boundary);
            if item < last || (boundary == 0 && item != 0) {
                return Err(format!(
                    "has document boundary {boundary} at item {item} out of order; it is corrupt"
                ));
            }
            last = item;
        }
        if self.boundaries == 0 || last != self.items as i64 {
            return Err(format!(
                "ends its documents at item {last} of {}; it is corrupt",
                self.items
            ));
        }
        Ok(end as u64)
    }

    fn size(&self, index: &[u8], item: usize) -> i32 {
        let at = HEADER_BYTES + 4 * item;
        le_u32(index, at) as i32
    }

    fn pointer(&self, index: &[u8], item: usize) -> i64 {
        le_u64(index, HEADER_BYTES + 4 * self.items + 8 * item) as i64
    }

    fn boundary(&self, index: &[u8], boundary: usize) -> i64 {
        le_u64(index, HEADER_BYTES + 12 * self.items + 8 * boundary) as i64
    }
}

fn expected_bytes(items: u64, boundaries: u64) -> Option<u64> {
    let items = items.checked_mul(12)?;
    let boundaries = boundaries.checked_mul(8)?;
    (HEADER_BYTES as u64)
        .checked_add(items)?
        .checked_add(boundaries)
}

/// Eight bytes at `at`, which [`Layout::parse`] has shown to exist.
fn le_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// Converts stored numbers to ids; on the first that is none, returns its place and value.
fn convert<const WIDTH: usize, Stored: Into<i64>>(
    bytes: &[u8],
    out: &mut [u32],
    from_le_bytes: fn([u8; WIDTH]) -> Stored,
) -> Option<(usize, i64)> {
    let (stored, _) = bytes.as_chunks::<WIDTH>();
    for (place, (id, bytes)) in out.iter_mut().zip(stored).enumerate() {
        let value: i64 = from_le_bytes(*bytes).into();
        match u32::try_from(value) {
            Ok(valid) => *id = valid,
            Err(_) => return Some((place, value)),
        }
    }
    None
}
