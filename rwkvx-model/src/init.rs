//! The first value of every parameter, as RWKV-LM's `RWKV-v7/train_temp/src/model.py` sets it.
//!
//! C channels, H heads of size N, L layers, V tokens; `l` is the layer, `i` the channel, and
//! `down = 1 - l/L`, `up = l/(L-1)`, `u = i/C`, `line = i/(C-1) - 1/2`, `zig = z|z|` with
//! `z = ((i mod N) - (N-1)/2) / ((N-1)/2)`.
//!
//! | parameter | value |
//! | --- | --- |
//! | `emb.weight` | uniform in ±1e-4 |
//! | `head.weight` | orthogonal, gain `0.5 sqrt(V/C)`, at least 0.5 |
//! | `ln*.weight`, `ln*.bias` | 1, 0 |
//! | `att.x_r`, `att.x_g` | `1 - u^(0.2 down)` |
//! | `att.x_w`, `att.x_a` | `1 - u^(0.9 down)` |
//! | `att.x_k`, `att.x_v` | `1 - u^(0.7 down)` |
//! | `att.w0` | `-5.5 + 6 (i/(C-1))^(1 + up^0.3) + 2.5 zig` |
//! | `att.a0` | `-0.19 + 0.3 zig + 0.4 line` |
//! | `att.v0` | `0.73 - 0.4 line` |
//! | `att.w1`, `a1`, `v1`, `g1` | 0 |
//! | `att.w2`, `a2`, `v2`, `g2` | orthogonal, gain `0.1 max(1, sqrt(rows/columns))` |
//! | `att.k_k`, `att.k_a`, `att.r_k` | `0.71 - 0.1 line`, 1.02, -0.04 |
//! | `att.receptance`, `att.value`, `ffn.key` | orthogonal, gain 1 |
//! | `att.key` | orthogonal, gain 0.1 |
//! | `att.output`, `ffn.value` | 0 |
//! | `att.key_conv` | 0.1, and 1 more in row 0 of the first half of the channels and row 1 of the second |
//! | `att.ln_x.weight`, `att.ln_x.bias` | `((1 + l)/L)^0.7`, 0 |
//! | `ffn.x_k` | `1 - u^(down^4)` |
//!
//! A sparse block takes the rules of the recurrent block before it, except that its `att.key` is orthogonal with gain 1:
//! its scores are scaled by `N^-1/2` and have no other source of size.

use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor, TensorData};

use crate::config::RwkvXConfig;
use crate::model::RwkvX;
use crate::names::{self, Site};

impl RwkvXConfig {
    /// A new model with RWKV-LM's initial values. Random numbers are the backend's: seed them with `B::seed`, and let no
    /// other thread draw from them meanwhile.
    ///
    /// # Panics
    /// If the configuration does not pass [`validate`](Self::validate).
    pub fn init<B: Backend>(&self, device: &B::Device) -> RwkvX<B> {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let filled = names::fill(RwkvX::unset(self, device), |name, shape| {
            Ok(initial_value::<B>(name, shape, self, device))
        });
        match filled {
            Ok(model) => model,
            Err(error) => unreachable!("every parameter has an initial value: {error}"),
        }
    }
}

/// The table above.
fn initial_value<B: Backend>(
    name: &str,
    shape: &[usize],
    config: &RwkvXConfig,
    device: &B::Device,
) -> TensorData {
    let (layer, parameter, is_sparse) = match Site::of(name) {
        Site::Ends(parameter) => (0, parameter, false),
        Site::Recurrent { layer, parameter } => (layer, parameter, false),
        Site::Sparse { block, parameter } => (
            (block + 1) * config.n_layer / config.n_sparse - 1,
            parameter,
            true,
        ),
    };
    let (c, n, n_layer) = (
        config.channels as f64,
        config.head_size as f64,
        config.n_layer as f64,
    );
    let down = 1.0 - layer as f64 / n_layer;
    let up = layer as f64 / (n_layer - 1.0).max(1.0);

    let channels = |value: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = (0..config.channels)
            .map(|i| value(i as f64) as f32)
            .collect();
        TensorData::new(values, shape.to_vec())
    };
    let share = |i: f64| i / (c - 1.0).max(1.0);
    let line = |i: f64| share(i) - 0.5;
    let zig = |i: f64| {
        let half = (n - 1.0) / 2.0;
        let z = (i % n - half) / half.max(0.5);
        z * z.abs()
    };
    let shift = |power: f64| channels(&|i| 1.0 - (i / c).powf(power));
    let orthogonal = |gain: f64| orthogonal::<B>(shape, gain, device);
    let rows_over_columns = || shape[0] as f64 / shape[1] as f64;

    match parameter {
        "emb.weight" => uniform::<B>(shape, 1e-4, device),
        "head.weight" => orthogonal(0.5 * rows_over_columns().sqrt().max(1.0)),
        "att.x_r" | "att.x_g" => shift(0.2 * down),
        "att.x_w" | "att.x_a" => shift(0.9 * down),
        "att.x_k" | "att.x_v" => shift(0.7 * down),
        "att.w0" => channels(&|i| -5.5 + 6.0 * share(i).powf(1.0 + up.powf(0.3)) + 2.5 * zig(i)),
        "att.a0" => channels(&|i| -0.19 + 0.3 * zig(i) + 0.4 * line(i)),
        "att.v0" => channels(&|i| 0.73 - 0.4 * line(i)),
        "att.w1" | "att.a1" | "att.v1" | "att.g1" => constant(0.0, shape),
        "att.w2" | "att.a2" | "att.v2" | "att.g2" => {
            orthogonal(0.1 * rows_over_columns().sqrt().max(1.0))
        }
        "att.k_k" => channels(&|i| 0.71 - 0.1 * line(i)),
        "att.k_a" => constant(1.02, shape),
        "att.r_k" => constant(-0.04, shape),
        "att.receptance.weight" | "att.value.weight" | "ffn.key.weight" => orthogonal(1.0),
        "att.key.weight" => orthogonal(if is_sparse { 1.0 } else { 0.1 }),
        "att.output.weight" | "ffn.value.weight" => constant(0.0, shape),
        "att.key_conv" => key_conv(shape[0], shape[1]),
        "att.ln_x.weight" => constant(((1 + layer) as f64 / n_layer).powf(0.7), shape),
        "ffn.x_k" => shift(down.powi(4)),
        _ if parameter.ends_with(".bias") => constant(0.0, shape),
        _ if is_norm(parameter) => constant(1.0, shape),
        _ => unreachable!("{name} is in no row of the table"),
    }
}

