//! Opening files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file into memory to read it. The file must not be changed while it is mapped.
pub(crate) fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(Error::io(path)(error));
    }
    // SAFETY: the map is read-only. Should another process truncate the file meanwhile, the system ends this one; the
    // writers of this project put whole files in place by renaming, which leaves a mapped file as it was.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Bytes::from_owner(map))
}

/// The lines of a text that are not blank, each with its number from 1.
pub(crate) fn filled_lines(bytes: &Bytes) -> impl Iterator<Item = (u64, Bytes)> + '_ {
    let lines = (1..).zip(bytes.split(|byte| *byte == b'\n'));
    let filled = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    filled.map(|(number, line)| (number, bytes.slice_ref(line)))
}

/// What lies in a folder, sorted by name.
pub(crate) fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).map_err(Error::io(path))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<_> = paths.collect::<io::Result<_>>().map_err(Error::io(path))?;
    paths.sort();
    Ok(paths)
}

/// `path` with `extension` appended. Prefixes may contain dots, so nothing of them is replaced.
pub(crate) fn append(path: &Path, extension: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(extension);
    path.into()
}
