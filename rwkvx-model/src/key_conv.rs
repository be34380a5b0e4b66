//! A short causal convolution over the keys of a sparse block, which published models do not have.
//!
//! The key of a token is `sum_i w_i k_{t-i}`, channel by channel: one layer of attention can then match what stands before a token, which is what
//! finding a fact again takes, and a chunk's mean key tells more of what is in it. The idea is FlashMoBA's ([arXiv 2511.11571](https://arxiv.org/abs/2511.11571)),
//! whose keys are `k_t + silu(sum_i w_i k_{t-i})`: there a key never stops matching its own token.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// The keys `[batch, time, channels]` convolved with `weight`, `[width, channels]`, whose row `i` belongs to the key `i` tokens before.
///
/// `carry` holds the last `width - 1` keys of the piece before, `[batch, width - 1, channels]` in f32, and takes those of this piece; without it the text
/// starts here.
pub(crate) fn convolve<B: Backend>(
    keys: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    carry: Option<&mut Tensor<B, 3>>,
) -> Tensor<B, 3> {
    let [batch, time, channels] = keys.dims();
    let [width, _] = weight.dims();
    let weight = weight.cast(keys.dtype());
    let before: Tensor<B, 3> = match &carry {
        Some(carry) => (**carry).clone(),
        None => Tensor::zeros([batch, width - 1, channels], &keys.device()),
    };
    let all: Tensor<B, 3> = Tensor::cat(vec![before.cast(keys.dtype()), keys.clone()], 1); // [batch, width - 1 + time, channels]
    if let Some(carry) = carry {
        let last = all.clone().slice([0..batch, time..time + width - 1]);
        *carry = last.cast(DType::F32);
    }
    let tap = |back: usize| {
        let start = width - 1 - back;
        let keys = all.clone().slice([0..batch, start..start + time]);
        keys * weight.clone().narrow(0, back, 1).unsqueeze::<3>()
    };
    (1..width).fold(tap(0), |sum, back| sum + tap(back))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn a_key_takes_in_those_before_it_and_none_after() {
        let device = Default::default();
        let tensor = |values: &[f32], shape: [usize; 3]| {
            Tensor::<Flex, 3>::from_data(TensorData::new(values.to_vec(), shape), &device)
        };
        // Two channels, three tokens; the second channel looks two tokens back.
        let keys = tensor(&[1.0, 10.0, 2.0, 20.0, 4.0, 40.0], [1, 3, 2]);
        let weight = tensor(&[0.5, 0.0, 1.0, 0.0, 0.0, -0.1], [1, 3, 2]).squeeze_dim(0);
        let expected = [0.5, 0.0, 1.0 + 1.0, 0.0, 2.0 + 2.0, -1.0];
        let found: Vec<f32> = convolve(keys, weight, None).into_data().iter().collect();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
