//! From projections to what the recurrence takes.

use cubecl::prelude::*;

use super::{exchange, negative, sigmoid, sum_over_head};
use crate::cube::blocks::{Grid, Heads, own_part, partial_at, sum_blocks};
use crate::cube::{CubeMemory, alike, allocate_like, tensor};
use crate::time_mix::reference::{LOG_DECAY_FLOOR, MIN_SQUARED_NORM};
use crate::time_mix::{KeyInputs, Keys};

/// The body of [`KernelBackend::prepare_keys`](crate::KernelBackend::prepare_keys).
pub(crate) fn prepare_keys<B: CubeMemory>(inputs: KeyInputs<B>) -> Keys<B> {
    let dims = inputs.key.dims();
    let [decay, rate, key] = alike([inputs.decay, inputs.rate, inputs.key]);
    let [decay_bias, rate_bias, removal_scale, rate_scale] = alike([
        inputs.decay_bias,
        inputs.rate_bias,
        inputs.removal_scale,
        inputs.rate_scale,
    ]);
    let dtypes = [key.dtype.into(), decay_bias.dtype.into()];
    let grid = Grid::of_heads(&key, dims, inputs.head_size);
    let results = [(); 4].map(|()| allocate_like(&key));
    let [log_decay, scaled_key, removal, replacement] = results.clone();
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        time_mix_keys::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            decay.into_array_arg(),
            rate.into_array_arg(),
            key.into_array_arg(),
            decay_bias.into_array_arg(),
            rate_bias.into_array_arg(),
            removal_scale.into_array_arg(),
            rate_scale.into_array_arg(),
            log_decay.into_array_arg(),
            scaled_key.into_array_arg(),
            removal.into_array_arg(),
            replacement.into_array_arg(),
            grid.rows,
            grid.heads,
            dtypes,
        );
    }
    let [log_decay, key, removal, replacement] = results.map(tensor);
    Keys {
        log_decay,
        key,
        removal,
        replacement,
    }
}

/// The passes of [`TimeMixBackward::prepare_keys`](crate::TimeMixBackward::prepare_keys).
pub(super) fn backward<B: CubeMemory>(inputs: KeyInputs<B>, d_keys: Keys<B>) -> KeyInputs<B> {
    let dims = inputs.key.dims();
    let head_size = inputs.head_size;
    let [
        decay,
        rate,
        key,
        d_log_decay,
        d_scaled_key,
        d_removal,
        d_replacement,
    ] = alike([
        inputs.decay,
        inputs.rate,
        inputs.key,
        d_keys.log_decay,
        d_keys.key,
        d_keys.removal,
        d_keys.replacement,
    ]);
    let parameters = alike([
        inputs.decay_bias,
        inputs.rate_bias,
        inputs.removal_scale,
        inputs.rate_scale,
    ]);
    let d_parameters = parameters.each_ref().map(allocate_like);
    let [decay_bias, rate_bias, removal_scale, rate_scale] = parameters;
    let dtypes = [key.dtype.into(), decay_bias.dtype.into()];
    let grid = Grid::of_heads(&key, dims, head_size);
    let d_sequences = [(); 3].map(|()| allocate_like(&key));
    let [d_decay, d_rate, d_key] = d_sequences.clone();
    let partials = grid.partials(&key, 4);
    // SAFETY: as in `prepare_keys`.
    unsafe {
        time_mix_keys_backward::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            decay.into_array_arg(),
            rate.into_array_arg(),
            key.into_array_arg(),
            decay_bias.into_array_arg(),
            rate_bias.into_array_arg(),
            removal_scale.into_array_arg(),
            rate_scale.into_array_arg(),
            d_log_decay.into_array_arg(),
            d_scaled_key.into_array_arg(),
            d_removal.into_array_arg(),
            d_replacement.into_array_arg(),
            d_decay.into_array_arg(),
            d_rate.into_array_arg(),
            d_key.into_array_arg(),
            partials.clone().into_array_arg(),
            grid.rows,
            grid.heads,
            dtypes,
        );
    }
    sum_blocks(&grid, partials, &d_parameters);
    let [decay, rate, key] = d_sequences.map(tensor);
    let [decay_bias, rate_bias, removal_scale, rate_scale] = d_parameters.map(tensor);
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

