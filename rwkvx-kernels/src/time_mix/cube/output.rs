//! From the recurrence to the output projection.

use burn::tensor::Tensor;
use cubecl::prelude::*;

use super::{exchange, sum_over_head};
use crate::cube::blocks::{Grid, Heads, own_part, partial_at, sum_blocks};
use crate::cube::{CubeMemory, alike, allocate_like, tensor};
use crate::time_mix::OutputInputs;
use crate::time_mix::reference::NORM_EPSILON;

/// The body of [`KernelBackend::gate_output`](crate::KernelBackend::gate_output).
pub(crate) fn gate_output<B: CubeMemory>(inputs: OutputInputs<B>) -> Tensor<B, 2> {
    let dims @ [_, channels] = inputs.output.dims();
    let [_, head_size] = inputs.bonus.dims();
    let [output, receptance, key, value, gate] = alike([
        inputs.output,
        inputs.receptance,
        inputs.key,
        inputs.value,
        inputs.gate,
    ]);
    let bonus = inputs.bonus.reshape([channels]);
    let [weight, bias, bonus] = alike([inputs.weight, inputs.bias, bonus]);
    let dtypes = [output.dtype.into(), weight.dtype.into()];
    let grid = Grid::of_heads(&output, dims, head_size);
    let gated = allocate_like(&output);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        time_mix_output::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            output.into_array_arg(),
            receptance.into_array_arg(),
            key.into_array_arg(),
            value.into_array_arg(),
            gate.into_array_arg(),
            weight.into_array_arg(),
            bias.into_array_arg(),
            bonus.into_array_arg(),
            gated.clone().into_array_arg(),
            grid.rows,
            grid.heads,
            dtypes,
        );
    }
    tensor(gated)
}

/// The passes of [`TimeMixBackward::gate_output`](crate::TimeMixBackward::gate_output).
pub(super) fn backward<B: CubeMemory>(
    inputs: OutputInputs<B>,
    d_gated: Tensor<B, 2>,
) -> OutputInputs<B> {
    let dims @ [_, channels] = inputs.output.dims();
    let heads_size @ [_, head_size] = inputs.bonus.dims();
    let [output, receptance, key, value, gate, d_gated] = alike([
        inputs.output,
        inputs.receptance,
        inputs.key,
        inputs.value,
        inputs.gate,
        d_gated,
    ]);
    let bonus = inputs.bonus.reshape([channels]);
    let parameters = alike([inputs.weight, inputs.bias, bonus]);
    let d_parameters = parameters.each_ref().map(allocate_like);
    let [weight, bias, bonus] = parameters;
    let dtypes = [output.dtype.into(), weight.dtype.into()];
    let grid = Grid::of_heads(&output, dims, head_size);
    let d_sequences = [(); 5].map(|()| allocate_like(&output));
    let [d_output, d_receptance, d_key, d_value, d_gate] = d_sequences.clone();
    let partials = grid.partials(&output, 3);
    // SAFETY: as in `gate_output`.
    unsafe {
        time_mix_output_backward::launch_unchecked::<B::Runtime>(
            &grid.client,
            grid.cubes(),
            grid.units(),
            grid.vector,
            output.into_array_arg(),
            receptance.into_array_arg(),
            key.into_array_arg(),
            value.into_array_arg(),
            gate.into_array_arg(),
            weight.into_array_arg(),
            bias.into_array_arg(),
            bonus.into_array_arg(),
            d_gated.into_array_arg(),
            d_output.into_array_arg(),
            d_receptance.into_array_arg(),
            d_key.into_array_arg(),
            d_value.into_array_arg(),
            d_gate.into_array_arg(),
            partials.clone().into_array_arg(),
            grid.rows,
            grid.heads,
            dtypes,
        );
    }
    sum_blocks(&grid, partials, &d_parameters);
    let [output, receptance, key, value, gate] = d_sequences.map(tensor);
    let [weight, bias, bonus] = d_parameters.map(tensor::<B, 1>);
    OutputInputs {
        output,
        receptance,
        key,
        value,
        gate,
        weight,
        bias,
        bonus: bonus.reshape(heads_size),
    }
}

