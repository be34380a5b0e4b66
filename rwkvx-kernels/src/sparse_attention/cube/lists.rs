//! For each chunk the list of the queries that chose it, in rising order.
//!
//! Choices are sorted block by block, by chunk and then by query; then every chunk's parts of the blocks are put together. All positions
//! follow from counts, so no two units ever race for one.
//!
//! A slot is one choice of one query, `query * slots + choice`; lists hold slots. Each chunk's list starts at a multiple of the tile that
//! the attention works on, so that a tile belongs to one chunk.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::problem::Problem;
use crate::cube::allocate;

/// Choices that are sorted together, and so most chunks that a query may choose.
const SORTED: usize = 2048;

/// Units of a cube.
const UNITS: usize = 256;

/// The lists of some sequences.
pub(super) struct Lists<R: CubeRuntime> {
    /// Chunks that have a list: all that can be chosen, or none if no query chooses anything.
    pub(super) chunk_count: usize,
    /// Tiles per sequence that there is room for.
    pub(super) tiles: usize,
    /// Slots per sequence that there is room for.
    room: usize,
    /// `[sequence, room]`, u32; what lies between two lists is undefined.
    slots: CubeTensor<R>,
    /// Where each chunk's list starts, and after the last where the tiles end: `[sequence, chunks + 1]`, u32.
    starts: CubeTensor<R>,
    /// Length of each chunk's list, `[sequence, chunks]`, u32.
    lengths: CubeTensor<R>,
    /// The chunk of each tile, `[sequence, tiles]`, u32; undefined from where the tiles end.
    chunks: CubeTensor<R>,
}

/// [`Lists`] in a kernel.
#[derive(CubeType, CubeLaunch)]
pub(super) struct ListArrays {
    slots: Array<u32>,
    starts: Array<u32>,
    lengths: Array<u32>,
    chunks: Array<u32>,
    chunk_count: usize,
    room: usize,
}

/// A part of a chunk's list, up to its end.
#[derive(CubeType)]
pub(super) struct List {
    pub(super) chunk: usize,
    /// Positions for [`ListArrays::slot`].
    pub(super) first: usize,
    pub(super) end: usize,
}

#[cube]
impl ListArrays {
    /// Whether there is a tile of `rows` slots for this cube.
    pub(super) fn has_tile(&self, #[comptime] rows: usize) -> bool {
        let end = self.starts[CUBE_POS_Y as usize * (self.chunk_count + 1) + self.chunk_count];
        CUBE_POS_X as usize * rows < end as usize
    }

    /// The list from tile `CUBE_POS_X` of `rows` slots on.
    pub(super) fn of_tile(&self, #[comptime] rows: usize) -> List {
        let tile = CUBE_POS_X as usize;
        let chunk = self.chunks[CUBE_POS_Y as usize * (self.room / rows) + tile] as usize;
        List {
            chunk,
            first: CUBE_POS_Y as usize * self.room + tile * rows,
            end: self.of_chunk(chunk).end,
        }
    }

    /// The list of a chunk; an empty one if no query can have chosen it.
    pub(super) fn of_chunk(&self, chunk: usize) -> List {
        let sequence = CUBE_POS_Y as usize;
        let mut first = 0usize.runtime();
        let mut length = 0usize.runtime();
        if chunk < self.chunk_count {
            first = self.starts[sequence * (self.chunk_count + 1) + chunk] as usize;
            length = self.lengths[sequence * self.chunk_count + chunk] as usize;
        }
        let first = sequence * self.room + first;
        List {
            chunk,
            first,
            end: first + length,
        }
    }

    /// The slot at a position.
    pub(super) fn slot(&self, at: usize) -> usize {
        self.slots[at] as usize
    }
}

