//! Vector helpers over any instruction set that `pulp` picks at run time.
//!
//! Everything is `inline(always)`: the instruction set is that of the function that was dispatched to, not of these.

use pulp::Simd;

/// Vectors of a row; rows are whole vectors, which callers see to by padding.
#[inline(always)]
pub(crate) fn vectors<S: Simd>(_: S, row: &[f32]) -> &[S::f32s] {
    S::as_simd_f32s(row).0
}

/// As [`vectors`], to write.
#[inline(always)]
pub(crate) fn vectors_mut<S: Simd>(_: S, row: &mut [f32]) -> &mut [S::f32s] {
    S::as_mut_simd_f32s(row).0
}

/// The scalar product of two rows of equal length.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    let mut sum = simd.splat_f32s(0.0);
    for (&x, &y) in vectors(simd, x).iter().zip(vectors(simd, y)) {
        sum = simd.mul_add_e_f32s(x, y, sum);
    }
    simd.reduce_sum_f32s(sum)
}

/// Replaces each element by its `exp`; relative error below 2e-7.
#[inline(always)]
pub(crate) fn exp<S: Simd>(_: S, values: &mut [f32]) {
    for x in values {
        *x = exp_one(*x);
    }
}

/// Plain arithmetic that the compiler turns into vectors: `x = n ln 2 + r`, a polynomial in `r`, and `n` added to the exponent.
/// Below -87.3, where the result would be less than 1.2e-38, it is 0; from 88 on it is `exp(88)`.
#[inline(always)]
pub(crate) fn exp_one(x: f32) -> f32 {
    /// Added to a small number it rounds it to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const LEAST: f32 = -87.3;
    let y = x.clamp(LEAST, 88.0);
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = y - n * LN_2_HIGH - n * LN_2_LOW;
    // Cephes' minimax polynomial for exp on [-ln 2 / 2, ln 2 / 2].
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let mantissa = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < LEAST { 0.0 } else { mantissa * scale }
}

/// `1 / (1 + exp(-x))`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_one(-x))
}

/// `tanh x`, with a relative error below 3e-7 also near zero, where `exp` would cancel.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let far = 1.0 - 2.0 / (exp_one(2.0 * x) + 1.0);
    // Cephes' polynomial for |x| < 0.625.
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8] {
        p = p * z + c;
    }
    let near = x + x * z * p;
    if x.abs() < 0.625 { near } else { far }
}

/// Matrix `A` of [`multiply_add`], element `(row, depth)` at `row * row_stride + depth * depth_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) depth_stride: usize,
}

/// `C += A B` for `C` of `rows` times two vectors, `B` of `depth` times two vectors.
///
/// Rows of `C` are `c_stride` elements apart, those of `B` `b_stride`, in slices that start at the first element. Each element of `C` is a sum in the
/// order of depth whatever the sizes, so results do not depend on how a larger product was cut up.
#[inline(always)]
pub(crate) fn multiply_add<S: Simd>(
    simd: S,
    (c, c_stride): (&mut [f32], usize),
    a: Strided<'_>,
    (b, b_stride): (&[f32], usize),
    rows: usize,
    depth: usize,
) {
    let mut row = 0;
    while row + 4 <= rows {
        multiply_add_rows::<S, 4>(simd, (c, c_stride), a, (b, b_stride), row, depth);
        row += 4;
    }
    while row < rows {
        multiply_add_rows::<S, 1>(simd, (c, c_stride), a, (b, b_stride), row, depth);
        row += 1;
    }
}

#[inline(always)]
fn multiply_add_rows<S: Simd, const R: usize>(
    simd: S,
    (c, c_stride): (&mut [f32], usize),
    a: Strided<'_>,
    (b, b_stride): (&[f32], usize),
    row: usize,
    depth: usize,
) {
    if depth == 0 {
        return;
    }
    let width = 2 * S::F32_LANES;
    let Strided {
        values: a,
        row_stride,
        depth_stride,
    } = a;
    assert!(a.len() > (row + R - 1) * row_stride + (depth - 1) * depth_stride);
    assert!(b.len() >= (depth - 1) * b_stride + width);
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    for (i, sum) in sums.iter_mut().enumerate() {
        sum.copy_from_slice(&vectors(simd, &c[(row + i) * c_stride..][..width])[..2]);
    }
    for k in 0..depth {
        // SAFETY: the last row of B ends within `b` by the second assertion.
        let b = unsafe { b.get_unchecked(k * b_stride..k * b_stride + width) };
        let b = vectors(simd, b);
        let (b0, b1) = (b[0], b[1]);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the largest index lies in `a` by the first assertion.
            let a = unsafe { *a.get_unchecked((row + i) * row_stride + k * depth_stride) };
            let a = simd.splat_f32s(a);
            sum[0] = simd.mul_add_e_f32s(a, b0, sum[0]);
            sum[1] = simd.mul_add_e_f32s(a, b1, sum[1]);
        }
    }
    for (i, sum) in sums.iter().enumerate() {
        vectors_mut(simd, &mut c[(row + i) * c_stride..][..width])[..2].copy_from_slice(sum);
    }
}
