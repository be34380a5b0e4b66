//! Small matrix products by 32 units together, with every operand in registers.
//!
//! On CUDA a product is one instruction of the tensor cores, `mma.sync.m16n8k16`, whose layout of registers the PTX manual fixes (section
//! "Matrix Fragments for mma.m16n8k16"). That layout is what the kernels built on this rely on: the accumulators of one product are, without any
//! exchange between units, the left operand of another, or the transposed right one. Cooperative matrices of Vulkan hide their layout and cannot
//! serve here.
//!
//! A lane is `4 group + member`. It holds pairs of neighbours along the last axis:
//!
//! ```text
//! left   [16, 16]  pair i at (group + 8 (i % 2), 2 member + 8 (i / 2))
//! right  [16, 8]   pair i at (2 member + 8 i, group), neighbours along the first axis
//! sum    [16, 8]   pair i at (group + 8 i, 2 member)
//! ```

use burn::tensor::DType;
use cubecl::ir::features::MmaConfig;
use cubecl::prelude::*;
use enumset::EnumSet;

/// Two values in one register, or two of f32.
pub(crate) type Pair<E> = Vector<E, Const<2>>;

/// Units of a warp.
pub(crate) const LANES: usize = 32;

/// Whether `client` has tensor cores that the kernels can use, with operands of `dtype` and sums in f32.
pub(crate) fn has_products<R: Runtime>(client: &ComputeClient<R>, dtype: DType) -> bool {
    let product = MmaConfig {
        a_type: dtype.into(),
        b_type: dtype.into(),
        cd_type: DType::F32.into(),
        m: 16,
        n: 8,
        k: 16,
    };
    R::name(client) == "cuda" && client.properties().features.matmul.mma.contains(&product)
}

/// The device's own exponential, whose error of 2 ulp is far below the rounding of the operands; the exact one where products are emulated.
pub(crate) fn fast_math(emulated: bool) -> EnumSet<FastMath> {
    if emulated {
        EnumSet::empty()
    } else {
        FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
    }
}

/// The warp of a unit. Elsewhere than on CUDA it is `emulated` through shared memory, slowly, so that kernels built on it can be tested: then all
/// units of a cube must take part in each call.
#[derive(CubeType)]
pub(crate) struct Warp {
    /// Which of the cube's.
    pub(crate) index: usize,
    /// This unit, 0 to 31.
    pub(crate) lane: usize,
    /// `lane / 4`
    pub(crate) group: usize,
    /// `lane % 4`
    pub(crate) member: usize,
    /// The operands of each warp's product, when emulated.
    scratch: SharedMemory<f32>,
    /// Whether the tensor cores are emulated. Kernels then keep their loops, as compilers take minutes over so much straight code.
    #[cube(comptime)]
    pub(crate) emulated: bool,
}

/// Numbers of the two operands.
const OPERANDS: usize = 16 * 16 + 16 * 8;

#[cube]
impl Warp {
    /// The warp of this unit in a cube of `warps`.
    pub(crate) fn new(#[comptime] warps: usize, #[comptime] emulated: bool) -> Warp {
        let unit = UNIT_POS as usize;
        let lane = unit % LANES;
        let room = if comptime!(emulated) {
            comptime!(warps * OPERANDS)
        } else {
            comptime!(1usize)
        };
        Warp {
            index: unit / LANES,
            lane,
            group: lane / 4,
            member: lane % 4,
            scratch: SharedMemory::<f32>::new(room),
            emulated,
        }
    }

    /// Waits until what other lanes wrote to shared memory can be read.
    pub(crate) fn sync(&self) {
        if comptime!(self.emulated) {
            sync_cube();
        } else {
            sync_plane();
        }
    }

    /// Adds `left right` to tile `tile` of `sums`.
    pub(crate) fn multiply_add<E: Float>(
        &mut self,
        left: &Array<Pair<E>>,
        right: &Array<Pair<E>>,
        sums: &mut Array<Pair<f32>>,
        tile: usize,
    ) {
        if comptime!(self.emulated) {
            self.emulate(left, right, sums, tile);
        } else {
            let definition = cmma::MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
            let mut sum = Array::<Pair<f32>>::new(2usize);
            sum[0] = sums[2 * tile];
            sum[1] = sums[2 * tile + 1];
            definition.execute_inplace(left, right, &mut sum);
            sums[2 * tile] = sum[0];
            sums[2 * tile + 1] = sum[1];
        }
    }

