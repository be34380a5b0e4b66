//! The real model behind the benchmarks: batches, padding and pieces change nothing.

use burn::tensor::activation;
use rwkvx_eval::language_model::{LanguageModel, ScoredText};
use rwkvx_model::tokens;

use crate::support::{B, small_model};

fn text(length: u32, context: usize) -> ScoredText {
    ScoredText {
        ids: (0..length)
            .map(|at| 1 + (at * at + 7 * at + length) % 256)
            .collect(),
        context,
    }
}

#[test]
fn scores_are_the_log_probabilities_of_the_forward_pass() {
    let model = small_model();
    let texts = [text(9, 4), text(140, 120), text(40, 39), text(2, 1)];
    let scores = model.score(&texts).unwrap();
    for (text, score) in texts.iter().zip(scores) {
        let ids = tokens::ids_tensor::<B>(&[&text.ids], 257, &Default::default()).unwrap();
        let logits = model.forward(ids); // [1, time, vocab]
        let log_probabilities: Vec<f32> = activation::log_softmax(logits, 2)
            .into_data()
            .iter()
            .collect();
        let mut expected = 0.0;
        let mut greedy = true;
        for at in text.context..text.ids.len() {
            let row = &log_probabilities[(at - 1) * 257..at * 257];
            let of_target = row[text.ids[at] as usize];
            expected += f64::from(of_target);
            greedy &= row.iter().all(|&other| other <= of_target);
        }
        let difference = (score.log_probability - expected).abs();
        assert!(
            difference < 1e-4 * expected.abs(),
            "{score:?}, expected {expected}"
        );
        assert_eq!(score.greedy, greedy);
    }
}

#[test]
fn what_the_model_itself_would_say_is_greedy() {
    let model = small_model();
    let mut ids = text(50, 1).ids;
    let said = model.greedy(&[&ids], 6, &|_| false, &mut |_| ()).unwrap();
    ids.extend(&said[0]);
    let mut changed = ids.clone();
    changed[53] = changed[53] % 256 + 1;
    let texts = [ids, changed].map(|ids| ScoredText { ids, context: 50 });
    let greedy: Vec<bool> = model
        .score(&texts)
        .unwrap()
        .iter()
        .map(|score| score.greedy)
        .collect();
    assert_eq!(greedy, [true, false]);
}

#[test]
fn a_batch_read_in_pieces_says_what_each_prompt_alone_says() {
    let model = small_model();
    // More tokens than are read at once.
    let prompts = [text(3000, 1).ids, text(3001, 1).ids[1..].to_vec()];
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut pieces = Vec::new();
    let together = model
        .greedy(&rows, 5, &|_| false, &mut |tokens| pieces.push(tokens))
        .unwrap();
    assert!(
        pieces.len() > 1 && pieces.iter().sum::<usize>() == 6000,
        "{pieces:?}"
    );
    for (prompt, said) in rows.iter().zip(together) {
        assert_eq!(said.len(), 5);
        assert_eq!(
            model.greedy(&[prompt], 5, &|_| false, &mut |_| ()).unwrap(),
            [said]
        );
    }
}

#[test]
fn asking_ends_when_enough_is_said() {
    let model = small_model();
    let prompt = text(20, 1).ids;
    let said = model
        .greedy(&[&prompt], 9, &|rows| rows[0].len() == 3, &mut |_| ())
        .unwrap();
    assert_eq!(said[0].len(), 3);
}
