//! Writing token files: streamed, and in place only when complete.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Dtype, MAGIC, VERSION, paths, require_folder};
use crate::{Error, Result};

/// Writes a token file document by document.
///
/// Ids stream into a file beside the target; [`finish`](Self::finish) puts both files in place, the index last, so
/// that an index is never seen without its data. Dropped before that, it removes what it wrote and leaves an
/// existing token file of the same name alone.
#[derive(Debug)]
pub struct TokenFileWriter {
    idx: Target,
    bin: Target,
    out: BufWriter<File>,
    dtype: Dtype,
    /// Tokens of each document.
    sizes: Vec<i32>,
    tokens: u64,
    /// Reused between documents.
    encoded: Vec<u8>,
}

impl TokenFileWriter {
    /// Starts `PREFIX.bin` and `PREFIX.idx`.
    ///
    /// # Errors
    ///
    /// If the folder of `prefix` does not exist or cannot be written to.
    pub fn create(prefix: &Path, dtype: Dtype) -> Result<Self> {
        require_folder(prefix)?;
        let (idx, bin) = paths(prefix);
        let (idx, bin) = (Target::new(idx), Target::new(bin));
        let file = File::create(&bin.partial).map_err(Error::io(&bin.partial))?;
        Ok(Self {
            idx,
            bin,
            out: BufWriter::with_capacity(1 << 20, file),
            dtype,
            sizes: Vec::new(),
            tokens: 0,
            encoded: Vec::new(),
        })
    }

    /// Appends one document, exactly these ids.
    ///
    /// # Errors
    ///
    /// If an id does not fit the data type, if the document has more tokens than the format can say, or if writing
    /// fails (a full disk).
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        let largest = self.dtype.max_id();
        if let Some(id) = ids.iter().find(|&&id| id > largest) {
            let reason = format!(
                "id {id} does not fit {} (at most {largest}); choose a wider data type",
                self.dtype.name()
            );
            return Err(Error::token_file(&self.bin.path, reason));
        }
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        self.dtype.store(ids, &mut encoded);
        let pushed = self.push_stored(&encoded);
        self.encoded = encoded;
        pushed
    }

    /// Appends one document whose ids are already in the form in which the file stores them.
    pub(crate) fn push_stored(&mut self, ids: &[u8]) -> Result<()> {
        let tokens = ids.len() / self.dtype.bytes();
        let size = i32::try_from(tokens).map_err(|_| {
            let reason =
                format!("a document of {tokens} tokens exceeds the format's 2147483647; split it");
            Error::token_file(&self.bin.path, reason)
        })?;
        self.out
            .write_all(ids)
            .map_err(Error::io(&self.bin.partial))?;
        self.sizes.push(size);
        self.tokens += tokens as u64;
        Ok(())
    }

    /// Divides all tokens written so far anew: into items of `size` tokens, across documents, and a shorter last one.
    ///
    /// # Errors
    ///
    /// If `size` is 0 or more than the format can say.
    pub fn cut(&mut self, size: u32) -> Result<()> {
        let item = i32::try_from(size).ok().filter(|item| *item > 0);
        let item = item.ok_or_else(|| {
            let reason = format!("items of {size} tokens are not within 1 and 2147483647");
            Error::token_file(&self.idx.path, reason)
        })?;
        let (whole, rest) = (self.tokens / u64::from(size), self.tokens % u64::from(size));
        self.sizes.clear();
        self.sizes.resize(whole as usize, item);
        // Less than an item, and so within its type.
        self.sizes.extend((rest > 0).then_some(rest as i32));
        Ok(())
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Documents written so far.
    pub fn documents(&self) -> usize {
        self.sizes.len()
    }

    /// Puts both files in place.
    ///
    /// # Errors
    ///
    /// If writing, flushing to disk or renaming fails.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(Error::io(&self.bin.partial))?;
        self.out
            .get_ref()
            .sync_all()
            .map_err(Error::io(&self.bin.partial))?;
        self.write_index().map_err(Error::io(&self.idx.partial))?;
        // Without its index old data is never taken for new, whatever happens between the renames.
        match fs::remove_file(&self.idx.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(&self.idx.path)(error))
            }
            _ => self
                .bin
                .put_in_place()
                .and_then(|()| self.idx.put_in_place()),
        }
    }

    fn write_index(&self) -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(&self.idx.partial)?);
        let documents = self.sizes.len() as u64;
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&[self.dtype.code()])?;
        out.write_all(&documents.to_le_bytes())?;
        out.write_all(&(documents + 1).to_le_bytes())?;
        for size in &self.sizes {
            out.write_all(&size.to_le_bytes())?;
        }
        let mut pointer = 0;
        for &size in &self.sizes {
            out.write_all(&u64::to_le_bytes(pointer))?;
            pointer += size as u64 * self.dtype.bytes() as u64;
        }
        for boundary in 0..=documents {
            out.write_all(&boundary.to_le_bytes())?;
        }
        out.into_inner()?.sync_all()
    }
}

/// A file being written beside its final place.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    partial: PathBuf,
}

impl Target {
    fn new(path: PathBuf) -> Self {
        // The process id keeps two runs with the same output from writing into one file.
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".partial-{}", std::process::id()));
        Self {
            path,
            partial: partial.into(),
        }
    }

    fn put_in_place(&self) -> Result<()> {
        fs::rename(&self.partial, &self.path).map_err(Error::io(&self.path))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove, and nobody to tell if removing fails.
        let _ = fs::remove_file(&self.partial);
    }
}
