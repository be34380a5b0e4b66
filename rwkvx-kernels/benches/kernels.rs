//! The CPU bodies against the definitions in tensor operations and, for the recurrence, against one token after another.
//!
//! `cargo bench -p rwkvx-kernels --bench kernels [-- FILTER]`; Burn's CPU backends compute before they return, so nothing is left to wait for.

use std::hint::black_box;
use std::time::Duration;

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Int, Tensor, activation, backend::Backend};
use burn_flex::Flex;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rwkvx_kernels::{
    ChunkTopK, KernelBackend, KeyInputs, Keys, KvCache, OutputInputs, RowLosses, ValueInputs,
    Wkv7Inputs, Wkv7Output, cross_entropy_gradient, cross_entropy_rows, gate_output, mix_value,
    prepare_keys, reference, sigmoid, sparse_attention, tanh, token_shift, wkv7,
};

type Train = Autodiff<Flex>;

/// `[batch, time, heads, head_size]`: the 0.1B model at two lengths, and a training step of a demo-sized model.
const SIZES: [[usize; 4]; 3] = [[1, 512, 12, 64], [1, 4096, 12, 64], [16, 256, 4, 32]];

fn name([batch, time, heads, size]: [usize; 4]) -> String {
    format!("B{batch} T{time} H{heads} N{size}")
}

fn normal<B: Backend>(dims: [usize; 4]) -> Tensor<B, 4> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn wkv7_inputs<B: Backend>(dims @ [batch, _, heads, size]: [usize; 4]) -> Wkv7Inputs<B> {
    let direction = normal::<B>(dims);
    let length = direction.clone().powf_scalar(2.0).sum_dim(3).sqrt();
    let direction = direction / length;
    let uniform =
        |low, high| Tensor::random(dims, Distribution::Uniform(low, high), &Default::default());
    Wkv7Inputs {
        receptance: normal(dims),
        log_decay: uniform(-0.6, -0.001),
        key: normal(dims),
        value: normal(dims),
        removal: direction.clone().neg(),
        replacement: direction * uniform(0.0, 1.0),
        state: Some(Tensor::zeros(
            [batch, heads, size, size],
            &Default::default(),
        )),
    }
}

/// The recurrence as it is written, one token after another in tensor operations.
fn plain_recurrence<B: Backend>(inputs: Wkv7Inputs<B>) -> Wkv7Output<B> {
    let [batch, time, heads, size] = inputs.receptance.dims();
    let mut state = inputs.state.expect("given by `wkv7_inputs`");
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let token = |x: &Tensor<B, 4>| {
            x.clone()
                .slice([0..batch, t..t + 1])
                .reshape([batch, heads, 1, size])
        };
        let column = |x: &Tensor<B, 4>| token(x).swap_dims(2, 3);
        let removed = state.clone().matmul(column(&inputs.removal));
        state = state * token(&inputs.log_decay).exp()
            + removed.matmul(token(&inputs.replacement))
            + column(&inputs.value).matmul(token(&inputs.key));
        outputs.push(
            state
                .clone()
                .matmul(column(&inputs.receptance))
                .swap_dims(2, 3),
        );
    }
    Wkv7Output {
        output: Tensor::cat(outputs, 2).swap_dims(1, 2),
        state,
    }
}

fn tracked(inputs: Wkv7Inputs<Train>) -> Wkv7Inputs<Train> {
    Wkv7Inputs {
        receptance: inputs.receptance.require_grad(),
        log_decay: inputs.log_decay.require_grad(),
        key: inputs.key.require_grad(),
        value: inputs.value.require_grad(),
        removal: inputs.removal.require_grad(),
        replacement: inputs.replacement.require_grad(),
        state: inputs.state,
    }
}

