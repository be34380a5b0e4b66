//! From the recurrence to the output projection.

use burn::tensor::Tensor;

use super::rows::{RowPass, run};
use super::spread_sums;
use crate::cpu::HostMemory;
use crate::time_mix::OutputInputs;
use crate::time_mix::reference::NORM_EPSILON;

/// The body of [`KernelBackend::gate_output`](crate::KernelBackend::gate_output).
pub(crate) fn gate_output<B: HostMemory>(inputs: OutputInputs<B>) -> Tensor<B, 2> {
    let [heads, head_size] = inputs.bonus.dims();
    let sequences = [
        inputs.output,
        inputs.receptance,
        inputs.key,
        inputs.value,
        inputs.gate,
    ];
    let bonus = inputs.bonus.reshape([heads * head_size]);
    let parameters = [inputs.weight, inputs.bias, bonus];
    let ([gated], []) = run(Forward, head_size, sequences, parameters);
    gated
}

/// The passes of [`TimeMixBackward::gate_output`](crate::TimeMixBackward::gate_output).
pub(super) fn backward<B: HostMemory>(
    inputs: OutputInputs<B>,
    d_gated: Tensor<B, 2>,
) -> OutputInputs<B> {
    let [heads, head_size] = inputs.bonus.dims();
    let sequences = [
        inputs.output,
        inputs.receptance,
        inputs.key,
        inputs.value,
        inputs.gate,
        d_gated,
    ];
    let bonus = inputs.bonus.reshape([heads * head_size]);
    let parameters = [inputs.weight, inputs.bias, bonus];
    let ([output, receptance, key, value, gate], [weight, bias, bonus]) =
        run(Backward, head_size, sequences, parameters);
    OutputInputs {
        output,
        receptance,
        key,
        value,
        gate,
        weight,
        bias,
        bonus: bonus.reshape([heads, head_size]),
    }
}

struct Forward;

impl RowPass<5, 3, 1, 0, 2> for Forward {
    const COST: usize = 20;

    #[inline(always)]
    fn row(
        size: usize,
        [output, r, k, v, gate]: [&[f32]; 5],
        [weight, bias, r_k]: [&[f32]; 3],
        [gated]: [&mut [f32]; 1],
        []: [&mut [f32]; 0],
        [inverse, strength]: [&mut [f32]; 2],
    ) {
        let normal = &mut *gated;
        normalise(output, size, normal, inverse);
        each!(i,
            strength = r[i] * k[i] * r_k[i];
        );
        spread_sums(strength, size, |strength| strength);
        each!(i,
            gated = (gated[i] * weight[i] + bias[i] + v[i] * strength[i]) * gate[i];
        );
    }
}

struct Backward;

impl RowPass<6, 3, 5, 3, 4> for Backward {
    const COST: usize = 40;

    #[inline(always)]
    fn row(
        size: usize,
        [output, r, k, v, gate, d_gated]: [&[f32]; 6],
        [weight, bias, r_k]: [&[f32]; 3],
        [d_output, d_r, d_k, d_v, d_gate]: [&mut [f32]; 5],
        [d_weight, d_bias, d_r_k]: [&mut [f32]; 3],
        [inverse, strength, mean, along]: [&mut [f32]; 4],
    ) {
        let normal = &mut *d_output;
        normalise(output, size, normal, inverse);
        each!(i,
            strength = r[i] * k[i] * r_k[i];
        );
        spread_sums(strength, size, |strength| strength);
        each!(i,
            d_gate = d_gated[i] * (normal[i] * weight[i] + bias[i] + v[i] * strength[i]);
        );
        let d_sum = &mut *d_v;
        each!(i,
            d_sum = d_gated[i] * gate[i];
            d_bias += d_sum[i];
            d_weight += d_sum[i] * normal[i];
        );

        let d_strength = &mut *along;
        each!(i,
            d_strength = d_sum[i] * v[i];
        );
        spread_sums(d_strength, size, |d_strength| d_strength);
        each!(i,
            d_r = d_strength[i] * k[i] * r_k[i];
            d_k = d_strength[i] * r[i] * r_k[i];
            d_r_k += d_strength[i] * r[i] * k[i];
        );

        let share = 1.0 / size as f32;
        each!(i,
            mean = d_sum[i] * weight[i];
            along = mean[i] * normal[i];
        );
        spread_sums(mean, size, |sum| sum * share);
        spread_sums(along, size, |sum| sum * share);
        each!(i,
            d_output = (d_sum[i] * weight[i] - mean[i] - d_output[i] * along[i]) * inverse[i];
            d_v *= strength[i];
        );
    }
}

/// Gives every head mean 0 and variance 1, and one over its standard deviation.
#[inline(always)]
fn normalise(row: &[f32], size: usize, normal: &mut [f32], inverse: &mut [f32]) {
    let share = 1.0 / size as f32;
    let mean = &mut *inverse;
    mean.copy_from_slice(row);
    spread_sums(mean, size, |sum| sum * share);
    each!(i,
        normal = row[i] - mean[i];
        inverse = normal[i].powi(2);
    );
    spread_sums(inverse, size, |sum| {
        1.0 / (sum * share + NORM_EPSILON as f32).sqrt()
    });
    each!(i,
        normal *= inverse[i];
    );
}
