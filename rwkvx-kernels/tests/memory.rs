//! The memory that operators take, which a test in a process of its own can count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Distribution, Int, Tensor};
use rwkvx_kernels::{KernelBackend, cross_entropy_gradient, cross_entropy_rows};

/// Counts the bytes that are allocated, and the most there were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: memory comes from the system's allocator and goes back to it unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes beyond the logits that their losses and gradient took.
fn cross_entropy<B: KernelBackend>(rows: usize, vocab: usize) -> usize {
    let device = Default::default();
    let normal = Distribution::Normal(0.0, 1.0);
    let logits = Tensor::<B, 2>::random([rows, vocab], normal, &device);
    let targets = Tensor::<B, 1, Int>::zeros([rows], &device);
    let shares = Tensor::<B, 1>::ones([rows], &device);
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let losses = cross_entropy_rows(logits.clone(), targets.clone());
    cross_entropy_gradient(logits, targets, losses, shares, 1e-4);
    MOST.load(Ordering::Relaxed) - before
}

/// One test, as others at its side would be counted too.
#[test]
fn logits_become_their_gradient_in_place() {
    let (rows, vocab) = (64, 65536);
    let logits = rows * vocab * size_of::<f32>();
    for (backend, bytes) in [
        ("flex", cross_entropy::<burn_flex::Flex>(rows, vocab)),
        (
            "ndarray",
            cross_entropy::<burn_ndarray::NdArray<f32>>(rows, vocab),
        ),
    ] {
        println!("{backend}: {bytes} bytes beyond the {logits} of the logits");
        assert!(bytes < logits / 50, "{backend}: {bytes} bytes");
    }
}