/// One unit per (block of rows, vector of channels). Sequences are `[rows, columns]` vectors, the parameters are `[columns]`.
#[cube(launch_unchecked)]
fn time_mix_keys<F: Float, P: Float, N: Size>(
    decay: &Array<Vector<F, N>>,
    rate: &Array<Vector<F, N>>,
    key: &Array<Vector<F, N>>,
    decay_bias: &Array<Vector<P, N>>,
    rate_bias: &Array<Vector<P, N>>,
    removal_scale: &Array<Vector<P, N>>,
    rate_scale: &Array<Vector<P, N>>,
    log_decay: &mut Array<Vector<F, N>>,
    scaled_key: &mut Array<Vector<F, N>>,
    removal: &mut Array<Vector<F, N>>,
    replacement: &mut Array<Vector<F, N>>,
    rows: usize,
    #[comptime] heads: Heads,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let mut shared = exchange(heads);
    let one = Vector::<f32, N>::new(1.0);
    let floor = Vector::<f32, N>::new(LOG_DECAY_FLOOR as f32);
    let w0 = Vector::<f32, N>::cast_from(decay_bias[part.column]);
    let a0 = Vector::<f32, N>::cast_from(rate_bias[part.column]);
    let k_k = Vector::<f32, N>::cast_from(removal_scale[part.column]);
    let k_a = Vector::<f32, N>::cast_from(rate_scale[part.column]);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let k = Vector::<f32, N>::cast_from(key[at]);
        let w = sigmoid(Vector::<f32, N>::cast_from(decay[at]) + w0);
        let a = sigmoid(Vector::<f32, N>::cast_from(rate[at]) + a0);
        let direction = k * k_k;
        let squared = sum_over_head(direction * direction, &mut shared, heads);
        let kk = direction * Vector::new(inverse_length(squared));
        log_decay[at] = Vector::cast_from(floor * w);
        scaled_key[at] = Vector::cast_from(k * (one + (a - one) * k_a));
        removal[at] = Vector::cast_from(negative(kk));
        replacement[at] = Vector::cast_from(kk * a);
    }
}

/// As [`time_mix_keys`]; `partials` is `[4, blocks, columns]`.
#[cube(launch_unchecked)]
fn time_mix_keys_backward<F: Float, P: Float, N: Size>(
    decay: &Array<Vector<F, N>>,
    rate: &Array<Vector<F, N>>,
    key: &Array<Vector<F, N>>,
    decay_bias: &Array<Vector<P, N>>,
    rate_bias: &Array<Vector<P, N>>,
    removal_scale: &Array<Vector<P, N>>,
    rate_scale: &Array<Vector<P, N>>,
    d_log_decay: &Array<Vector<F, N>>,
    d_scaled_key: &Array<Vector<F, N>>,
    d_removal: &Array<Vector<F, N>>,
    d_replacement: &Array<Vector<F, N>>,
    d_decay: &mut Array<Vector<F, N>>,
    d_rate: &mut Array<Vector<F, N>>,
    d_key: &mut Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: usize,
    #[comptime] heads: Heads,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let mut shared = exchange(heads);
    let one = Vector::<f32, N>::new(1.0);
    let floor = Vector::<f32, N>::new(LOG_DECAY_FLOOR as f32);
    let w0 = Vector::<f32, N>::cast_from(decay_bias[part.column]);
    let a0 = Vector::<f32, N>::cast_from(rate_bias[part.column]);
    let k_k = Vector::<f32, N>::cast_from(removal_scale[part.column]);
    let k_a = Vector::<f32, N>::cast_from(rate_scale[part.column]);
    let mut d_w0 = Vector::<f32, N>::new(0.0);
    let mut d_a0 = Vector::<f32, N>::new(0.0);
    let mut d_k_k = Vector::<f32, N>::new(0.0);
    let mut d_k_a = Vector::<f32, N>::new(0.0);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let k = Vector::<f32, N>::cast_from(key[at]);
        let w = sigmoid(Vector::<f32, N>::cast_from(decay[at]) + w0);
        let a = sigmoid(Vector::<f32, N>::cast_from(rate[at]) + a0);
        let d_scaled = Vector::<f32, N>::cast_from(d_scaled_key[at]);
        let d_replaced = Vector::<f32, N>::cast_from(d_replacement[at]);
        let d_kk = d_replaced * a - Vector::<f32, N>::cast_from(d_removal[at]);

        // Through the length, which is constant where it is cut off.
        let direction = k * k_k;
        let squared = sum_over_head(direction * direction, &mut shared, heads);
        let along = sum_over_head(direction * d_kk, &mut shared, heads);
        let inverse = inverse_length(squared);
        let kk = direction * Vector::new(inverse);
        let along = select(squared > MIN_SQUARED_NORM as f32, along * inverse, 0.0);
        let d_direction = (d_kk - kk * Vector::new(along)) * Vector::new(inverse);

        let d_w = Vector::<f32, N>::cast_from(d_log_decay[at]) * floor * w * (one - w);
        let d_a = (d_replaced * kk + d_scaled * k * k_a) * a * (one - a);
        d_decay[at] = Vector::cast_from(d_w);
        d_rate[at] = Vector::cast_from(d_a);
        d_key[at] = Vector::cast_from(d_direction * k_k + d_scaled * (one + (a - one) * k_a));
        d_w0 += d_w;
        d_a0 += d_a;
        d_k_k += d_direction * k;
        d_k_a += d_scaled * k * (a - one);
    }
    partials[partial_at(&part, 0)] = d_w0;
    partials[partial_at(&part, 1)] = d_a0;
    partials[partial_at(&part, 2)] = d_k_k;
    partials[partial_at(&part, 3)] = d_k_a;
}

/// One over the length of a head, from its square.
#[cube]
pub(super) fn inverse_length(squared: f32) -> f32 {
    max(squared, MIN_SQUARED_NORM as f32).inverse_sqrt()
}
