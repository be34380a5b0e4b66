//! The recurrence in tensor operations, chunk by chunk.
//!
//! Inside a chunk of 16 tokens let `W_t` be the running product of decays, `a_t = W_{t-1} removal_t`,
//! `b_t = replacement_t / W_t`, `k_t = key_t / W_t`, `r_t = W_t receptance_t`, stacked as rows of `A B K R`, with values `V`. Then
//!
//! ```text
//! U   = (I - low(A B^T))^-1 (A S0^T + low(A K^T) V)        low: strictly lower triangle, tri: lower triangle
//! Y   = R S0^T + tri(R B^T) U + tri(R K^T) V
//! S16 = (S0 + U^T B + V^T K) diag(W_16)
//! ```
//!
//! Row t of `U` is `S_{t-1} removal_t`. All but the products with `S0` is parallel over chunks. As the model's decays are above
//! 0.545, `1 / W` stays below 1.7e4 inside a chunk, so f32 loses nothing.

use burn::tensor::{Tensor, backend::Backend};

use super::{Wkv7Inputs, Wkv7Output};

/// Tokens per chunk. `1 / W` bounds it; the product form of [`inverse_of_unit_lower`] has four factors because of it.
const CHUNK: usize = 16;

/// The definition of [`wkv7`](crate::wkv7()) in tensor operations; plain autodiff gives its gradients.
pub fn wkv7<B: Backend>(inputs: Wkv7Inputs<B>) -> Wkv7Output<B> {
    let device = inputs.receptance.device();
    let [batch, time, heads, head_size] = inputs.receptance.dims();
    let chunks = time.div_ceil(CHUNK);
    let split = |sequence_bthn| into_chunks(sequence_bthn, chunks);

    // [batch, heads, chunk, 16, head_size], as all locals of rank 5 below unless they say otherwise.
    let log_decay = split(inputs.log_decay);
    let log_up_to = log_decay.clone().cumsum(3); // ln W_t
    let log_before = log_up_to.clone() - log_decay; // ln W_{t-1}
    let grow = log_up_to.clone().neg().exp();
    let removal = split(inputs.removal) * log_before.exp();
    let replacement = split(inputs.replacement) * grow.clone();
    let key = split(inputs.key) * grow;
    let value = split(inputs.value);
    let receptance = split(inputs.receptance) * log_up_to.clone().exp();
    let chunk_decay = log_up_to
        .slice([0..batch, 0..heads, 0..chunks, CHUNK - 1..CHUNK])
        .exp();

    let ones = Tensor::<B, 2>::ones([CHUNK, CHUNK], &device);
    let lower = ones.clone().tril(0).unsqueeze();
    let strictly_lower = ones.tril(-1).unsqueeze::<5>();
    let key_t = key.clone().swap_dims(3, 4);
    let replacement_t = replacement.clone().swap_dims(3, 4);

    // [.., 16, 16]: how later tokens of the chunk see earlier ones.
    let removal_on_replacement =
        removal.clone().matmul(replacement_t.clone()) * strictly_lower.clone();
    let removal_on_key = removal.clone().matmul(key_t.clone()) * strictly_lower;
    let receptance_on_replacement = receptance.clone().matmul(replacement_t) * lower.clone();
    let receptance_on_key = receptance.clone().matmul(key_t) * lower;

    // U = from_state S0^T + from_values
    let solve = inverse_of_unit_lower(removal_on_replacement);
    let from_state = solve.clone().matmul(removal);
    let from_values = solve.matmul(removal_on_key.matmul(value.clone()));
    let written = value.clone().swap_dims(3, 4).matmul(key); // V^T K, [.., value, key]

    let mut state = inputs
        .state
        .unwrap_or_else(|| Tensor::zeros([batch, heads, head_size, head_size], &device));
    let mut states = Vec::with_capacity(chunks);
    let mut removed = Vec::with_capacity(chunks);
    for chunk in 0..chunks {
        let at = |sequence: &Tensor<B, 5>| {
            sequence
                .clone()
                .slice([0..batch, 0..heads, chunk..chunk + 1])
                .squeeze_dim::<4>(2)
        };
        // [batch, heads, 16, value]
        let removed_here = at(&from_state).matmul(state.clone().swap_dims(2, 3)) + at(&from_values);
        let updated = removed_here
            .clone()
            .swap_dims(2, 3)
            .matmul(at(&replacement))
            + at(&written);
        states.push(state.clone());
        removed.push(removed_here);
        state = (state + updated) * at(&chunk_decay);
    }
    let states: Tensor<B, 5> = Tensor::stack(states, 2); // [batch, heads, chunk, value, key]
    let removed: Tensor<B, 5> = Tensor::stack(removed, 2);

    let output = receptance.matmul(states.swap_dims(3, 4))
        + receptance_on_replacement.matmul(removed)
        + receptance_on_key.matmul(value);
    let output = output
        .reshape([batch, heads, chunks * CHUNK, head_size])
        .slice([0..batch, 0..heads, 0..time])
        .swap_dims(1, 2);
    Wkv7Output { output, state }
}

/// `[batch, time, heads, head_size]` to `[batch, heads, chunk, 16, head_size]`. The last chunk is filled up with zeros, which
/// are tokens that change nothing: no decay, nothing removed, nothing written.
fn into_chunks<B: Backend>(sequence_bthn: Tensor<B, 4>, chunks: usize) -> Tensor<B, 5> {
    let [batch, time, heads, head_size] = sequence_bthn.dims();
    let missing = chunks * CHUNK - time;
    let sequence = if missing > 0 {
        let zeros = Tensor::zeros([batch, missing, heads, head_size], &sequence_bthn.device());
        Tensor::cat(vec![sequence_bthn, zeros], 1)
    } else {
        sequence_bthn
    };
    sequence
        .swap_dims(1, 2)
        .reshape([batch, heads, chunks, CHUNK, head_size])
}

/// `(I - P)^-1` for strictly lower `P` `[.., 16, 16]`: as `P^16 = 0` it is `(I + P)(I + P^2)(I + P^4)(I + P^8)`.
fn inverse_of_unit_lower<B: Backend>(p: Tensor<B, 5>) -> Tensor<B, 5> {
    let identity = Tensor::<B, 2>::eye(CHUNK, &p.device()).unsqueeze::<5>();
    let mut power = p;
    let mut inverse = power.clone() + identity.clone();
    for _ in 0..3 {
        power = power.clone().matmul(power);
        inverse = inverse.matmul(power.clone() + identity.clone());
    }
    inverse
}