/// One unit per (block of rows, vector of channels). Sequences are `[rows, columns]` vectors, the parameters are `[columns]`.
#[cube(launch_unchecked)]
fn time_mix_output<F: Float, P: Float, N: Size>(
    output: &Array<Vector<F, N>>,
    receptance: &Array<Vector<F, N>>,
    key: &Array<Vector<F, N>>,
    value: &Array<Vector<F, N>>,
    gate: &Array<Vector<F, N>>,
    weight: &Array<Vector<P, N>>,
    bias: &Array<Vector<P, N>>,
    bonus: &Array<Vector<P, N>>,
    gated: &mut Array<Vector<F, N>>,
    rows: usize,
    #[comptime] heads: Heads,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let mut shared = exchange(heads);
    let weight = Vector::<f32, N>::cast_from(weight[part.column]);
    let bias = Vector::<f32, N>::cast_from(bias[part.column]);
    let r_k = Vector::<f32, N>::cast_from(bonus[part.column]);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let y = Vector::<f32, N>::cast_from(output[at]);
        let r = Vector::<f32, N>::cast_from(receptance[at]);
        let k = Vector::<f32, N>::cast_from(key[at]);
        let v = Vector::<f32, N>::cast_from(value[at]);
        let g = Vector::<f32, N>::cast_from(gate[at]);
        let strength = sum_over_head(r * k * r_k, &mut shared, heads);
        let centered = y - Vector::new(mean_over_head(y, &mut shared, heads));
        let variance = mean_over_head(centered * centered, &mut shared, heads);
        let normal = centered * Vector::new(inverse_deviation(variance));
        let sum = normal * weight + bias + v * Vector::new(strength);
        gated[at] = Vector::cast_from(sum * g);
    }
}

/// As [`time_mix_output`]; `partials` is `[3, blocks, columns]`.
#[cube(launch_unchecked)]
fn time_mix_output_backward<F: Float, P: Float, N: Size>(
    output: &Array<Vector<F, N>>,
    receptance: &Array<Vector<F, N>>,
    key: &Array<Vector<F, N>>,
    value: &Array<Vector<F, N>>,
    gate: &Array<Vector<F, N>>,
    weight: &Array<Vector<P, N>>,
    bias: &Array<Vector<P, N>>,
    bonus: &Array<Vector<P, N>>,
    d_gated: &Array<Vector<F, N>>,
    d_output: &mut Array<Vector<F, N>>,
    d_receptance: &mut Array<Vector<F, N>>,
    d_key: &mut Array<Vector<F, N>>,
    d_value: &mut Array<Vector<F, N>>,
    d_gate: &mut Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: usize,
    #[comptime] heads: Heads,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let part = own_part(rows);
    let mut shared = exchange(heads);
    let weight = Vector::<f32, N>::cast_from(weight[part.column]);
    let bias = Vector::<f32, N>::cast_from(bias[part.column]);
    let r_k = Vector::<f32, N>::cast_from(bonus[part.column]);
    let mut d_weight = Vector::<f32, N>::new(0.0);
    let mut d_bias = Vector::<f32, N>::new(0.0);
    let mut d_r_k = Vector::<f32, N>::new(0.0);
    for row in part.first..part.end {
        let at = row * part.columns + part.column;
        let y = Vector::<f32, N>::cast_from(output[at]);
        let r = Vector::<f32, N>::cast_from(receptance[at]);
        let k = Vector::<f32, N>::cast_from(key[at]);
        let v = Vector::<f32, N>::cast_from(value[at]);
        let d = Vector::<f32, N>::cast_from(d_gated[at]);
        let d_sum = d * Vector::<f32, N>::cast_from(gate[at]);
        let d_normal = d_sum * weight;

        let strength = sum_over_head(r * k * r_k, &mut shared, heads);
        let d_strength = sum_over_head(d_sum * v, &mut shared, heads);
        let centered = y - Vector::new(mean_over_head(y, &mut shared, heads));
        let variance = mean_over_head(centered * centered, &mut shared, heads);
        let inverse = inverse_deviation(variance);
        let normal = centered * Vector::new(inverse);
        let d_mean = mean_over_head(d_normal, &mut shared, heads);
        let along = mean_over_head(d_normal * normal, &mut shared, heads);

        let sum = normal * weight + bias + v * Vector::new(strength);
        let d_centered = d_normal - Vector::new(d_mean) - normal * Vector::new(along);
        let d_product = Vector::<f32, N>::new(d_strength);
        d_output[at] = Vector::cast_from(d_centered * Vector::new(inverse));
        d_receptance[at] = Vector::cast_from(d_product * k * r_k);
        d_key[at] = Vector::cast_from(d_product * r * r_k);
        d_value[at] = Vector::cast_from(d_sum * Vector::new(strength));
        d_gate[at] = Vector::cast_from(d * sum);
        d_weight += d_sum * normal;
        d_bias += d_sum;
        d_r_k += d_product * r * k;
    }
    partials[partial_at(&part, 0)] = d_weight;
    partials[partial_at(&part, 1)] = d_bias;
    partials[partial_at(&part, 2)] = d_r_k;
}

#[cube]
fn mean_over_head<N: Size>(
    values: Vector<f32, N>,
    shared: &mut SharedMemory<f32>,
    #[comptime] heads: Heads,
) -> f32 {
    sum_over_head(values, shared, heads) * comptime!(1.0 / heads.size as f32)
}

/// One over the standard deviation of a head, from its variance.
#[cube]
pub(super) fn inverse_deviation(variance: f32) -> f32 {
    (variance + NORM_EPSILON as f32).inverse_sqrt()
}
