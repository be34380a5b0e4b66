//! Products of rows with a matrix of weights, which may be stored in fewer bits than the rows.
//!
//! Decoding reads every weight once per token, so its speed is that of memory, and halving the weights' bytes doubles it.

pub(crate) mod autodiff;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
pub(crate) mod reference;

use burn::tensor::Tensor;
use burn::tensor::quantization::{BlockSize, QuantLevel, QuantScheme, QuantStore, QuantValue};

use crate::KernelBackend;

/// Which axis of a matrix of weights is which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]`, as PyTorch stores its linear layers.
    OutIn,
    /// `[in, out]`, as RWKV stores its low-rank matrices.
    InOut,
}

impl WeightLayout {
    /// That of the transposed matrix.
    fn transposed(self) -> Self {
        match self {
            Self::OutIn => Self::InOut,
            Self::InOut => Self::OutIn,
        }
    }

    /// Inputs and outputs of a matrix of these sizes.
    fn in_out(self, [first, second]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::OutIn => [second, first],
            Self::InOut => [first, second],
        }
    }
}

/// `x` `[rows, in]` times `weight`, as `[rows, out]` in the type of `x`.
///
/// The weights are f32, bf16, f16, or quantised by [`int8_scheme`]. CPUs widen them to f32 in registers and compute in f32; other backends
/// compute in the type of half-precision weights and widen quantised ones first. Differentiable where the weights are not quantised.
///
/// # Panics
/// If the inputs of `weight` are not the columns of `x`.
pub fn project<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    layout: WeightLayout,
) -> Tensor<B, 2> {
    let [_, columns] = x.dims();
    let [inputs, _] = layout.in_out(weight.dims());
    assert!(
        inputs == columns,
        "project: `weight` has {inputs} inputs, `x` {columns} columns"
    );
    B::project(x, weight, layout)
}

/// How many inputs share a scale in weights of 8 bits: 128, or 64 or 32 where that does not divide `inputs`. `None` where none does.
pub fn int8_group(inputs: usize) -> Option<usize> {
    [128, 64, 32]
        .into_iter()
        .find(|&group| inputs.is_multiple_of(group))
}

/// How weights `[out, in]` are quantised for [`project`]: 8 bits, symmetric, one f32 scale per [`int8_group`] of inputs.
///
/// A weight is off by at most half a step, 1/254 of the largest of its group; normally distributed weights by 0.6% (root mean square).
pub fn int8_scheme(inputs: usize) -> Option<QuantScheme> {
    let group = int8_group(inputs)?;
    Some(
        QuantScheme::default()
            .with_value(QuantValue::Q8S)
            .with_level(QuantLevel::Block(BlockSize::new([group as u8])))
            .with_store(QuantStore::Native),
    )
}