    fn emulate<E: Float>(
        &mut self,
        left: &Array<Pair<E>>,
        right: &Array<Pair<E>>,
        sums: &mut Array<Pair<f32>>,
        tile: usize,
    ) {
        let (group, member) = (self.group, self.member);
        let left_at = self.index * OPERANDS;
        let right_at = left_at + 256;
        for i in 0..4usize {
            let at = left_at + (group + i % 2 * 8) * 16 + 2 * member + i / 2 * 8;
            self.scratch[at] = f32::cast_from(left[i][0]);
            self.scratch[at + 1] = f32::cast_from(left[i][1]);
        }
        for i in 0..2usize {
            let at = right_at + (2 * member + 8 * i) * 8 + group;
            self.scratch[at] = f32::cast_from(right[i][0]);
            self.scratch[at + 8] = f32::cast_from(right[i][1]);
        }
        sync_cube();
        for i in 0..2usize {
            let mut sum = sums[2 * tile + i];
            for k in 0..16usize {
                let l = self.scratch[left_at + (group + 8 * i) * 16 + k];
                let r = right_at + k * 8 + 2 * member;
                sum[0] += l * self.scratch[r];
                sum[1] += l * self.scratch[r + 1];
            }
            sums[2 * tile + i] = sum;
        }
        sync_cube();
    }

    /// Columns `16 step ..` of the 16 rows at `at` as left operand; `at` and `stride` count pairs, and are multiples of four as for all operands.
    pub(crate) fn left<E: Float>(
        &self,
        tile: &SharedMemory<Pair<E>>,
        at: usize,
        #[comptime] stride: usize,
        step: usize,
    ) -> Array<Pair<E>> {
        let at = at + 8 * step;
        if comptime!(self.emulated) {
            let at = at + self.group * stride + self.member;
            let mut left = Array::<Pair<E>>::new(4usize);
            for i in 0..4usize {
                left[i] = tile[at + i % 2 * (8 * stride) + i / 2 * 4];
            }
            left
        } else {
            let (row, i) = (self.lane % 8, self.lane / 8);
            load::<E>(
                tile,
                at + (row + i % 2 * 8) * stride + i / 2 * 4,
                4usize,
                false,
            )
        }
    }

    /// Rows `16 step ..` of the 16 columns at `at`, transposed, as left operand.
    pub(crate) fn left_transposed<E: Float>(
        &self,
        tile: &SharedMemory<Pair<E>>,
        at: usize,
        #[comptime] stride: usize,
        step: usize,
    ) -> Array<Pair<E>> {
        let at = at + 16 * step * stride;
        if comptime!(self.emulated) {
            let at = at + self.group / 2 + 2 * self.member * stride;
            let mut left = Array::<Pair<E>>::new(4usize);
            for i in 0..4usize {
                left[i] = self.column(tile, at + i % 2 * 4 + i / 2 * (8 * stride), stride);
            }
            left
        } else {
            let (row, i) = (self.lane % 8, self.lane / 8);
            load::<E>(
                tile,
                at + (row + i / 2 * 8) * stride + i % 2 * 4,
                4usize,
                true,
            )
        }
    }

    /// Columns `16 step ..` of the 8 rows at `at`, transposed, as right operand.
    pub(crate) fn right_transposed<E: Float>(
        &self,
        tile: &SharedMemory<Pair<E>>,
        at: usize,
        #[comptime] stride: usize,
        step: usize,
    ) -> Array<Pair<E>> {
        let at = at + 8 * step;
        if comptime!(self.emulated) {
            let at = at + self.group * stride + self.member;
            let mut right = Array::<Pair<E>>::new(2usize);
            for i in 0..2usize {
                right[i] = tile[at + 4 * i];
            }
            right
        } else {
            let (row, i) = (self.lane % 8, self.lane / 8 % 2);
            load::<E>(tile, at + row * stride + i * 4, 2usize, false)
        }
    }

