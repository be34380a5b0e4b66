//! The key-value cache computes the function of the whole sequence, however the sequence comes.

use burn::tensor::{DType, Tensor};
use rwkvx_kernels::{ChunkTopK, KernelBackend, KvCache, sparse_attention};

use crate::support::{Array, assert_close};

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
    let odd_head = Case::<B>::new(
        [1, 100, 1, 24],
        ChunkTopK {
            chunk_size: 16,
            top_k: 2,
        },
    );
    odd_head.check_pieces(&[40, 41, 42, 90]);
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
