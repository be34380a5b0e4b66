//! Backends under test, tensors from plain numbers, golden files and error measures.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use rwkvx_kernels::{
    ChunkTopK, KernelBackend, KeyInputs, Keys, OutputInputs, ValueInputs, Wkv7Inputs, Wkv7Output,
    embedding, gate_output, layer_norm, mix_value, prepare_keys, reference, sparse_attention,
    token_shift, wkv7,
};

/// Largest allowed `norm(x - reference) / norm(reference)` of f32 results: the recurrence over 256 tokens amplifies one rounding (6e-8) some
/// tens of times at worst.
pub(crate) const TOLERANCE: f64 = 1e-5;

/// One way of running the operators with gradients.
pub(crate) trait Operators {
    /// The backend below autodiff.
    type Inner: KernelBackend;
    fn wkv7(inputs: Wkv7Inputs<Autodiff<Self::Inner>>) -> Wkv7Output<Autodiff<Self::Inner>>;
    fn sparse_attention(
        qkv: [Tensor<Autodiff<Self::Inner>, 4>; 3],
        shape: ChunkTopK,
    ) -> Tensor<Autodiff<Self::Inner>, 4>;
    fn token_shift<const N: usize>(
        x: Tensor<Autodiff<Self::Inner>, 3>,
        amounts: [Tensor<Autodiff<Self::Inner>, 1>; N],
    ) -> [Tensor<Autodiff<Self::Inner>, 2>; N];
    fn prepare_keys(inputs: KeyInputs<Autodiff<Self::Inner>>) -> Keys<Autodiff<Self::Inner>>;
    fn mix_value(inputs: ValueInputs<Autodiff<Self::Inner>>) -> Tensor<Autodiff<Self::Inner>, 2>;
    fn gate_output(inputs: OutputInputs<Autodiff<Self::Inner>>)
    -> Tensor<Autodiff<Self::Inner>, 2>;
    fn layer_norm(
        x: Tensor<Autodiff<Self::Inner>, 2>,
        weight: Tensor<Autodiff<Self::Inner>, 1>,
        bias: Tensor<Autodiff<Self::Inner>, 1>,
    ) -> Tensor<Autodiff<Self::Inner>, 2>;
    fn embedding(
        weight: Tensor<Autodiff<Self::Inner>, 2>,
        ids: Tensor<Autodiff<Self::Inner>, 1, Int>,
    ) -> Tensor<Autodiff<Self::Inner>, 2>;
}

/// What users of a backend get: its own bodies and backward passes.
pub(crate) struct Native<B>(PhantomData<B>);

impl<B: KernelBackend> Operators for Native<B> {
    type Inner = B;
    fn wkv7(inputs: Wkv7Inputs<Autodiff<B>>) -> Wkv7Output<Autodiff<B>> {
        wkv7(inputs)
    }
    fn sparse_attention(
        [q, k, v]: [Tensor<Autodiff<B>, 4>; 3],
        shape: ChunkTopK,
    ) -> Tensor<Autodiff<B>, 4> {
        sparse_attention(q, k, v, shape)
    }
    fn token_shift<const N: usize>(
        x: Tensor<Autodiff<B>, 3>,
        amounts: [Tensor<Autodiff<B>, 1>; N],
    ) -> [Tensor<Autodiff<B>, 2>; N] {
        token_shift(x, None, amounts)
    }
    fn prepare_keys(inputs: KeyInputs<Autodiff<B>>) -> Keys<Autodiff<B>> {
        prepare_keys(inputs)
    }
    fn mix_value(inputs: ValueInputs<Autodiff<B>>) -> Tensor<Autodiff<B>, 2> {
        mix_value(inputs)
    }
    fn gate_output(inputs: OutputInputs<Autodiff<B>>) -> Tensor<Autodiff<B>, 2> {
        gate_output(inputs)
    }
    fn layer_norm(
        x: Tensor<Autodiff<B>, 2>,
        weight: Tensor<Autodiff<B>, 1>,
        bias: Tensor<Autodiff<B>, 1>,
    ) -> Tensor<Autodiff<B>, 2> {
        layer_norm(x, weight, bias)
    }
    fn embedding(
        weight: Tensor<Autodiff<B>, 2>,
        ids: Tensor<Autodiff<B>, 1, Int>,
    ) -> Tensor<Autodiff<B>, 2> {
        embedding(weight, ids)
    }
}

/// The definitions in tensor operations under plain autodiff.
pub(crate) struct Defined<B>(PhantomData<B>);

