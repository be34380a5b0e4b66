//! Sessions: batches, splits, saved states, and what generation tells of its tokens.

use std::ops::ControlFlow;

use rwkvx_kernels::KernelBackend;
use rwkvx_model::sample::{Sampler, SamplerConfig};
use rwkvx_model::{CacheBudget, Error, GenerateOptions, Made, RwkvX, Session, greedy};

use crate::support::{Golden, assert_close, golden_model, host, on_backends};

on_backends! {
    a_batch_makes_what_its_rows_make_alone;
    any_split_of_a_prompt_gives_the_whole;
    a_saved_state_goes_on_as_if_it_had_never_been_away;
}

const MODELS: [&str; 2] = ["rwkv7_tiny", "rwkvx_tiny"];

/// The golden texts: 40 tokens each of the base, 112 of the hybrid.
fn rows(name: &str) -> Vec<Vec<u32>> {
    let rows = Golden::read(&format!("{name}.safetensors")).ids();
    rows.iter()
        .map(|row| row[..row.len() - 1].iter().map(|&id| id as u32).collect())
        .collect()
}

fn sampler(temperature: f32, seed: u64) -> Sampler {
    Sampler::new(SamplerConfig {
        temperature,
        top_p: 0.9,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        seed,
        ..SamplerConfig::default()
    })
    .unwrap()
}

