//! All that a time mix does head by head, for a single token of each text.
//!
//! A cube has a head of a text. Some of its units each take four channels of what goes into the recurrence and leave it in shared memory; then
//! neighbours, `lanes` of them, take a row of the state at a time; at last the first ones norm and gate what was read from the state.

use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::keys::inverse_length;
use super::output::inverse_deviation;
use super::{negative, sigmoid};
use crate::KernelBackend;
use crate::cube::{
    CubeMemory, Quad, alike, allocate, allocate_like, dense, sum_over_lanes, tensor,
};
use crate::time_mix::reference::LOG_DECAY_FLOOR;
use crate::time_mix::{HeadInputs, HeadOutputs, Values, reference};

/// Most units of a cube.
const UNITS: usize = 256;

/// How the kernel is cut; part of its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Quads of a head.
    width: usize,
    /// Units that share a row of the state, neighbours.
    lanes: usize,
    /// Rows that the units of a cube look at at a time.
    rows: usize,
    /// Whether values are mixed.
    mixes: bool,
}

/// The body of [`KernelBackend::mix_heads`].
pub(crate) fn mix_heads<B: CubeMemory + KernelBackend>(inputs: HeadInputs<B>) -> HeadOutputs<B> {
    let [rows, channels] = inputs.receptance.dims();
    let [heads, size] = inputs.bonus.dims();
    if rows != inputs.batch || !size.is_multiple_of(4) {
        return reference::mix_heads(inputs);
    }
    let [receptance, decay, rate, key, gate] = alike([
        inputs.receptance,
        inputs.keys.decay,
        inputs.keys.rate,
        inputs.keys.key,
        inputs.gate,
    ]);
    let dtype = receptance.dtype;
    let sequence = |tensor: Tensor<B, 2>| dense(tensor.cast(dtype));
    let mixes = matches!(inputs.values, Values::Mixed(_));
    let [value, first, amount, amount_bias] = match inputs.values {
        // The last three are not read.
        Values::Projected(value) => {
            let value = sequence(value);
            [
                value.clone(),
                value.clone(),
                value,
                dense(inputs.weight.clone()),
            ]
        }
        Values::Mixed(values) => [
            sequence(values.value),
            sequence(values.first),
            sequence(values.amount),
            dense(values.amount_bias.cast(inputs.weight.dtype())),
        ],
    };
    let bonus = inputs.bonus.reshape([channels]);
    let [
        weight,
        bias,
        bonus,
        decay_bias,
        rate_bias,
        removal_scale,
        rate_scale,
    ] = alike([
        inputs.weight,
        inputs.bias,
        bonus,
        inputs.keys.decay_bias,
        inputs.keys.rate_bias,
        inputs.keys.removal_scale,
        inputs.keys.rate_scale,
    ]);
    let state_shape = [rows, heads, size, size];
    let state = match inputs.state {
        Some(state) => state.cast(DType::F32),
        None => Tensor::zeros(state_shape, (&receptance.device, DType::F32)),
    };
    let (state, state_after) = (dense(state), allocate(&receptance, state_shape, DType::F32));
    let gated = allocate_like(&receptance);
    let plan = Plan::new(&receptance, size, mixes);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        time_mix_heads_step::launch_unchecked::<B::Runtime>(
            &receptance.client,
            CubeCount::Static(heads as u32, rows as u32, 1),
            CubeDim::new_1d((plan.rows * plan.lanes) as u32),
            receptance.clone().into_array_arg(),
            decay.into_array_arg(),
            rate.into_array_arg(),
            key.into_array_arg(),
            value.into_array_arg(),
            first.into_array_arg(),
            amount.into_array_arg(),
            gate.into_array_arg(),
            decay_bias.into_array_arg(),
            rate_bias.into_array_arg(),
            removal_scale.into_array_arg(),
            rate_scale.into_array_arg(),
            amount_bias.into_array_arg(),
            bonus.into_array_arg(),
            weight.clone().into_array_arg(),
            bias.into_array_arg(),
            state.into_array_arg(),
            state_after.clone().into_array_arg(),
            gated.clone().into_array_arg(),
            plan,
            [dtype.into(), weight.dtype.into()],
        );
    }
    HeadOutputs {
        gated: tensor(gated),
        state: tensor(state_after),
    }
}

impl Plan {
    fn new<R: burn_cubecl::CubeRuntime>(like: &CubeTensor<R>, size: usize, mixes: bool) -> Self {
        let width = size / 4;
        let planes = like.client.properties().features.plane.contains(Plane::Ops);
        let lanes = if planes && width.is_multiple_of(4) {
            4
        } else {
            1
        };
        Self {
            width,
            lanes,
            rows: size.min(UNITS / lanes),
            mixes,
        }
    }
}

