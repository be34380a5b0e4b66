//! Losses of rows of logits and their gradients, against the equations in f64.

use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flex::Flex;
use rwkvx_kernels::{
    KernelBackend, RowLosses, cross_entropy_gradient, cross_entropy_rows, reference, with_gradient,
};

use crate::support::{Array, Defined, Native, TOLERANCE, assert_close};

/// One way of running the two operators.
pub(crate) trait Bodies {
    type B: KernelBackend;
    fn rows(logits: Tensor<Self::B, 2>, targets: Tensor<Self::B, 1, Int>) -> RowLosses<Self::B>;
    fn gradient(
        logits: Tensor<Self::B, 2>,
        targets: Tensor<Self::B, 1, Int>,
        losses: RowLosses<Self::B>,
        shares: Tensor<Self::B, 1>,
        l2_wrap: f64,
    ) -> Tensor<Self::B, 2>;
}

impl<B: KernelBackend> Bodies for Native<B> {
    type B = B;
    fn rows(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> RowLosses<B> {
        cross_entropy_rows(logits, targets)
    }
    fn gradient(
        logits: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        losses: RowLosses<B>,
        shares: Tensor<B, 1>,
        l2_wrap: f64,
    ) -> Tensor<B, 2> {
        cross_entropy_gradient(logits, targets, losses, shares, l2_wrap)
    }
}

impl<B: KernelBackend> Bodies for Defined<B> {
    type B = B;
    fn rows(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> RowLosses<B> {
        reference::cross_entropy_rows(logits, targets)
    }
    fn gradient(
        logits: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        losses: RowLosses<B>,
        shares: Tensor<B, 1>,
        l2_wrap: f64,
    ) -> Tensor<B, 2> {
        reference::cross_entropy_gradient(logits, targets, losses, shares, l2_wrap)
    }
}

/// A piece of logits and what it is trained on.
#[derive(Clone)]
struct Case {
    /// `[1, 1, rows, vocab]`
    logits: Array,
    targets: Vec<usize>,
    shares: Vec<f32>,
    l2_wrap: f64,
}

/// What the operators give, in f64.
#[derive(Debug)]
struct Results {
    nll: Array,
    largest: Array,
    largest_at: Vec<usize>,
    log_sum_exp: Array,
    /// `[1, 1, rows, vocab]`
    gradient: Array,
}

fn rows_of(values: Vec<f64>) -> Array {
    Array {
        shape: [1, 1, 1, values.len()],
        values,
    }
}

impl Case {
    /// Normal logits; targets over the whole vocabulary, both ends included; every third token without a share.
    fn new(rows: usize, vocab: usize, l2_wrap: f64) -> Self {
        let target = |row: usize| match row % 3 {
            0 => vocab - 1,
            1 => 0,
            _ => row * 7919 % vocab,
        };
        Self {
            logits: Array::normal([1, 1, rows, vocab], 1).map(|x| f64::from(3.0 * x as f32)),
            targets: (0..rows).map(target).collect(),
            shares: (0..rows).map(|row| (row % 3) as f32 / 7.0).collect(),
            l2_wrap,
        }
    }

    fn dims(&self) -> [usize; 2] {
        [self.logits.shape[2], self.logits.shape[3]]
    }

    fn logits<B: KernelBackend>(&self) -> Tensor<B, 2> {
        self.logits.tensor::<B>().reshape(self.dims())
    }

    fn targets<B: KernelBackend>(&self) -> Tensor<B, 1, Int> {
        let ids: Vec<i64> = self.targets.iter().map(|&id| id as i64).collect();
        let data = TensorData::new(ids, [self.targets.len()]);
        Tensor::from_data(data, &Default::default())
    }

    fn shares<B: KernelBackend>(&self) -> Tensor<B, 1> {
        Tensor::from_data(&self.shares[..], &Default::default())
    }

