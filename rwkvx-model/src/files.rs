//! Files that are whole or not there.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::Error;

/// Writes a file under another name in the same folder, makes sure it is on the disk, then renames it to `path`: whatever
/// happens, `path` holds what it held before or all that `write` wrote.
///
/// # Errors
/// If `write` fails, the folder is missing or cannot be written, or the disk is full; nothing is left behind then.
pub fn write_beside(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), Error> {
    let mut name = path
        .file_name()
        .map(|name| name.to_owned())
        .unwrap_or_default();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(name);
    let written = File::create(&partial).and_then(|file| {
        let mut writer = BufWriter::new(&file);
        write(&mut writer)?;
        writer.flush()?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    });
    written.map_err(|error| {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&partial);
        Error::Io {
            path: path.to_owned(),
            error,
        }
    })
}