fn bench_wkv7(c: &mut Criterion) {
    type Body<B> = fn(Wkv7Inputs<B>) -> Wkv7Output<B>;
    for dims in SIZES {
        let mut group = c.benchmark_group(format!("wkv7 forward/{}", name(dims)));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(4));
        group.throughput(Throughput::Elements((dims[0] * dims[1]) as u64));
        let bodies: [(&str, Body<Flex>); 3] = [
            ("cpu", wkv7),
            ("reference", reference::wkv7),
            ("plain", plain_recurrence),
        ];
        let inputs = wkv7_inputs::<Flex>(dims);
        for (body, run) in bodies {
            group.bench_function(BenchmarkId::from_parameter(body), |b| {
                b.iter(|| black_box(run(inputs.clone())))
            });
        }
        group.finish();

        let mut group = c.benchmark_group(format!("wkv7 forward+backward/{}", name(dims)));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(4));
        group.throughput(Throughput::Elements((dims[0] * dims[1]) as u64));
        let bodies: [(&str, Body<Train>); 3] = [
            ("cpu", wkv7),
            ("reference", reference::wkv7),
            ("plain", plain_recurrence),
        ];
        let inputs = wkv7_inputs::<Train>(dims);
        for (body, run) in bodies {
            group.bench_function(BenchmarkId::from_parameter(body), |b| {
                b.iter(|| black_box(run(tracked(inputs.clone())).output.sum().backward()))
            });
        }
        group.finish();
    }
}

