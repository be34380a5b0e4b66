//! Initialisation from nothing.

use std::sync::Mutex;

use burn::tensor::backend::Backend;
use rwkvx_model::RwkvXConfig;

use crate::golden::values;
use crate::support::{Flex, NdArray};

/// Held by every test that draws from NdArray's random numbers.
static NDARRAY_NUMBERS: Mutex<()> = Mutex::new(());

/// The values of a parameter of a new model.
fn new_values<B: Backend>(config: &RwkvXConfig) -> impl Fn(&str) -> Vec<f32> + use<B> {
    let device = B::Device::default();
    B::seed(&device, 7);
    let values = values(&config.init::<B>(&device));
    move |name| {
        values
            .iter()
            .find(|(found, _)| found == name)
            .unwrap_or_else(|| panic!("{name}"))
            .1
            .clone()
    }
}

fn config() -> RwkvXConfig {
    RwkvXConfig {
        n_sparse: 2,
        ..RwkvXConfig::tiny(300)
    }
}

/// The largest deviation of `rows x rows^T` (or of the columns, if they are fewer) from `gain^2` times the identity.
fn deviation(values: &[f32], rows: usize, columns: usize, gain: f64) -> f64 {
    let at = |row: usize, column: usize| f64::from(values[row * columns + column]);
    let (count, length) = (rows.min(columns), rows.max(columns));
    let vector = |i: usize, j: usize| if rows < columns { at(i, j) } else { at(j, i) };
    let mut worst: f64 = 0.0;
    for a in 0..count {
        for b in 0..=a {
            let dot: f64 = (0..length).map(|j| vector(a, j) * vector(b, j)).sum();
            let expected = if a == b { gain * gain } else { 0.0 };
            worst = worst.max((dot - expected).abs() / (gain * gain));
        }
    }
    worst
}

fn matrices_are_orthogonal<B: Backend>() {
    let of = new_values::<B>(&config());
    let gains = [
        ("rwkv.blocks.1.att.receptance.weight", 128, 128, 1.0),
        ("rwkv.blocks.1.att.value.weight", 128, 128, 1.0),
        ("rwkv.blocks.1.att.key.weight", 128, 128, 0.1),
        ("rwkv.blocks.1.ffn.key.weight", 512, 128, 1.0),
        ("rwkv.blocks.1.att.w2", 32, 128, 0.1),
        ("rwkv.blocks.1.att.v2", 32, 128, 0.1),
        (
            "rwkv.head.weight",
            300,
            128,
            0.5 * (300.0f64 / 128.0).sqrt(),
        ),
        ("moba.1.att.receptance.weight", 128, 128, 1.0),
        ("moba.1.att.key.weight", 128, 128, 1.0),
    ];
    for (name, rows, columns, gain) in gains {
        let deviation = deviation(&of(name), rows, columns, gain);
        assert!(deviation < 1e-5, "{name}: {deviation:.1e}");
    }
    assert_ne!(
        of("rwkv.blocks.1.att.receptance.weight"),
        of("rwkv.blocks.2.att.receptance.weight")
    );
}

#[test]
fn matrices_are_orthogonal_on_flex() {
    matrices_are_orthogonal::<Flex>();
}

#[test]
fn matrices_are_orthogonal_on_ndarray() {
    let _alone = NDARRAY_NUMBERS.lock();
    matrices_are_orthogonal::<NdArray>();
}

