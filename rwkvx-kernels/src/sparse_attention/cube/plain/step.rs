//! A few queries, as in decoding: the keys that one query sees are shared out among many cubes.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::forward::Softmax;
use super::{Plan, load_row};
use crate::cube::{Quad, allocate, sum_over_lanes};
use crate::sparse_attention::cube::problem::Problem;
use crate::sparse_attention::cube::{Inputs, NO_SCORE};

/// Rows that the units of a cube look at at a time.
const GROUPS: usize = 32;

/// Keys of a part, which one cube looks at.
const PART: usize = 128;

/// Attention of all queries to all that they see, into `output`. `saved` has the choices.
pub(in super::super) fn step<R: CubeRuntime>(
    inputs: &Inputs<R>,
    output: &CubeTensor<R>,
    saved: &CubeTensor<R>,
) {
    let plan = Plan::new(&inputs.query);
    let client = &inputs.query.client;
    let problem = inputs.problem;
    let parts = (problem.slots + 1) * problem.chunk_size.div_ceil(PART);
    let [sequences, queries] = [inputs.sequences, problem.queries];
    let part_rows = allocate(
        output,
        [sequences, queries, parts, 4 * plan.width],
        DType::F32,
    );
    let part_lse = allocate(output, [sequences, queries, parts], DType::F32);
    let units = CubeDim::new_1d((GROUPS * plan.lanes) as u32);
    let cubes = |x: usize| CubeCount::Static(x as u32, sequences as u32, queries as u32);
    // SAFETY: the buffers are dense and have the sizes that the kernels' documentation gives, which bound their indices.
    unsafe {
        attention_step::launch_unchecked::<R>(
            client,
            cubes(parts),
            units,
            inputs.query.clone().into_array_arg(),
            inputs.key.clone().into_array_arg(),
            inputs.value.clone().into_array_arg(),
            saved.clone().into_array_arg(),
            part_rows.clone().into_array_arg(),
            part_lse.clone().into_array_arg(),
            problem.launch(),
            plan,
            inputs.query.dtype.into(),
        );
        attention_merge::launch_unchecked::<R>(
            client,
            cubes(1),
            units,
            part_rows.into_array_arg(),
            part_lse.into_array_arg(),
            output.clone().into_array_arg(),
            problem.launch(),
            parts,
            plan,
            output.dtype.into(),
        );
    }
}

/// What a cube of [`GROUPS`] softmaxes comes to.
#[derive(CubeType)]
struct Joined {
    /// Largest score.
    largest: f32,
    /// Sum of weights.
    weight: f32,
    /// Quad `UNIT_POS` of the sum of weighted values; undefined in units past the row.
    sum: Quad,
}

/// Joins the softmaxes of a cube's groups; one that saw no key has weight 0.
#[cube]
fn join(softmax: &Softmax, #[comptime] plan: Plan) -> Joined {
    let quads = comptime!(plan.width / plan.lanes);
    let unit = UNIT_POS as usize;
    let lane = unit % plan.lanes;
    let group = unit / plan.lanes;
    let mut largests = SharedMemory::<f32>::new(GROUPS);
    let mut weights = SharedMemory::<f32>::new(GROUPS);
    let mut sums = SharedMemory::<Quad>::new(comptime!(GROUPS * plan.width));
    largests[group] = softmax.largest;
    weights[group] = softmax.weight;
    #[unroll]
    for j in 0..quads {
        sums[group * plan.width + j * plan.lanes + lane] = softmax.sum[j];
    }
    sync_cube();
    let mut largest = largests[0];
    for other in 1..GROUPS {
        largest = max(largest, largests[other]);
    }
    let mut weight = 0.0f32.runtime();
    let mut sum = Quad::new(0.0);
    for other in 0..GROUPS {
        if weights[other] > 0.0 {
            let factor = (largests[other] - largest).exp();
            weight += weights[other] * factor;
            sum += sums[other * plan.width + unit % plan.width] * Quad::cast_from(factor);
        }
    }
    Joined {
        largest,
        weight,
        sum,
    }
}

