//! The key-value cache computes the function of the whole sequence, however the sequence comes.

use burn::tensor::{DType, Tensor};
use rwkvx_kernels::{CacheBudget, ChunkTopK, KernelBackend, KvCache, reference, sparse_attention};

use crate::support::{Array, assert_close, golden};

/// Two roundings apart: the pieces sum in another order.
const SAME: f64 = 1e-6;

struct Case<B: KernelBackend> {
    qkv: [Tensor<B, 4>; 3],
    dims: [usize; 4],
    shape: ChunkTopK,
    whole: Array,
}

impl<B: KernelBackend> Case<B> {
    fn new(dims: [usize; 4], shape: ChunkTopK) -> Self {
        let qkv = [1, 2, 3].map(|seed| Array::normal(dims, seed).tensor::<B>());
        let [q, k, v] = qkv.clone();
        let whole = Array::of(sparse_attention(q, k, v, shape));
        Self {
            qkv,
            dims,
            shape,
            whole,
        }
    }

    fn empty_cache(&self) -> KvCache<B> {
        let [batch, _, heads, size] = self.dims;
        KvCache::new(batch, heads, size, self.shape, &B::Device::default())
    }

    /// Feeds tokens `from..to`.
    fn attend(&self, cache: &mut KvCache<B>, from: usize, to: usize) -> Tensor<B, 4> {
        let [batch, _, heads, size] = self.dims;
        let [q, k, v] = self
            .qkv
            .clone()
            .map(|x| x.slice([0..batch, from..to, 0..heads, 0..size]));
        cache.attend(q, k, v)
    }

    /// Feeds everything, cut at `cuts`.
    #[track_caller]
    fn check_pieces(&self, cuts: &[usize]) {
        let mut cache = self.empty_cache();
        let mut outputs = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&self.dims[1]]) {
            outputs.push(self.attend(&mut cache, from, to));
            from = to;
            assert_eq!(cache.len(), to);
        }
        let output = Array::of(Tensor::cat(outputs, 1));
        assert_close(
            &format!("{:?} {:?} cut at {cuts:?}", self.dims, self.shape),
            &output,
            &self.whole,
            SAME,
        );
    }
}

fn every_cut_in_two_gives_the_whole<B: KernelBackend>() {
    let case = Case::<B>::new(
        [2, 70, 2, 32],
        ChunkTopK {
            chunk_size: 8,
            top_k: 3,
        },
    );
    for cut in 1..70 {
        case.check_pieces(&[cut]);
    }
}

fn token_by_token_gives_the_whole<B: KernelBackend>() {
    for (chunk_size, top_k) in [(16, 2), (16, 1), (5, 4), (64, 2)] {
        let case = Case::<B>::new([2, 90, 2, 32], ChunkTopK { chunk_size, top_k });
        case.check_pieces(&(1..90).collect::<Vec<_>>());
    }
}

fn pieces_of_mixed_lengths_give_the_whole<B: KernelBackend>() {
    let case = Case::<B>::new(
        [1, 600, 2, 32],
        ChunkTopK {
            chunk_size: 16,
            top_k: 3,
        },
    );
    case.check_pieces(&[1, 2, 18, 34, 35, 99, 228, 229, 580]);
    for odd_size in [24, 10, 1] {
        let case = Case::<B>::new(
            [1, 100, 1, odd_size],
            ChunkTopK {
                chunk_size: 16,
                top_k: 2,
            },
        );
        case.check_pieces(&[40, 41, 42, 90]);
    }
}

fn a_clone_goes_its_own_way<B: KernelBackend>() {
    let case = Case::<B>::new(
        [1, 60, 1, 32],
        ChunkTopK {
            chunk_size: 8,
            top_k: 2,
        },
    );
    let mut cache = case.empty_cache();
    case.attend(&mut cache, 0, 40);
    let mut branch = cache.clone();
    let expected = Array::of(case.attend(&mut cache, 40, 60));
    // Other tokens into the branch must not reach the first cache's memory, nor the other way round.
    case.attend(&mut branch, 0, 5);
    let mut again = case.empty_cache();
    case.attend(&mut again, 0, 40);
    let found = Array::of(case.attend(&mut again, 40, 60));
    assert_eq!(found.values, expected.values);
    assert_eq!((cache.len(), branch.len()), (60, 45));
    let own = Array::of(case.attend(&mut cache.clone(), 59, 60));
    let other = Array::of(case.attend(&mut branch, 59, 60));
    assert_ne!(own.values, other.values);
}