/// Half of the channels of a key are those of its own token, half those of the token before. A little of every key in reach is
/// added: what attention then raises is the match of a place and not of one token alone, so that the mean of a chunk, by which it
/// is chosen, is raised with it (measured in `docs/results/needles`).
pub(crate) fn key_conv(width: usize, channels: usize) -> TensorData {
    let weight = |i: usize| match (i / channels, i % channels < channels / 2) {
        (0, true) | (1, false) => 1.1,
        _ => 0.1,
    };
    let weights: Vec<f32> = (0..width * channels).map(weight).collect();
    TensorData::new(weights, [width, channels])
}

/// Whether it is the weight of a layer norm.
fn is_norm(parameter: &str) -> bool {
    matches!(
        parameter,
        "ln0.weight" | "ln1.weight" | "ln2.weight" | "ln_out.weight"
    )
}

fn constant(value: f64, shape: &[usize]) -> TensorData {
    TensorData::full(shape.to_vec(), value as f32)
}

fn uniform<B: Backend>(shape: &[usize], bound: f64, device: &B::Device) -> TensorData {
    let rows = [shape[0], shape[1]];
    Tensor::<B, 2>::random(rows, Distribution::Uniform(-bound, bound), device)
        .into_data()
        .convert::<f32>()
}

/// Vectors made orthogonal on the host at a time; against the ones before, the device does the work.
const BLOCK: usize = 64;

/// A random matrix whose rows or columns, whichever are fewer, are orthogonal and of length `gain`, uniform over all
/// such matrices (PyTorch's `orthogonal_`).
///
/// Block Gram-Schmidt, done twice, which leaves nothing but rounding.
pub(crate) fn orthogonal<B: Backend>(shape: &[usize], gain: f64, device: &B::Device) -> TensorData {
    let (rows, columns) = (shape[0], shape[1]);
    let (count, length) = (rows.min(columns), rows.max(columns));
    let normal = Distribution::Normal(0.0, 1.0);
    let mut done = Tensor::<B, 2>::empty([0, length], device); // [vectors so far, length]
    for start in (0..count).step_by(BLOCK) {
        let size = BLOCK.min(count - start);
        let mut block = Tensor::<B, 2>::random([size, length], normal, device);
        for _ in 0..2 {
            if start > 0 {
                let along = block.clone().matmul(done.clone().transpose()); // [size, vectors so far]
                block = block - along.matmul(done.clone());
            }
            let mut vectors: Vec<f32> = block.into_data().iter::<f32>().collect();
            gram_schmidt(&mut vectors, length);
            block = Tensor::from_data(TensorData::new(vectors, [size, length]), device);
        }
        done = if start > 0 {
            Tensor::cat(vec![done, block], 0)
        } else {
            block
        };
    }
    let matrix = if rows < columns {
        done
    } else {
        done.transpose()
    };
    (matrix * gain).into_data().convert::<f32>()
}

/// Makes the rows of a row-major matrix orthogonal and of length 1, sums in f64.
fn gram_schmidt(vectors: &mut [f32], length: usize) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    for start in (0..vectors.len()).step_by(length) {
        let (done, rest) = vectors.split_at_mut(start);
        let vector = &mut rest[..length];
        for other in done.chunks_exact(length) {
            let along = dot(vector, other) as f32;
            vector
                .iter_mut()
                .zip(other)
                .for_each(|(x, &y)| *x -= along * y);
        }
        let scale = dot(vector, vector).sqrt().recip() as f32;
        vector.iter_mut().for_each(|x| *x *= scale);
    }
}
