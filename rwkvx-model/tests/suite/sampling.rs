//! From logits to tokens.

use std::ops::ControlFlow;

use rwkvx_model::sample::{Sampler, SamplerConfig};
use rwkvx_model::{Error, GenerateOptions, RwkvXConfig, generate};

use crate::support::{Flex, golden_model};

/// How often each of `n` tokens is chosen in 20,000 independent draws.
fn shares(config: SamplerConfig, logits: &[f32]) -> Vec<f64> {
    const DRAWS: usize = 20_000;
    let mut sampler = Sampler::new(config).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..DRAWS {
        counts[sampler.sample(logits).unwrap() as usize] += 1;
    }
    counts
        .into_iter()
        .map(|count| f64::from(count) / DRAWS as f64)
        .collect()
}

fn warm() -> SamplerConfig {
    SamplerConfig {
        temperature: 1.0,
        ..SamplerConfig::default()
    }
}

#[track_caller]
fn assert_shares(found: &[f64], expected: &[f64]) {
    for (found_one, expected_one) in found.iter().zip(expected) {
        assert!(
            (found_one - expected_one).abs() < 0.02,
            "{found:?}, expected {expected:?}"
        );
    }
}

/// Logits of these probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

#[test]
fn temperature_zero_takes_the_likeliest_and_the_lower_id_of_a_tie() {
    let mut sampler = Sampler::new(SamplerConfig::default()).unwrap();
    assert_eq!(sampler.sample(&[0.0, 3.0, 1.0, 3.0]).unwrap(), 1);
}

#[test]
fn temperature_one_draws_by_the_probabilities() {
    assert_shares(&shares(warm(), &logits(&[0.5, 0.3, 0.2])), &[0.5, 0.3, 0.2]);
}

#[test]
fn temperature_one_half_squares_them() {
    let config = SamplerConfig {
        temperature: 0.5,
        ..warm()
    };
    let sum = 0.25 + 0.09 + 0.04;
    assert_shares(
        &shares(config, &logits(&[0.5, 0.3, 0.2])),
        &[0.25 / sum, 0.09 / sum, 0.04 / sum],
    );
}

#[test]
fn a_very_low_temperature_is_greedy_and_not_broken() {
    let config = SamplerConfig {
        temperature: 1e-4,
        ..warm()
    };
    assert_eq!(shares(config, &logits(&[0.2, 0.5, 0.3])), [0.0, 1.0, 0.0]);
}

#[test]
fn top_p_keeps_the_likeliest_that_reach_the_share() {
    let config = SamplerConfig {
        top_p: 0.7,
        ..warm()
    };
    assert_shares(
        &shares(config, &logits(&[0.1, 0.5, 0.3, 0.1])),
        &[0.0, 0.625, 0.375, 0.0],
    );
}

#[test]
fn top_k_keeps_so_many() {
    let config = SamplerConfig { top_k: 2, ..warm() };
    assert_shares(
        &shares(config, &logits(&[0.1, 0.5, 0.3, 0.1])),
        &[0.0, 0.625, 0.375, 0.0],
    );
}

