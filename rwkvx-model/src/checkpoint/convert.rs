//! Stored numbers become f32 or stay as they are, and f32 becomes what is to be stored.

use std::io::Read;

use burn::tensor::{Bytes, DType, bf16, f16};

use super::StoredDtype;

/// Bytes converted at a time; the only memory a load needs beside the weights.
const BLOCK: usize = 1 << 20;

impl StoredDtype {
    /// Bytes per element; `None` for formats that are not read.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::Bf16 | Self::F16 => Some(2),
            Self::Int8 => Some(1),
            Self::Other(_) => None,
        }
    }

    /// The type of a tensor that holds such floats as they are.
    pub(super) fn float(&self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
            Self::Int8 | Self::Other(_) => None,
        }
    }
}

/// [`read_f32`] or [`read_floats`].
pub(super) type ReadFloats = fn(&mut dyn Read, &StoredDtype, usize) -> std::io::Result<Bytes>;

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
        StoredDtype::Bf16 => widen(source, count, |half| bf16::from_bits(half).to_f32()),
        StoredDtype::F16 => widen(source, count, |half| f16::from_bits(half).to_f32()),
        StoredDtype::Int8 | StoredDtype::Other(_) => Err(not_floats(dtype)),
    }
}

/// Reads `count` little-endian floats from `source` as they are.
pub(super) fn read_floats(
    source: &mut dyn Read,
    dtype: &StoredDtype,
    count: usize,
) -> std::io::Result<Bytes> {
    match dtype {
        StoredDtype::F32 => read_f32(source, dtype, count),
        StoredDtype::Bf16 | StoredDtype::F16 => {
            let mut bytes = Bytes::from_elems(vec![0u16; count]);
            source.read_exact(&mut bytes)?;
            Ok(bytes)
        }
        StoredDtype::Int8 | StoredDtype::Other(_) => Err(not_floats(dtype)),
    }
}

/// Reads `count` integers of 8 bits.
pub(super) fn read_int8(source: &mut dyn Read, count: usize) -> std::io::Result<Vec<i8>> {
    let mut bytes = vec![0; count];
    source.read_exact(&mut bytes)?;
    Ok(bytes.into_iter().map(u8::cast_signed).collect())
}

fn not_floats(dtype: &StoredDtype) -> std::io::Error {
    std::io::Error::other(format!("cannot read numbers of type {dtype}"))
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

/// Weights of 8 bits, and the scale of every `group` of them: the largest of a group becomes 127 or -127.
pub(super) fn quantise(values: &[f32], group: usize) -> (Vec<i8>, Vec<f32>) {
    let mut scales = Vec::with_capacity(values.len() / group);
    let mut quantised = Vec::with_capacity(values.len());
    for values in values.chunks(group) {
        let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let scale = largest / 127.0;
        // A group of zeros has no scale of its own.
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        quantised.extend(values.iter().map(|x| (x * inverse).round() as i8));
        scales.push(scale);
    }
    (quantised, scales)
}

/// What [`quantise`] made of weights, as f32.
pub(super) fn dequantise(quantised: &[i8], scales: &[f32], group: usize) -> Vec<f32> {
    let groups = quantised.chunks(group).zip(scales);
    groups
        .flat_map(|(group, &scale)| group.iter().map(move |&x| scale * f32::from(x)))
        .collect()
}