impl<B: KernelBackend> Operators for Defined<B> {
    type Inner = B;
    fn wkv7(inputs: Wkv7Inputs<Autodiff<B>>) -> Wkv7Output<Autodiff<B>> {
        reference::wkv7(inputs)
    }
    fn sparse_attention(
        [q, k, v]: [Tensor<Autodiff<B>, 4>; 3],
        shape: ChunkTopK,
    ) -> Tensor<Autodiff<B>, 4> {
        reference::sparse_attention(q, k, v, shape)
    }
    fn token_shift<const N: usize>(
        x: Tensor<Autodiff<B>, 3>,
        amounts: [Tensor<Autodiff<B>, 1>; N],
    ) -> [Tensor<Autodiff<B>, 2>; N] {
        let mixes = reference::token_shift(x, None, amounts.into());
        mixes.try_into().expect("a mix per amount")
    }
    fn prepare_keys(inputs: KeyInputs<Autodiff<B>>) -> Keys<Autodiff<B>> {
        reference::prepare_keys(inputs)
    }
    fn mix_value(inputs: ValueInputs<Autodiff<B>>) -> Tensor<Autodiff<B>, 2> {
        reference::mix_value(inputs)
    }
    fn gate_output(inputs: OutputInputs<Autodiff<B>>) -> Tensor<Autodiff<B>, 2> {
        reference::gate_output(inputs)
    }
    fn layer_norm(
        x: Tensor<Autodiff<B>, 2>,
        weight: Tensor<Autodiff<B>, 1>,
        bias: Tensor<Autodiff<B>, 1>,
    ) -> Tensor<Autodiff<B>, 2> {
        reference::layer_norm(x, weight, bias)
    }
    fn embedding(
        weight: Tensor<Autodiff<B>, 2>,
        ids: Tensor<Autodiff<B>, 1, Int>,
    ) -> Tensor<Autodiff<B>, 2> {
        reference::embedding(weight, ids)
    }
}

/// A tensor as plain numbers, row-major.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub(crate) shape: [usize; 4],
    pub(crate) values: Vec<f64>,
}

impl Array {
    /// Seeded standard normal numbers (Box-Muller over splitmix64).
    pub(crate) fn normal(shape: [usize; 4], seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let values = (0..shape.iter().product::<usize>())
            .map(|_| {
                let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
                f64::from((radius * (std::f64::consts::TAU * uniform()).cos()) as f32)
            })
            .collect();
        Self { shape, values }
    }

    pub(crate) fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        self.values.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    /// Each row of the last axis scaled to length 1.
    pub(crate) fn unit_rows(mut self) -> Self {
        for row in self.values.chunks_mut(self.shape[3]) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        self
    }

    pub(crate) fn tensor<B: Backend>(&self) -> Tensor<B, 4> {
        let values: Vec<f32> = self.values.iter().map(|&x| x as f32).collect();
        Tensor::from_data(TensorData::new(values, self.shape), &Default::default())
    }

    pub(crate) fn of<B: Backend>(tensor: Tensor<B, 4>) -> Self {
        let shape = tensor.dims();
        let data = tensor.into_data().convert::<f32>();
        let values = data.to_vec::<f32>().expect("converted to f32");
        Self {
            shape,
            values: values.into_iter().map(f64::from).collect(),
        }
    }

    /// Exchanges axes 1 and 2.
    pub(crate) fn swapped(&self) -> Self {
        let [a, b, c, d] = self.shape;
        let mut values = Vec::with_capacity(self.values.len());
        for i in 0..a {
            for k in 0..c {
                for j in 0..b {
                    let row = ((i * b + j) * c + k) * d;
                    values.extend_from_slice(&self.values[row..row + d]);
                }
            }
        }
        Self {
            shape: [a, c, b, d],
            values,
        }
    }
}

/// `norm(found - expected) / norm(expected)`
pub(crate) fn relative_error(found: &Array, expected: &Array) -> f64 {
    assert_eq!(found.shape, expected.shape);
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(
        &mut found
            .values
            .iter()
            .zip(&expected.values)
            .map(|(x, y)| x - y),
    );
    let size = norm(&mut expected.values.iter().copied());
    if size == 0.0 {
        difference
    } else {
        difference / size
    }
}

/// Fails with the measured error unless `found` is `expected` within `tolerance`.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &Array, expected: &Array, tolerance: f64) {
    let error = relative_error(found, expected);
    println!("{what}: relative error {error:.1e}");
    // `error <= tolerance` is false for NaN, as it should be.
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e}, allowed {tolerance:e}"
    );
}

/// A golden file of `tests/data`: every tensor, with axes added in front up to rank 4. Cargo sets the folder of the crate at run time
/// too; where a built binary is carried elsewhere, `scripts/gpu/suite` does.
pub(crate) fn golden(name: &str) -> HashMap<String, Array> {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    let path = Path::new(&folder)
        .join("tests/data")
        .join(format!("{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let mut shape = [1; 4];
            shape[4 - view.shape().len()..].copy_from_slice(view.shape());
            let values = match view.dtype() {
                safetensors::Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                    .collect(),
                safetensors::Dtype::I64 => view
                    .data()
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64)
                    .collect(),
                other => panic!("{name}: unexpected dtype {other:?}"),
            };
            (name, Array { shape, values })
        })
        .collect()
}
