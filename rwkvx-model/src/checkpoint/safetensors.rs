//! `.safetensors`: an 8-byte length, a JSON header, the tensors one after another.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Dtype, Metadata as Header};
use burn::tensor::{Bytes, DType, TensorData};

use super::convert::{ReadFloats, read_f32, read_floats, read_int8};
use super::map::FileMap;
use super::save::{Description, ENTRY};
use super::{Metadata, StoredDtype, StoredTensor, format_error};
use crate::Error;
use crate::config::RwkvXConfig;

/// The longest header taken, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;
/// An open file, its header read and checked.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    tensors: Vec<StoredTensor>,
    /// Where in the file each tensor starts.
    starts: Vec<u64>,
    description: Option<Description>,
    metadata: Metadata,
    map: FileMap,
}

impl SafetensorsFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        let mut file = File::open(path).map_err(io)?;
        let file_length = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > file_length.saturating_sub(8) {
            return Err(format_error(
                path,
                format!(
                    "its header claims {length} bytes, the file has {file_length}; it is damaged or truncated"
                ),
            ));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|error| format_error(path, format!("damaged safetensors header: {error}")))?;
        let data_start = 8 + length;
        let expected = data_start.checked_add(header.data_len() as u64);
        if expected != Some(file_length) {
            let expected = expected.map_or("more than any file has".to_owned(), |length| {
                length.to_string()
            });
            return Err(format_error(
                path,
                format!(
                    "has {file_length} bytes, its header calls for {expected}; it is truncated or damaged"
                ),
            ));
        }
        let description = header
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(ENTRY));
        let description: Option<Description> = description
            .map(|json| serde_json::from_str(json))
            .transpose()
            .map_err(|error| {
                format_error(
                    path,
                    format!("damaged `{ENTRY}` entry in the header: {error}"),
                )
            })?;

        let infos = header.tensors();
        let mut names: Vec<&String> = infos.keys().collect();
        names.sort();
        let stored = |name: &&String| {
            let info = infos[*name];
            let tensor = StoredTensor {
                name: (*name).clone(),
                dtype: info.dtype.into(),
                shape: info.shape.clone(),
            };
            (tensor, data_start + info.data_offsets.0 as u64)
        };
        let (tensors, starts) = names.iter().map(stored).unzip();
        let metadata = description
            .as_ref()
            .map(|ours| ours.metadata.clone())
            .unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            file,
            tensors,
            starts,
            description,
            metadata,
            map: FileMap::default(),
        })
    }

    pub(super) fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    pub(super) fn config(&self) -> Option<&RwkvXConfig> {
        self.description.as_ref().map(|ours| &ours.config)
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The values of a tensor of floats, as f32 or as they are. What stays as it is stays in the file, which is mapped into memory, if
    /// it is aligned there.
    pub(super) fn read(&mut self, index: usize, keep: bool) -> Result<TensorData, Error> {
        let tensor = &self.tensors[index];
        let (shape, stored) = (tensor.shape.clone(), tensor.dtype.clone());
        let (dtype, read): (_, ReadFloats) = match stored.float() {
            Some(dtype) if keep => (dtype, read_floats),
            _ => (DType::F32, read_f32),
        };
        if let Some(part) = keep.then(|| self.mapped(index)).transpose()?.flatten() {
            return Ok(TensorData::from_bytes(part, shape, dtype));
        }
        let bytes = self.read_by(index, |file, count| read(file, &stored, count))?;
        Ok(TensorData::from_bytes(bytes, shape, dtype))
    }

    /// The values of a tensor of integers of 8 bits.
    pub(super) fn read_int8(&mut self, index: usize) -> Result<Vec<i8>, Error> {
        self.read_by(index, read_int8)
    }

    /// The bytes of a tensor of floats in the mapped file, where they can be used there.
    fn mapped(&mut self, index: usize) -> Result<Option<Bytes>, Error> {
        let tensor = &self.tensors[index];
        let size = tensor.dtype.size().unwrap_or(1);
        let length = size * tensor.shape.iter().product::<usize>();
        self.map
            .part(&self.file, self.starts[index], length, size)
            .map_err(|error| Error::Io {
                path: self.path.clone(),
                error,
            })
    }

    fn read_by<T>(
        &mut self,
        index: usize,
        read: impl FnOnce(&mut dyn Read, usize) -> std::io::Result<T>,
    ) -> Result<T, Error> {
        // The header's checks have made sure that the product fits and the file holds the data.
        let count = self.tensors[index].shape.iter().product();
        self.file
            .seek(SeekFrom::Start(self.starts[index]))
            .and_then(|_| read(&mut self.file, count))
            .map_err(|error| Error::Io {
                path: self.path.clone(),
                error,
            })
    }
}

impl From<Dtype> for StoredDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::BF16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            Dtype::I8 => Self::Int8,
            other => Self::Other(format!("{other:?}")),
        }
    }
}
