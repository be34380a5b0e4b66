//! The memory that the head's loss takes, which a test of its own process can count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Int, Tensor};
use rwkvx_train::head_loss::{LOGITS_BYTES, Objective, head_loss};

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

#[test]
fn loss_and_gradients_take_a_piece_of_logits_and_a_weight_gradient() {
    const TOKENS: usize = 1024; // four pieces
    const VOCAB: usize = 65536;
    const CHANNELS: usize = 64;
    type Train = Autodiff<Flex>;
    let device = Default::default();
    let normal = Distribution::Normal(0.0, 1.0);
    let hidden = Tensor::<Train, 3>::random([1, TOKENS, CHANNELS], normal, &device).require_grad();
    let weight = Tensor::<Train, 2>::random([VOCAB, CHANNELS], normal, &device).require_grad();
    let objective = Objective {
        targets: Tensor::<Flex, 1, Int>::arange(0..TOKENS as i64, &device).reshape([1, TOKENS]),
        shares: Tensor::ones([1, TOKENS], &device) / TOKENS as f32,
        short: None,
        l2_wrap: 1e-4,
    };

    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let gradients = head_loss(hidden.clone(), weight.clone(), objective)
        .loss
        .backward();
    let most = MOST.load(Ordering::Relaxed) - before;
    assert!(hidden.grad(&gradients).is_some() && weight.grad(&gradients).is_some());

    let of_weight = VOCAB * CHANNELS * size_of::<f32>();
    let of_hidden = TOKENS * CHANNELS * size_of::<f32>();
    let returned = of_weight + of_hidden;
    let beyond = most - returned;
    println!("{beyond} bytes beyond the {returned} of the gradients");
    // Twice a piece's logits, as Flex allocates room for a matrix product twice; and what a piece adds to the weight's gradient.
    assert!(
        beyond <= 2 * LOGITS_BYTES + of_weight + (4 << 20),
        "{beyond} bytes beyond the gradients"
    );
}
