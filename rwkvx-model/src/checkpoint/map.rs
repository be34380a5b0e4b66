//! Numbers that stay in the file: a part of memory that the system fills from the disk and may take back.

use std::fs::File;

use burn::tensor::{AllocationProperty, Bytes};
use memmap2::{Mmap, MmapOptions};

/// A whole file as memory.
pub(super) struct Map(bytes::Bytes);

impl Map {
    /// Maps a file and reads it in, so that no later access waits for the disk.
    pub(super) fn open(file: &File) -> std::io::Result<Self> {
        // SAFETY: the mapping is read only. As with every mapping, who changes the file in place changes what is read; checkpoints are
        // written beside and renamed, which leaves this one as it is.
        let map: Mmap = unsafe { MmapOptions::new().populate().map(file) }?;
        Ok(Self(bytes::Bytes::from_owner(map)))
    }

    /// So many bytes from `start` on, without a copy; `None` if they do not lie in the file or not at a multiple of `align`.
    pub(super) fn part(&self, start: usize, length: usize, align: usize) -> Option<Bytes> {
        let end = start.checked_add(length)?;
        let part = self.0.get(start..end)?;
        let aligned = part.as_ptr().addr().is_multiple_of(align);
        aligned.then(|| Bytes::from_shared(self.0.slice(start..end), AllocationProperty::File))
    }
}