impl<R: CubeRuntime> Lists<R> {
    /// From the choices in `saved` `[sequence, query, 1 + slots]`, for `sequences` from `problem.first` on.
    pub(super) fn new(
        saved: &CubeTensor<R>,
        problem: Problem,
        sequences: usize,
        tile: usize,
    ) -> Self {
        let Problem { queries, slots, .. } = problem;
        let chunks = problem.last_chunk();
        if slots == 0 {
            return Self::none(saved);
        }
        assert!(
            slots <= SORTED,
            "sparse_attention: a query may choose at most {SORTED} earlier chunks on this backend, \
             found {slots}; lower `top_k` or take larger chunks"
        );
        let blocks = queries.div_ceil(block_queries(slots));
        let tiles = (queries * slots).div_ceil(tile) + chunks;
        let numbers = |shape: [usize; 3]| allocate(saved, shape, DType::U32);
        let sorted = numbers([sequences, blocks, SORTED]);
        let begins = numbers([sequences, blocks, chunks + 1]);
        let before = numbers([sequences, blocks, chunks]);
        let lists = Self {
            chunk_count: chunks,
            tiles,
            room: tiles * tile,
            slots: numbers([sequences, tiles, tile]),
            starts: numbers([sequences, 1, chunks + 1]),
            lengths: numbers([sequences, 1, chunks]),
            chunks: numbers([sequences, 1, tiles]),
        };
        let client = &saved.client;
        let cubes = |count: usize| CubeCount::Static(count as u32, sequences as u32, 1);
        let units = CubeDim::new_1d(UNITS as u32);
        // SAFETY: the buffers are dense and have the sizes that the kernels' documentation gives, which bound their indices.
        unsafe {
            attention_sort::launch_unchecked::<R>(
                client,
                cubes(blocks),
                units,
                saved.clone().into_array_arg(),
                sorted.clone().into_array_arg(),
                begins.clone().into_array_arg(),
                problem.launch(),
                chunks,
                slots,
            );
            attention_count::launch_unchecked::<R>(
                client,
                cubes(chunks.div_ceil(UNITS)),
                units,
                begins.clone().into_array_arg(),
                before.clone().into_array_arg(),
                lists.lengths.clone().into_array_arg(),
                blocks,
                chunks,
            );
            attention_starts::launch_unchecked::<R>(
                client,
                cubes(1),
                units,
                lists.lengths.clone().into_array_arg(),
                lists.starts.clone().into_array_arg(),
                lists.chunks.clone().into_array_arg(),
                chunks,
                tiles,
                tile,
            );
            attention_place::launch_unchecked::<R>(
                client,
                cubes(blocks),
                units,
                sorted.into_array_arg(),
                begins.into_array_arg(),
                before.into_array_arg(),
                lists.starts.clone().into_array_arg(),
                lists.slots.clone().into_array_arg(),
                chunks,
                lists.room,
                slots,
            );
        }
        lists
    }

    /// As an argument of a kernel.
    pub(super) fn launch(&self) -> ListArraysLaunch<R> {
        ListArraysLaunch::new(
            self.slots.clone().into_array_arg(),
            self.starts.clone().into_array_arg(),
            self.lengths.clone().into_array_arg(),
            self.chunks.clone().into_array_arg(),
            self.chunk_count,
            self.room,
        )
    }

    fn none(like: &CubeTensor<R>) -> Self {
        let unused = || allocate(like, [1], DType::U32);
        Self {
            chunk_count: 0,
            tiles: 0,
            room: 0,
            slots: unused(),
            starts: unused(),
            lengths: unused(),
            chunks: unused(),
        }
    }
}

/// Queries of a block.
fn block_queries(slots: usize) -> usize {
    SORTED / slots
}

