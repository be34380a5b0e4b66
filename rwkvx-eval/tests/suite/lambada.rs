//! LAMBADA: how texts are split, what the scores mean, and files that are none.

use std::fs;

use rwkvx_eval::lambada::{read, scores};
use rwkvx_model::Score;

#[test]
fn the_last_word_with_its_space_is_scored_after_the_rest() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("texts.jsonl");
    let lines = "{\"text\": \"He opened the old door\"}\n\n{\"text\": \"two words\"}\n{\"text\": \"a third\"}\n";
    fs::write(&path, lines).unwrap();
    let requests = read(path.clone(), None).unwrap();
    let parts: Vec<(&str, &str)> = requests
        .iter()
        .map(|request| (request.context.as_str(), request.continuation.as_str()))
        .collect();
    assert_eq!(
        parts,
        [
            ("He opened the old", " door"),
            ("two", " words"),
            ("a", " third")
        ]
    );
    assert_eq!(read(path, Some(2)).unwrap(), requests[..2]);
}

#[test]
fn accuracy_and_perplexity_are_means_over_words() {
    let of_words: Vec<Score> = (1..=40u8)
        .map(|number| Score {
            log_probabilities: vec![-0.5; usize::from(number % 3) + 1],
            likeliest: Vec::new(),
            greedy: number % 5 == 0,
        })
        .collect();
    let result = scores(&of_words);
    // 14 words of one half, 13 of two and of three... by number % 3 = 0, 1, 2.
    let sum = 0.5 * (13.0 + 2.0 * 14.0 + 3.0 * 13.0);
    assert!((result.perplexity - f64::exp(sum / 40.0)).abs() < 1e-9);
    assert_eq!((result.answers.len(), result.accuracy.value), (40, 0.2));
    assert!((result.accuracy.stderr - f64::sqrt(0.2 * 0.8 / 39.0)).abs() < 1e-12);
}

#[test]
fn files_that_are_none_name_the_line() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("texts.jsonl");
    for (content, says) in [
        (
            &b"{\"text\": \"good text\"}\n{\"text\": \"oneword\"}\n"[..],
            "line 2: the text has no last word",
        ),
        (
            b"{\"text\": \"a space \"}\n",
            "line 1: the text has no last word",
        ),
        (
            b"{\"text\": \"good text\"}\nnot json\n",
            "line 2: not a JSON object",
        ),
        (b"[1]\n", "line 1: not a JSON object"),
        (b"{\"words\": \"good text\"}\n", "line 1: not a record"),
        (b"{\"text\": 5}\n", "line 1: not a record"),
        (b"{\"text\": \"cut off", "line 1: not a JSON object"),
        (
            b"\xff\xfe\x00\n",
            "line 1: stream did not contain valid UTF-8",
        ),
        (b"", "holds no records"),
        (b"\n\n", "holds no records"),
    ] {
        fs::write(&path, content).unwrap();
        let error = read(path.clone(), None).unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains("texts.jsonl"),
            "{error}"
        );
    }
    let missing = read(place.path().join("none.jsonl"), None).unwrap_err();
    assert!(missing.to_string().contains("none.jsonl"), "{missing}");
}