#[test]
fn penalties_hit_what_has_occurred_and_fade() {
    let greedy = |config: SamplerConfig, logits: &[f32], n: usize| -> Vec<u32> {
        let mut sampler = Sampler::new(config).unwrap();
        (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
    };
    let presence = SamplerConfig {
        presence_penalty: 1.0,
        ..SamplerConfig::default()
    };
    assert_eq!(greedy(presence, &[2.0, 1.5, 0.0], 4), [0, 1, 0, 0]);
    let frequency = SamplerConfig {
        frequency_penalty: 1.0,
        penalty_decay: 1.0,
        ..SamplerConfig::default()
    };
    assert_eq!(
        greedy(frequency.clone(), &[2.0, 1.5, 0.0], 6),
        [0, 1, 0, 1, 0, 2]
    );
    let fading = SamplerConfig {
        penalty_decay: 0.1,
        ..frequency
    };
    assert_eq!(greedy(fading, &[2.0, 1.5, 0.0], 6), [0, 1, 0, 1, 0, 1]);
}

#[test]
fn banned_tokens_are_never_chosen() {
    let config = SamplerConfig {
        banned: vec![0, 2, 99],
        ..warm()
    };
    assert_eq!(shares(config, &[9.0, 1.0, 9.0]), [0.0, 1.0, 0.0]);
}

#[test]
fn the_seed_decides_the_draws() {
    let draws = |seed| {
        let mut sampler = Sampler::new(SamplerConfig { seed, ..warm() }).unwrap();
        (0..50)
            .map(|_| sampler.sample(&[0.0; 100]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
}

#[test]
fn impossible_options_and_logits_are_errors() {
    let rejects = |config: SamplerConfig, named: &str| {
        let error = Sampler::new(config).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    };
    rejects(
        SamplerConfig {
            temperature: -1.0,
            ..warm()
        },
        "temperature",
    );
    rejects(
        SamplerConfig {
            temperature: f32::NAN,
            ..warm()
        },
        "temperature",
    );
    rejects(
        SamplerConfig {
            top_p: 0.0,
            ..warm()
        },
        "top_p",
    );
    rejects(
        SamplerConfig {
            top_p: 1.5,
            ..warm()
        },
        "top_p",
    );
    rejects(
        SamplerConfig {
            penalty_decay: 2.0,
            ..warm()
        },
        "penalty_decay",
    );
    rejects(
        SamplerConfig {
            frequency_penalty: f32::INFINITY,
            ..warm()
        },
        "frequency_penalty",
    );

    let mut sampler = Sampler::new(SamplerConfig {
        banned: vec![0, 1],
        ..warm()
    })
    .unwrap();
    assert!(matches!(
        sampler.sample(&[1.0, 2.0]),
        Err(Error::Sampling(_))
    ));
    assert!(matches!(
        sampler.sample(&[1.0, 2.0, f32::NAN]),
        Err(Error::Sampling(_))
    ));
}

/// The tokens a golden model makes, greedily.
fn made(max_tokens: usize, stop: Vec<u32>, prompt: &[u32]) -> Result<Vec<u32>, Error> {
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let mut sampler = Sampler::new(SamplerConfig::default()).unwrap();
    let mut tokens = Vec::new();
    let options = GenerateOptions {
        max_tokens,
        stop,
        log_probabilities: false,
    };
    generate(&model, prompt, &mut sampler, &options, |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    })?;
    Ok(tokens)
}

#[test]
fn generation_goes_on_as_the_whole_text_would() {
    let prompt: Vec<u32> = (0..60).map(|i| i * 7 % 97).collect();
    let tokens = made(20, vec![], &prompt).unwrap();
    assert_eq!(tokens.len(), 20);
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let text = [prompt.as_slice(), &tokens].concat();
    let ids = rwkvx_model::tokens::ids_tensor::<Flex>(&[&text], 97, &Default::default()).unwrap();
    let likeliest: Vec<i32> = model.forward(ids).argmax(2).into_data().iter().collect();
    let expected: Vec<u32> = likeliest[59..79].iter().map(|&id| id as u32).collect();
    assert_eq!(tokens, expected);
}

#[test]
fn a_stop_token_ends_the_text_and_is_not_given() {
    let tokens = made(20, vec![], &[1, 2, 3]).unwrap();
    let stop = tokens[5];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    assert_eq!(made(20, vec![stop], &[1, 2, 3]).unwrap(), tokens[..first]);
    assert!(made(0, vec![], &[1, 2, 3]).unwrap().is_empty());
}

#[test]
fn prompts_that_are_empty_or_past_the_vocabulary_are_errors() {
    assert!(matches!(made(3, vec![], &[]), Err(Error::TokenRows(_))));
    let error = made(3, vec![], &[5, 97]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "token id 97 at position 1 is not below the vocabulary size 97"
    );
}

#[test]
fn rows_of_unequal_length_are_no_batch() {
    let rows =
        |rows: &[&[u32]]| rwkvx_model::tokens::ids_tensor::<Flex>(rows, 9, &Default::default());
    assert!(matches!(rows(&[&[1, 2], &[3]]), Err(Error::TokenRows(_))));
    assert!(matches!(rows(&[]), Err(Error::TokenRows(_))));
    assert_eq!(rows(&[&[1, 2], &[3, 4]]).unwrap().dims(), [2, 2]);
}

#[test]
fn the_tiny_preset_has_about_a_million_parameters() {
    let count = RwkvXConfig::tiny(257).parameters();
    assert!((900_000..1_300_000).contains(&count), "{count}");
}
