//! Shape contracts: violations are programming errors and panic as Burn's own operators do.

use burn::tensor::{BasicOps, Tensor, backend::Backend};

/// Panics unless `tensor` has the expected sizes.
pub(crate) fn expect<B: Backend, const D: usize, K: BasicOps<B>>(
    operator: &str,
    name: &str,
    axes: &str,
    tensor: &Tensor<B, D, K>,
    expected: [usize; D],
) {
    let found = tensor.dims();
    assert!(
        found == expected,
        "{operator}: `{name}` must be {axes} = {expected:?}, found {found:?}"
    );
}
