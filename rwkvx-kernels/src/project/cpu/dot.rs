//! Scalar products of rows with stored weights, which are widened to f32 on the way.
//!
//! Arrays of [`LANES`] elements are vectors to the compiler, whatever the instruction set of the function that was dispatched to.

use std::array;

use burn::tensor::{bf16, f16};
use pulp::Simd;

/// Elements that go together: a vector of the widest instruction set.
const LANES: usize = 16;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes between what is multiplied and what is asked for where several rows of weights go together: the next rows follow these in memory, but
/// rows of a few cache lines end before the processor has found out by itself that they are read in order.
const AHEAD: usize = 8192;

/// The same where rows go one after the other.
const AHEAD_IN_ORDER: usize = 2048;

/// Vectors of partial sums of a single scalar product, so that no sum waits for the one before.
const PARTS: usize = 4;

/// Partial sums of the products of `R` rows with `N` rows of weights.
pub(super) type Sums<const R: usize, const N: usize> = [[[f32; LANES]; N]; R];

/// Weights in memory, row-major.
pub(super) trait Weights: Copy + Sync {
    /// Widens the elements from `at` on.
    fn widen(self, at: usize, wide: &mut [f32]);

    /// Number of elements.
    fn len(self) -> usize;

    /// An element, widened.
    ///
    /// # Safety
    /// `at` is below [`len`](Self::len).
    unsafe fn wide(self, at: usize) -> f32;

    /// The scalar product of `x` with the weights that start at `start`. Row by row memory is read in its order, which is as fast as it comes.
    fn dot<S: Simd>(self, x: &[f32], start: usize) -> f32;

    /// Adds to `sums` the products of `x` with the weights that start at `starts`.
    fn add_products<S: Simd, const R: usize, const N: usize>(
        self,
        x: [&[f32]; R],
        starts: [usize; N],
        sums: &mut Sums<R, N>,
    );
}

/// A number format that is narrower than f32, or f32.
pub(super) trait Narrow: Copy + Sync {
    fn widen(self) -> f32;
}

impl Narrow for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Narrow for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Narrow for f16 {
    /// Exact for all finite numbers: the exponent is moved to its place and then corrected by a power of two.
    #[inline(always)]
    fn widen(self) -> f32 {
        const EXPONENTS_APART: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * EXPONENTS_APART;
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }
}

impl Narrow for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

impl<E: Narrow> Weights for &[E] {
    #[inline(always)]
    fn widen(self, at: usize, wide: &mut [f32]) {
        for (wide, narrow) in wide.iter_mut().zip(&self[at..]) {
            *wide = narrow.widen();
        }
    }

    #[inline(always)]
    fn len(self) -> usize {
        <[E]>::len(self)
    }

    #[inline(always)]
    unsafe fn wide(self, at: usize) -> f32 {
        // SAFETY: by the caller.
        unsafe { self.get_unchecked(at) }.widen()
    }

    #[inline(always)]
    fn dot<S: Simd>(self, x: &[f32], start: usize) -> f32 {
        total(lanes::<S, E>(&self[start..][..x.len()], x))
    }

    #[inline(always)]
    fn add_products<S: Simd, const R: usize, const N: usize>(
        self,
        x: [&[f32]; R],
        starts: [usize; N],
        sums: &mut Sums<R, N>,
    ) {
        let inputs = x[0].len();
        let x = x.map(|row| &row[..inputs]);
        let weights = starts.map(|start| &self[start..][..inputs]);
        let mut held = *sums;
        let per_line = LINE / size_of::<E>();
        let whole = inputs - inputs % LANES;
        for line in (0..whole).step_by(per_line) {
            for weights in weights {
                prefetch(weights.as_ptr().wrapping_add(line).wrapping_byte_add(AHEAD));
            }
            for at in (line..whole.min(line + per_line)).step_by(LANES) {
                // SAFETY: `at + LANES` is at most `inputs`, the length of all rows.
                let x: [[f32; LANES]; R] = array::from_fn(|r| unsafe {
                    x[r].as_ptr().add(at).cast::<[f32; LANES]>().read()
                });
                for n in 0..N {
                    // SAFETY: as above.
                    let narrow = unsafe { weights[n].as_ptr().add(at).cast::<[E; LANES]>().read() };
                    let wide: [f32; LANES] = array::from_fn(|lane| narrow[lane].widen());
                    for r in 0..R {
                        for lane in 0..LANES {
                            held[r][n][lane] =
                                multiply_add::<S>(wide[lane], x[r][lane], held[r][n][lane]);
                        }
                    }
                }
            }
        }
        for at in whole..inputs {
            for n in 0..N {
                for r in 0..R {
                    held[r][n][0] += weights[n][at].widen() * x[r][at];
                }
            }
        }
        *sums = held;
    }
}

