//! Numbers that stay in the file: a part of memory that the system fills from the disk and may take back.

use std::fs::File;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes};
use memmap2::Mmap;

/// A file as memory, mapped when a part of it is first asked for.
#[derive(Default)]
pub(super) struct FileMap(Option<Map>);

impl FileMap {
    /// So many bytes of `file` from `start` on, without a copy; `None` if they do not lie in the file or not at a multiple of `align`, or numbers
    /// are stored the other way round than this machine has them.
    pub(super) fn part(
        &mut self,
        file: &File,
        start: u64,
        length: usize,
        align: usize,
    ) -> std::io::Result<Option<Bytes>> {
        let map = match self.0.take() {
            Some(map) => map,
            None => Map::open(file)?,
        };
        let map = self.0.insert(map);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        Ok(match cfg!(target_endian = "little") {
            true => map.part(start, length, align),
            false => None,
        })
    }
}

struct Map {
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    map: Arc<Mmap>,
    bytes: bytes::Bytes,
}

/// Keeps the mapping alive.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    fn open(file: &File) -> std::io::Result<Self> {
        // SAFETY: the mapping is read only. As with every mapping, who changes the file in place changes what is read; checkpoints are
        // written beside and renamed, which leaves this one as it is.
        let map = Arc::new(unsafe { Mmap::map(file) }?);
        let bytes = bytes::Bytes::from_owner(Owner(map.clone()));
        Ok(Self { map, bytes })
    }

    fn part(&self, start: usize, length: usize, align: usize) -> Option<Bytes> {
        let end = start.checked_add(length)?;
        let part = self.bytes.get(start..end)?;
        if !part.as_ptr().addr().is_multiple_of(align) {
            return None;
        }
        // Read in now, so that the first token does not wait for the disk page by page. Where the system cannot, it does.
        #[cfg(target_os = "linux")]
        let _ = self
            .map
            .advise_range(memmap2::Advice::PopulateRead, start, length);
        let part = self.bytes.slice(start..end);
        Some(Bytes::from_shared(part, AllocationProperty::File))
    }
}
