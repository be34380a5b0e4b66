//! Operators that treat every row alike.

use std::array;
use std::marker::PhantomData;
use std::ops::Range;

use burn::tensor::Tensor;

use super::blocks::{self, Partials, Pass};
use crate::cpu::{Disjoint, HostMemory};

/// From `I` sequences and `P` parameters to `O` sequences and the gradients of `G` parameters, with `S` rows of scratch.
pub(crate) trait RowPass<
    const I: usize,
    const P: usize,
    const O: usize,
    const G: usize,
    const S: usize,
>
{
    /// Multiply-adds per element, about.
    const COST: usize;

    /// Works on a row, of which all slices are; heads have `size` channels. Adds to the gradients.
    ///
    /// To be `inline(always)`, as all that it calls: the instruction set is the caller's.
    fn row(
        size: usize,
        inputs: [&[f32]; I],
        parameters: [&[f32]; P],
        outputs: [&mut [f32]; O],
        gradients: [&mut [f32]; G],
        scratch: [&mut [f32]; S],
    );
}

/// Runs a pass over sequences `[rows, channels]` with heads of `size` channels.
///
/// The results have the float types of the first input and the first parameter.
pub(crate) fn run<
    R,
    B,
    const I: usize,
    const P: usize,
    const O: usize,
    const G: usize,
    const S: usize,
>(
    _: R,
    size: usize,
    inputs: [Tensor<B, 2>; I],
    parameters: [Tensor<B, 1>; P],
) -> ([Tensor<B, 2>; O], [Tensor<B, 1>; G])
where
    R: RowPass<I, P, O, G, S>,
    B: HostMemory,
{
    let dims @ [rows, channels] = inputs[0].dims();
    let (dtype, parameter_dtype) = (inputs[0].dtype(), parameters[0].dtype());
    let inputs = inputs.map(B::values);
    let parameters = parameters.map(B::values);
    let mut outputs = [(); O].map(|()| vec![0.0; rows * channels]);
    let mut partials = Partials::new(dims, G);
    let pass = Rows::<R, I, P, O, G, S> {
        row: PhantomData,
        channels,
        size,
        inputs: inputs.each_ref().map(|values| &**values),
        parameters: parameters.each_ref().map(|values| &**values),
        outputs: outputs.each_mut().map(|values| Disjoint::new(values)),
        partials: partials.target(),
    };
    blocks::run(&pass, rows, rows * channels * R::COST);
    let mut gradients = partials.sums(parameter_dtype).into_iter();
    (
        outputs.map(|values| B::tensor(values, dims).cast(dtype)),
        array::from_fn(|_| gradients.next().expect("one per parameter")),
    )
}

struct Rows<'a, R, const I: usize, const P: usize, const O: usize, const G: usize, const S: usize> {
    row: PhantomData<fn() -> R>,
    channels: usize,
    size: usize,
    inputs: [&'a [f32]; I],
    parameters: [&'a [f32]; P],
    outputs: [Disjoint<'a>; O],
    partials: Disjoint<'a>,
}

impl<R, const I: usize, const P: usize, const O: usize, const G: usize, const S: usize> Pass
    for Rows<'_, R, I, P, O, G, S>
where
    R: RowPass<I, P, O, G, S>,
{
    #[inline(always)]
    fn block(&self, block: usize, rows: Range<usize>) {
        let Self { channels, size, .. } = *self;
        let mut scratch = [(); S].map(|()| vec![0.0; channels]);
        for row in rows {
            let at = row * channels;
            R::row(
                size,
                self.inputs.map(|values| &values[at..][..channels]),
                self.parameters.map(|values| &values[..channels]),
                // SAFETY: each block has its own rows.
                self.outputs
                    .each_ref()
                    .map(|values| unsafe { values.part(at, channels) }),
                array::from_fn(|i| {
                    let at = (block * G + i) * channels;
                    // SAFETY: each block has its own partial sums.
                    unsafe { self.partials.part(at, channels) }
                }),
                scratch.each_mut().map(|values| &mut values[..channels]),
            );
        }
    }
}