#[test]
fn blocks_that_write_into_the_stream_start_at_zero() {
    let of = new_values::<Flex>(&config());
    for name in [
        "rwkv.blocks.3.att.output.weight",
        "rwkv.blocks.3.ffn.value.weight",
        "moba.0.att.output.weight",
    ] {
        assert!(of(name).iter().all(|&x| x == 0.0), "{name}");
    }
    for name in [
        "rwkv.blocks.3.att.w1",
        "rwkv.blocks.3.att.g1",
        "rwkv.blocks.3.ln1.bias",
    ] {
        assert!(of(name).iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn vectors_equal_rwkv_lm() {
    // From RWKV-v7/train_temp/src/model.py with n_embd 128, n_layer 4, head size 64: layer, name, channel, value.
    let of = new_values::<Flex>(&config());
    let close = |name: &str, channel: usize, expected: f64| {
        let found = f64::from(of(name)[channel]);
        assert!(
            (found - expected).abs() < 1e-5,
            "{name}[{channel}] is {found}, expected {expected}"
        );
    };
    let (ratio, linear) = (|i: f64| i / 128.0, |i: f64| i / 127.0 - 0.5);
    close(
        "rwkv.blocks.1.att.x_r",
        32,
        1.0 - ratio(32.0).powf(0.2 * 0.75),
    );
    close(
        "rwkv.blocks.1.att.x_w",
        32,
        1.0 - ratio(32.0).powf(0.9 * 0.75),
    );
    close(
        "rwkv.blocks.1.att.x_k",
        32,
        1.0 - ratio(32.0).powf(0.7 * 0.75),
    );
    close("rwkv.blocks.1.att.x_k", 0, 1.0);
    close(
        "rwkv.blocks.2.ffn.x_k",
        100,
        1.0 - ratio(100.0).powf(0.5f64.powi(4)),
    );
    // Channel 70 is the seventh of its head: z = (6 - 31.5) / 31.5.
    let z = (6.0 - 31.5) / 31.5f64;
    let zigzag = z * z.abs();
    let up = 2.0 / 3.0f64;
    close(
        "rwkv.blocks.2.att.w0",
        70,
        -6.0 + 6.0 * (70.0 / 127.0f64).powf(1.0 + up.powf(0.3)) + 0.5 + 2.5 * zigzag,
    );
    close(
        "rwkv.blocks.2.att.a0",
        70,
        -0.19 + 0.3 * zigzag + 0.4 * linear(70.0),
    );
    close("rwkv.blocks.2.att.v0", 70, 0.73 - 0.4 * linear(70.0));
    close("rwkv.blocks.2.att.k_k", 70, 0.71 - 0.1 * linear(70.0));
    close("rwkv.blocks.2.att.k_a", 70, 1.02);
    close("rwkv.blocks.2.att.r_k", 70, -0.04);
    close("rwkv.blocks.2.att.ln_x.weight", 70, 0.75f64.powf(0.7));
    close("rwkv.blocks.2.ln2.weight", 70, 1.0);
    // The sparse block after layer 1 shares its token shift.
    assert_eq!(of("moba.0.ffn.x_k"), of("rwkv.blocks.1.ffn.x_k"));
}

#[test]
fn the_embedding_is_small_and_uniform() {
    let embedding = new_values::<Flex>(&config())("rwkv.emb.weight");
    let count = embedding.len() as f64;
    let mean = embedding.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = embedding.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count;
    assert!(embedding.iter().all(|x| x.abs() <= 1e-4));
    assert!(mean.abs() < 2e-6, "{mean:e}");
    assert!((variance / (1e-8 / 3.0) - 1.0).abs() < 0.03, "{variance:e}");
}

#[test]
fn the_seed_decides() {
    // The random numbers of a backend are one stream for all threads. No other test draws from NdArray's without this lock.
    let _alone = NDARRAY_NUMBERS.lock();
    let weights = |seed| {
        let device = Default::default();
        <NdArray as Backend>::seed(&device, seed);
        values(&RwkvXConfig::tiny(20).init::<NdArray>(&device))
    };
    let (one, again, two) = (weights(1), weights(1), weights(2));
    assert!(one == again, "the same seed makes other weights");
    assert!(one != two, "another seed makes the same weights");
}

#[test]
fn a_model_of_one_layer_and_one_channel_per_head_has_finite_values() {
    let config = RwkvXConfig {
        head_size: 1,
        ..RwkvXConfig::rwkv7(3, 1, 1)
    };
    for (name, values) in values(&config.init::<Flex>(&Default::default())) {
        assert!(values.iter().all(|x| x.is_finite()), "{name}: {values:?}");
    }
}
