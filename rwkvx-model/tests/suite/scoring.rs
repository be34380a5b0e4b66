//! Scores of the ends of texts: batches, padding and pieces change nothing.

use burn::tensor::activation;
use rwkvx_datasets::Tokenizer;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::tokens::ids_tensor;
use rwkvx_model::{RwkvX, Score, ScoredText, score};
use serde_json::Value;

use crate::cli::{assert_fails, model, output, text};
use crate::support::{assert_close, golden_model, host, on_backends};

on_backends! {
    scores_are_those_of_the_forward_pass;
    a_batch_of_texts_scores_as_each_alone;
    a_long_text_is_read_in_pieces;
    what_cannot_be_scored_is_refused;
}

/// Vocabulary of the golden models.
const VOCAB: u32 = 97;

/// A text of so many tokens, another one for each seed.
fn sample(length: u32, context: usize, seed: u32) -> ScoredText {
    ScoredText {
        ids: (0..length)
            .map(|at| (at * at + 7 * at + 31 * seed) % VOCAB)
            .collect(),
        context,
    }
}

fn likeliest(row: &[f32]) -> u32 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&value| value == best).unwrap() as u32
}

/// By definition, from the logits of the whole text.
fn by_forward<B: KernelBackend>(model: &RwkvX<B>, text: &ScoredText) -> Score {
    let ids = ids_tensor::<B>(&[&text.ids], VOCAB as usize, &model.device()).unwrap();
    let log_probabilities = host(activation::log_softmax(model.forward(ids), 2)); // [1, time, vocab]
    let rows: Vec<&[f32]> = log_probabilities.chunks_exact(VOCAB as usize).collect();
    let scored = (text.context..text.ids.len()).map(|at| (rows[at - 1], text.ids[at] as usize));
    Score {
        log_probabilities: scored.clone().map(|(row, id)| row[id]).collect(),
        likeliest: scored.clone().map(|(row, _)| likeliest(row)).collect(),
        greedy: scored
            .into_iter()
            .all(|(row, id)| row.iter().all(|&other| other <= row[id])),
    }
}

fn scores_are_those_of_the_forward_pass<B: KernelBackend>() {
    for name in ["rwkv7_tiny.pth", "rwkvx_tiny.pth"] {
        let model = golden_model::<B>(name);
        let texts = [(9, 4), (140, 120), (40, 39), (2, 1), (90, 1)];
        let mut texts = texts
            .map(|(length, context)| sample(length, context, 1))
            .to_vec();
        // What the model would say itself.
        let said = rwkvx_model::greedy(&model, &[&texts[0].ids], 5, |_| false, |_| ()).unwrap();
        let ids = [&texts[0].ids[..], &said[0]].concat();
        texts.push(ScoredText { ids, context: 9 });
        let scores = score(&model, &texts, |_| ()).unwrap();
        for (text, score) in texts.iter().zip(&scores) {
            let expected = by_forward(&model, text);
            assert_close(name, &score.log_probabilities, &expected.log_probabilities);
            assert_eq!(score.greedy, expected.greedy);
            assert_eq!(score.likeliest, expected.likeliest);
        }
        assert!(scores[5].greedy && !scores[4].greedy);
    }
}

fn a_batch_of_texts_scores_as_each_alone<B: KernelBackend>() {
    let model = golden_model::<B>("rwkvx_tiny.pth");
    let mut texts: Vec<ScoredText> = (0..90)
        .map(|seed| sample(2 + (seed * 37) % 150, 1 + (seed as usize * 11) % 2, seed))
        .collect();
    // The choices of one question, which differ in their last token, and the same text cut elsewhere.
    for last in 0..4 {
        let mut choice = texts[17].clone();
        choice.context = choice.ids.len() - 1;
        *choice.ids.last_mut().unwrap() = last;
        texts.push(choice);
    }
    texts.push(texts[3].clone());
    texts.swap(1, 92);
    let mut read = 0;
    let together = score(&model, &texts, |tokens| read += tokens).unwrap();
    assert_eq!(
        read,
        texts.iter().map(|text| text.ids.len() - 1).sum::<usize>()
    );
    for (text, score_in_batch) in texts.iter().zip(&together) {
        let alone = score(&model, std::slice::from_ref(text), |_| ()).unwrap();
        assert_eq!(
            score_in_batch.log_probabilities.len(),
            text.continuation().len()
        );
        assert_close(
            "alone",
            &score_in_batch.log_probabilities,
            &alone[0].log_probabilities,
        );
        assert_eq!(score_in_batch.greedy, alone[0].greedy);
    }
    assert_eq!(score(&model, &[], |_| ()).unwrap(), []);
}

fn a_long_text_is_read_in_pieces<B: KernelBackend>() {
    let model = golden_model::<B>("rwkvx_tiny.pth");
    let texts = [sample(20, 3, 1), sample(4500, 1, 2), sample(4500, 4200, 2)];
    let mut pieces = Vec::new();
    let scores = score(&model, &texts, |tokens| pieces.push(tokens)).unwrap();
    assert_eq!(pieces.iter().sum::<usize>(), 2 * 4499 + 19);
    assert!(pieces.len() > 2, "{pieces:?}");
    let expected = by_forward(&model, &texts[1]);
    assert_close(
        "whole",
        &scores[1].log_probabilities,
        &expected.log_probabilities,
    );
    assert_close(
        "end",
        &scores[2].log_probabilities,
        &expected.log_probabilities[4199..],
    );
}

