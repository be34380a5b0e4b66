//! Writing to one slice from several threads.

use std::marker::PhantomData;

/// A slice of which each task writes its own part.
///
/// Heads are interleaved in `[batch, time, heads, head_size]`, so the part of a task is not one range that `split_at_mut` could give.
pub(crate) struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut [f32]` whose users promise, in `part`, never to overlap.
unsafe impl Send for Disjoint<'_> {}
// SAFETY: as above.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// Elements `at..at + len`.
    ///
    /// # Safety
    /// No other part that overlaps this one may be alive, on any thread.
    ///
    /// # Panics
    /// If the range does not lie in the slice.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: in range by the assertion, unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
