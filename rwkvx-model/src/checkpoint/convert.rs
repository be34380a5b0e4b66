//! Stored numbers become f32.

use std::io::Read;

use burn::tensor::{Bytes, f16};

use super::StoredDtype;

/// Bytes converted at a time; the only memory a load needs beside the weights.
const BLOCK: usize = 1 << 20;

impl StoredDtype {
    /// Bytes per element; `None` for formats that are not read.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::Bf16 | Self::F16 => Some(2),
            Self::Other(_) => None,
        }
    }
}

/// Reads `count` little-endian numbers from `source` as f32. The caller has checked that the file is long enough to hold
/// them.
pub(super) fn read_f32(
    source: &mut dyn Read,
    dtype: &StoredDtype,
    count: usize,
) -> std::io::Result<Bytes> {
    match dtype {
        StoredDtype::F32 => {
            let mut bytes = Bytes::from_elems(vec![0f32; count]);
            source.read_exact(&mut bytes)?;
            Ok(bytes)
        }
        StoredDtype::Bf16 => widen(source, count, |half| f32::from_bits(u32::from(half) << 16)),
        StoredDtype::F16 => widen(source, count, |half| f16::from_bits(half).to_f32()),
        StoredDtype::Other(name) => Err(std::io::Error::other(format!(
            "cannot read numbers of type {name}"
        ))),
    }
}

fn widen(
    source: &mut dyn Read,
    count: usize,
    to_f32: impl Fn(u16) -> f32,
) -> std::io::Result<Bytes> {
    let mut values = Vec::with_capacity(count);
    let mut block = vec![0; BLOCK.min(2 * count)];
    while values.len() < count {
        let length = block.len().min(2 * (count - values.len()));
        let bytes = &mut block[..length];
        source.read_exact(bytes)?;
        values.extend(
            bytes
                .chunks_exact(2)
                .map(|pair| to_f32(u16::from_le_bytes([pair[0], pair[1]]))),
        );
    }
    Ok(Bytes::from_elems(values))
}