/// One cube per (block, sequence). `sorted` `[sequence, block, SORTED]` receives `chunk * SORTED + slot in the block` in rising order, `begins`
/// `[sequence, block, chunks + 1]` where each chunk begins in it.
#[cube(launch_unchecked)]
fn attention_sort(
    saved: &Array<f32>,
    sorted: &mut Array<u32>,
    begins: &mut Array<u32>,
    problem: Problem,
    chunks: usize,
    #[comptime] slots: usize,
) {
    let block = comptime!(block_queries(slots));
    let unit = UNIT_POS as usize;
    let sequence = problem.sequence();
    let mut keys = SharedMemory::<u32>::new(SORTED);
    let mut i = unit;
    while i < SORTED {
        let query = CUBE_POS_X as usize * block + i / slots;
        let mut key = u32::MAX.runtime();
        if i < comptime!(block_queries(slots) * slots) && query < problem.queries {
            let row = (sequence * problem.queries + query) * comptime!(slots + 1);
            let choice = saved[row + 1 + i % slots];
            if choice >= 0.0 {
                key = u32::cast_from(choice) * comptime!(SORTED as u32) + i as u32;
            }
        }
        keys[i] = key;
        i += UNITS;
    }
    sync_cube();

    // Bitonic: runs of `run` become sorted, upwards and downwards in turn.
    let mut run = 2usize.runtime();
    while run <= SORTED {
        let mut gap = run / 2;
        while gap > 0 {
            let mut pair = unit;
            while pair < SORTED / 2 {
                let low = pair / gap * (2 * gap) + pair % gap;
                let (a, b) = (keys[low], keys[low + gap]);
                let upwards = (low / run) & 1 == 0;
                keys[low] = select(upwards, min(a, b), max(a, b));
                keys[low + gap] = select(upwards, max(a, b), min(a, b));
                pair += UNITS;
            }
            sync_cube();
            gap /= 2;
        }
        run *= 2;
    }

    let index = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let mut i = unit;
    while i < SORTED {
        sorted[index * SORTED + i] = keys[i];
        i += UNITS;
    }
    let mut chunk = unit;
    while chunk <= chunks {
        let first = chunk as u32 * comptime!(SORTED as u32);
        let mut low = 0usize.runtime();
        let mut high = SORTED.runtime();
        while low < high {
            let middle = (low + high) / 2;
            if keys[middle] < first {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        begins[index * (chunks + 1) + chunk] = low as u32;
        chunk += UNITS;
    }
}

/// One unit per (chunk, sequence): how many chose the chunk in the blocks before each, `before` `[sequence, block, chunk]`, and in all.
#[cube(launch_unchecked)]
fn attention_count(
    begins: &Array<u32>,
    before: &mut Array<u32>,
    lengths: &mut Array<u32>,
    blocks: usize,
    chunks: usize,
) {
    let chunk = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    let sequence = CUBE_POS_Y as usize;
    if chunk < chunks {
        let mut count = 0u32.runtime();
        for block in 0..blocks {
            let index = sequence * blocks + block;
            before[index * chunks + chunk] = count;
            let at = index * (chunks + 1) + chunk;
            count += begins[at + 1] - begins[at];
        }
        lengths[sequence * chunks + chunk] = count;
    }
}

/// One cube per sequence: where lists start, and whose the tiles are.
#[cube(launch_unchecked)]
fn attention_starts(
    lengths: &Array<u32>,
    starts: &mut Array<u32>,
    tile_chunks: &mut Array<u32>,
    chunks: usize,
    tiles: usize,
    #[comptime] tile: usize,
) {
    let unit = UNIT_POS as usize;
    let sequence = CUBE_POS_Y as usize;
    // Each unit has some neighbouring chunks; `taken` is how many tiles they take.
    let share = chunks.div_ceil(UNITS);
    let first = min(unit * share, chunks);
    let end = min(first + share, chunks);
    let mut taken = SharedMemory::<u32>::new(UNITS);
    let mut sum = 0u32.runtime();
    for chunk in first..end {
        sum += lengths[sequence * chunks + chunk].div_ceil(comptime!(tile as u32));
    }
    taken[unit] = sum;
    sync_cube();
    let mut at = 0u32.runtime();
    for other in 0..unit {
        at += taken[other];
    }
    for chunk in first..end {
        starts[sequence * (chunks + 1) + chunk] = at * comptime!(tile as u32);
        let count = lengths[sequence * chunks + chunk].div_ceil(comptime!(tile as u32));
        for i in 0..count {
            tile_chunks[sequence * tiles + (at + i) as usize] = chunk as u32;
        }
        at += count;
    }
    if unit == UNITS - 1 {
        starts[sequence * (chunks + 1) + chunks] = at * comptime!(tile as u32);
    }
}

/// One cube per (block, sequence): from the blocks to the lists.
#[cube(launch_unchecked)]
fn attention_place(
    sorted: &Array<u32>,
    begins: &Array<u32>,
    before: &Array<u32>,
    starts: &Array<u32>,
    lists: &mut Array<u32>,
    chunks: usize,
    room: usize,
    #[comptime] slots: usize,
) {
    let sequence = CUBE_POS_Y as usize;
    let index = sequence * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let first_slot = CUBE_POS_X as usize * comptime!(block_queries(slots) * slots);
    let count = begins[index * (chunks + 1) + chunks] as usize;
    let mut i = UNIT_POS as usize;
    while i < count {
        let key = sorted[index * SORTED + i] as usize;
        let chunk = key / SORTED;
        let list = starts[sequence * (chunks + 1) + chunk] as usize;
        let earlier = before[index * chunks + chunk] as usize;
        let in_block = i - begins[index * (chunks + 1) + chunk] as usize;
        lists[sequence * room + list + earlier + in_block] = (first_slot + key % SORTED) as u32;
        i += UNITS;
    }
}
