//! What a single token of each text goes through at once: against the definitions, whose parts have tests of their own.

use burn::tensor::{DType, Tensor};
use rwkvx_kernels::{
    HeadInputs, KernelBackend, KeyInputs, ShiftInputs, ValueInputs, Values, mix_heads,
    norm_and_shift, reference,
};

use crate::support::{Array, TOLERANCE, assert_close};

/// Texts, heads and channels of a head.
const SIZES: [[usize; 3]; 5] = [[1, 2, 64], [3, 1, 128], [2, 3, 32], [1, 1, 12], [2, 2, 7]];

/// The next tensor of seeded normal numbers around `mean`.
struct Numbers(u64);

impl Numbers {
    fn tensor<B: KernelBackend, const D: usize>(
        &mut self,
        dims: [usize; D],
        mean: f64,
        dtype: DType,
    ) -> Tensor<B, D> {
        self.0 += 1;
        let numbers = Array::normal([1, 1, 1, dims.iter().product()], self.0);
        let numbers = numbers.map(|x| mean + 0.5 * x);
        numbers.tensor::<B>().reshape(dims).cast(dtype)
    }
}

#[track_caller]
fn close<B: KernelBackend, const D: usize>(
    what: &str,
    found: Tensor<B, D>,
    expected: Tensor<B, D>,
    tolerance: f64,
) {
    assert_eq!(found.dtype(), expected.dtype(), "{what}");
    let numbers = |tensor: Tensor<B, D>| Array::of(tensor.cast(DType::F32).reshape([1, 1, 1, -1]));
    assert_close(what, &numbers(found), &numbers(expected), tolerance);
}

fn heads_in<B: KernelBackend>(dtype: DType, tolerance: f64) {
    for [batch, heads, size] in SIZES {
        for mixes in [false, true] {
            let mut numbers = Numbers(0);
            let (rows, channels) = ([batch, heads * size], [heads * size]);
            let mut sequence = || numbers.tensor(rows, 0.0, dtype);
            let [receptance, decay, rate, key, value, first, amount, gate] =
                std::array::from_fn(|_| sequence());
            let mut vector = || numbers.tensor(channels, 0.5, DType::F32);
            let [
                decay_bias,
                rate_bias,
                removal_scale,
                rate_scale,
                amount_bias,
                weight,
                bias,
            ] = std::array::from_fn(|_| vector());
            let values = match mixes {
                false => Values::Projected(value),
                true => Values::Mixed(ValueInputs {
                    value,
                    first,
                    amount,
                    amount_bias,
                }),
            };
            let inputs = HeadInputs::<B> {
                receptance,
                keys: KeyInputs {
                    decay,
                    rate,
                    key,
                    decay_bias,
                    rate_bias,
                    removal_scale,
                    rate_scale,
                    head_size: size,
                },
                values,
                gate,
                weight,
                bias,
                bonus: numbers.tensor([heads, size], 0.5, DType::F32),
                state: Some(numbers.tensor([batch, heads, size, size], 0.0, DType::F32)),
                batch,
            };
            let what = format!("{batch} texts, {heads} heads of {size}, mixed: {mixes}");
            let expected = reference::mix_heads(inputs.clone());
            let found = mix_heads(inputs.clone());
            close(&what, found.gated, expected.gated, tolerance);
            close(&what, found.state, expected.state, tolerance);
            let without = HeadInputs {
                state: None,
                ..inputs
            };
            let expected = reference::mix_heads(without.clone());
            close(&what, mix_heads(without).gated, expected.gated, tolerance);
        }
    }
}

fn shifts_in<B: KernelBackend>(dtype: DType, tolerance: f64) {
    for [batch, heads, size] in SIZES {
        let channels = heads * size;
        let mut numbers = Numbers(0);
        let mut vector = || numbers.tensor([channels], 0.5, DType::F32);
        let [weight, bias] = [vector(), vector()];
        let amounts: [_; 6] = std::array::from_fn(|_| vector());
        let inputs = ShiftInputs::<B, Vec<_>> {
            x: numbers.tensor([batch, 1, channels], 1.0, dtype),
            weight,
            bias,
            carry: Some(numbers.tensor([batch, channels], 0.0, dtype)),
            amounts: amounts.clone().into(),
        };
        let expected = reference::norm_and_shift(inputs.clone());
        let found = norm_and_shift(ShiftInputs {
            x: inputs.x,
            weight: inputs.weight,
            bias: inputs.bias,
            carry: inputs.carry,
            amounts,
        });
        let what = format!("{batch} texts of {channels} channels");
        let carries = [found.carry, expected.carry].map(|carry| carry.expect("there was one"));
        let [found_carry, expected_carry] = carries;
        close(&what, found_carry, expected_carry, tolerance);
        for (found, expected) in found.mixes.into_iter().zip(expected.mixes) {
            close(&what, found, expected, tolerance);
        }
    }
}

fn heads<B: KernelBackend>() {
    heads_in::<B>(DType::F32, TOLERANCE);
}

fn shifts<B: KernelBackend>() {
    shifts_in::<B>(DType::F32, TOLERANCE);
}

/// The definition rounds what lies between its parts; a rounding of bf16 is off by up to 2^-8.
#[cfg(feature = "cuda")]
mod in_bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;

    mod cuda {
        use burn::{backend::Cuda, tensor::DType};

        #[test]
        fn heads() {
            crate::single_tokens::heads_in::<Cuda>(DType::BF16, 2.0 * super::ROUNDING);
        }

        #[test]
        fn shifts() {
            crate::single_tokens::shifts_in::<Cuda>(DType::BF16, super::ROUNDING);
        }
    }
}

macro_rules! on_backends {
    ($($(#[$attribute:meta])? $module:ident: $backend:ty),+ $(,)?) => {
        $($(#[$attribute])? mod $module {
            #[test] fn heads() { super::heads::<$backend>() }
            #[test] fn shifts() { super::shifts::<$backend>() }
        })+
    };
}

on_backends! {
    flex: burn_flex::Flex,
    #[cfg(feature = "cuda")] cuda: burn::backend::Cuda,
    #[cfg(feature = "vulkan")] vulkan: crate::Vulkan,
}