    /// The equations.
    fn exact(&self) -> Results {
        let [_, vocab] = self.dims();
        let mut gradient = Vec::new();
        let (mut nll, mut largest, mut log_sum_exp) = (Vec::new(), Vec::new(), Vec::new());
        let mut largest_at = Vec::new();
        for (row, logits) in self.logits.values.chunks(vocab).enumerate() {
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let at = logits.iter().position(|&x| x == top).expect("not empty");
            let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
            let target = self.targets[row];
            let share = f64::from(self.shares[row]);
            gradient.extend(logits.iter().enumerate().map(|(i, x)| {
                let hot = f64::from(u8::from(i == target));
                let pull = if i == at { self.l2_wrap * top } else { 0.0 };
                share * ((x - top).exp() / sum - hot) + pull
            }));
            nll.push(sum.ln() + top - logits[target]);
            largest.push(top);
            largest_at.push(at);
            log_sum_exp.push(sum.ln() + top);
        }
        Results {
            nll: rows_of(nll),
            largest: rows_of(largest),
            largest_at,
            log_sum_exp: rows_of(log_sum_exp),
            gradient: Array {
                shape: self.logits.shape,
                values: gradient,
            },
        }
    }

    fn found<O: Bodies>(&self) -> Results {
        let (logits, targets) = (self.logits(), self.targets());
        results::<O>(logits, targets, self.shares(), self.l2_wrap)
    }
}

fn results<O: Bodies>(
    logits: Tensor<O::B, 2>,
    targets: Tensor<O::B, 1, Int>,
    shares: Tensor<O::B, 1>,
    l2_wrap: f64,
) -> Results {
    let losses = O::rows(logits.clone(), targets.clone());
    let numbers = |x: Tensor<O::B, 1>| Array::of(x.unsqueeze());
    let at = losses.largest_at.clone().into_data();
    Results {
        nll: numbers(losses.nll.clone()),
        largest: numbers(losses.largest.clone()),
        largest_at: at.iter::<i64>().map(|at| at as usize).collect(),
        log_sum_exp: numbers(losses.log_sum_exp()),
        gradient: Array::of(O::gradient(logits, targets, losses, shares, l2_wrap).unsqueeze()),
    }
}

impl Results {
    #[track_caller]
    fn assert_close(&self, what: &str, expected: &Self, tolerance: f64) {
        assert_eq!(self.largest_at, expected.largest_at, "{what}");
        for (name, found, expected) in [
            ("nll", &self.nll, &expected.nll),
            ("largest", &self.largest, &expected.largest),
            ("log_sum_exp", &self.log_sum_exp, &expected.log_sum_exp),
            ("gradient", &self.gradient, &expected.gradient),
        ] {
            assert_close(&format!("{what}: {name}"), found, expected, tolerance);
        }
    }
}

pub(crate) fn losses_and_gradients_are_those_of_the_equations<O: Bodies>() {
    for (rows, vocab) in [
        (1, 3),
        (7, 11),
        (130, 11),
        (1, 1000),
        (37, 1000),
        (3, 4099),
        (5, 8192),
    ] {
        for l2_wrap in [0.0, 0.3] {
            let case = Case::new(rows, vocab, l2_wrap);
            let what = format!("[{rows}, {vocab}], L2Wrap {l2_wrap}");
            case.found::<O>()
                .assert_close(&what, &case.exact(), TOLERANCE);
        }
    }
}

fn a_vocabulary_of_one_word_has_no_loss<O: Bodies>() {
    let case = Case::new(4, 1, 0.5);
    let found = case.found::<O>();
    assert_eq!(found.nll.values, [0.0; 4]);
    let half = case.logits.map(|x| 0.5 * x);
    assert_close("gradient", &found.gradient, &half, TOLERANCE);
}

/// More than a device counts cubes along an axis.
fn there_may_be_very_many_rows<O: Bodies>() {
    let case = Case::new(65535 + 700, 3, 0.1);
    case.found::<O>()
        .assert_close("rows", &case.exact(), TOLERANCE);
}

fn the_gradient_is_the_slope_of_the_loss<O: Bodies>() {
    let case = Case::new(5, 11, 0.2);
    let loss = |case: &Case| -> f64 {
        let Results { nll, largest, .. } = case.exact();
        let losses = nll.values.iter().zip(&case.shares);
        let losses: f64 = losses.map(|(nll, &share)| nll * f64::from(share)).sum();
        let squares: f64 = largest.values.iter().map(|top| top * top).sum();
        losses + case.l2_wrap / 2.0 * squares
    };
    let step = 1e-5;
    let mut slopes = case.logits.clone();
    for (at, slope) in slopes.values.iter_mut().enumerate() {
        let shifted = |by: f64| {
            let mut case = case.clone();
            case.logits.values[at] += by;
            loss(&case)
        };
        *slope = (shifted(step) - shifted(-step)) / (2.0 * step);
    }
    assert_close("gradient", &case.found::<O>().gradient, &slopes, TOLERANCE);
}

fn huge_logits_overflow_nothing<O: Bodies>() {
    for scale in [1e4, 1e30] {
        let mut case = Case::new(9, 1000, 0.0);
        case.logits = case.logits.map(|x| f64::from((x * scale) as f32));
        // One row whose probabilities are not all 0 and 1.
        for (i, x) in case.logits.values[..1000].iter_mut().enumerate() {
            *x = 1e4 - (i % 5) as f64;
        }
        case.shares[0] = 0.5;
        case.found::<O>()
            .assert_close(&format!("{scale:e}"), &case.exact(), TOLERANCE);
    }
}

fn of_equal_largest_logits_the_first_counts<O: Bodies>() {
    let mut case = Case::new(4, 4099, 1.0);
    let rows = case.logits.values.chunks_mut(4099);
    for (row, places) in rows.zip([&[17, 1030, 4000][..], &[4096, 4098], &[2, 3]]) {
        places.iter().for_each(|&at: &usize| row[at] = 50.0);
    }
    case.logits.values[3 * 4099..].fill(-2.5);
    let found = case.found::<O>();
    assert_eq!(found.largest_at, [17, 4096, 2, 0]);
    found.assert_close("ties", &case.exact(), TOLERANCE);
}

fn excluded_words_have_no_probability<O: Bodies>() {
    let mut case = Case::new(3, 1000, 0.0);
    for row in case.logits.values.chunks_mut(1000) {
        row[1..999].fill(f64::NEG_INFINITY);
    }
    case.targets = vec![0, 999, 0];
    case.found::<O>()
        .assert_close("excluded", &case.exact(), TOLERANCE);
}

fn logits_that_others_hold_stay_as_they_are<O: Bodies>() {
    let case = Case::new(6, 20, 0.2);
    // Two columns more on both sides, two rows more above and below, and the axes exchanged.
    let around = Array::normal([1, 1, 24, 10], 9).tensor::<O::B>();
    let around = around
        .reshape([24, 10])
        .slice_assign([2..22, 2..8], case.logits::<O::B>().swap_dims(0, 1));
    let before = around.clone().into_data();
    let view = around.clone().slice([2..22, 2..8]).swap_dims(0, 1);
    let found = results::<O>(view, case.targets(), case.shares(), case.l2_wrap);
    found.assert_close("view", &case.exact(), TOLERANCE);
    let rows = around.clone().slice([2..8, 0..10]);
    let (targets, shares) = (case.targets::<O::B>(), case.shares::<O::B>());
    let targets = targets.clamp(0, 9);
    let losses = O::rows(rows.clone(), targets.clone());
    O::gradient(rows, targets, losses, shares, 1.0);
    assert_eq!(around.into_data(), before);
}

fn logits_may_have_fewer_bits<O: Bodies>(dtype: DType) {
    for (rows, vocab) in [(3, 11), (5, 4096)] {
        let mut case = Case::new(rows, vocab, 0.01);
        let rounded = case.logits::<Flex>().cast(dtype).cast(DType::F32);
        case.logits = Array::of(rounded.unsqueeze());
        let logits = case.logits::<O::B>().cast(dtype);
        let found = results::<O>(logits, case.targets(), case.shares(), case.l2_wrap);
        let expected = case.exact();
        assert_close("nll", &found.nll, &expected.nll, TOLERANCE);
        assert_close("largest", &found.largest, &expected.largest, TOLERANCE);
        // Rounded once.
        let rounding = if dtype == DType::F16 { 5e-4 } else { 4e-3 };
        assert_close("gradient", &found.gradient, &expected.gradient, rounding);
    }
}

crate::on_all_bodies!(
    losses_and_gradients_are_those_of_the_equations,
    a_vocabulary_of_one_word_has_no_loss,
    there_may_be_very_many_rows,
    the_gradient_is_the_slope_of_the_loss,
    huge_logits_overflow_nothing,
    of_equal_largest_logits_the_first_counts,
    excluded_words_have_no_probability,
    logits_that_others_hold_stay_as_they_are,
);

#[test]
fn logits_may_have_fewer_bits_on_flex() {
    logits_may_have_fewer_bits::<Native<Flex>>(DType::F16);
    logits_may_have_fewer_bits::<Native<Flex>>(DType::BF16);
    logits_may_have_fewer_bits::<Defined<Flex>>(DType::BF16);
}

#[cfg(feature = "cuda")]
#[test]
fn logits_may_have_fewer_bits_on_cuda() {
    logits_may_have_fewer_bits::<Native<burn::backend::Cuda>>(DType::F16);
    logits_may_have_fewer_bits::<Native<burn::backend::Cuda>>(DType::BF16);
}

/// The software Vulkan has no bf16.
#[cfg(feature = "vulkan")]
#[test]
fn logits_may_have_fewer_bits_on_vulkan() {
    logits_may_have_fewer_bits::<Native<crate::Vulkan>>(DType::F16);
}

#[cfg(feature = "vulkan")]
#[test]
fn targets_may_have_64_bits_on_vulkan() {
    let case = Case::new(7, 11, 0.3);
    let targets = case.targets::<crate::Vulkan>().cast(DType::I64);
    let (logits, shares) = (case.logits(), case.shares());
    let found = results::<Native<crate::Vulkan>>(logits, targets, shares, case.l2_wrap);
    found.assert_close("64 bits", &case.exact(), TOLERANCE);
}

#[test]
#[should_panic(expected = "cross_entropy_rows: `targets` has 11, the vocabulary is 11")]
fn a_target_outside_the_vocabulary_is_refused_on_flex() {
    let mut case = Case::new(3, 11, 0.0);
    case.targets[1] = 11;
    cross_entropy_rows(case.logits::<Flex>(), case.targets());
}

#[cfg(feature = "vulkan")]
#[test]
fn a_target_outside_the_vocabulary_has_an_infinite_loss_on_vulkan() {
    for outside in [12, i32::MAX as usize, usize::MAX] {
        let mut case = Case::new(3, 12, 0.0);
        let expected = case.exact();
        case.targets[1] = outside;
        let found = case.found::<Native<crate::Vulkan>>();
        assert_eq!(found.nll.values[1], f64::INFINITY);
        let others = |losses: &Array| rows_of(vec![losses.values[0], losses.values[2]]);
        let (found, expected) = (others(&found.nll), others(&expected.nll));
        assert_close("other rows", &found, &expected, TOLERANCE);
    }
}

/// Every argument of a wrong shape is named.
#[test]
fn wrong_shapes_are_named() {
    fn message(run: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(run).expect_err("a wrong shape");
        *panic.downcast::<String>().expect("a message with numbers")
    }
    fn vector(len: usize) -> Tensor<Flex, 1> {
        Tensor::zeros([len], &Default::default())
    }
    fn ids(len: usize) -> Tensor<Flex, 1, Int> {
        Tensor::zeros([len], &Default::default())
    }
    fn losses([nll, largest, largest_at, log_sum]: [usize; 4]) -> RowLosses<Flex> {
        RowLosses {
            nll: vector(nll),
            largest: vector(largest),
            largest_at: ids(largest_at),
            log_sum: vector(log_sum),
        }
    }
    let logits = |dims: [usize; 2]| Tensor::<Flex, 2>::zeros(dims, &Default::default());

    for (dims, targets, expected) in [
        (
            [0, 5],
            0,
            "`logits` must be [rows, vocab] with no axis empty, found [0, 5]",
        ),
        (
            [3, 0],
            3,
            "`logits` must be [rows, vocab] with no axis empty, found [3, 0]",
        ),
        ([3, 5], 4, "`targets` must be [rows] = [3], found [4]"),
    ] {
        let found = message(move || {
            cross_entropy_rows(logits(dims), ids(targets));
        });
        assert_eq!(found, format!("cross_entropy_rows: {expected}"));
    }
    for (targets, statistics, shares, expected) in [
        (2, [3; 4], 3, "`targets` must be [rows] = [3], found [2]"),
        (3, [3; 4], 1, "`shares` must be [rows] = [3], found [1]"),
        (
            3,
            [4, 3, 3, 3],
            3,
            "`losses.nll` must be [rows] = [3], found [4]",
        ),
        (
            3,
            [3, 4, 3, 3],
            3,
            "`losses.largest` must be [rows] = [3], found [4]",
        ),
        (
            3,
            [3, 3, 4, 3],
            3,
            "`losses.largest_at` must be [rows] = [3], found [4]",
        ),
        (
            3,
            [3, 3, 3, 4],
            3,
            "`losses.log_sum` must be [rows] = [3], found [4]",
        ),
    ] {
        let found = message(move || {
            let (logits, losses) = (logits([3, 5]), losses(statistics));
            cross_entropy_gradient(logits, ids(targets), losses, vector(shares), 0.0);
        });
        assert_eq!(found, format!("cross_entropy_gradient: {expected}"));
    }
}

#[test]
fn a_known_gradient_is_scaled_by_what_comes_in() {
    type Train = Autodiff<Flex>;
    let device = Default::default();
    let number = |x: f32| Tensor::<Train, 1>::from_floats([x], &device);
    let x = Tensor::<Train, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device).require_grad();
    let y = Tensor::<Train, 1>::from_floats([5.0, 6.0, 7.0], &device).require_grad();
    let d_x = Tensor::from_floats([[0.5, -1.0], [2.0, 0.0]], &device);
    let d_y = Tensor::from_floats([1.0, 2.0, 3.0], &device);
    let value =
        with_gradient(number(2.5), x.clone(), d_x) + with_gradient(number(1.0), y.clone(), d_y);
    assert_eq!(value.clone().into_scalar(), 3.5);
    let gradients = (value * -2.0).backward();
    let d_x = x.grad(&gradients).expect("tracked").into_data();
    d_x.assert_eq(&TensorData::from([[-1.0f32, 2.0], [-4.0, 0.0]]), true);
    let d_y = y.grad(&gradients).expect("tracked").into_data();
    d_y.assert_eq(&TensorData::from([-2.0f32, -4.0, -6.0]), true);
}

#[test]
#[should_panic(
    expected = "with_gradient: `gradient` must be the shape of `x` = [2, 3], found [2, 4]"
)]
fn a_known_gradient_of_another_shape_is_named() {
    let zeros = |dims: [usize; 2]| Tensor::<Flex, 2>::zeros(dims, &Default::default());
    let value = Tensor::zeros([1], &Default::default());
    with_gradient(value, zeros([2, 3]), zeros([2, 4]));
}
