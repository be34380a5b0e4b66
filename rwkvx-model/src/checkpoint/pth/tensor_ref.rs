//! Where a tensor lies in its storage, and how it is taken out.

use burn::tensor::{Bytes, DType, TensorData};

use crate::checkpoint::StoredDtype;

/// Where the values of a tensor are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorRef {
    /// Key of the storage, the name of its file.
    pub(super) storage: String,
    pub(super) dtype: StoredDtype,
    /// Elements in the storage.
    pub(super) storage_length: usize,
    /// Element of the storage the tensor starts at.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, per axis.
    pub(super) strides: Vec<usize>,
}

impl TensorRef {
    /// Whether the storage holds exactly this tensor, in the order of its shape.
    pub(super) fn is_whole_storage(&self) -> bool {
        let mut contiguous = 1usize;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != contiguous {
                return false;
            }
            contiguous = contiguous.saturating_mul(size);
        }
        self.offset == 0 && contiguous == self.storage_length
    }

    /// The elements in the order of the shape; `None` if one lies outside the storage.
    pub(super) fn gather(&self, storage: &Bytes) -> Option<Bytes> {
        let storage = TensorData::from_bytes(storage.clone(), [self.storage_length], DType::F32);
        let storage = storage.as_slice::<f32>().ok()?;
        let mut places = vec![self.offset];
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            // A tensor larger than its storage repeats elements, which no saved weight does.
            if places.len().checked_mul(size)? > storage.len() {
                return None;
            }
            let along =
                |place: usize| (0..size).map(move |i| i.checked_mul(stride)?.checked_add(place));
            places = places.into_iter().flat_map(along).collect::<Option<_>>()?;
        }
        let values = places
            .into_iter()
            .map(|place| storage.get(place).copied())
            .collect::<Option<Vec<f32>>>()?;
        Some(Bytes::from_elems(values))
    }
}

/// The number format of a storage, by the name of its class in Python.
pub(super) fn storage_dtype(kind: &str) -> StoredDtype {
    match kind.strip_prefix("torch.").unwrap_or(kind) {
        "FloatStorage" => StoredDtype::F32,
        "BFloat16Storage" => StoredDtype::Bf16,
        "HalfStorage" => StoredDtype::F16,
        other => StoredDtype::Other(other.to_owned()),
    }
}
