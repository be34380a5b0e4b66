//! Products of few rows as one CubeCL kernel, with arithmetic in f32.
//!
//! Reading the weights is all the work there is, and each is read once for every [`ROWS`] rows. The units of a cube that make an output share out its
//! inputs in quads and add up what they have through shared memory, always in the same order. Quads of weights lie along the inputs or along the
//! outputs, as the layout says:
//!
//! ```text
//! [out, in]  a unit takes every LANES-th quad of inputs of one output, and has a quad of parts of its sum
//! [in, out]  a unit takes every LANES-th four inputs of four outputs, and has a part of the sum of each
//! ```

use burn::tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{Product, WeightLayout, reference};
use crate::cube::{CubeMemory, Quad, allocate_together, arguments, dense, tensor};
use crate::{KernelBackend, Pointwise};

/// Most rows. For more, matrix products of the device's library are faster.
const FEW_ROWS: usize = 32;
/// Rows that a cube makes together, at most.
const ROWS: usize = 8;
/// Units of a cube.
const UNITS: usize = 256;
/// Units that share an output, neighbours where they share what they read: along the inputs of `[out, in]`.
const LANES: usize = 32;

/// A product as the kernel sees it; part of its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Task {
    layout: WeightLayout,
    inputs: usize,
    outputs: usize,
    then: Option<Pointwise>,
    /// Which of the addends is its own.
    plus: Option<usize>,
    /// Its first cube along x.
    first_cube: usize,
}

impl Task {
    /// Units that share an output, or four.
    fn lanes(self) -> usize {
        match self.layout {
            WeightLayout::OutIn => LANES,
            // Four neighbouring units read a sector of memory.
            WeightLayout::InOut => UNITS / 4,
        }
    }

    /// Outputs that a unit has parts of.
    fn width(self) -> usize {
        match self.layout {
            WeightLayout::OutIn => 1,
            WeightLayout::InOut => 4,
        }
    }

    /// The cube after its last.
    fn end_cube(self) -> usize {
        let per_cube = self.width() * UNITS / self.lanes();
        self.first_cube + self.outputs.div_ceil(per_cube)
    }
}

/// The body of [`KernelBackend::project`].
pub(crate) fn project<B: CubeMemory + KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    layout: WeightLayout,
) -> Tensor<B, 2> {
    if !is_for_kernel(&x, &weight, layout) {
        return reference::project(x, weight, layout);
    }
    let [output] = together([Product::new(x, weight, layout)].into())
        .try_into()
        .expect("an output per product");
    output
}

/// The body of [`KernelBackend::project_all`].
pub(crate) fn project_all<B: CubeMemory + KernelBackend>(
    products: Vec<Product<B>>,
) -> Vec<Tensor<B, 2>> {
    let Some(first) = products.first() else {
        return Vec::new();
    };
    let of_first = (first.x.dims()[0], first.x.dtype(), first.weight.dtype());
    let fits = |product: &Product<B>| {
        let Product { x, weight, .. } = product;
        (x.dims()[0], x.dtype(), weight.dtype()) == of_first
            && is_for_kernel(x, weight, product.layout)
    };
    match products.iter().all(fits) {
        true => together(products),
        false => reference::project_all(products),
    }
}

fn is_for_kernel<B: CubeMemory>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    layout: WeightLayout,
) -> bool {
    let [inputs, outputs] = layout.in_out(weight.dims());
    let quads = match layout {
        WeightLayout::OutIn => inputs,
        WeightLayout::InOut => inputs | outputs,
    };
    let is_float = matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16);
    x.dims()[0] <= FEW_ROWS && quads.is_multiple_of(4) && is_float
}

