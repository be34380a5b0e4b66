//! Rows times weights: the CPU bodies by number format, and the definition in tensor operations beside them.
//!
//! `cargo bench -p rwkvx-kernels --bench project [-- FILTER]`. Throughput is in bytes of weights where there are few rows, else in multiply-adds.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{DType, Distribution, Tensor};
use burn_flex::Flex;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rwkvx_kernels::{WeightLayout, int8_scheme, project, reference};

/// `[out, in]`: a channel mix and the head of the 0.1B model; the second is out of cache.
const SIZES: [[usize; 2]; 2] = [[3072, 768], [65536, 768]];

fn normal(shape: [usize; 2]) -> Tensor<Flex, 2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn bench_project(c: &mut Criterion) {
    for [outputs, inputs] in SIZES {
        let exact = normal([outputs, inputs]);
        let scheme = int8_scheme(inputs).expect("whole groups");
        let formats = [
            ("f32", 4, exact.clone()),
            ("bf16", 2, exact.clone().cast(DType::BF16)),
            ("f16", 2, exact.clone().cast(DType::F16)),
            ("int8", 1, exact.quantize_dynamic(&scheme)),
        ];
        for rows in [1, 4, 12, 16, 64, 512] {
            if rows == 512 && outputs > 10_000 {
                continue;
            }
            let mut group = c.benchmark_group(format!("project/{outputs}x{inputs}/{rows} rows"));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_secs(1));
            let x = normal([rows, inputs]);
            for (format, bytes, weight) in &formats {
                group.throughput(match rows {
                    1..=4 => Throughput::Bytes((outputs * inputs * bytes) as u64),
                    _ => Throughput::Elements((rows * outputs * inputs) as u64),
                });
                let run = || project(x.clone(), weight.clone(), WeightLayout::OutIn);
                group.bench_function(BenchmarkId::new("cpu", format), |b| {
                    b.iter(|| black_box(run()))
                });
            }
            let exact = &formats[0].2;
            group.bench_function("reference/f32", |b| {
                b.iter(|| {
                    let (x, weight) = (x.clone(), exact.clone());
                    black_box(reference::project(x, weight, WeightLayout::OutIn))
                })
            });
            group.finish();
        }
    }
}

criterion_group!(benches, bench_project);
criterion_main!(benches);
