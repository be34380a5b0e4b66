//! Token files: the `MMapIndexedDataset` of Megatron, as RWKV uses it.
//!
//! A token file is two files with one prefix. `PREFIX.bin` holds the ids of all documents back to back;
//! `PREFIX.idx` says how many, how wide, and where documents begin. All numbers are little-endian:
//!
//! | bytes of `.idx` | what |
//! | --- | --- |
//! | 9 | magic `MMIDIDX\0\0` |
//! | 8 | version, `u64`, 1 |
//! | 1 | [`Dtype`] code |
//! | 8 | items `n`, `u64` |
//! | 8 | document boundaries `d`, `u64` |
//! | 4 n | `i32` size of each item, in tokens |
//! | 8 n | `i64` offset of each item in `.bin`, in bytes |
//! | 8 d | `i64` boundaries: 0, then for each document the item after its last |
//!
//! Training reads across documents: a sample is `context + 1` tokens from some offset of the whole file, see
//! [`sampler`](crate::sampler). Files of RWKV and of this crate have one item per document, ending in
//! [`END_OF_DOCUMENT`](crate::END_OF_DOCUMENT).

mod reader;
mod writer;

use std::path::{Path, PathBuf};

use crate::files::append;
use crate::{Error, Result};

pub use reader::TokenFile;
pub use writer::TokenFileWriter;

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
/// Bytes of `.idx` before the first item size.
const HEADER_BYTES: usize = 34;

/// How an id is stored in `.bin`. The format's two float codes (6 and 7) hold no ids and are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Code 1.
    U8,
    /// Code 2.
    I8,
    /// Code 3.
    I16,
    /// Code 4.
    I32,
    /// Code 5.
    I64,
    /// Code 8, what RWKV uses.
    U16,
}

impl Dtype {
    /// Every integer type of the format.
    pub const ALL: [Self; 6] = [
        Self::U8,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::U16,
    ];

    /// The narrowest of `u16` (which RWKV's own tools read) and `i32` that holds the ids of a vocabulary.
    pub fn for_vocabulary(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 {
            Self::U16
        } else {
            Self::I32
        }
    }

    /// The code in `.idx`.
    pub fn code(self) -> u8 {
        match self {
            Self::U8 => 1,
            Self::I8 => 2,
            Self::I16 => 3,
            Self::I32 => 4,
            Self::I64 => 5,
            Self::U16 => 8,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.code() == code)
    }

    /// Bytes of one id.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Largest id it can hold. Ids are `u32`, so `i64` is not used to its end.
    pub fn max_id(self) -> u32 {
        match self {
            Self::U8 => u8::MAX.into(),
            Self::I8 => i8::MAX as u32,
            Self::I16 => i16::MAX as u32,
            Self::U16 => u16::MAX.into(),
            Self::I32 => i32::MAX as u32,
            Self::I64 => u32::MAX,
        }
    }

    /// Appends ids in their stored form. They must not be larger than [`max_id`](Self::max_id).
    pub(crate) fn store(self, ids: &[u32], bytes: &mut Vec<u8>) {
        let width = self.bytes();
        for id in ids {
            // Little-endian, and the id fits, so its first bytes are the stored number.
            bytes.extend_from_slice(&u64::from(*id).to_le_bytes()[..width]);
        }
    }

    /// Name as in NumPy.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U16 => "uint16",
        }
    }
}

/// `PREFIX.idx` and `PREFIX.bin`.
fn paths(prefix: &Path) -> (PathBuf, PathBuf) {
    (append(prefix, ".idx"), append(prefix, ".bin"))
}

/// Checks that a token file can lie at `prefix`.
pub(crate) fn require_folder(prefix: &Path) -> Result<()> {
    let (_, bin) = paths(prefix);
    match bin.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => Err(
            Error::token_file(&bin, "its folder does not exist; create it first"),
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_format_and_floats_have_none() {
        let codes = Dtype::ALL.map(Dtype::code);
        assert_eq!(codes, [1, 2, 3, 4, 5, 8]);
        for code in [0, 6, 7, 9, 255] {
            assert_eq!(Dtype::from_code(code), None);
        }
    }

    #[test]
    fn a_prefix_with_dots_keeps_them() {
        let (idx, bin) = paths(Path::new("data/minipile.v1"));
        assert_eq!(idx, Path::new("data/minipile.v1.idx"));
        assert_eq!(bin, Path::new("data/minipile.v1.bin"));
    }
}