fn bench_attention(c: &mut Criterion) {
    type Body<B> = fn(Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>, ChunkTopK) -> Tensor<B, 4>;
    let cases = [
        (
            SIZES[0],
            ChunkTopK {
                chunk_size: 2048,
                top_k: 3,
            },
        ),
        (
            SIZES[1],
            ChunkTopK {
                chunk_size: 2048,
                top_k: 3,
            },
        ),
        (
            SIZES[1],
            ChunkTopK {
                chunk_size: 128,
                top_k: 8,
            },
        ),
        (
            SIZES[2],
            ChunkTopK {
                chunk_size: 64,
                top_k: 3,
            },
        ),
    ];
    for (dims, shape) in cases {
        let label = format!(
            "{} chunk {} top {}",
            name(dims),
            shape.chunk_size,
            shape.top_k
        );
        let mut group = c.benchmark_group(format!("attention forward/{label}"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(4));
        group.throughput(Throughput::Elements((dims[0] * dims[1]) as u64));
        let bodies: [(&str, Body<Flex>); 2] = [
            ("cpu", sparse_attention),
            ("reference", reference::sparse_attention),
        ];
        let [q, k, v] = [0; 3].map(|_| normal::<Flex>(dims));
        for (body, run) in bodies {
            group.bench_function(BenchmarkId::from_parameter(body), |b| {
                b.iter(|| black_box(run(q.clone(), k.clone(), v.clone(), shape)))
            });
        }
        group.finish();

        let mut group = c.benchmark_group(format!("attention forward+backward/{label}"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(4));
        group.throughput(Throughput::Elements((dims[0] * dims[1]) as u64));
        let mut bodies: Vec<(&str, Body<Train>)> = vec![("cpu", sparse_attention)];
        // Under autodiff the definition keeps every gathered key: 4096 * 7 * 128 rows for 12 heads are 11 GB.
        if dims[1] < 4096 {
            bodies.push(("reference", reference::sparse_attention));
        }
        let qkv = [0; 3].map(|_| normal::<Train>(dims));
        for (body, run) in bodies {
            group.bench_function(BenchmarkId::from_parameter(body), |b| {
                b.iter(|| {
                    let [q, k, v] = qkv.clone().map(Tensor::require_grad);
                    black_box(run(q, k, v, shape).sum().backward())
                })
            });
        }
        group.finish();
    }
}

/// One token: the recurrence, and the attention over caches of different lengths.
fn bench_decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode, H12 N64");
    let inputs = wkv7_inputs::<Flex>([1, 1, 12, 64]);
    group.bench_function("wkv7", |b| b.iter(|| black_box(wkv7(inputs.clone()))));
    let shape = ChunkTopK {
        chunk_size: 2048,
        top_k: 3,
    };
    for held in [6144, 16 * 1024, 64 * 1024, 128 * 1024] {
        let mut cache = filled_cache::<Flex>(shape, held);
        let [q, k, v] = [0; 3].map(|_| normal::<Flex>([1, 1, 12, 64]));
        group.bench_function(BenchmarkId::new("attention, tokens held", held), |b| {
            b.iter(|| black_box(cache.attend(q.clone(), k.clone(), v.clone())))
        });
    }
    group.finish();
}

/// A cache of `held` random tokens with room for what a measurement appends.
fn filled_cache<B: KernelBackend>(shape: ChunkTopK, held: usize) -> KvCache<B> {
    let mut cache = KvCache::new(1, 12, 64, shape, &B::Device::default());
    cache.reserve(held + 64 * 1024);
    for _ in (0..held).step_by(2048) {
        let [q, k, v] = [0; 3].map(|_| normal::<B>([1, 2048, 12, 64]));
        cache.attend(q, k, v);
    }
    cache
}

/// Against Burn's own operators on the activations of a demo-sized training step.
fn bench_pointwise(c: &mut Criterion) {
    type Function = fn(Tensor<Flex, 2>) -> Tensor<Flex, 2>;
    let mut group = c.benchmark_group("element-wise, 4096 x 128");
    let x = Tensor::random(
        [4096, 128],
        Distribution::Normal(0.0, 1.0),
        &Default::default(),
    );
    let functions: [(&str, Function); 4] = [
        ("sigmoid/cpu", sigmoid),
        ("sigmoid/burn", activation::sigmoid),
        ("tanh/cpu", tanh),
        ("tanh/burn", activation::tanh),
    ];
    for (name, function) in functions {
        group.bench_function(name, |b| b.iter(|| black_box(function(x.clone()))));
    }
    group.finish();
}

/// What a time mix does around its recurrence, forward and backward.
fn bench_time_mix(c: &mut Criterion) {
    type Body = fn(&TimeMixInputs) -> Vec<Tensor<Train, 2>>;
    let bodies: [(&str, [Body; 2]); 4] = [
        (
            "token_shift",
            [
                |x| token_shift(x.shifted(), None, x.vectors::<6>()).into(),
                |x| reference::token_shift(x.shifted(), None, x.vectors::<6>().into()),
            ],
        ),
        (
            "prepare_keys",
            [
                |x| every(prepare_keys(x.keys())),
                |x| every(reference::prepare_keys(x.keys())),
            ],
        ),
        (
            "mix_value",
            [
                |x| vec![mix_value(x.value())],
                |x| vec![reference::mix_value(x.value())],
            ],
        ),
        (
            "gate_output",
            [
                |x| vec![gate_output(x.output())],
                |x| vec![reference::gate_output(x.output())],
            ],
        ),
    ];
    for dims in [SIZES[0], SIZES[2]] {
        let inputs = TimeMixInputs::new(dims);
        let [batch, time, heads, size] = dims;
        let weights = Tensor::random(
            [batch * time, heads * size],
            Distribution::Default,
            &Default::default(),
        );
        for (operator, bodies) in bodies {
            let label = format!("{operator} forward+backward/{}", name(dims));
            let mut group = c.benchmark_group(label);
            for (body, run) in ["cpu", "reference"].into_iter().zip(bodies) {
                group.bench_function(BenchmarkId::from_parameter(body), |b| {
                    b.iter(|| {
                        let losses = run(&inputs)
                            .into_iter()
                            .map(|y| (y * weights.clone()).sum());
                        let loss = losses.reduce(|sum, loss| sum + loss).expect("an output");
                        black_box(loss.backward())
                    })
                });
            }
            group.finish();
        }
    }
}

/// Sequences and parameters of which each operator takes as many as it needs.
struct TimeMixInputs {
    dims: [usize; 4],
    sequences: [Tensor<Train, 2>; 5],
    vectors: [Tensor<Train, 1>; 6],
}

impl TimeMixInputs {
    fn new(dims: [usize; 4]) -> Self {
        let [batch, time, heads, size] = dims;
        let sequence = || normal(dims).reshape([batch * time, heads * size]);
        let vector = || normal([1, 1, heads, size]).reshape([heads * size]);
        Self {
            dims,
            sequences: [(); 5].map(|()| sequence().detach().require_grad()),
            vectors: [(); 6].map(|()| vector().detach().require_grad()),
        }
    }

    fn shifted(&self) -> Tensor<Train, 3> {
        let [batch, time, heads, size] = self.dims;
        self.sequences[0]
            .clone()
            .reshape([batch, time, heads * size])
    }

    fn vectors<const N: usize>(&self) -> [Tensor<Train, 1>; N] {
        std::array::from_fn(|i| self.vectors[i].clone())
    }

    fn keys(&self) -> KeyInputs<Train> {
        let [decay, rate, key, ..] = self.sequences.clone();
        let [decay_bias, rate_bias, removal_scale, rate_scale] = self.vectors();
        KeyInputs {
            decay,
            rate,
            key,
            decay_bias,
            rate_bias,
            removal_scale,
            rate_scale,
            head_size: self.dims[3],
        }
    }

    fn value(&self) -> ValueInputs<Train> {
        let [value, first, amount, ..] = self.sequences.clone();
        let [amount_bias] = self.vectors();
        ValueInputs {
            value,
            first,
            amount,
            amount_bias,
        }
    }

    fn output(&self) -> OutputInputs<Train> {
        let [output, receptance, key, value, gate] = self.sequences.clone();
        let [weight, bias, bonus] = self.vectors();
        let [_, _, heads, size] = self.dims;
        OutputInputs {
            output,
            receptance,
            key,
            value,
            gate,
            weight,
            bias,
            bonus: bonus.reshape([heads, size]),
        }
    }
}

fn every(keys: Keys<Train>) -> Vec<Tensor<Train, 2>> {
    vec![keys.log_decay, keys.key, keys.removal, keys.replacement]
}

/// A piece of the head's logits: their losses, and losses and gradient.
fn bench_cross_entropy(c: &mut Criterion) {
    type Losses = fn(Tensor<Flex, 2>, Tensor<Flex, 1, Int>) -> RowLosses<Flex>;
    type Gradient = fn(
        Tensor<Flex, 2>,
        Tensor<Flex, 1, Int>,
        RowLosses<Flex>,
        Tensor<Flex, 1>,
        f64,
    ) -> Tensor<Flex, 2>;
    let device = Default::default();
    let (rows, vocab) = (128, 65536);
    let mut group = c.benchmark_group(format!("cross entropy/{rows} rows of {vocab}"));
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Elements((rows * vocab) as u64));
    let logits = normal::<Flex>([1, 1, rows, vocab]).reshape([rows, vocab]);
    let targets = Tensor::<Flex, 1, Int>::arange(0..rows as i64, &device) * 509;
    let shares = Tensor::<Flex, 1>::ones([rows], &device) / rows as f32;
    let bodies: [(&str, Losses, Gradient); 2] = [
        ("cpu", cross_entropy_rows, cross_entropy_gradient),
        (
            "reference",
            reference::cross_entropy_rows,
            reference::cross_entropy_gradient,
        ),
    ];
    for (body, losses, gradient) in bodies {
        group.bench_function(BenchmarkId::new("losses", body), |b| {
            b.iter(|| black_box(losses(logits.clone(), targets.clone())))
        });
        // Logits that nobody else holds, made outside of what is measured.
        group.bench_function(BenchmarkId::new("losses and gradient", body), |b| {
            b.iter_batched(
                || logits.clone() + 0.0,
                |logits| {
                    let losses = losses(logits.clone(), targets.clone());
                    black_box(gradient(
                        logits,
                        targets.clone(),
                        losses,
                        shares.clone(),
                        1e-4,
                    ))
                },
                BatchSize::PerIteration,
            )
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    bench_wkv7,
    bench_time_mix,
    bench_attention,
    bench_decode,
    bench_pointwise,
    bench_cross_entropy
);
criterion_main!(benches);
