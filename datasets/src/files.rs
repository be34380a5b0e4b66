//! Opening files.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file into memory to read it. The file must not be changed while it is mapped.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(Error::io(path)(error));
    }
    // SAFETY: the map is read-only. Should another process truncate the file meanwhile, the system ends this one; the
    // writers of this project put whole files in place by renaming, which leaves a mapped file as it was.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}
