//! What a time mix does element by element: against its equations in f64, whose gradients are taken by finite differences.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_flex::Flex;
use rwkvx_kernels::{KeyInputs, OutputInputs, ValueInputs, token_shift};

use crate::support::{Array, Defined, Operators, TOLERANCE, assert_close};

type Ad<O> = Autodiff<<O as Operators>::Inner>;

/// One of the operators, with inputs and outputs in a fixed order.
///
/// Sequences are `[batch, time, heads, head_size]`, parameters `[1, 1, heads, head_size]`.
trait Operator {
    const NAME: &'static str;
    fn inputs(dims: [usize; 4]) -> Vec<Array>;
    /// The equations, in f64.
    fn exact(inputs: &[Array]) -> Vec<Array>;
    /// The operator on a backend, with sequences of another float type than the parameters.
    fn run<O: Operators>(inputs: Vec<Tensor<Ad<O>, 4>>, dtype: DType) -> Vec<Tensor<Ad<O>, 4>>;
}

fn sequence(dims: [usize; 4], seed: u64) -> Array {
    Array::normal(dims, seed)
}

fn parameter([_, _, heads, size]: [usize; 4], seed: u64) -> Array {
    Array::normal([1, 1, heads, size], seed).map(|x| 0.5 + 0.5 * x)
}

/// `N` mixes of `[x, amounts...]`.
struct Shift<const N: usize>;

impl<const N: usize> Operator for Shift<N> {
    const NAME: &'static str = "token_shift";

    fn inputs(dims: [usize; 4]) -> Vec<Array> {
        let amounts = (0..N).map(|i| parameter(dims, 2 + i as u64));
        [sequence(dims, 1)].into_iter().chain(amounts).collect()
    }

    fn exact(inputs: &[Array]) -> Vec<Array> {
        let (x, amounts) = inputs.split_first().expect("x comes first");
        let [_, time, heads, size] = x.shape;
        let channels = heads * size;
        let mix = |amount: &Array| {
            each(x, |at, x| {
                let is_first = at / channels % time == 0;
                let before = if is_first { 0.0 } else { x[at - channels] };
                x[at] + (before - x[at]) * amount.values[at % channels]
            })
        };
        amounts.iter().map(mix).collect()
    }

    fn run<O: Operators>(inputs: Vec<Tensor<Ad<O>, 4>>, dtype: DType) -> Vec<Tensor<Ad<O>, 4>> {
        let dims @ [batch, time, heads, size] = inputs[0].dims();
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("x comes first");
        let x = x.reshape([batch, time, heads * size]).cast(dtype);
        let amounts: Vec<_> = inputs.map(vector).collect();
        let mixes = O::token_shift::<N>(x, amounts.try_into().expect("N amounts"));
        mixes.map(|mix| f32(mix, dims)).into()
    }
}

/// `[log_decay, key, removal, replacement]` of `[decay, rate, key, decay_bias, rate_bias, removal_scale, rate_scale]`.
struct Keys;

impl Operator for Keys {
    const NAME: &'static str = "prepare_keys";

    fn inputs(dims: [usize; 4]) -> Vec<Array> {
        let sequences = (0..3).map(|i| sequence(dims, i));
        sequences
            .chain((3..7).map(|i| parameter(dims, i)))
            .collect()
    }

    fn exact(inputs: &[Array]) -> Vec<Array> {
        let [decay, rate, key, w0, a0, k_k, k_a] = inputs else {
            panic!("seven inputs");
        };
        let channels = w0.values.len();
        let a = each(rate, |at, rate| {
            sigmoid(rate[at] + a0.values[at % channels])
        });
        let kk = per_head(key, |head, key| {
            let from = head % channels;
            let scaled: Vec<f64> = key
                .iter()
                .zip(&k_k.values[from..])
                .map(|(k, s)| k * s)
                .collect();
            let length = scaled.iter().map(|x| x * x).sum::<f64>().sqrt();
            scaled.iter().map(|x| x / length.max(1e-12)).collect()
        });
        vec![
            each(decay, |at, decay| {
                -(-0.5f64).exp() * sigmoid(decay[at] + w0.values[at % channels])
            }),
            each(key, |at, key| {
                key[at] * (1.0 + (a.values[at] - 1.0) * k_a.values[at % channels])
            }),
            kk.clone().map(|x| -x),
            each(&kk, |at, kk| kk[at] * a.values[at]),
        ]
    }