fn memory_grows_with_the_tokens_and_reserving_comes_first<B: KernelBackend>() {
    let case = Case::<B>::new(
        [1, 64, 2, 32],
        ChunkTopK {
            chunk_size: 8,
            top_k: 2,
        },
    );
    let mut cache = case.empty_cache();
    assert!(cache.is_empty());
    assert_eq!(cache.bytes(), 0);
    for time in 0..64 {
        case.attend(&mut cache, time, time + 1);
    }
    let rows = 2 * 2 * 64 * 32 * 4; // keys and values of 2 heads
    assert!(
        (rows..=2 * rows + rows).contains(&cache.bytes()),
        "{} bytes",
        cache.bytes()
    );

    let mut reserved = case.empty_cache();
    reserved.reserve(64);
    let before = reserved.bytes();
    case.attend(&mut reserved, 0, 7);
    assert_eq!(reserved.bytes(), before);
    let output = Array::of(case.attend(&mut reserved, 7, 64));
    let expected = Array {
        shape: [1, 57, 2, 32],
        values: case.whole.values[7 * 64..].to_vec(),
    };
    assert_close("after reserving", &output, &expected, SAME);
}

/// A small budget: 40 rows shrink to 24, of which 8 are the last, by the choice of 5 queries.
const BUDGET: CacheBudget = CacheBudget {
    max: 40,
    min: 24,
    window: 8,
    observers: 5,
};

fn budgeted_case<B: KernelBackend>() -> Case<B> {
    let shape = ChunkTopK {
        chunk_size: 8,
        top_k: 2,
    };
    Case::new([2, 150, 2, 32], shape)
}

/// Outputs of everything, cut at `cuts`, and the cache at the end.
fn with_budget<B: KernelBackend>(
    case: &Case<B>,
    budget: CacheBudget,
    cuts: &[usize],
) -> (Array, KvCache<B>) {
    let mut cache = case.empty_cache().with_budget(budget);
    let mut from = 0;
    let outputs = cuts.iter().chain([&case.dims[1]]).map(|&to| {
        let output = case.attend(&mut cache, from, to);
        assert!(cache.len() <= budget.max);
        from = to;
        output
    });
    let output = Tensor::cat(outputs.collect(), 1);
    (Array::of(output), cache)
}

fn golden_rows_are_kept<B: KernelBackend>() {
    let golden = golden("snapkv");
    let found = reference::most_observed(
        golden["q_obs"].tensor::<B>(),
        golden["k_past"].tensor::<B>(),
        golden["n"].values[0] as usize,
    );
    let expected = &golden["keep"];
    let heads = expected.values.chunks(expected.shape[3]);
    let expected: Vec<Vec<usize>> = heads
        .map(|rows| rows.iter().map(|&row| row as usize).collect())
        .collect();
    assert_eq!(found, expected);
}

/// The outputs of the pieces, and what the cache keeps for each head, follow from the definition: shrink a full cache before the next token.
fn a_full_cache_keeps_what_the_last_queries_attend_to<B: KernelBackend>() {
    let case = budgeted_case::<B>();
    let (found, _) = with_budget(&case, BUDGET, &[]);

    // Row by row: the tokens whose keys and values each head of each text holds.
    let [batch, time, heads, size] = case.dims;
    let [q, k, v] = case.qkv.clone();
    let all = |x: &Tensor<B, 4>| x.clone().swap_dims(1, 2); // [batch, heads, time, head_size]
    let (mut held, mut from, mut outputs) = (vec![Vec::new(); batch * heads], 0, Vec::new());
    while from < time {
        if held[0].len() == BUDGET.max {
            let old = BUDGET.max - BUDGET.window;
            for (head, held) in held.iter_mut().enumerate() {
                let row = [
                    head / heads..head / heads + 1,
                    head % heads..head % heads + 1,
                ];
                let [row_batch, row_head] = row;
                let of = |x: &Tensor<B, 4>| all(x).slice([row_batch.clone(), row_head.clone()]);
                let keys = held[..old]
                    .iter()
                    .map(|&t: &usize| of(&k).slice([0..1, 0..1, t..t + 1]));
                let kept = reference::most_observed(
                    of(&q).slice([0..1, 0..1, from - BUDGET.observers..from]),
                    Tensor::cat(keys.collect(), 2),
                    BUDGET.min - BUDGET.window,
                );
                let kept = kept[0].iter().copied().chain(old..BUDGET.max);
                *held = kept.map(|row| held[row]).collect();
            }
        }
        let to = time.min(from + BUDGET.max - held[0].len());
        // The same rows as a text of their own, whose last tokens are the new ones.
        let mut text = case.empty_cache();
        held.iter_mut().for_each(|held| held.extend(from..to));
        let rows = held[0].len();
        let gathered = [&q, &k, &v].map(|x| {
            let x = Array::of(all(x));
            let mut values = Vec::new();
            for (head, held) in held.iter().enumerate() {
                for &t in held {
                    values.extend_from_slice(&x.values[(head * time + t) * size..][..size]);
                }
            }
            let shape = [batch, heads, rows, size];
            Array { shape, values }.swapped().tensor::<B>()
        });
        let [q, k, v] = gathered;
        let whole = text.attend(q, k, v);
        outputs.push(whole.slice([0..batch, rows - (to - from)..rows]));
        from = to;
    }
    let expected = Array::of(Tensor::cat(outputs, 1));
    assert_close("with a budget", &found, &expected, SAME);
}