/// One cube of `GROUPS * lanes` units per (part, sequence, query). Parts are those of the chosen chunks, then those of the own one. `part_rows`
/// `[sequence, query, part, head_size/4]` receives the sum of weighted values over the part, divided by the sum of weights, whose logarithm goes to
/// `part_lse` `[sequence, query, part]`; of a part without keys that is [`NO_SCORE`].
#[cube(launch_unchecked)]
fn attention_step<F: Float>(
    query: &Array<Vector<F, Const<4>>>,
    key: &Array<Vector<F, Const<4>>>,
    value: &Array<Vector<F, Const<4>>>,
    saved: &Array<f32>,
    part_rows: &mut Array<Quad>,
    part_lse: &mut Array<f32>,
    problem: Problem,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let unit = UNIT_POS as usize;
    let sequence = problem.sequence();
    let index = CUBE_POS_Z as usize;
    let time = problem.start + index;
    let number = problem.query(sequence, index);
    let per_chunk = problem.chunk_size.div_ceil(PART);
    let visit = CUBE_POS_X as usize / per_chunk;

    // The keys of the part; none if there is no such choice or time.
    let mut chunk = time / problem.chunk_size;
    let mut end = time + 1;
    if visit < problem.slots {
        let choice = saved[problem.saved(number) + 1 + visit];
        chunk = usize::cast_from(max(choice, 0.0f32));
        end = select(
            choice >= 0.0,
            (chunk + 1) * problem.chunk_size,
            0usize.runtime(),
        );
    }
    let first = chunk * problem.chunk_size + CUBE_POS_X as usize % per_chunk * PART;
    end = min(end, min(first + PART, (chunk + 1) * problem.chunk_size));

    let q = load_row(query, problem.query_row(sequence, index), plan);
    let mut softmax = Softmax::new(quads);
    let mut at = first;
    while at < end {
        // Every unit takes part in the sum over lanes, whether its group has a key or not.
        let own = at + unit / plan.lanes;
        let row = problem.key_row(sequence, min(own, end - 1));
        let k = load_row(key, row, plan);
        let v = load_row(value, row, plan);
        let mut products = Quad::new(0.0);
        #[unroll]
        for j in 0..quads {
            products += q[j] * k[j];
        }
        let score = sum_over_lanes(products, plan.lanes) * problem.scale;
        if own < end {
            let weight = softmax.weigh(score, quads);
            #[unroll]
            for j in 0..quads {
                softmax.sum[j] += Quad::cast_from(weight) * v[j];
            }
        }
        at += GROUPS;
    }
    let joined = join(&softmax, plan);
    let to = number * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let some = joined.weight > 0.0;
    if unit < plan.width {
        let factor = select(some, 1.0 / joined.weight, 0.0f32.runtime());
        part_rows[to * plan.width + unit] = joined.sum * Quad::cast_from(factor);
    }
    if unit == 0 {
        let lse = joined.largest + joined.weight.ln();
        part_lse[to] = select(some, lse, NO_SCORE);
    }
}

/// One cube of `GROUPS * lanes` units per (1, sequence, query): all parts into one output. A part counts like a key whose score is the logarithm of the
/// part's sum of weights.
#[cube(launch_unchecked)]
fn attention_merge<F: Float>(
    part_rows: &Array<Quad>,
    part_lse: &Array<f32>,
    output: &mut Array<Vector<F, Const<4>>>,
    problem: Problem,
    parts: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(plan.width / plan.lanes);
    let unit = UNIT_POS as usize;
    let lane = unit % plan.lanes;
    let sequence = problem.sequence();
    let index = CUBE_POS_Z as usize;
    let first = problem.query(sequence, index) * parts;
    let mut softmax = Softmax::new(quads);
    let mut part = unit / plan.lanes;
    while part < parts {
        let lse = part_lse[first + part];
        if lse > NO_SCORE {
            let weight = softmax.weigh(lse, quads);
            #[unroll]
            for j in 0..quads {
                let at = (first + part) * plan.width + j * plan.lanes + lane;
                softmax.sum[j] += Quad::cast_from(weight) * part_rows[at];
            }
        }
        part += GROUPS;
    }
    let joined = join(&softmax, plan);
    if unit < plan.width {
        let row = problem.query_row(sequence, index);
        output[row * plan.width + unit] =
            Vector::cast_from(joined.sum / Quad::cast_from(joined.weight));
    }
}