/// One cube per (head, text). Sequences are `[text, head, width]` quads, vectors `[head, width]`, states `[text, head, value, key/4]`.
#[cube(launch_unchecked)]
fn time_mix_heads_step<F: Float, P: Float>(
    receptance: &Array<Vector<F, Const<4>>>,
    decay: &Array<Vector<F, Const<4>>>,
    rate: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    first: &Array<Vector<F, Const<4>>>,
    amount: &Array<Vector<F, Const<4>>>,
    gate: &Array<Vector<F, Const<4>>>,
    decay_bias: &Array<Vector<P, Const<4>>>,
    rate_bias: &Array<Vector<P, Const<4>>>,
    removal_scale: &Array<Vector<P, Const<4>>>,
    rate_scale: &Array<Vector<P, Const<4>>>,
    amount_bias: &Array<Vector<P, Const<4>>>,
    bonus: &Array<Vector<P, Const<4>>>,
    weight: &Array<Vector<P, Const<4>>>,
    bias: &Array<Vector<P, Const<4>>>,
    state_before: &Array<Quad>,
    state_after: &mut Array<Quad>,
    gated: &mut Array<Vector<F, Const<4>>>,
    #[comptime] plan: Plan,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let width = comptime!(plan.width);
    let size = comptime!(4 * plan.width);
    let unit = UNIT_POS as usize;
    let units = comptime!(plan.rows * plan.lanes);
    let head = CUBE_POS_X as usize;
    let text_head = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + head;

    let mut receptances = SharedMemory::<Quad>::new(width);
    let mut decays = SharedMemory::<Quad>::new(width);
    let mut keys = SharedMemory::<Quad>::new(width);
    let mut directions = SharedMemory::<Quad>::new(width);
    let mut rates = SharedMemory::<Quad>::new(width);
    let mut values = SharedMemory::<f32>::new(size);
    let mut squares = SharedMemory::<f32>::new(width);
    let mut strengths = SharedMemory::<f32>::new(width);
    let one = Quad::new(1.0);
    let mut own = unit;
    while own < width {
        let at = text_head * width + own;
        let column = head * width + own;
        let r = Quad::cast_from(receptance[at]);
        let k = Quad::cast_from(key[at]);
        let w =
            sigmoid::<Const<4>>(Quad::cast_from(decay[at]) + Quad::cast_from(decay_bias[column]));
        let a = sigmoid::<Const<4>>(Quad::cast_from(rate[at]) + Quad::cast_from(rate_bias[column]));
        let direction = k * Quad::cast_from(removal_scale[column]);
        let scaled = k * (one + (a - one) * Quad::cast_from(rate_scale[column]));
        let mut v = Quad::cast_from(value[at]);
        if comptime!(plan.mixes) {
            let share = Quad::cast_from(amount[at]) + Quad::cast_from(amount_bias[column]);
            v += (Quad::cast_from(first[at]) - v) * sigmoid::<Const<4>>(share);
        }
        let strength = r * scaled * Quad::cast_from(bonus[column]);
        receptances[own] = r;
        decays[own] = (w * Quad::new(LOG_DECAY_FLOOR as f32)).exp();
        keys[own] = scaled;
        directions[own] = direction;
        rates[own] = a;
        #[unroll]
        for j in 0..4 {
            values[4 * own + j] = v[j];
        }
        squares[own] = f32::cast_from((direction * direction).vector_sum());
        strengths[own] = f32::cast_from(strength.vector_sum());
        own += units;
    }
    sync_cube();

    let mut squared = 0.0f32.runtime();
    for other in 0..width {
        squared += squares[other];
    }
    let inverse = Quad::new(inverse_length(squared));

    let lane = unit % plan.lanes;
    let quads = comptime!(plan.width / plan.lanes);
    let mut outputs = SharedMemory::<f32>::new(size);
    let mut row = unit / plan.lanes;
    // Units without a row of their own take part in the sums over lanes.
    for _ in 0..comptime!(size.div_ceil(plan.rows)) {
        let own = min(row, comptime!(size - 1));
        let from = (text_head * size + own) * width + lane;
        let mut state = Array::<Quad>::new(quads);
        let mut removed = Quad::new(0.0);
        #[unroll]
        for j in 0..quads {
            let i = j * plan.lanes + lane;
            state[j] = state_before[from + j * plan.lanes];
            removed += state[j] * negative::<Const<4>>(directions[i] * inverse);
        }
        let removed = Quad::cast_from(sum_over_lanes(removed, plan.lanes));
        let v = Quad::cast_from(values[own]);
        let mut read = Quad::new(0.0);
        #[unroll]
        for j in 0..quads {
            let i = j * plan.lanes + lane;
            let replacement = directions[i] * inverse * rates[i];
            let s = state[j] * decays[i] + removed * replacement + v * keys[i];
            state[j] = s;
            read += s * receptances[i];
        }
        let read = sum_over_lanes(read, plan.lanes);
        if row < size {
            #[unroll]
            for j in 0..quads {
                state_after[from + j * plan.lanes] = state[j];
            }
            if lane == 0 {
                outputs[row] = read;
            }
        }
        row += plan.rows;
    }
    sync_cube();

    let mut own = unit;
    while own < width {
        let mut mean = 0.0f32.runtime();
        let mut strength = 0.0f32.runtime();
        for i in 0..size {
            mean += outputs[i];
        }
        for i in 0..width {
            strength += strengths[i];
        }
        let mean = mean * comptime!(1.0 / size as f32);
        let mut variance = 0.0f32.runtime();
        for i in 0..size {
            let centered = outputs[i] - mean;
            variance += centered * centered;
        }
        let inverse = inverse_deviation(variance * comptime!(1.0 / size as f32));
        let at = text_head * width + own;
        let column = head * width + own;
        let mut sum = Quad::cast_from(bias[column]);
        let weight = Quad::cast_from(weight[column]);
        let mut normal = Quad::new(0.0);
        let mut v = Quad::new(0.0);
        #[unroll]
        for j in 0..4 {
            normal[j] = (outputs[4 * own + j] - mean) * inverse;
            v[j] = values[4 * own + j];
        }
        sum += normal * weight + v * Quad::new(strength);
        gated[at] = Vector::cast_from(sum * Quad::cast_from(gate[at]));
        own += units;
    }
}