/// What generation makes of a session for each row.
fn made<B: KernelBackend>(
    model: &RwkvX<B>,
    session: &mut Session<B>,
    samplers: &mut [Sampler],
    max_tokens: usize,
) -> Vec<Vec<Made>> {
    let mut rows = vec![Vec::new(); samplers.len()];
    let options = GenerateOptions {
        max_tokens,
        log_probabilities: true,
        ..GenerateOptions::default()
    };
    session
        .generate(model, samplers, &options, |made| {
            rows[made.row].push(made);
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn tokens(made: &[Made]) -> Vec<u32> {
    made.iter().map(|made| made.token).collect()
}

fn a_batch_makes_what_its_rows_make_alone<B: KernelBackend>() {
    for name in MODELS {
        let model = golden_model::<B>(&format!("{name}.pth"));
        // Five texts, so that few rows go together, and several of them.
        let mut rows = rows(name);
        rows.extend(
            rows.clone()
                .into_iter()
                .map(|row| row.into_iter().rev().collect()),
        );
        rows.push(rows[0].iter().map(|id| (id * 7 + 3) % 97).collect());
        let mut together = Session::new(&model, rows.len(), None);
        together.read(&model, &rows, |_| ()).unwrap();
        let mut samplers: Vec<Sampler> = (0..rows.len())
            .map(|row| sampler(1.0, row as u64))
            .collect();
        let batch = made(&model, &mut together, &mut samplers, 12);
        for (row, prompt) in rows.iter().enumerate() {
            let mut alone = Session::new(&model, 1, None);
            alone.read(&model, &[prompt], |_| ()).unwrap();
            let single = made(&model, &mut alone, &mut [sampler(1.0, row as u64)], 12);
            assert_eq!(tokens(&batch[row]), tokens(&single[0]), "{name} row {row}");
            for (x, y) in batch[row].iter().zip(&single[0]) {
                let (x, y) = (x.log_probability.unwrap(), y.log_probability.unwrap());
                assert!((x - y).abs() < 1e-4 && x <= 0.0, "{x} {y}");
            }
        }
    }
}

fn any_split_of_a_prompt_gives_the_whole<B: KernelBackend>() {
    let model = golden_model::<B>("rwkvx_tiny.pth");
    let rows = rows("rwkvx_tiny");
    for budget in [None, Some(CacheBudget::of(50))] {
        let mut whole = Session::new(&model, rows.len(), budget);
        whole.read(&model, &rows, |_| ()).unwrap();
        let expected = host(whole.logits().unwrap().clone());
        for split in [1, 15, 16, 50, 51, 77, 111] {
            let mut pieces = Session::new(&model, rows.len(), budget);
            for part in [0..split, split..112] {
                let part: Vec<&[u32]> = rows.iter().map(|row| &row[part.clone()]).collect();
                pieces.read(&model, &part, |_| ()).unwrap();
            }
            let found = host(pieces.logits().unwrap().clone());
            assert_close(&format!("{budget:?} split at {split}"), &found, &expected);
            assert_eq!(pieces.state().tokens(), 112);
        }
    }
}

fn a_saved_state_goes_on_as_if_it_had_never_been_away<B: KernelBackend>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    for name in MODELS {
        let model = golden_model::<B>(&format!("{name}.pth"));
        let rows = rows(name);
        for budget in [None, Some(CacheBudget::of(60))] {
            let mut session = Session::new(&model, rows.len(), budget);
            session.read(&model, &rows, |_| ()).unwrap();
            let greedy = |_| sampler(0.0, 0);
            let mut samplers: Vec<Sampler> = (0..rows.len()).map(greedy).collect();
            // Far enough that the cache has shrunk, and shrinks again after.
            made(&model, &mut session, &mut samplers, 5);
            session.save(&model, &path).unwrap();
            let mut restored = Session::load(&model, &path).unwrap();
            assert_eq!(restored.state().tokens(), session.state().tokens());
            assert_eq!(
                restored.state().cache_budget(),
                session.state().cache_budget()
            );
            let mut again = samplers.clone();
            let expected = made(&model, &mut session, &mut samplers, 30);
            let found = made(&model, &mut restored, &mut again, 30);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(tokens(found), tokens(expected), "{name} {budget:?}");
            }
            let [found, expected] =
                [&restored, &session].map(|session| host(session.logits().unwrap().clone()));
            assert_close(&format!("{name} {budget:?}"), &found, &expected);
        }
    }
}

type Flex = crate::support::Flex;

/// What two texts go on with, always the likeliest token.
fn greedily(
    model: &RwkvX<Flex>,
    mut session: Session<Flex>,
    options: &GenerateOptions,
) -> Vec<Vec<u32>> {
    let mut samplers = [0, 1].map(|_| Sampler::new(SamplerConfig::default()).unwrap());
    let mut made = vec![Vec::new(); 2];
    let collect = |token: Made| {
        made[token.row].push(token.token);
        ControlFlow::Continue(())
    };
    session
        .generate(model, &mut samplers, options, collect)
        .unwrap();
    made
}

#[test]
fn the_likeliest_tokens_are_those_whether_or_not_their_probabilities_are_told() {
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let rows = rows("rwkvx_tiny");
    let by = |log_probabilities: bool| {
        let mut session = Session::new(&model, rows.len(), None);
        session.read(&model, &rows, |_| ()).unwrap();
        let options = GenerateOptions {
            max_tokens: 20,
            log_probabilities,
            ..GenerateOptions::default()
        };
        greedily(&model, session, &options)
    };
    let expected = greedy(&model, &rows, 20, |_| false, |_| ()).unwrap();
    assert_eq!(by(false), expected);
    assert_eq!(by(true), expected);
}

#[test]
fn samplers_remember_from_call_to_call() {
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let rows = rows("rwkvx_tiny");
    let by = |calls: &[usize]| {
        let mut session = Session::new(&model, rows.len(), None);
        session.read(&model, &rows, |_| ()).unwrap();
        let mut samplers = [sampler(0.0, 0), sampler(1.0, 1)];
        let mut texts = vec![Vec::new(); rows.len()];
        for &max_tokens in calls {
            let more = made(&model, &mut session, &mut samplers, max_tokens);
            for (text, more) in texts.iter_mut().zip(more) {
                text.extend(tokens(&more));
            }
        }
        texts
    };
    let whole = by(&[30]);
    assert_eq!(by(&[1, 12, 17]), whole);
    // The penalties matter here.
    let unpenalised = greedy(&model, &rows, 30, |_| false, |_| ()).unwrap();
    assert_ne!(whole[0], unpenalised[0]);
}

#[test]
fn a_text_that_has_ended_leaves_the_others_alone() {
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let rows = rows("rwkvx_tiny");
    let whole = greedy(&model, &rows, 10, |_| false, |_| ()).unwrap();
    let stop = whole[0][3];
    let ends = whole
        .iter()
        .map(|row| row.iter().position(|&token| token == stop).unwrap_or(10));
    let ends: Vec<usize> = ends.collect();
    let mut session = Session::new(&model, 2, None);
    session.read(&model, &rows, |_| ()).unwrap();
    let options = GenerateOptions {
        max_tokens: 10,
        stop: vec![stop],
        ..GenerateOptions::default()
    };
    let made = greedily(&model, session, &options);
    for row in 0..2 {
        assert_eq!(made[row], whole[row][..ends[row]]);
    }
}

#[test]
fn sessions_refuse_what_does_not_fit() {
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let mut session = Session::new(&model, 2, None);
    let mut samplers = [sampler(0.0, 0)];
    let run = |session: &mut Session<Flex>, samplers: &mut [Sampler]| {
        let options = GenerateOptions {
            max_tokens: 1,
            ..GenerateOptions::default()
        };
        session.generate(&model, samplers, &options, |_| ControlFlow::Continue(()))
    };
    let error = |result: Result<(), Error>| result.unwrap_err().to_string();
    let no_sampler = error(run(&mut session, &mut samplers));
    assert!(
        no_sampler.contains("1 samplers for 2 texts"),
        "{no_sampler}"
    );
    let nothing = error(run(&mut session, &mut [sampler(0.0, 0), sampler(0.0, 1)]));
    assert!(nothing.contains("nothing was read"), "{nothing}");
    let one_row = error(session.read(&model, &[[1u32]], |_| ()));
    assert!(one_row.contains("1 rows for 2 texts"), "{one_row}");
    assert!(greedy(&model, &Vec::<Vec<u32>>::new(), 1, |_| false, |_| ()).is_err());
}

#[test]
fn damaged_or_foreign_states_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let model = golden_model::<Flex>("rwkvx_tiny.pth");
    let mut session = Session::new(&model, 2, Some(CacheBudget::of(50)));
    session.read(&model, &rows("rwkvx_tiny"), |_| ()).unwrap();
    session.save(&model, &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let loaded = Session::load(&model, &path).map(|_| ());
        let error = loaded.unwrap_err().to_string();
        assert!(error.contains("state.safetensors"), "{error}");
        error
    };
    for length in (0..whole.len()).step_by(whole.len() / 53) {
        error(&whole[..length]);
    }
    let other = std::fs::read(crate::support::data("rwkv7_tiny.safetensors")).unwrap();
    assert!(error(&other).contains("no saved state"));
    std::fs::write(&path, &whole).unwrap();
    let base = golden_model::<Flex>("rwkv7_tiny.pth");
    let foreign = Session::load(&base, &path)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(foreign.contains("is of a model with"), "{foreign}");
    assert!(Session::load(&model, &folder.path().join("none")).is_err());
}
