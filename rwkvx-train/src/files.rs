//! Files that are whole or absent: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader, or a kill at any moment, sees the old content or the new, never a part.
///
/// # Errors
///
/// If the folder is not writable or the disk is full; `path` then still has its old content.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_added_extension("tmp");
    let mut file = File::create(&beside).map_err(Error::io(&beside))?;
    file.write_all(bytes).map_err(Error::io(&beside))?;
    file.sync_all().map_err(Error::io(&beside))?;
    fs::rename(&beside, path).map_err(Error::io(path))
}
