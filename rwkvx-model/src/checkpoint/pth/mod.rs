//! `.pth`: a zip archive, as `torch.save` has written since PyTorch 1.6, of a pickle that describes the tensors and one
//! uncompressed file per storage.
//!
//! Read here rather than through burn-store, whose 0.21 gives zeros for a storage it cannot read and ignores strides.
//! Nothing in the file is executed: see [`pickle`].

mod pickle;
mod tensor_ref;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use zip::{CompressionMethod, ZipArchive};

use self::tensor_ref::TensorRef;
use super::convert::{ReadFloats, read_f32, read_floats};
use super::map::FileMap;
use super::{StoredTensor, format_error};
use crate::Error;

/// An open file, its pickle read.
pub(super) struct PthFile {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    /// The file of the archive.
    file: File,
    map: FileMap,
    /// Index in the archive of every storage, by its key in the pickle.
    storages: HashMap<String, usize>,
    tensors: Vec<StoredTensor>,
    places: Vec<TensorRef>,
}

impl PthFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(io)?;
        let file_length = file.metadata().map_err(io)?.len();
        let reader = BufReader::new(file.try_clone().map_err(io)?);
        let mut archive = ZipArchive::new(reader).map_err(|error| damaged(path, error))?;

        // Everything lies in one folder, named after the file it was first saved to.
        let pickle = archive
            .file_names()
            .find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
        let Some(folder) = pickle
            .and_then(|name| name.strip_suffix("data.pkl"))
            .map(str::to_owned)
        else {
            return Err(format_error(
                path,
                "is a zip archive without data.pkl, so no PyTorch checkpoint",
            ));
        };
        if let Ok(mut order) = archive.by_name(&format!("{folder}byteorder")) {
            let mut text = String::new();
            order
                .by_ref()
                .take(16)
                .read_to_string(&mut text)
                .map_err(io)?;
            if text.trim() != "little" {
                return Err(format_error(
                    path,
                    format!("its byte order is `{text}`; only little-endian files are read"),
                ));
            }
        }
        let pickle = {
            let mut entry = archive
                .by_name(&format!("{folder}data.pkl"))
                .map_err(|error| damaged(path, error))?;
            let mut bytes = Vec::new();
            entry
                .by_ref()
                .take(file_length)
                .read_to_end(&mut bytes)
                .map_err(|error| damaged(path, error))?;
            bytes
        };
        let state = pickle::read_state_dict(&pickle)
            .map_err(|reason| format_error(path, format!("data.pkl: {reason}")))?;

        let storage_folder = format!("{folder}data/");
        let storages = (0..archive.len())
            .filter_map(|index| {
                let name = archive.name_for_index(index)?;
                Some((name.strip_prefix(&storage_folder)?.to_owned(), index))
            })
            .collect();
        let (tensors, places) = state
            .into_iter()
            .map(|(name, place)| {
                (
                    StoredTensor {
                        name,
                        dtype: place.dtype.clone(),
                        shape: place.shape.clone(),
                    },
                    place,
                )
            })
            .unzip();
        Ok(Self {
            path: path.to_owned(),
            archive,
            file,
            map: FileMap::default(),
            storages,
            tensors,
            places,
        })
    }

    pub(super) fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The values of a tensor in the order of its shape, as f32 or as they are, where they fill a storage. What stays as it is stays in the file, which is
    /// mapped into memory, if it is aligned there, as PyTorch writes it. The storage's checksum is verified.
    pub(super) fn read(&mut self, index: usize, keep: bool) -> Result<TensorData, Error> {
        let (tensor, place) = (&self.tensors[index], &self.places[index]);
        let bad = |reason: String| {
            format_error(&self.path, format!("tensor `{}`: {reason}", tensor.name))
        };
        let Some(&entry) = self.storages.get(&place.storage) else {
            return Err(bad(format!(
                "its storage `{}` is not in the file",
                place.storage
            )));
        };
        let mut entry = self
            .archive
            .by_index(entry)
            .map_err(|error| bad(error.to_string()))?;
        let expected = place
            .dtype
            .size()
            .and_then(|size| place.storage_length.checked_mul(size));
        if expected.map(|length| length as u64) != Some(entry.size())
            || entry.size() != entry.compressed_size()
        {
            return Err(bad(format!(
                "its storage has {} bytes, expected {} numbers of {}",
                entry.size(),
                place.storage_length,
                place.dtype
            )));
        }
        let kept = place
            .dtype
            .float()
            .filter(|_| keep && place.is_whole_storage());
        if let (Some(dtype), Some(start)) = (kept, entry.data_start())
            && entry.compression() == CompressionMethod::Stored
        {
            let (length, crc) = (dtype.size() * place.storage_length, entry.crc32());
            let part = self
                .map
                .part(&self.file, start, length, dtype.size())
                .map_err(|error| bad(error.to_string()))?;
            if let Some(part) = part {
                if crc32fast::hash(&part) != crc {
                    return Err(bad("its checksum is another; get the file again".to_owned()));
                }
                return Ok(TensorData::from_bytes(part, tensor.shape.clone(), dtype));
            }
        }
        let (dtype, read): (_, ReadFloats) = match kept {
            Some(dtype) => (dtype, read_floats),
            None => (DType::F32, read_f32),
        };
        let values = read(&mut entry, &place.dtype, place.storage_length)
            // Only at the end of an entry is its checksum compared.
            .and_then(|values| entry.read(&mut [0]).map(|_| values))
            .map_err(|error| bad(error.to_string()))?;
        drop(entry);
        let values = match place.is_whole_storage() {
            true => values,
            false => place
                .gather(&values)
                .ok_or_else(|| bad("it reaches past its storage".to_owned()))?,
        };
        Ok(TensorData::from_bytes(values, tensor.shape.clone(), dtype))
    }
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> Error {
    format_error(path, format!("damaged or truncated .pth: {error}"))
}