fn what_cannot_be_scored_is_refused<B: KernelBackend>() {
    let model = golden_model::<B>("rwkv7_tiny.pth");
    let good = sample(5, 2, 1);
    let with = |ids: &[u32], context| ScoredText {
        ids: ids.to_vec(),
        context,
    };
    for (text, says) in [
        (with(&[1, 2], 0), "text 1 has no token before"),
        (with(&[1, 2], 2), "text 1 has no token to score"),
        (with(&[], 0), "text 1 has no token"),
        (with(&[1, 2], 3), "text 1 has no token to score"),
        (with(&[1, 97], 1), "token id 97 at position 1"),
    ] {
        let error = score(&model, &[good.clone(), text], |_| ()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn white_space_at_the_end_of_the_context_is_scored() {
    let world = Tokenizer::open("rwkv-world").unwrap();
    let parts = |context, continuation| {
        let text = ScoredText::new(&world, &[11], context, continuation).unwrap();
        let (before, end) = text.ids.split_at(text.context);
        (world.decode_lossy(before), world.decode_lossy(end))
    };
    let pair = |before: &str, end: &str| (before.to_owned(), end.to_owned());
    assert_eq!(parts("The sky is", " blue"), pair("\nThe sky is", " blue"));
    assert_eq!(parts("The sky is ", "blue"), pair("\nThe sky is", " blue"));
    assert_eq!(parts("Say:\n\n", "yes"), pair("\nSay:", "\n\nyes"));
    assert_eq!(parts("", "Once"), pair("\n", "Once"));
    assert_eq!(parts("a", ""), pair("\na", ""));
}

/// Lines that `rwkvx score` prints for the golden hybrid, to which upper-case letters are tokens.
fn printed(requests: &str, options: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.jsonl");
    std::fs::write(&file, requests).unwrap();
    let model = model("rwkvx_tiny.pth");
    let arguments = ["score", "--model", &model, "--tokenizer", "byte"];
    let requests = ["--requests", text(&file)];
    let printed = output(&[&arguments[..], &requests, options].concat());
    printed.lines().map(str::to_owned).collect()
}

#[test]
fn the_command_prints_scores_in_the_order_of_requests() {
    let requests = "{\"context\": \"THE SKY\", \"continuation\": \" IS BLUE\", \"note\": 1}\n\n\
                    {\"context\": \"A MUCH LONGER CONTEXT IS READ FIRST\", \"continuation\": \" OK\"}\n\
                    {\"context\": \"\", \"continuation\": \"ALL OF IT\"}\n";
    let lines = printed(requests, &["--json"]);
    let scores: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let byte = Tokenizer::open("byte").unwrap();
    for (score, continuation) in scores.iter().zip([" IS BLUE", " OK", "ALL OF IT"]) {
        let values = score["log_probabilities"].as_array().unwrap();
        let sum: f64 = values.iter().map(|value| value.as_f64().unwrap()).sum();
        assert!((score["log_probability"].as_f64().unwrap() - sum).abs() < 1e-4);
        assert_eq!(
            score["tokens"],
            serde_json::json!(byte.encode(continuation).unwrap())
        );
        assert_eq!(score["greedy"], false);
    }
    assert_eq!(scores.len(), 3);
    let table = printed(requests, &[]);
    assert!(table[1].contains("\" OK\""), "{table:?}");
    let other = printed(requests, &["--json", "--prefix", "X"]);
    assert_ne!(other[2], lines[2]);
}

#[test]
fn bad_requests_are_named_by_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.jsonl");
    let model = model("rwkvx_tiny.pth");
    let good = "{\"context\": \"A\", \"continuation\": \"B\"}\n";
    for (content, options, says) in [
        ("not json\n", &[][..], "line 2: not a request like"),
        (
            "{\"context\": \"A\"}\n",
            &[],
            "missing field `continuation`",
        ),
        (
            "{\"context\": \"A\", \"continuation\": \"\"}",
            &[],
            "line 2: the continuation",
        ),
        (
            "{\"context\": \" \", \"continuation\": \"B\"}",
            &["--prefix", ""],
            "line 2: the context",
        ),
        (
            "{\"context\": \"a\", \"continuation\": \"B\"}",
            &[],
            "line 2: tokenizer byte makes token id",
        ),
        ("", &["--tokenizer", "none.json"], "none.json"),
    ] {
        std::fs::write(&file, [good, content].concat()).unwrap();
        let mut arguments = vec!["score", "--model", &model, "--requests", text(&file)];
        arguments.extend(options);
        if !options.contains(&"--tokenizer") {
            arguments.extend(["--tokenizer", "byte"]);
        }
        assert_fails(&arguments, says);
    }
    std::fs::write(&file, "\n").unwrap();
    let arguments = ["score", "--model", &model, "--requests"];
    assert_fails(
        &[&arguments[..], &[text(&file)]].concat(),
        "holds no requests",
    );
    assert_fails(
        &[&arguments[..], &["none.jsonl"]].concat(),
        "--requests none.jsonl",
    );
}
