//! Sizes, their JSON and their checks.

use rwkvx_model::RwkvXConfig;

#[test]
fn published_shapes_have_the_published_parameter_counts() {
    let counts = [
        (RwkvXConfig::world_0_1b(), 191_034_624),
        (RwkvXConfig::world_2_9b(), 2_947_735_040),
        (RwkvXConfig::rwkvx_0_22b(), 219_361_536),
        (RwkvXConfig::rwkvx_3_6b(), 3_576_983_040),
    ];
    for (config, count) in counts {
        config.validate().unwrap();
        assert_eq!(config.parameters(), count, "{config:?}");
    }
}

#[test]
fn the_count_is_the_sum_over_the_parameters() {
    let config = RwkvXConfig {
        n_layer: 6,
        n_sparse: 3,
        ..RwkvXConfig::tiny(101)
    };
    let model = config.init::<crate::support::Flex>(&Default::default());
    let named = rwkvx_model::names::parameters(&model);
    let sum: usize = named
        .iter()
        .map(|param| param.shape.iter().product::<usize>())
        .sum();
    assert_eq!(sum, config.parameters());
    let distinct: std::collections::BTreeSet<_> = named.iter().map(|param| param.id).collect();
    assert_eq!(distinct.len(), named.len());
}

#[test]
fn absent_ranks_follow_rwkv_lm() {
    // Width and the ranks of decay, rate, value and gate that RWKV-LM's training code gives it.
    let ranks = [
        (768, [64, 64, 32, 128]),
        (1024, [64, 64, 64, 160]),
        (2048, [128, 128, 64, 224]),
        (2560, [128, 128, 96, 256]),
        (4096, [160, 160, 96, 320]),
        (64, [32, 32, 32, 32]),
    ];
    for (channels, expected) in ranks {
        let json = format!(r#"{{"vocab_size": 10, "channels": {channels}, "n_layer": 2}}"#);
        let config: RwkvXConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(
            [
                config.decay_rank,
                config.rate_rank,
                config.value_rank,
                config.gate_rank
            ],
            expected
        );
        assert_eq!(
            (
                config.head_size,
                config.n_sparse,
                config.chunk_size,
                config.top_k
            ),
            (64, 0, 2048, 3)
        );
    }
}

#[test]
fn json_round_trips() {
    let config = RwkvXConfig::rwkvx_0_22b();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<RwkvXConfig>(&json).unwrap(), config);
}

#[test]
fn impossible_configurations_are_errors_that_name_the_field() {
    let cases = [
        (r#"{"channels": 64, "n_layer": 1}"#, "vocab_size"),
        (
            r#"{"vocab_size": 0, "channels": 64, "n_layer": 1}"#,
            "vocab_size",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 1, "layers": 2}"#,
            "layers",
        ),
        (
            r#"{"vocab_size": 9, "channels": 96, "n_layer": 1}"#,
            "channels 96",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 0}"#,
            "n_layer",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 32, "n_sparse": 5}"#,
            "n_sparse 5",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 2, "n_sparse": 4}"#,
            "n_sparse 4",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 2, "chunk_size": 0}"#,
            "chunk_size",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 2, "key_conv": 1}"#,
            "key_conv",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 2, "top_k": 0}"#,
            "top_k",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 2, "head_size": 0}"#,
            "head_size",
        ),
        (
            r#"{"vocab_size": 9, "channels": 64, "n_layer": 2, "gate_rank": 0}"#,
            "gate_rank",
        ),
        (r#"{"vocab_size": 9, "channels": 64, "n_layer": -2}"#, "-2"),
        (
            r#"{"vocab_size": 18446744073709551615, "channels": 64, "n_layer": 2}"#,
            "vocab_size",
        ),
        (r#"{"vocab_size": 9, "channels": 64, "n_layer": 2"#, "EOF"),
    ];
    for (json, named) in cases {
        let error = serde_json::from_str::<RwkvXConfig>(json)
            .expect_err(json)
            .to_string();
        assert!(error.contains(named), "{json}: {error}");
    }
}

#[test]
fn sparse_blocks_follow_every_interval() {
    let after = |n_layer, n_sparse| -> Vec<_> {
        let config = RwkvXConfig {
            n_sparse,
            ..RwkvXConfig::rwkv7(9, 64, n_layer)
        };
        (0..n_layer)
            .filter_map(|layer| Some((layer, config.sparse_after(layer)?)))
            .collect()
    };
    assert_eq!(after(12, 4), [(2, 0), (5, 1), (8, 2), (11, 3)]);
    assert_eq!(after(4, 1), [(3, 0)]);
    assert_eq!(after(4, 4), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    assert_eq!(after(4, 0), []);
}
