//! The recurrence at awkward sizes, in pieces, and with part of the gradient graph missing.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rwkvx_kernels::{Wkv7Inputs, Wkv7Output};

use crate::oracle;
use crate::support::{Array, Defined, Operators, TOLERANCE, assert_close};

/// Realistic inputs `[receptance, log_decay, key, value, removal, replacement, state]`.
fn inputs([batch, time, heads, size]: [usize; 4], seed: u64) -> [Array; 7] {
    let normal = |i: u64| Array::normal([batch, time, heads, size], 10 * seed + i);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let direction = normal(4).unit_rows();
    let mut replacement = direction.clone();
    let rate = normal(5).map(sigmoid);
    replacement
        .values
        .iter_mut()
        .zip(&rate.values)
        .for_each(|(x, rate)| *x *= rate);
    [
        normal(0),
        normal(1).map(|x| -(-0.5f64).exp() * sigmoid(2.0 * x)),
        normal(2),
        normal(3),
        direction.map(|x| -x),
        replacement,
        Array::normal([batch, heads, size, size], 10 * seed + 6).map(|x| 0.3 * x),
    ]
}

type Ad<O> = Autodiff<<O as Operators>::Inner>;

fn on_backend<O: Operators>(arrays: &[Array; 7]) -> Wkv7Inputs<Ad<O>> {
    let [
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state,
    ] = arrays.each_ref().map(|array| array.tensor::<Ad<O>>());
    Wkv7Inputs {
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state: Some(state),
    }
}

fn expected(arrays: &[Array; 7]) -> (Array, Array) {
    let [r, w, k, v, a, b, state] = arrays.clone();
    oracle::wkv7(&[r, w, k, v, a, b], Some(&state))
}

fn any_length_and_head_size_agrees_with_the_plain_recurrence<O: Operators>() {
    let sizes = [1, 2, 15, 16, 17, 31, 33, 63].map(|time| [2, time, 3, 32]);
    for dims in
        sizes
            .into_iter()
            .chain([[1, 20, 2, 1], [1, 20, 2, 5], [1, 20, 1, 48], [1, 3, 1, 128]])
    {
        let arrays = inputs(dims, 1);
        let (output, state) = expected(&arrays);
        let found = O::wkv7(on_backend::<O>(&arrays));
        assert_close(
            &format!("output {dims:?}"),
            &Array::of(found.output),
            &output,
            TOLERANCE,
        );
        assert_close(
            &format!("state {dims:?}"),
            &Array::of(found.state),
            &state,
            TOLERANCE,
        );
    }
}

fn no_state_is_a_state_of_zeros<O: Operators>() {
    let mut arrays = inputs([2, 18, 2, 32], 2);
    let mut without = on_backend::<O>(&arrays);
    without.state = None;
    arrays[6] = arrays[6].clone().map(|_| 0.0);
    let (output, state) = expected(&arrays);
    let found = O::wkv7(without);
    assert_close("output", &Array::of(found.output), &output, TOLERANCE);
    assert_close("state", &Array::of(found.state), &state, TOLERANCE);
}

fn two_pieces_with_the_state_carried_over_are_one<O: Operators>() {
    let dims @ [batch, time, heads, size] = [2, 40, 2, 32];
    let arrays = inputs(dims, 3);
    let whole = O::wkv7(on_backend::<O>(&arrays));
    let (whole_output, whole_state) = (Array::of(whole.output), Array::of(whole.state));
    for cut in 1..time {
        let piece = |from: usize, to: usize, state| {
            let all = on_backend::<O>(&arrays);
            let part = |x: Tensor<Ad<O>, 4>| x.slice([0..batch, from..to, 0..heads, 0..size]);
            O::wkv7(Wkv7Inputs {
                receptance: part(all.receptance),
                log_decay: part(all.log_decay),
                key: part(all.key),
                value: part(all.value),
                removal: part(all.removal),
                replacement: part(all.replacement),
                state,
            })
        };
        let first = piece(0, cut, Some(arrays[6].tensor()));
        let second = piece(cut, time, Some(first.state));
        let output = Tensor::cat(vec![first.output, second.output], 1);
        assert_close(
            &format!("output cut at {cut}"),
            &Array::of(output),
            &whole_output,
            1e-6,
        );
        assert_close(
            &format!("state cut at {cut}"),
            &Array::of(second.state),
            &whole_state,
            1e-6,
        );
    }
}

/// Which of the two outputs a loss is made of.
#[derive(Clone, Copy, Debug)]
enum Through {
    Output,
    State,
    Both,
}

/// Loss weights for output and state.
fn weights(dims: [usize; 4]) -> (Array, Array) {
    let [batch, _, heads, size] = dims;
    (
        Array::normal(dims, 98),
        Array::normal([batch, heads, size, size], 99),
    )
}

/// Gradients of the inputs in `tracked`, `None` for the others.
fn gradients<O: Operators>(
    arrays: &[Array; 7],
    through: Through,
    tracked: [bool; 7],
) -> [Option<Array>; 7] {
    let mut leaves = arrays.each_ref().map(|array| array.tensor::<Ad<O>>());
    for (leaf, tracked) in leaves.iter_mut().zip(tracked) {
        *leaf = leaf.clone().set_require_grad(tracked);
    }
    let [
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state,
    ] = leaves.clone();
    let Wkv7Output { output, state } = O::wkv7(Wkv7Inputs {
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state: Some(state),
    });
    let (on_output, on_state) = weights(arrays[0].shape);
    let from_output = (output * on_output.tensor()).sum();
    let from_state = (state * on_state.tensor()).sum();
    let loss = match through {
        Through::Output => from_output,
        Through::State => from_state,
        Through::Both => from_output + from_state,
    };
    let gradients = loss.backward();
    leaves.map(|leaf| leaf.grad(&gradients).map(Array::of))
}