fn pieces_with_a_budget_equal_steps_with_it<B: KernelBackend>() {
    let case = budgeted_case::<B>();
    let steps: Vec<usize> = (1..150).collect();
    let (expected, stepped) = with_budget(&case, BUDGET, &steps);
    for cuts in [&[][..], &[40], &[1, 39, 41, 80, 149], &[7, 64, 65, 66, 120]] {
        let (found, pieced) = with_budget(&case, BUDGET, cuts);
        assert_close(&format!("cut at {cuts:?}"), &found, &expected, SAME);
        assert_eq!(pieced.len(), stepped.len());
    }
}

fn a_budget_that_is_never_reached_changes_nothing<B: KernelBackend>() {
    let case = budgeted_case::<B>();
    for budget in [CacheBudget::of(150), CacheBudget::default()] {
        let (found, cache) = with_budget(&case, budget, &[3, 70, 71]);
        assert_close("large budget", &found, &case.whole, SAME);
        assert_eq!(cache.len(), 150);
    }
    // One token more than the cache may hold.
    let (found, cache) = with_budget(&case, CacheBudget::of(149), &[]);
    assert_ne!(found.values, case.whole.values);
    assert_eq!(cache.len(), CacheBudget::of(149).min + 1);
}

fn memory_stays_within_the_budget<B: KernelBackend>() {
    let case = budgeted_case::<B>();
    let mut cache = case.empty_cache().with_budget(BUDGET);
    cache.reserve(1_000_000);
    case.attend(&mut cache, 0, 40);
    let full = cache.bytes();
    for time in 40..150 {
        case.attend(&mut cache, time, time + 1);
        assert_eq!(cache.bytes(), full);
    }
}

#[test]
#[should_panic(expected = "must fall from one to the next")]
fn impossible_budgets_are_refused() {
    let budget = CacheBudget { min: 8, ..BUDGET };
    let _ = budgeted_case::<burn_flex::Flex>()
        .empty_cache()
        .with_budget(budget);
}

/// NdArray has no half precision.
#[test]
fn a_cache_may_hold_halves_on_flex() {
    let case = Case::<burn_flex::Flex>::new(
        [1, 90, 2, 32],
        ChunkTopK {
            chunk_size: 16,
            top_k: 3,
        },
    );
    let options = (&Default::default(), DType::BF16);
    let mut cache = KvCache::new(1, 2, 32, case.shape, options);
    let mut full = case.empty_cache();
    let outputs = [(0, 50), (50, 51), (51, 90)].map(|(from, to)| {
        case.attend(&mut full, from, to);
        case.attend(&mut cache, from, to)
    });
    // Keys and values are rounded to 8 bits.
    let output = Array::of(Tensor::cat(outputs.into(), 1));
    assert_close("bf16", &output, &case.whole, 1e-2);
    // The means stay f32.
    assert!(cache.bytes() < full.bytes() * 6 / 10);
}

macro_rules! on_backends {
    ($($(#[$feature:meta])? $module:ident: $backend:ty),+ $(,)?) => {
        $($(#[$feature])? mod $module {
            #[test] fn every_cut_in_two_gives_the_whole() { super::every_cut_in_two_gives_the_whole::<$backend>() }
            #[test] fn token_by_token_gives_the_whole() { super::token_by_token_gives_the_whole::<$backend>() }
            #[test] fn pieces_of_mixed_lengths_give_the_whole() { super::pieces_of_mixed_lengths_give_the_whole::<$backend>() }
            #[test] fn a_clone_goes_its_own_way() { super::a_clone_goes_its_own_way::<$backend>() }
            #[test] fn golden_rows_are_kept() { super::golden_rows_are_kept::<$backend>() }
            #[test] fn a_full_cache_keeps_what_the_last_queries_attend_to() { super::a_full_cache_keeps_what_the_last_queries_attend_to::<$backend>() }
            #[test] fn pieces_with_a_budget_equal_steps_with_it() { super::pieces_with_a_budget_equal_steps_with_it::<$backend>() }
            #[test] fn a_budget_that_is_never_reached_changes_nothing() { super::a_budget_that_is_never_reached_changes_nothing::<$backend>() }
            #[test] fn memory_stays_within_the_budget() { super::memory_stays_within_the_budget::<$backend>() }
            #[test] fn memory_grows_with_the_tokens_and_reserving_comes_first() {
                super::memory_grows_with_the_tokens_and_reserving_comes_first::<$backend>()
            }
        })+
    };
}

// Autodiff keeps the cache's default bodies, in tensor operations.
on_backends!(
    flex: burn_flex::Flex,
    ndarray: burn_ndarray::NdArray<f32>,
    default_bodies: burn::backend::Autodiff<burn_flex::Flex>,
    #[cfg(feature = "cuda")]
    cuda: burn::backend::Cuda,
    #[cfg(feature = "vulkan")]
    vulkan: crate::Vulkan,
);
