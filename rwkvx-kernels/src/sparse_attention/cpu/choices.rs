//! Lists of who chose what.

/// Queries by the chunk they chose: pairs (chunk, query) in rising order.
#[derive(Default)]
pub(super) struct Choices(Vec<(u32, u32)>);

impl Choices {
    pub(super) fn push(&mut self, chunk: u32, query: usize) {
        self.0.push((chunk, query as u32));
    }

    pub(super) fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// For each chunk that was chosen at all, the chunk and its pairs; after [`sort`](Self::sort).
    pub(super) fn by_chunk(&self) -> impl Iterator<Item = (usize, &[(u32, u32)])> {
        self.0
            .chunk_by(|x, y| x.0 == y.0)
            .map(|pairs| (pairs[0].0 as usize, pairs))
    }
}