    /// Rows `16 step ..` of the 8 columns at `at` as right operand.
    pub(crate) fn right<E: Float>(
        &self,
        tile: &SharedMemory<Pair<E>>,
        at: usize,
        #[comptime] stride: usize,
        step: usize,
    ) -> Array<Pair<E>> {
        let at = at + 16 * step * stride;
        if comptime!(self.emulated) {
            let at = at + self.group / 2 + 2 * self.member * stride;
            let mut right = Array::<Pair<E>>::new(2usize);
            for i in 0..2usize {
                right[i] = self.column(tile, at + i * (8 * stride), stride);
            }
            right
        } else {
            load::<E>(tile, at + self.lane % 16 * stride, 2usize, true)
        }
    }

    /// Of the pair at `at` and the one below it, the two values in this lane's column.
    fn column<E: Float>(
        &self,
        tile: &SharedMemory<Pair<E>>,
        at: usize,
        #[comptime] stride: usize,
    ) -> Pair<E> {
        let upper = tile[at];
        let lower = tile[at + stride];
        let odd = self.group % 2 == 1;
        let mut column = Pair::<E>::empty();
        column[0] = select(odd, upper[1], upper[0]);
        column[1] = select(odd, lower[1], lower[0]);
        column
    }

    /// Writes tile `tile` of `sums` to the 16 rows at `at`.
    pub(crate) fn store<E: Float>(
        &self,
        sums: &Array<Pair<f32>>,
        tile: usize,
        to: &mut SharedMemory<Pair<E>>,
        at: usize,
        #[comptime] stride: usize,
    ) {
        let at = at + self.group * stride + self.member;
        #[unroll(!self.emulated)]
        for i in 0..2usize {
            to[at + i * (8 * stride)] = Pair::<E>::cast_from(sums[2 * tile + i]);
        }
    }
}

/// Room for a tile that operands are taken from, in pairs.
#[cube]
pub(crate) fn room<E: Float>(#[comptime] pairs: usize) -> SharedMemory<Pair<E>> {
    SharedMemory::<Pair<E>>::new_aligned(pairs, ROW_BYTES)
}

/// Bytes of a row of the matrices that [`load`] takes, which begin at multiples of as many.
const ROW_BYTES: usize = 16;

/// 8 x 8 matrices, or their transposes, from shared memory to where products want them (`ldmatrix`): pair `i` of a lane is its part of matrix `i`. Lane
/// `8 i + row` says `at` which pair a row of matrix `i` begins; lanes beyond the last matrix are not asked, but say something valid.
#[cube]
fn load<E: Float>(
    tile: &SharedMemory<Pair<E>>,
    at: usize,
    #[comptime] matrices: usize,
    #[comptime] transposed: bool,
) -> Array<Pair<E>> {
    let definition = cmma::MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let row = tile.slice(at, at + comptime!(ROW_BYTES / 4));
    definition.load_matrix::<Pair<E>, Const<2>>(&row, cmma::MatrixIdent::A, matrices, transposed)
}

/// Tiles `2 step` and `2 step + 1` of sums as left operand.
#[cube]
pub(crate) fn sums_as_left<E: Float>(sums: &Array<Pair<f32>>, step: usize) -> Array<Pair<E>> {
    let mut left = Array::<Pair<E>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        left[i] = Pair::<E>::cast_from(sums[4 * step + i]);
    }
    left
}

/// Rows `8 half ..` of tiles `2 step` and `2 step + 1` of sums, transposed, as right operand.
#[cube]
pub(crate) fn sums_as_right_transposed<E: Float>(
    sums: &Array<Pair<f32>>,
    step: usize,
    half: usize,
) -> Array<Pair<E>> {
    let mut right = Array::<Pair<E>>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        right[i] = Pair::<E>::cast_from(sums[4 * step + 2 * i + half]);
    }
    right
}

/// Sums of `tiles` tiles, all zero.
#[cube]
pub(crate) fn no_sums(#[comptime] tiles: usize) -> Array<Pair<f32>> {
    let mut sums = Array::<Pair<f32>>::new(comptime!(2 * tiles));
    #[unroll]
    for i in 0..comptime!(2 * tiles) {
        sums[i] = Pair::<f32>::new(0.0);
    }
    sums
}

/// Rows `8 half ..` of a left operand, transposed, as right operand.
#[cube]
pub(crate) fn left_as_right_transposed<E: Float>(
    left: &Array<Pair<E>>,
    half: usize,
) -> Array<Pair<E>> {
    let mut right = Array::<Pair<E>>::new(2usize);
    right[0] = left[half];
    right[1] = left[half + 2];
    right
}