/// Weights of 8 bits with a scale per group of consecutive elements.
#[derive(Clone, Copy)]
pub(crate) struct Int8<'a> {
    pub(crate) values: &'a [i8],
    pub(crate) scales: &'a [f32],
    /// Elements per scale; rows are whole groups.
    pub(crate) group: usize,
}

impl Weights for Int8<'_> {
    #[inline(always)]
    fn widen(self, at: usize, wide: &mut [f32]) {
        self.values.widen(at, wide);
        for (wide, scale) in wide
            .chunks_mut(self.group)
            .zip(&self.scales[at / self.group..])
        {
            wide.iter_mut().for_each(|wide| *wide *= scale);
        }
    }

    #[inline(always)]
    fn len(self) -> usize {
        self.values.len()
    }

    #[inline(always)]
    unsafe fn wide(self, at: usize) -> f32 {
        // SAFETY: by the caller.
        unsafe { self.values.wide(at) * self.scales[at / self.group] }
    }

    #[inline(always)]
    fn dot<S: Simd>(self, x: &[f32], start: usize) -> f32 {
        let mut sums = [0.0; LANES];
        let values = self.values[start..][..x.len()].chunks_exact(self.group);
        let scales = &self.scales[start / self.group..];
        for ((values, x), &scale) in values.zip(x.chunks_exact(self.group)).zip(scales) {
            let in_group = lanes::<S, i8>(values, x);
            for lane in 0..LANES {
                sums[lane] = multiply_add::<S>(scale, in_group[lane], sums[lane]);
            }
        }
        total(sums)
    }

    #[inline(always)]
    fn add_products<S: Simd, const R: usize, const N: usize>(
        self,
        x: [&[f32]; R],
        starts: [usize; N],
        sums: &mut Sums<R, N>,
    ) {
        let group = self.group;
        for at in (0..x[0].len()).step_by(group) {
            let mut in_group = [[[0.0; LANES]; N]; R];
            self.values.add_products::<S, R, N>(
                x.map(|row| &row[at..at + group]),
                starts.map(|start| start + at),
                &mut in_group,
            );
            for n in 0..N {
                let scale = self.scales[(starts[n] + at) / group];
                for r in 0..R {
                    for lane in 0..LANES {
                        sums[r][n][lane] =
                            multiply_add::<S>(scale, in_group[r][n][lane], sums[r][n][lane]);
                    }
                }
            }
        }
    }
}

/// Partial sums of the products of two rows of equal length.
#[inline(always)]
fn lanes<S: Simd, E: Narrow>(weights: &[E], x: &[f32]) -> [f32; LANES] {
    let mut sums = [[0.0; LANES]; PARTS];
    let (weights, last_weights) = weights.as_chunks::<LANES>();
    let (x, last_x) = x.as_chunks::<LANES>();
    let (weights, few_weights) = weights.as_chunks::<PARTS>();
    let (x, few_x) = x.as_chunks::<PARTS>();
    for (weights, x) in weights.iter().zip(x) {
        for line in (0..size_of_val(weights)).step_by(LINE) {
            prefetch(weights.as_ptr().wrapping_byte_add(AHEAD_IN_ORDER + line));
        }
        for part in 0..PARTS {
            add_lanes::<S, E>(&mut sums[part], &weights[part], &x[part]);
        }
    }
    let [mut sum, others @ ..] = sums;
    for other in others {
        for lane in 0..LANES {
            sum[lane] += other[lane];
        }
    }
    for (weights, x) in few_weights.iter().zip(few_x) {
        add_lanes::<S, E>(&mut sum, weights, x);
    }
    for (weight, x) in last_weights.iter().zip(last_x) {
        sum[0] += weight.widen() * x;
    }
    sum
}

#[inline(always)]
fn add_lanes<S: Simd, E: Narrow>(sums: &mut [f32; LANES], weights: &[E; LANES], x: &[f32; LANES]) {
    let wide: [f32; LANES] = array::from_fn(|lane| weights[lane].widen());
    for lane in 0..LANES {
        sums[lane] = multiply_add::<S>(wide[lane], x[lane], sums[lane]);
    }
}

/// Asks for what lies at `address`, which may be anywhere.
#[inline(always)]
fn prefetch<E>(address: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of an invalid address does nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// `a b + c`, in one instruction where the instruction set has it; in the others it would be a call.
#[inline(always)]
pub(super) fn multiply_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::F32_LANES == 1 {
        a * b + c
    } else {
        a.mul_add(b, c)
    }
}

/// The sum of all lanes.
#[inline(always)]
pub(super) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
