//! Products of rows with a matrix of weights, which may be stored in fewer bits than the rows.
//!
//! Decoding reads every weight once per token, so its speed is that of memory, and halving the weights' bytes doubles it.

pub(crate) mod autodiff;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod reference;

use burn::tensor::quantization::{BlockSize, QuantLevel, QuantScheme, QuantStore, QuantValue};
use burn::tensor::{Tensor, backend::Backend};

use crate::{KernelBackend, Pointwise, shapes};

/// Which axis of a matrix of weights is which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
/// The weights are f32, bf16, f16, or quantised by [`int8_scheme`]. CPUs widen them to f32 in registers and compute in f32. GPUs do so for up to 32
/// rows; for more they compute in the type of half-precision weights. They widen quantised weights first. Differentiable where the weights are not
/// quantised.
///
/// # Panics
/// If the inputs of `weight` are not the columns of `x`.
pub fn project<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    layout: WeightLayout,
) -> Tensor<B, 2> {
    check("project", &x, &weight, layout);
    B::project(x, weight, layout)
}

/// A product of rows with weights, and what is done with each of its elements.
#[derive(Debug, Clone)]
pub struct Product<B: Backend> {
    /// `[rows, in]`
    pub x: Tensor<B, 2>,
    /// As in [`project`].
    pub weight: Tensor<B, 2>,
    /// Of `weight`.
    pub layout: WeightLayout,
    /// What is applied to the product.
    pub then: Option<Pointwise>,
    /// What is added last, `[rows, out]`.
    pub plus: Option<Tensor<B, 2>>,
}

impl<B: Backend> Product<B> {
    /// The product alone.
    pub fn new(x: Tensor<B, 2>, weight: Tensor<B, 2>, layout: WeightLayout) -> Self {
        Self {
            x,
            weight,
            layout,
            then: None,
            plus: None,
        }
    }

    /// The same with a function applied to it.
    pub fn then(self, function: Pointwise) -> Self {
        Self {
            then: Some(function),
            ..self
        }
    }

    /// The same with rows added to it, `[rows, out]`.
    pub fn plus(self, addend: Tensor<B, 2>) -> Self {
        Self {
            plus: Some(addend),
            ..self
        }
    }
}

impl<B: KernelBackend> Product<B> {
    /// Makes it, as [`project_all`] does.
    pub fn make(self) -> Tensor<B, 2> {
        project_all(vec![self]).remove(0)
    }
}

/// Products that do not depend on each other, each `[rows, out]` in the type of its `x`; as [`project`] makes them.
///
/// A GPU makes them all at once where `rows` is small: reading weights then takes less time than starting a kernel.
///
/// # Panics
/// If the inputs of a weight are not the columns of its `x`, or an addend is not `[rows, out]`.
pub fn project_all<B: KernelBackend>(products: Vec<Product<B>>) -> Vec<Tensor<B, 2>> {
    for product in &products {
        let dims = check("project_all", &product.x, &product.weight, product.layout);
        if let Some(plus) = &product.plus {
            shapes::expect("project_all", "plus", "[rows, out]", plus, dims);
        }
    }
    B::project_all(products)
}

/// Panics if `x` and `weight` do not fit together; gives the shape of their product.
fn check<B: Backend>(
    operator: &str,
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    layout: WeightLayout,
) -> [usize; 2] {
    let [rows, columns] = x.dims();
    let [inputs, outputs] = layout.in_out(weight.dims());
    assert!(
        inputs == columns,
        "{operator}: `weight` has {inputs} inputs, `x` {columns} columns"
    );
    [rows, outputs]
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
