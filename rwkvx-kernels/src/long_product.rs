//! Products of matrices that run over many numbers for few results, such as gradients of weights, which run over all tokens.
//!
//! A tile of results is the work of one multiprocessor, so a product of few tiles leaves the others idle, however long it is. Cut into parts along what it runs over, it is
//! as many products at once, whose results are added up.

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::KernelBackend;

/// Rows and columns of a tile, as matrix products on GPUs have them.
const TILE: usize = 128;

/// Shorter parts than this take no longer than they take to begin and to end.
const SHORTEST_PART: usize = 1024;

/// `left` `[rows, inner]` times `right` `[inner, columns]`, as `[rows, columns]`.
///
/// On devices that it would leave idle it is cut along `inner`. Then its parts are rounded to the type of the operands, and their sum, in f32, once more.
pub fn long_product<B: KernelBackend>(left: Tensor<B, 2>, right: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([rows, inner], [_, columns]) = (left.dims(), right.dims());
    let parts = parts([rows, columns], inner, B::multiprocessors(&left.device()));
    in_parts(left, right, parts)
}

/// `left` `[inner, rows]`, transposed, times `right` `[inner, columns]`, as `[rows, columns]`: as [`long_product`].
pub fn long_product_transposed<B: KernelBackend>(
    left: Tensor<B, 2>,
    right: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([inner, rows], [_, columns]) = (left.dims(), right.dims());
    let parts = parts([rows, columns], inner, B::multiprocessors(&left.device()));
    in_parts_transposed(left, right, parts)
}

/// How many parts give each multiprocessor two tiles, if they are long enough and all alike: a power of two.
fn parts(results: [usize; 2], inner: usize, multiprocessors: usize) -> usize {
    let tiles: usize = results.iter().map(|size| size.div_ceil(TILE)).product();
    let wanted = (2 * multiprocessors).div_ceil(tiles.max(1));
    let most = wanted.next_power_of_two().min(inner / SHORTEST_PART).max(1);
    1 << most.ilog2().min(inner.trailing_zeros())
}

fn in_parts<B: Backend>(left: Tensor<B, 2>, right: Tensor<B, 2>, parts: usize) -> Tensor<B, 2> {
    if parts == 1 {
        return left.matmul(right);
    }
    let [rows, inner] = left.dims();
    let left = left.reshape([rows, parts, inner / parts]).swap_dims(0, 1);
    add_up(left, right)
}

fn in_parts_transposed<B: Backend>(
    left: Tensor<B, 2>,
    right: Tensor<B, 2>,
    parts: usize,
) -> Tensor<B, 2> {
    if parts == 1 {
        return left.transpose().matmul(right);
    }
    let [inner, rows] = left.dims();
    let left = left.reshape([parts, inner / parts, rows]).transpose();
    add_up(left, right)
}

/// The sum of the products of `left` `[parts, rows, inner/parts]` with the parts of `right` `[inner, columns]`.
fn add_up<B: Backend>(left: Tensor<B, 3>, right: Tensor<B, 2>) -> Tensor<B, 2> {
    let [parts, _, length] = left.dims();
    let [_, columns] = right.dims();
    let products = left.matmul(right.reshape([parts, length, columns])); // [parts, rows, columns]
    let dtype = products.dtype();
    let sum = products.cast(DType::F32).sum_dim(0);
    sum.squeeze_dim(0).cast(dtype)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn parts_change_nothing_but_rounding() {
        let device = Default::default();
        let random =
            |dims: [usize; 2]| Tensor::<Flex, 2>::random(dims, Distribution::Default, &device);
        let (left, right) = (random([5, 48]), random([48, 7]));
        let whole = left.clone().matmul(right.clone()).into_data();
        for parts in [1, 2, 4, 16] {
            let tolerance = Tolerance::<f32>::relative(1e-5);
            in_parts(left.clone(), right.clone(), parts)
                .into_data()
                .assert_approx_eq(&whole, tolerance);
            in_parts_transposed(left.clone().transpose(), right.clone(), parts)
                .into_data()
                .assert_approx_eq(&whole, tolerance);
        }
    }

    #[test]
    fn parts_are_even_long_enough_and_fill_the_device() {
        let of = |results, inner| {
            let tiles = |[rows, columns]: [usize; 2]| rows.div_ceil(TILE) * columns.div_ceil(TILE);
            let parts = super::parts(results, inner, 132);
            assert_eq!(inner % parts, 0);
            (parts, parts * tiles(results))
        };
        assert_eq!(of([768, 768], 65536), (8, 288));
        assert_eq!(of([768, 64], 65536), (64, 384));
        assert_eq!(of([768, 64], 4096), (4, 24));
        assert_eq!(of([65536, 768], 512), (1, 3072));
        assert_eq!(of([768, 768], 65536 - 7), (1, 36));
        assert_eq!(parts([768, 768], 65536, 0), 1);
    }
}
