//! From projections to what the recurrence takes.

use super::rows::{RowPass, run};
use super::spread_sums;
use crate::cpu::HostMemory;
use crate::cpu::simd::sigmoid;
use crate::time_mix::reference::LOG_DECAY_FLOOR;
use crate::time_mix::{KeyInputs, Keys};

/// The body of [`KernelBackend::prepare_keys`](crate::KernelBackend::prepare_keys).
pub(crate) fn prepare_keys<B: HostMemory>(inputs: KeyInputs<B>) -> Keys<B> {
    let sequences = [inputs.decay, inputs.rate, inputs.key];
    let parameters = [
        inputs.decay_bias,
        inputs.rate_bias,
        inputs.removal_scale,
        inputs.rate_scale,
    ];
    let ([log_decay, key, removal, replacement], []) =
        run(Forward, inputs.head_size, sequences, parameters);
    Keys {
        log_decay,
        key,
        removal,
        replacement,
    }
}

/// The passes of [`TimeMixBackward::prepare_keys`](crate::TimeMixBackward::prepare_keys).
pub(super) fn backward<B: HostMemory>(inputs: KeyInputs<B>, d_keys: Keys<B>) -> KeyInputs<B> {
    let head_size = inputs.head_size;
    let sequences = [
        inputs.decay,
        inputs.rate,
        inputs.key,
        d_keys.log_decay,
        d_keys.key,
        d_keys.removal,
        d_keys.replacement,
    ];
    let parameters = [
        inputs.decay_bias,
        inputs.rate_bias,
        inputs.removal_scale,
        inputs.rate_scale,
    ];
    let ([decay, rate, key], [decay_bias, rate_bias, removal_scale, rate_scale]) =
        run(Backward, head_size, sequences, parameters);
    KeyInputs {
        decay,
        rate,
        key,
        decay_bias,
        rate_bias,
        removal_scale,
        rate_scale,
        head_size,
    }
}

const FLOOR: f32 = LOG_DECAY_FLOOR as f32;
/// Length below which a removal key counts as zero.
const MIN_LENGTH: f32 = 1e-12;

struct Forward;

impl RowPass<3, 4, 4, 0, 0> for Forward {
    const COST: usize = 50;

    #[inline(always)]
    fn row(
        size: usize,
        [decay, rate, key]: [&[f32]; 3],
        [w0, a0, k_k, k_a]: [&[f32]; 4],
        [log_decay, scaled_key, removal, replacement]: [&mut [f32]; 4],
        []: [&mut [f32]; 0],
        []: [&mut [f32]; 0],
    ) {
        each!(i,
            log_decay = FLOOR * sigmoid(decay[i] + w0[i]);
        );
        let a = &mut *replacement;
        each!(i,
            a = sigmoid(rate[i] + a0[i]);
            scaled_key = key[i] * (1.0 + (a[i] - 1.0) * k_a[i]);
            removal = (key[i] * k_k[i]).powi(2);
        );
        spread_sums(removal, size, inverse_length);
        each!(i,
            removal = -(key[i] * k_k[i] * removal[i]);
            replacement = -removal[i] * replacement[i];
        );
    }
}

struct Backward;

impl RowPass<7, 4, 3, 4, 2> for Backward {
    const COST: usize = 80;

    #[inline(always)]
    fn row(
        size: usize,
        [
            decay,
            rate,
            key,
            d_log_decay,
            d_scaled_key,
            d_removal,
            d_replacement,
        ]: [&[f32]; 7],
        [w0, a0, k_k, k_a]: [&[f32]; 4],
        [d_decay, d_rate, d_key]: [&mut [f32]; 3],
        [d_w0, d_a0, d_k_k, d_k_a]: [&mut [f32]; 4],
        [inverse, along]: [&mut [f32]; 2],
    ) {
        let a = &mut *d_decay;
        each!(i,
            a = sigmoid(rate[i] + a0[i]);
            d_k_a += d_scaled_key[i] * key[i] * (a[i] - 1.0);
        );

        // Through the length, which is constant where it is cut off.
        let d_kk = &mut *d_rate;
        each!(i,
            d_kk = d_replacement[i] * a[i] - d_removal[i];
            inverse = (key[i] * k_k[i]).powi(2);
        );
        spread_sums(inverse, size, inverse_length);
        each!(i,
            along = if inverse[i] < 1.0 / MIN_LENGTH { key[i] * k_k[i] * inverse[i] * d_kk[i] } else { 0.0 };
        );
        spread_sums(along, size, |along| along);
        let d_direction = &mut *d_key;
        each!(i,
            d_direction = (d_kk[i] - key[i] * k_k[i] * inverse[i] * along[i]) * inverse[i];
            d_k_k += d_direction[i] * key[i];
        );

        each!(i,
            d_rate = (d_replacement[i] * k_k[i] * inverse[i] + d_scaled_key[i] * k_a[i]) * key[i];
            d_rate *= a[i] * (1.0 - a[i]);
            d_a0 += d_rate[i];
            d_key = d_key[i] * k_k[i] + d_scaled_key[i] * (1.0 + (a[i] - 1.0) * k_a[i]);
        );
        each!(i,
            d_decay = sigmoid(decay[i] + w0[i]);
            d_decay = d_log_decay[i] * FLOOR * d_decay[i] * (1.0 - d_decay[i]);
            d_w0 += d_decay[i];
        );
    }
}

/// One over the length of a head, from its square.
#[inline(always)]
fn inverse_length(squared: f32) -> f32 {
    1.0 / squared.sqrt().max(MIN_LENGTH)
}