    fn run<O: Operators>(inputs: Vec<Tensor<Ad<O>, 4>>, dtype: DType) -> Vec<Tensor<Ad<O>, 4>> {
        let dims = inputs[0].dims();
        let [decay, rate, key, w0, a0, k_k, k_a] = inputs.try_into().expect("seven inputs");
        let keys = O::prepare_keys(KeyInputs {
            decay: rows(decay, dtype),
            rate: rows(rate, dtype),
            key: rows(key, dtype),
            decay_bias: vector(w0),
            rate_bias: vector(a0),
            removal_scale: vector(k_k),
            rate_scale: vector(k_a),
            head_size: dims[3],
        });
        [keys.log_decay, keys.key, keys.removal, keys.replacement]
            .map(|x| f32(x, dims))
            .into()
    }
}

/// The mix of `[value, first, amount, amount_bias]`.
struct Value;

impl Operator for Value {
    const NAME: &'static str = "mix_value";

    fn inputs(dims: [usize; 4]) -> Vec<Array> {
        let sequences = (0..3).map(|i| sequence(dims, i));
        sequences.chain([parameter(dims, 3)]).collect()
    }

    fn exact(inputs: &[Array]) -> Vec<Array> {
        let [value, first, amount, bias] = inputs else {
            panic!("four inputs");
        };
        let channels = bias.values.len();
        vec![each(value, |at, value| {
            let share = sigmoid(amount.values[at] + bias.values[at % channels]);
            value[at] + (first.values[at] - value[at]) * share
        })]
    }

    fn run<O: Operators>(inputs: Vec<Tensor<Ad<O>, 4>>, dtype: DType) -> Vec<Tensor<Ad<O>, 4>> {
        let dims = inputs[0].dims();
        let [value, first, amount, amount_bias] = inputs.try_into().expect("four inputs");
        let mixed = O::mix_value(ValueInputs {
            value: rows(value, dtype),
            first: rows(first, dtype),
            amount: rows(amount, dtype),
            amount_bias: vector(amount_bias),
        });
        vec![f32(mixed, dims)]
    }
}

/// The gated output of `[output, receptance, key, value, gate, weight, bias, bonus]`.
struct Output;

impl Operator for Output {
    const NAME: &'static str = "gate_output";

    fn inputs(dims: [usize; 4]) -> Vec<Array> {
        let sequences = (0..5).map(|i| sequence(dims, i));
        sequences
            .chain((5..8).map(|i| parameter(dims, i)))
            .collect()
    }

    fn exact(inputs: &[Array]) -> Vec<Array> {
        let [output, r, k, v, gate, weight, bias, r_k] = inputs else {
            panic!("eight inputs");
        };
        let channels = weight.values.len();
        let normal = per_head(output, |_, y| {
            let size = y.len() as f64;
            let mean = y.iter().sum::<f64>() / size;
            let variance = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / size;
            let deviation = (variance + 64e-5).sqrt();
            y.iter().map(|y| (y - mean) / deviation).collect()
        });
        let bonus = per_head(v, |from, v| {
            let strength: f64 = (from..from + v.len())
                .map(|at| r.values[at] * k.values[at] * r_k.values[at % channels])
                .sum();
            v.iter().map(|v| v * strength).collect()
        });
        vec![each(&normal, |at, normal| {
            let scaled = normal[at] * weight.values[at % channels] + bias.values[at % channels];
            (scaled + bonus.values[at]) * gate.values[at]
        })]
    }

