//! LAMBADA: how texts are split, what the scores mean, and files that are none.

use std::fs;

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::Result;
use rwkvx_eval::lambada::{read, run};
use rwkvx_eval::language_model::{LanguageModel, Likelihood, ScoredText};

fn world() -> Tokenizer {
    Tokenizer::open("rwkv-world").unwrap()
}

#[test]
fn the_last_word_with_its_space_is_scored_after_a_line_break_and_the_rest() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("texts.jsonl");
    let lines = "{\"text\": \"He opened the old door\"}\n\n{\"text\": \"two words \"}\n{\"text\": \"a third\"}\n";
    fs::write(&path, lines).unwrap();
    let texts = read(&path, &world(), None).unwrap();
    let parts: Vec<(String, String)> = texts
        .iter()
        .map(|text| {
            let (context, word) = text.ids.split_at(text.context);
            (world().decode_lossy(context), world().decode_lossy(word))
        })
        .collect();
    let expected = [
        ("\nHe opened the old", " door"),
        ("\ntwo", " words"),
        ("\na", " third"),
    ];
    assert_eq!(
        parts,
        expected.map(|(context, word)| (context.to_owned(), word.to_owned()))
    );
    assert_eq!(read(&path, &world(), Some(2)).unwrap(), texts[..2]);
}

/// Gives a text of n tokens the log-probability -n, and says only those of even length itself.
struct ByLength;

impl LanguageModel for ByLength {
    fn greedy(
        &self,
        _prompts: &[&[u32]],
        _max_tokens: usize,
        _enough: &dyn Fn(&[Vec<u32>]) -> bool,
        _on_read: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u32>>> {
        unimplemented!("LAMBADA does not generate")
    }

    fn score(&self, texts: &[ScoredText]) -> Result<Vec<Likelihood>> {
        let score = |text: &ScoredText| Likelihood {
            log_probability: -(text.ids.len() as f64),
            greedy: text.ids.len().is_multiple_of(2),
        };
        Ok(texts.iter().map(score).collect())
    }
}

#[test]
fn accuracy_and_perplexity_are_means_over_words() {
    let texts = (1..=40).map(|length| ScoredText {
        ids: vec![1; 1 + length % 3],
        context: 1,
    });
    let lengths: Vec<usize> = texts.clone().map(|text| text.ids.len()).collect();
    let bar = ProgressBar::hidden();
    let scores = run(&ByLength, texts.collect(), &bar).unwrap();
    let mean = lengths.iter().sum::<usize>() as f64 / 40.0;
    let even = lengths
        .iter()
        .filter(|length| length.is_multiple_of(2))
        .count() as f64
        / 40.0;
    assert_eq!((scores.texts, bar.position()), (40, 40));
    assert!((scores.perplexity - mean.exp()).abs() < 1e-9);
    assert_eq!(scores.accuracy, even);
    assert!((scores.accuracy_stderr - (even * (1.0 - even) / 39.0).sqrt()).abs() < 1e-12);
}

#[test]
fn files_that_are_none_name_the_line() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("texts.jsonl");
    for (content, says) in [
        (
            &b"{\"text\": \"good text\"}\n{\"text\": \"oneword\"}\n"[..],
            "line 2: the text has no space",
        ),
        (
            b"{\"text\": \"good text\"}\nnot json\n",
            "line 2: not a record",
        ),
        (b"{\"words\": \"good text\"}\n", "line 1: not a record"),
        (b"{\"text\": 5}\n", "line 1: not a record"),
        (b"{\"text\": \"cut off", "line 1: not a record"),
        (
            b"\xff\xfe\x00\n",
            "line 1: stream did not contain valid UTF-8",
        ),
        (b"", "the file holds no texts"),
        (b"\n\n", "the file holds no texts"),
    ] {
        fs::write(&path, content).unwrap();
        let error = read(&path, &world(), None).unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains("texts.jsonl"),
            "{error}"
        );
    }
    let missing = read(&place.path().join("none.jsonl"), &world(), None).unwrap_err();
    assert!(missing.to_string().contains("none.jsonl"), "{missing}");
}
