//! `.safetensors`: an 8-byte length, a JSON header, the tensors one after another.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Dtype, Metadata as Header, TensorInfo};
use burn::tensor::Bytes;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use super::convert::read_f32;
use super::{Metadata, StoredDtype, StoredTensor, format_error};
use crate::Error;
use crate::config::RwkvXConfig;
use crate::files::write_beside;
use crate::model::RwkvX;
use crate::names::{self, published_shape};

/// The longest header taken, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;
/// The header's entry that holds our configuration and metadata. One entry, so that equal models make equal files.
const ENTRY: &str = "rwkvx";

/// The JSON under [`ENTRY`].
#[derive(Serialize, Deserialize)]
struct Description {
    config: RwkvXConfig,
    #[serde(flatten)]
    metadata: Metadata,
}

/// An open file, its header read and checked.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    tensors: Vec<StoredTensor>,
    /// Where in the file each tensor starts.
    starts: Vec<u64>,
    description: Option<Description>,
    metadata: Metadata,
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

    /// The values of a tensor as f32.
    pub(super) fn read(&mut self, index: usize) -> Result<Bytes, Error> {
        let tensor = &self.tensors[index];
        // The header's checks have made sure that the product fits and the file holds the data.
        let count = tensor.shape.iter().product();
        self.file
            .seek(SeekFrom::Start(self.starts[index]))
            .and_then(|_| read_f32(&mut self.file, &tensor.dtype, count))
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
            other => Self::Other(format!("{other:?}")),
        }
    }
}

/// Writes a model as safetensors: f32, published names and shapes, configuration and `metadata` in the header. The file
/// is written beside `path` and renamed, so that `path` never holds half a model.
///
/// # Errors
/// If the folder is missing or cannot be written, or the disk is full; `path` is then as it was.
pub fn save<B: Backend>(model: &RwkvX<B>, metadata: &Metadata, path: &Path) -> Result<(), Error> {
    let json = |error: serde_json::Error| format_error(path, error.to_string());
    let description = Description {
        config: model.config().clone(),
        metadata: metadata.clone(),
    };
    let entries = HashMap::from([(
        ENTRY.to_owned(),
        serde_json::to_string(&description).map_err(json)?,
    )]);

    let parameters = names::values(model);
    let mut end = 0;
    let infos = parameters.iter().map(|(param, _)| {
        let start = end;
        end += size_of::<f32>() * param.shape.iter().product::<usize>();
        let shape = published_shape(&param.name, &param.shape);
        (
            param.name.clone(),
            TensorInfo {
                dtype: Dtype::F32,
                shape,
                data_offsets: (start, end),
            },
        )
    });
    let header = Header::new(Some(entries), infos.collect())
        .map_err(|error| format_error(path, error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(json)?;
    // The format aligns the data to 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    write_beside(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        parameters
            .iter()
            .try_for_each(|(_, value)| file.write_all(value().convert::<f32>().as_bytes()))
    })
}