    fn run<O: Operators>(inputs: Vec<Tensor<Ad<O>, 4>>, dtype: DType) -> Vec<Tensor<Ad<O>, 4>> {
        let dims @ [_, _, heads, size] = inputs[0].dims();
        let [output, r, k, v, gate, weight, bias, r_k] = inputs.try_into().expect("eight inputs");
        let gated = O::gate_output(OutputInputs {
            output: rows(output, dtype),
            receptance: rows(r, dtype),
            key: rows(k, dtype),
            value: rows(v, dtype),
            gate: rows(gate, dtype),
            weight: vector(weight),
            bias: vector(bias),
            bonus: r_k.reshape([heads, size]),
        });
        vec![f32(gated, dims)]
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A sequence of the shape of `like`, from the index of each element and the values of `like`.
fn each(like: &Array, element: impl Fn(usize, &[f64]) -> f64) -> Array {
    Array {
        shape: like.shape,
        values: (0..like.values.len())
            .map(|at| element(at, &like.values))
            .collect(),
    }
}

/// A sequence whose heads follow from those of `x`, of which the index of the first element is also given.
fn per_head(x: &Array, head: impl Fn(usize, &[f64]) -> Vec<f64>) -> Array {
    let size = x.shape[3];
    let heads = x.values.chunks(size).enumerate();
    Array {
        shape: x.shape,
        values: heads
            .flat_map(|(i, values)| head(i * size, values))
            .collect(),
    }
}

fn rows<B: Backend>(sequence: Tensor<B, 4>, dtype: DType) -> Tensor<B, 2> {
    let [batch, time, heads, size] = sequence.dims();
    sequence.reshape([batch * time, heads * size]).cast(dtype)
}

fn vector<B: Backend>(parameter: Tensor<B, 4>) -> Tensor<B, 1> {
    let [_, _, heads, size] = parameter.dims();
    parameter.reshape([heads * size])
}

fn f32<B: Backend>(rows: Tensor<B, 2>, dims: [usize; 4]) -> Tensor<B, 4> {
    rows.reshape(dims).cast(DType::F32)
}

/// Weights of a loss that is the weighted sum of the outputs; `None` leaves an output out of it.
type Weights = Vec<Option<Array>>;

fn weights<P: Operator>(inputs: &[Array]) -> Weights {
    let outputs = P::exact(inputs);
    let weight = |(i, output): (usize, &Array)| Some(Array::normal(output.shape, 100 + i as u64));
    outputs.iter().enumerate().map(weight).collect()
}

/// Outputs, and the gradients of the loss with respect to the inputs.
struct Results {
    outputs: Vec<Array>,
    gradients: Vec<Array>,
}

impl Results {
    fn found<P: Operator, O: Operators>(inputs: &[Array], weights: &Weights, dtype: DType) -> Self {
        let leaves: Vec<Tensor<Ad<O>, 4>> = inputs
            .iter()
            .map(|input| input.tensor().require_grad())
            .collect();
        let outputs = P::run::<O>(leaves.clone(), dtype);
        let losses = outputs.iter().zip(weights);
        let loss = losses
            .filter_map(|(output, weights)| Some(output.clone() * weights.as_ref()?.tensor()))
            .map(|product| product.sum())
            .reduce(|sum, loss| sum + loss)
            .expect("an output in the loss");
        let gradients = loss.backward();
        let gradient = |leaf: &Tensor<Ad<O>, 4>| match leaf.grad(&gradients) {
            Some(gradient) => Array::of(gradient),
            None => Array::of(leaf.clone()).map(|_| 0.0),
        };
        Self {
            gradients: leaves.iter().map(gradient).collect(),
            outputs: outputs.into_iter().map(Array::of).collect(),
        }
    }

    fn exact<P: Operator>(inputs: &[Array], weights: &Weights) -> Self {
        let loss = |inputs: &[Array]| -> f64 {
            P::exact(inputs)
                .iter()
                .zip(weights)
                .filter_map(|(output, weights)| Some((output, weights.as_ref()?)))
                .flat_map(|(output, weights)| output.values.iter().zip(&weights.values))
                .map(|(x, weight)| x * weight)
                .sum()
        };
        let step = 1e-5;
        let mut inputs = inputs.to_vec();
        let mut gradients = inputs.clone();
        for (i, gradient) in gradients.iter_mut().enumerate() {
            for (at, slope) in gradient.values.iter_mut().enumerate() {
                let x = inputs[i].values[at];
                let mut loss_at = |x| {
                    inputs[i].values[at] = x;
                    loss(&inputs)
                };
                *slope = (loss_at(x + step) - loss_at(x - step)) / (2.0 * step);
                inputs[i].values[at] = x;
            }
        }
        Self {
            outputs: P::exact(&inputs),
            gradients,
        }
    }

    #[track_caller]
    fn assert_close(&self, what: &str, expected: &Self, tolerance: f64) {
        let outputs = self.outputs.iter().zip(&expected.outputs);
        for (i, (found, expected)) in outputs.enumerate() {
            assert_close(&format!("{what}: output {i}"), found, expected, tolerance);
        }
        let gradients = self.gradients.iter().zip(&expected.gradients);
        for (i, (found, expected)) in gradients.enumerate() {
            assert_close(&format!("{what}: gradient {i}"), found, expected, tolerance);
        }
    }
}

fn check_equations<P: Operator, O: Operators>() {
    for dims in [[2, 3, 3, 4], [1, 1, 1, 5], [3, 2, 2, 12], [1, 4, 1, 32]] {
        let inputs = P::inputs(dims);
        let weights = weights::<P>(&inputs);
        let expected = Results::exact::<P>(&inputs, &weights);
        let found = Results::found::<P, O>(&inputs, &weights, DType::F32);
        found.assert_close(&format!("{} {dims:?}", P::NAME), &expected, TOLERANCE);
    }
}

pub(crate) fn outputs_and_gradients_are_those_of_the_equations<O: Operators>() {
    check_equations::<Shift<1>, O>();
    check_equations::<Shift<2>, O>();
    check_equations::<Shift<6>, O>();
    check_equations::<Keys, O>();
    check_equations::<Value, O>();
    check_equations::<Output, O>();
}

fn check_definition<P: Operator, O: Operators>(dims: [usize; 4]) {
    let inputs = P::inputs(dims);
    let weights = weights::<P>(&inputs);
    let expected = Results::found::<P, Defined<Flex>>(&inputs, &weights, DType::F32);
    let found = Results::found::<P, O>(&inputs, &weights, DType::F32);
    found.assert_close(&format!("{} {dims:?}", P::NAME), &expected, TOLERANCE);
}

fn any_number_of_rows_and_heads_agrees_with_the_definition<O: Operators>() {
    for dims in [
        [2, 700, 5, 16],
        [1, 2300, 1, 6],
        [1, 33, 40, 64],
        [3, 5, 67, 16],
    ] {
        check_definition::<Shift<6>, O>(dims);
        check_definition::<Keys, O>(dims);
        check_definition::<Value, O>(dims);
        check_definition::<Output, O>(dims);
    }
}

fn outputs_that_the_loss_leaves_out_have_no_gradient<O: Operators>() {
    fn check<P: Operator, O: Operators>(kept: usize) {
        let inputs = P::inputs([2, 3, 2, 8]);
        let mut weights = weights::<P>(&inputs);
        for (i, weights) in weights.iter_mut().enumerate() {
            if i != kept {
                *weights = None;
            }
        }
        let expected = Results::exact::<P>(&inputs, &weights);
        let found = Results::found::<P, O>(&inputs, &weights, DType::F32);
        found.assert_close(&format!("{} {kept}", P::NAME), &expected, TOLERANCE);
    }
    check::<Shift<6>, O>(4);
    check::<Keys, O>(0);
    check::<Keys, O>(3);
}

fn a_head_without_length_has_no_direction<O: Operators>() {
    let mut inputs = Keys::inputs([1, 4, 2, 8]);
    let key = &mut inputs[2].values;
    key[..8].fill(0.0);
    key[8..16].fill(1e-14);
    let mut weights = weights::<Keys>(&inputs);
    let exact = Keys::exact(&inputs);
    let found = Results::found::<Keys, O>(&inputs, &weights, DType::F32);
    assert_eq!(found.outputs[2].values[..8], [0.0; 8]);
    for (found, exact) in found.outputs.iter().zip(&exact) {
        assert_close("output", found, exact, TOLERANCE);
    }
    // Below the least length the direction is the key times a number, and the gradient is that number.
    weights[1] = None;
    let [.., removal, replacement] = &weights[..] else {
        panic!("four outputs");
    };
    let [removal, replacement] = [removal, replacement].map(|w| w.as_ref().expect("in the loss"));
    let [rate, rate_bias, removal_scale] = [&inputs[1], &inputs[4], &inputs[5]];
    let expected: Vec<f64> = (0..16)
        .map(|at| {
            let rate = sigmoid(rate.values[at] + rate_bias.values[at]);
            let d_direction = replacement.values[at] * rate - removal.values[at];
            d_direction * removal_scale.values[at] * 1e12
        })
        .collect();
    let found = Results::found::<Keys, O>(&inputs, &weights, DType::F32);
    let part = |values: &[f64]| Array {
        shape: [1, 1, 2, 8],
        values: values.to_vec(),
    };
    let gradient = part(&found.gradients[2].values[..16]);
    assert_close("gradient", &gradient, &part(&expected), TOLERANCE);
}

fn a_text_in_pieces_shifts_as_a_whole<O: Operators>() {
    let dims @ [batch, time, heads, size] = [2, 9, 3, 4];
    let channels = heads * size;
    let inputs = Shift::<6>::inputs(dims);
    let whole = Shift::<6>::exact(&inputs);
    let device = Default::default();
    let x = inputs[0]
        .tensor::<O::Inner>()
        .reshape([batch, time, channels]);
    let mut carry = Tensor::zeros([batch, channels], &device);
    let mut pieces = [(); 6].map(|()| Vec::new());
    for (from, to) in [(0, 1), (1, 2), (2, 6), (6, 9)] {
        let piece = x.clone().slice([0..batch, from..to]);
        let amounts = std::array::from_fn(|i| vector(inputs[1 + i].tensor()));
        let mixes = token_shift::<O::Inner, 6>(piece, Some(carry), amounts);
        for (pieces, mix) in pieces.iter_mut().zip(mixes) {
            pieces.push(mix.reshape([batch, to - from, heads, size]));
        }
        let last = x.clone().slice([0..batch, to - 1..to]);
        carry = last.reshape([batch, channels]);
    }
    for (i, (pieces, whole)) in pieces.into_iter().zip(&whole).enumerate() {
        let found = Array::of(Tensor::cat(pieces, 1));
        assert_close(&format!("mix {i}"), &found, whole, TOLERANCE);
    }
}

fn sequences_may_have_fewer_bits_than_the_parameters<O: Operators>() {
    fn check<P: Operator, O: Operators>() {
        let inputs = P::inputs([2, 20, 2, 32]);
        let weights = weights::<P>(&inputs);
        let expected = Results::found::<P, Defined<Flex>>(&inputs, &weights, DType::F32);
        let found = Results::found::<P, O>(&inputs, &weights, DType::F16);
        found.assert_close(P::NAME, &expected, 2e-3);
    }
    check::<Shift<6>, O>();
    check::<Keys, O>();
    check::<Value, O>();
    check::<Output, O>();
}

crate::on_all_bodies!(
    outputs_and_gradients_are_those_of_the_equations,
    any_number_of_rows_and_heads_agrees_with_the_definition,
    outputs_that_the_loss_leaves_out_have_no_gradient,
    a_head_without_length_has_no_direction,
    a_text_in_pieces_shifts_as_a_whole,
);

/// NdArray has no f16.
#[test]
fn sequences_may_have_fewer_bits_than_the_parameters_on_flex() {
    sequences_may_have_fewer_bits_than_the_parameters::<crate::support::Native<Flex>>();
}

#[cfg(feature = "vulkan")]
#[test]
fn sequences_may_have_fewer_bits_than_the_parameters_on_vulkan() {
    sequences_may_have_fewer_bits_than_the_parameters::<crate::support::Native<crate::Vulkan>>();
}
