//! Needle benchmarks with readers whose answers are known beforehand.

use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::grid::{Answer, Count};
use rwkvx_eval::journal::{self, Journal};
use rwkvx_eval::{heat_map, passkey, sniah};
use serde_json::json;

use crate::support::Reader;

const ALL: [&str; 3] = ["passkey", "number", "uuid"];

fn settings(tasks: &[&str], lengths: &[usize]) -> sniah::Settings {
    sniah::Settings {
        tasks: tasks.iter().map(|&task| task.to_owned()).collect(),
        lengths: lengths.to_vec(),
        depths: 5,
        samples: 2,
        answer_tokens: 64,
        seed: 1,
        haystack: None,
    }
}

fn ask(reader: &Reader, settings: &sniah::Settings) -> Vec<Answer> {
    let byte = Tokenizer::open("byte").unwrap();
    let bar = ProgressBar::hidden();
    let answers = sniah::run(reader, &byte, settings, None, &mut Journal::unkept(), &bar).unwrap();
    assert_eq!(bar.position(), settings.tokens());
    answers
}

const EVERYTHING: Reader = Reader {
    reach: usize::MAX,
    preamble: "",
};

#[test]
fn a_reader_of_everything_finds_every_needle() {
    let answers = ask(&EVERYTHING, &settings(&ALL, &[2048, 1024]));
    assert_eq!(answers.len(), 3 * 2 * 5 * 2);
    assert!(answers.iter().all(|answer| answer.correct), "{answers:#?}");
    assert!(
        answers
            .iter()
            .all(|answer| answer.said == format!(" {}", answer.expected))
    );
    assert_eq!(answers[0].length, 1024);
}

#[test]
fn a_short_sighted_reader_finds_what_lies_near_the_end() {
    let reader = Reader {
        reach: 1800,
        preamble: "",
    };
    let answers = ask(&reader, &settings(&ALL, &[1024, 4096]));
    for answer in &answers {
        let near = answer.length == 1024 || answer.depth > 60.0;
        assert_eq!(answer.correct, near, "{answer:?}");
    }
    let share = |length| Count::of(&answers, |answer| answer.length == length).share();
    assert_eq!((share(1024), share(4096)), (1.0, 0.4));
}

#[test]
fn an_answer_may_follow_other_words_but_not_too_many() {
    let talkative = |preamble| Reader {
        reach: usize::MAX,
        preamble,
    };
    let right = |reader: &Reader| ask(reader, &settings(&["number"], &[1024]))[0].correct;
    assert!(right(&talkative(" The number is")));
    assert!(!right(&talkative(
        " I have thought about this for very long, and to me it appears to be"
    )));
}

#[test]
fn a_question_does_not_depend_on_which_others_are_asked() {
    let all = ask(&EVERYTHING, &settings(&ALL, &[1024, 2048]));
    let one = ask(&EVERYTHING, &settings(&["uuid"], &[2048]));
    for answer in &one {
        assert!(all.contains(answer), "{answer:?}");
    }
    let other_seed = sniah::Settings {
        seed: 2,
        ..settings(&["uuid"], &[2048])
    };
    assert!(
        ask(&EVERYTHING, &other_seed)
            .iter()
            .all(|answer| !all.contains(answer))
    );
}

#[test]
fn essays_come_from_the_text_that_is_given() {
    let byte = Tokenizer::open("byte").unwrap();
    let essay = "Once there is: a trap in the text. Nothing else happens here.";
    let run = |task| {
        let settings = settings(&[task], &[1024]);
        let bar = ProgressBar::hidden();
        sniah::run(
            &EVERYTHING,
            &byte,
            &settings,
            Some(essay),
            &mut Journal::unkept(),
            &bar,
        )
        .unwrap()
    };
    // The reader takes the first "is:" for the needle, so that the trap shows whether the essay was used.
    assert!(run("number").iter().any(|answer| !answer.correct));
    assert!(run("passkey").iter().all(|answer| answer.correct));
}

#[test]
fn the_passkey_protocol_wants_the_key_and_nothing_else() {
    let byte = Tokenizer::open("byte").unwrap();
    let settings = passkey::Settings {
        lengths: vec![300, 600],
        depths: 10,
        samples: 5,
    };
    let ask = |reader: &Reader| {
        passkey::run(
            reader,
            &byte,
            &settings,
            &mut Journal::unkept(),
            &ProgressBar::hidden(),
        )
        .unwrap()
    };
    let answers = ask(&EVERYTHING);
    assert_eq!(answers.len(), 2 * 10 * 5);
    assert!(answers.iter().all(|answer| answer.correct), "{answers:#?}");
    let depths: Vec<f32> = answers[..10].iter().map(|answer| answer.depth).collect();
    assert_eq!(
        depths,
        [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    );
    let talkative = Reader {
        reach: usize::MAX,
        preamble: " It is",
    };
    assert!(ask(&talkative).iter().all(|answer| !answer.correct));
}

#[test]
fn a_heat_map_is_a_picture_whatever_the_grid() {
    let place = tempfile::tempdir().unwrap();
    for (tasks, lengths) in [(&ALL[..1], &[1024][..]), (&ALL[..], &[1024, 2048])] {
        let answers = ask(&EVERYTHING, &settings(tasks, lengths));
        let path = place.path().join("map.png");
        heat_map::draw(&answers, "title", &path).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(b"\x89PNG"));
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn an_interrupted_run_goes_on_with_what_was_not_asked() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join(journal::FILE);
    let byte = Tokenizer::open("byte").unwrap();
    let settings = settings(&["passkey", "uuid"], &[1024]);
    let run = |reader: &Reader| {
        let mut journal = Journal::open(place.path(), &json!(settings))?;
        let bar = ProgressBar::hidden();
        let answers = sniah::run(reader, &byte, &settings, None, &mut journal, &bar)?;
        rwkvx_eval::Result::Ok((answers, bar.position()))
    };
    let (whole, read) = run(&EVERYTHING).unwrap();
    assert_eq!(read, settings.tokens());

    // Killed in the middle of a line: six answers are whole.
    let lines = std::fs::read_to_string(&file).unwrap();
    let kept: usize = lines.lines().take(7).map(|line| line.len() + 1).sum();
    std::fs::write(&file, &lines[..kept + 20]).unwrap();
    let nothing = Reader {
        reach: 0,
        preamble: "",
    };
    let (mixed, read) = run(&nothing).unwrap();
    assert_eq!(read, settings.tokens() / 20 * 14);
    assert_eq!(mixed.iter().filter(|answer| answer.correct).count(), 6);
    for (before, after) in whole.iter().zip(&mixed) {
        assert_eq!(
            (before.depth, &before.expected),
            (after.depth, &after.expected)
        );
    }
    // All is there now, in the same order.
    assert_eq!(run(&EVERYTHING).unwrap(), (mixed, 0));

    let others = sniah::Settings {
        seed: 9,
        ..settings.clone()
    };
    let error = Journal::open(place.path(), &json!(others))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("other settings") && error.contains("--out"),
        "{error}"
    );
    std::fs::write(&file, "garbage\n").unwrap();
    let error = run(&EVERYTHING).unwrap_err().to_string();
    assert!(
        error.contains(journal::FILE) && error.contains("not a journal"),
        "{error}"
    );
}
