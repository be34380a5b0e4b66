//! Loss on long texts by a model whose loss is known: it depends on how many tokens it has seen.

use std::fs;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::Result;
use rwkvx_eval::language_model::Scorer;
use rwkvx_eval::perplexity::{KeyTokens, Scores, Settings, run, texts, tokens};
use rwkvx_eval::records;
use rwkvx_eval::report::Report;
use rwkvx_model::{Score, ScoredText};

use crate::support::{save_run, succeed};

/// Loses `8 / seen` nats on a token after `seen` others.
struct BySeen;

fn loss(seen: usize) -> f32 {
    8.0 / seen as f32
}

impl Scorer for BySeen {
    fn score(&self, texts: &[ScoredText], on_read: &mut dyn FnMut(usize)) -> Result<Vec<Score>> {
        let score = |text: &ScoredText| {
            on_read(text.ids.len() - 1);
            Score {
                log_probabilities: (text.context..text.ids.len())
                    .map(|seen| -loss(seen))
                    .collect(),
                likeliest: Vec::new(),
                greedy: false,
            }
        };
        Ok(texts.iter().map(score).collect())
    }
}

fn settings() -> Settings {
    Settings {
        files: Vec::new(),
        lengths: vec![10, 20, 40],
        skip: 5,
        documents: 3,
        parts: 4,
        key_tokens: None,
    }
}

/// Documents of so many bytes.
fn documents(lengths: &[usize]) -> Vec<String> {
    lengths.iter().map(|&length| "a".repeat(length)).collect()
}

fn ask(documents: &[String], settings: &Settings) -> Scores {
    let byte = Tokenizer::open("byte").unwrap();
    let texts = texts(documents, &byte, settings).unwrap();
    let bar = ProgressBar::hidden();
    let scores = run(&BySeen, &texts, settings, &bar).unwrap();
    assert_eq!(bar.position(), tokens(&texts, settings));
    scores
}

fn mean_loss(seen: impl Iterator<Item = usize>) -> f64 {
    let losses: Vec<f64> = seen.map(|seen| f64::from(loss(seen))).collect();
    losses.iter().sum::<f64>() / losses.len() as f64
}

#[test]
fn a_document_counts_for_the_lengths_that_it_has() {
    // Too short; just 10 tokens to score after 5 skipped and one read; 20 and 40; one document too many.
    let scores = ask(&documents(&[15, 16, 30, 99, 99]), &settings());
    let numbers: Vec<usize> = scores
        .documents
        .iter()
        .map(|document| document.number)
        .collect();
    assert_eq!(numbers, [2, 3, 4]);
    let counts: Vec<usize> = scores.lengths.iter().map(|at| at.documents).collect();
    assert_eq!(counts, [3, 2, 1]);
    for at in &scores.lengths {
        assert!((at.loss.value - mean_loss(1..=at.length)).abs() < 1e-6);
    }
    assert_eq!(scores.documents[1].losses.len(), 2);
    assert_eq!(scores.documents[2].tokens, 99);

    let parts: Vec<(usize, usize, usize)> = scores
        .positions
        .iter()
        .map(|part| (part.start, part.end, part.documents))
        .collect();
    assert_eq!(parts, [(0, 10, 3), (10, 20, 2), (20, 30, 1), (30, 40, 1)]);
    assert!((scores.positions[2].loss.value - mean_loss(21..=30)).abs() < 1e-6);
}

#[test]
fn key_tokens_are_those_that_need_the_whole_context() {
    let settings = Settings {
        key_tokens: Some(KeyTokens {
            window: 4,
            stride: 3,
            least_gain: 1.0,
            greatest_loss: 0.5,
        }),
        ..settings()
    };
    let scores = ask(&documents(&[46, 30]), &settings);
    let found = scores.long_ppl.unwrap();
    // Token t has seen t others of the whole, and 4, 5 or 6 of its short context.
    let keys = |length: usize| {
        (4..=length).filter(|&at| {
            let (long, short) = (loss(at), loss(4 + (at - 4) % 3));
            short - long > 1.0 && long < 0.5
        })
    };
    assert_eq!(found.tokens, 37 + 17);
    assert_eq!(found.key_tokens, keys(40).count() + keys(20).count());
    assert!(found.key_tokens > 10 && found.key_tokens < found.tokens / 2 + 10);
    assert!((found.loss - mean_loss(keys(40).chain(keys(20)))).abs() < 1e-6);
    assert!((found.perplexity - found.loss.exp()).abs() < 1e-12);
}

#[test]
fn documents_that_are_too_short_are_refused_with_their_length() {
    let byte = Tokenizer::open("byte").unwrap();
    let error = texts(&documents(&[15, 3]), &byte, &settings())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("more than 15 tokens") && error.contains("has 15"),
        "{error}"
    );
}

#[test]
fn documents_are_texts_records_or_files() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::write(at("a.txt"), "one\ndocument").unwrap();
    fs::write(
        at("b.jsonl"),
        "{\"text\": \"two\", \"url\": 1}\n{\"text\": \"three\"}\n",
    )
    .unwrap();
    let found = records::texts(&[at("a.txt"), at("b.jsonl")]).unwrap();
    assert_eq!(found, ["one\ndocument", "two", "three"]);
    fs::write(
        at("b.jsonl"),
        "{\"text\": \"two\"}\n{\"words\": \"three\"}\n",
    )
    .unwrap();
    let error = records::texts(&[at("b.jsonl")]).unwrap_err().to_string();
    assert!(
        error.contains("b.jsonl, line 2: no field `text`"),
        "{error}"
    );
}

#[test]
fn the_command_reports_lengths_positions_and_key_tokens() {
    let place = tempfile::tempdir().unwrap();
    save_run(place.path(), "demo-1");
    let text: String = (0..900u32)
        .map(|at| char::from(97 + (at * at % 26) as u8))
        .collect();
    fs::write(place.path().join("book.txt"), text).unwrap();
    let options = [
        "perplexity",
        "book.txt",
        "--len",
        "100,400,4K",
        "--skip",
        "50",
        "--parts",
        "4",
        "--long-ppl",
        "--window",
        "64",
        "--stride",
        "32",
    ];
    let table = succeed(place.path(), &options);
    assert!(
        table.contains("nats per token") && table.contains("LongPPL"),
        "{table}"
    );
    let json = succeed(place.path(), &[&options[..], &["--json"]].concat());
    let report: Report<Settings, Scores> = serde_json::from_str(&json).unwrap();
    assert_eq!(report.result.lengths[2].documents, 0);
    assert_eq!(report.result.positions.len(), 4);
    assert_eq!(report.result.positions[3].end, 400);
    // Random weights: about as good as guessing one of 257 bytes.
    let loss = report.result.lengths[1].loss.value;
    assert!((loss - 257f64.ln()).abs() < 1.0, "{loss}");
    assert_eq!(report.result.long_ppl.unwrap().tokens, 400 + 1 - 64);
}