const NAMES: [&str; 7] = [
    "receptance",
    "log_decay",
    "key",
    "value",
    "removal",
    "replacement",
    "state",
];

fn gradients_at_ragged_lengths_are_those_of_the_definition<O: Operators>() {
    for dims in [
        [2, 1, 2, 32],
        [1, 15, 2, 32],
        [2, 16, 1, 32],
        [1, 17, 3, 64],
        [1, 50, 1, 20],
        [1, 9, 1, 128],
    ] {
        let arrays = inputs(dims, 4);
        for through in [Through::Output, Through::State, Through::Both] {
            let found = gradients::<O>(&arrays, through, [true; 7]);
            let expected = gradients::<Defined<burn_flex::Flex>>(&arrays, through, [true; 7]);
            for ((name, found), expected) in NAMES.iter().zip(found).zip(expected) {
                let zeros = || Array {
                    shape: expected.as_ref().map_or(dims, |x| x.shape),
                    values: Vec::new(),
                };
                // The state alone does not depend on the receptance: a zero gradient or none.
                let (Some(found), Some(expected)) = (&found, &expected) else {
                    let largest = |x: &Option<Array>| {
                        x.clone()
                            .unwrap_or_else(zeros)
                            .values
                            .iter()
                            .fold(0.0f64, |m, x| m.max(x.abs()))
                    };
                    assert_eq!((largest(&found), largest(&expected)), (0.0, 0.0), "{name}");
                    continue;
                };
                assert_close(
                    &format!("{name} {dims:?} {through:?}"),
                    found,
                    expected,
                    TOLERANCE,
                );
            }
        }
    }
}

fn gradients_are_the_slopes_of_the_plain_recurrence<O: Operators>() {
    let dims = [1, 5, 2, 3];
    let arrays = inputs(dims, 5);
    let (on_output, on_state) = weights(dims);
    let loss = |arrays: &[Array; 7]| {
        let (output, state) = expected(arrays);
        let product = |x: &Array, y: &Array| {
            x.values
                .iter()
                .zip(&y.values)
                .map(|(x, y)| x * y)
                .sum::<f64>()
        };
        product(&output, &on_output) + product(&state, &on_state)
    };
    let found = gradients::<O>(&arrays, Through::Both, [true; 7]);
    for (i, found) in found.into_iter().enumerate() {
        let mut slopes = arrays[i].clone();
        for (e, slope) in slopes.values.iter_mut().enumerate() {
            let step = 1e-5;
            let mut moved = arrays.clone();
            moved[i].values[e] += step;
            let above = loss(&moved);
            moved[i].values[e] -= 2.0 * step;
            *slope = (above - loss(&moved)) / (2.0 * step);
        }
        assert_close(NAMES[i], &found.expect("tracked"), &slopes, TOLERANCE);
    }
}

fn frozen_inputs_get_no_gradient_and_change_no_other<O: Operators>() {
    let arrays = inputs([1, 20, 2, 32], 6);
    let all = gradients::<O>(&arrays, Through::Both, [true; 7]);
    for kept in 0..7 {
        let tracked = std::array::from_fn(|i| i == kept);
        let some = gradients::<O>(&arrays, Through::Both, tracked);
        for (i, gradient) in some.into_iter().enumerate() {
            match gradient {
                Some(gradient) if i == kept => {
                    assert_close(NAMES[i], &gradient, all[i].as_ref().expect("tracked"), 1e-6);
                }
                Some(_) => panic!("{} is frozen but has a gradient", NAMES[i]),
                None => assert_ne!(i, kept, "{} is tracked but has no gradient", NAMES[i]),
            }
        }
    }
}

crate::on_all_bodies!(
    any_length_and_head_size_agrees_with_the_plain_recurrence,
    no_state_is_a_state_of_zeros,
    two_pieces_with_the_state_carried_over_are_one,
    gradients_at_ragged_lengths_are_those_of_the_definition,
    gradients_are_the_slopes_of_the_plain_recurrence,
    frozen_inputs_get_no_gradient_and_change_no_other,
);

#[cfg(feature = "vulkan")]
#[test]
fn sequences_in_f16_are_read_as_they_are() {
    use burn::tensor::DType;

    let arrays = inputs([2, 37, 2, 64], 7);
    let weights = arrays[0].clone().map(|x| (3.0 * x).sin());
    // Output, then the gradients of the sequences, from the same numbers in either type.
    let run = |dtype| -> Vec<Array> {
        let leaves: Vec<Tensor<Autodiff<crate::Vulkan>, 4>> = arrays[..6]
            .iter()
            .map(|array| array.tensor().cast(DType::F16).cast(dtype).require_grad())
            .collect();
        let [receptance, log_decay, key, value, removal, replacement] =
            leaves.clone().try_into().expect("six sequences");
        let output = rwkvx_kernels::wkv7(Wkv7Inputs {
            receptance,
            log_decay,
            key,
            value,
            removal,
            replacement,
            state: None,
        })
        .output;
        assert_eq!(output.dtype(), dtype);
        let gradients = (output.clone().cast(DType::F32) * weights.tensor())
            .sum()
            .backward();
        let gradients = leaves
            .iter()
            .map(|leaf| Array::of(leaf.grad(&gradients).expect("tracked")));
        std::iter::once(Array::of(output.inner()))
            .chain(gradients)
            .collect()
    };
    // What differs is the rounding of the results, and of the gradient of the output.
    for (found, expected) in run(DType::F16).iter().zip(&run(DType::F32)) {
        assert_close("f16", found, expected, 1e-3);
    }
}
