//! Where a result comes from: files by their hash, the program and the machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256, as `sha256sum` prints it.
    pub sha256: String,
}

impl InputFile {
    /// Reads a file for its hash.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let mut hasher = Sha256::new();
        let mut file = File::open(path).map_err(Error::io(path))?;
        io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
        let hash = hasher.finalize();
        Ok(Self {
            path: path.to_path_buf(),
            sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// What computed a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Version of this crate.
    pub version: String,
    /// The commit it was built from, where that is known.
    pub commit: Option<String>,
    /// Backend, as Burn calls it.
    pub backend: String,
    /// Operating system and instruction set.
    pub system: String,
    /// Name of the processor, where the system tells it.
    pub processor: Option<String>,
    /// Processors that the program may use.
    pub cores: usize,
}

impl Program {
    /// This program on this machine.
    pub fn here(backend: String) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = info.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == "model name").then(|| value.trim().to_owned())
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("RWKVX_COMMIT").map(str::to_owned),
            backend,
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor,
            cores: thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_sha256sum() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let file = InputFile::read(&path).unwrap();
        assert!(file.sha256.starts_with("ba7816bf8f01cfea") && file.sha256.ends_with("f20015ad"));
        assert!(InputFile::read(Path::new("none")).is_err());
    }
}