/// All products, of as many rows and of the same types, in one launch.
fn together<B: CubeMemory>(products: Vec<Product<B>>) -> Vec<Tensor<B, 2>> {
    let [rows, _] = products[0].x.dims();
    let [dtype, weight_dtype] = [products[0].x.dtype(), products[0].weight.dtype()];
    let mut tasks: Vec<Task> = Vec::new();
    let (mut xs, mut weights, mut addends) = (Vec::new(), Vec::new(), Vec::new());
    for product in products {
        let [inputs, outputs] = product.layout.in_out(product.weight.dims());
        let plus = product.plus.map(|plus| {
            addends.push(dense(plus.cast(dtype)));
            addends.len() - 1
        });
        tasks.push(Task {
            layout: product.layout,
            inputs,
            outputs,
            then: product.then,
            plus,
            first_cube: tasks.last().map_or(0, |task| task.end_cube()),
        });
        xs.push(dense(product.x));
        weights.push(dense(product.weight));
    }
    let cubes = tasks.last().map_or(0, |task| task.end_cube());
    let at_once = rows.next_power_of_two().min(ROWS);
    let shapes: Vec<_> = tasks.iter().map(|task| [rows, task.outputs]).collect();
    let outputs = allocate_together(&xs[0], &shapes, dtype);
    // SAFETY: the buffers are dense and have the sizes that the kernel's documentation gives, which bound its indices.
    unsafe {
        project_few::launch_unchecked::<B::Runtime>(
            &xs[0].client,
            CubeCount::Static(cubes as u32, rows.div_ceil(at_once) as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            arguments(&xs),
            arguments(&weights),
            arguments(&addends),
            arguments(&outputs),
            rows,
            at_once,
            tasks,
            [dtype.into(), weight_dtype.into()],
        );
    }
    outputs.into_iter().map(tensor).collect()
}

/// Cubes along x make the outputs of one task after another, those along y `at_once` rows each. For every task: `xs` is `[rows, inputs/4]` quads,
/// `weights` quads of its layout, `outputs` `[rows, outputs]`; `addends` are like `outputs`, for the tasks that have one.
#[cube(launch_unchecked)]
fn project_few<F: Float, P: Float>(
    xs: &Sequence<Array<Vector<F, Const<4>>>>,
    weights: &Sequence<Array<Vector<P, Const<4>>>>,
    addends: &Sequence<Array<F>>,
    outputs: &mut Sequence<Array<F>>,
    rows: usize,
    #[comptime] at_once: usize,
    #[comptime] tasks: Vec<Task>,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let cube = CUBE_POS_X as usize;
    let first_row = CUBE_POS_Y as usize * at_once;
    let mut parts = SharedMemory::<Quad>::new(UNITS);
    let mut sums = Array::<Quad>::new(at_once);
    #[unroll]
    for i in 0..comptime!(tasks.len()) {
        let task = comptime!(nth(&tasks, i));
        if cube >= comptime!(task.first_cube) && cube < comptime!(task.end_cube()) {
            let x = xs.index(i);
            let weight = weights.index(i);
            #[unroll]
            for row in 0..at_once {
                sums[row] = Quad::new(0.0);
            }
            let own = Place::new(cube, task);
            if comptime!(task.layout == WeightLayout::OutIn) {
                add_inputs_of_output(&own, x, weight, &mut sums, first_row, rows, at_once, task);
            } else {
                add_inputs_of_outputs(&own, x, weight, &mut sums, first_row, rows, at_once, task);
            }
            #[unroll]
            for row in 0..at_once {
                let sum = over_lanes(&own, sums[row], &mut parts, task);
                let at = (first_row + row) * comptime!(task.outputs) + own.output;
                if own.lane == 0 && own.output < task.outputs && first_row + row < rows {
                    #[unroll]
                    for j in 0..comptime!(task.width()) {
                        let mut value = sum[j];
                        if comptime!(task.layout == WeightLayout::OutIn) {
                            value = (sum[0] + sum[1]) + (sum[2] + sum[3]);
                        }
                        value = applied(value, task.then);
                        if comptime!(task.plus.is_some()) {
                            let addend = addends.index(comptime!(task.plus.unwrap_or(0)));
                            value += f32::cast_from(addend[at + j]);
                        }
                        outputs.index_mut(i)[at + j] = F::cast_from(value);
                    }
                }
            }
        }
    }
}

/// Kernels loop over numbers only.
fn nth(tasks: &[Task], i: usize) -> Task {
    tasks[i]
}

/// What a unit works on.
#[derive(CubeType)]
struct Place {
    /// Which of those that share an output it is.
    lane: usize,
    /// The output, or the first of four; past the last in the units that no output is left for.
    output: usize,
    /// Which of the cube's outputs, or fours, that is.
    slot: usize,
}

#[cube]
impl Place {
    fn new(cube: usize, #[comptime] task: Task) -> Place {
        let unit = UNIT_POS as usize;
        let slots = comptime!(UNITS / task.lanes());
        let mut lane = unit / slots;
        let mut slot = unit % slots;
        if comptime!(task.layout == WeightLayout::OutIn) {
            lane = unit % LANES;
            slot = unit / LANES;
        }
        let slot_in_all = (cube - comptime!(task.first_cube)) * slots + slot;
        Place {
            lane,
            output: slot_in_all * comptime!(task.width()),
            slot,
        }
    }
}

/// Adds the unit's inputs of one output of weights `[out, in]`, each of the four sums its own.
#[cube]
fn add_inputs_of_output<F: Float, P: Float>(
    own: &Place,
    x: &Array<Vector<F, Const<4>>>,
    weight: &Array<Vector<P, Const<4>>>,
    sums: &mut Array<Quad>,
    first_row: usize,
    rows: usize,
    #[comptime] at_once: usize,
    #[comptime] task: Task,
) {
    let quads = comptime!(task.inputs / 4);
    let first = min(own.output, comptime!(task.outputs - 1)) * quads;
    for round in 0..comptime!(quads.div_ceil(LANES)) {
        let quad = round * LANES + own.lane;
        if comptime!(quads.is_multiple_of(LANES)) || quad < quads {
            let w = Quad::cast_from(weight[first + quad]);
            #[unroll]
            for row in 0..at_once {
                let from = min(first_row + row, rows - 1) * quads;
                sums[row] += Quad::cast_from(x[from + quad]) * w;
            }
        }
    }
}

/// Adds the unit's inputs of four outputs of weights `[in, out]`.
#[cube]
fn add_inputs_of_outputs<F: Float, P: Float>(
    own: &Place,
    x: &Array<Vector<F, Const<4>>>,
    weight: &Array<Vector<P, Const<4>>>,
    sums: &mut Array<Quad>,
    first_row: usize,
    rows: usize,
    #[comptime] at_once: usize,
    #[comptime] task: Task,
) {
    let lanes = comptime!(task.lanes());
    let quads = comptime!(task.inputs / 4);
    let columns = comptime!(task.outputs / 4);
    let column = min(own.output / 4, columns - 1);
    for round in 0..comptime!(quads.div_ceil(lanes)) {
        let quad = round * lanes + own.lane;
        if comptime!(quads.is_multiple_of(lanes)) || quad < quads {
            let at = 4 * quad * columns + column;
            let w0 = Quad::cast_from(weight[at]);
            let w1 = Quad::cast_from(weight[at + columns]);
            let w2 = Quad::cast_from(weight[at + 2 * columns]);
            let w3 = Quad::cast_from(weight[at + 3 * columns]);
            #[unroll]
            for row in 0..at_once {
                let from = min(first_row + row, rows - 1) * quads;
                let x = Quad::cast_from(x[from + quad]);
                sums[row] += Quad::cast_from(x[0]) * w0
                    + Quad::cast_from(x[1]) * w1
                    + Quad::cast_from(x[2]) * w2
                    + Quad::cast_from(x[3]) * w3;
            }
        }
    }
}

/// The sum of what all lanes have, in lane 0.
#[cube]
fn over_lanes(
    own: &Place,
    sum: Quad,
    parts: &mut SharedMemory<Quad>,
    #[comptime] task: Task,
) -> Quad {
    let slots = comptime!(UNITS / task.lanes());
    sync_cube();
    parts[own.lane * slots + own.slot] = sum;
    sync_cube();
    let mut total = sum;
    if own.lane == 0 {
        for lane in 1..comptime!(task.lanes()) {
            total += parts[lane * slots + own.slot];
        }
    }
    total
}

#[cube]
fn applied(x: f32, #[comptime] function: Option<Pointwise>) -> f32 {
    match comptime!(function) {
        None => x,
        Some(Pointwise::Sigmoid) => 1.0 / (1.0 + (-x).exp()),
        Some(Pointwise::Tanh) => x.tanh(),
        Some(Pointwise::SquaredRelu) => {
            let positive = max(x, 0.0);
            positive * positive
        }
    }
}
