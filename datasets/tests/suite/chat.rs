//! Conversations: what the model reads, what it learns, and which order they come in.

use std::path::PathBuf;

use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::chat::Conversations;
use tempfile::TempDir;

fn open(lines: &[&str]) -> (TempDir, Result<Conversations, String>) {
    let place = tempfile::tempdir().unwrap();
    let path: PathBuf = place.path().join("chat.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let opened = Conversations::open(&[path], 7).map_err(|error| error.to_string());
    (place, opened)
}

const TURNS: &str = r#"[{"from": "user", "value": "Hello!\n\n\nWho are you?  "}, {"from": "assistant", "value": " A model.\r\n\r\nYours."}, {"from": "user", "value": "Bye"}, {"from": "assistant", "value": "Bye."}]"#;

#[test]
fn the_assistants_words_and_the_blank_line_after_them_are_learned() {
    let (_place, conversations) = open(&[TURNS]);
    let tokenizer = Tokenizer::open("byte").unwrap();
    let conversation = conversations.unwrap().sample(0, &tokenizer, 1000).unwrap();
    assert_eq!(
        tokenizer.decode_lossy(&conversation.ids),
        "User: Hello!\nWho are you?\n\nAssistant: A model.\nYours.\n\nUser: Bye\n\nAssistant: Bye.\n\n"
    );
    let learned = conversation.ids.iter().zip(&conversation.learned);
    let learned: Vec<u32> = learned.filter(|(_, is)| **is).map(|(id, _)| *id).collect();
    assert_eq!(
        tokenizer.decode_lossy(&learned),
        " A model.\nYours.\n\n Bye.\n\n"
    );
}

/// As `sft/src/dataset.py` of RWKV-X masks them: the three tokens of `Assistant:`; a reply ends in token 261.
#[test]
fn world_tokens_are_masked_as_published() {
    let (_place, conversations) = open(&[TURNS]);
    let tokenizer = Tokenizer::open("rwkv-world").unwrap();
    let conversation = conversations.unwrap().sample(0, &tokenizer, 1000).unwrap();
    let starts: Vec<usize> = (0..conversation.ids.len())
        .filter(|&at| conversation.ids[at..].starts_with(&[5585, 41693, 59]))
        .collect();
    assert_eq!(starts.len(), 2);
    for start in starts {
        assert_eq!(
            conversation.learned[start..start + 4],
            [false, false, false, true]
        );
    }
    assert_eq!(conversation.ids.last(), Some(&261));
    assert_eq!(conversation.learned.last(), Some(&true));
}

#[test]
fn every_way_to_write_a_conversation_reads_the_same() {
    let (_place, conversations) = open(&[
        r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 3}"#,
        "",
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
    ]);
    let conversations = conversations.unwrap();
    assert_eq!(conversations.len(), 3);
    let tokenizer = Tokenizer::open("byte").unwrap();
    let first = conversations.sample(0, &tokenizer, 1000).unwrap();
    for index in 1..3 {
        assert_eq!(
            conversations.sample(index, &tokenizer, 1000).unwrap(),
            first
        );
    }
}

#[test]
fn each_epoch_holds_every_conversation_once_in_an_order_that_only_the_seed_decides() {
    let lines: Vec<String> = (0..20)
        .map(|number| format!(r#"[{{"role": "assistant", "content": "{number}"}}]"#))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (_place, conversations) = open(&lines);
    let conversations = conversations.unwrap();
    let tokenizer = Tokenizer::open("byte").unwrap();
    let text =
        |index| tokenizer.decode_lossy(&conversations.sample(index, &tokenizer, 99).unwrap().ids);
    let epochs: Vec<Vec<String>> = (0..2)
        .map(|epoch| (0..20).map(|at| text(20 * epoch + at)).collect())
        .collect();
    assert_ne!(epochs[0], epochs[1]);
    let sorted = |mut epoch: Vec<String>| {
        epoch.sort();
        epoch
    };
    assert_eq!(sorted(epochs[0].clone()), sorted(epochs[1].clone()));
    assert_eq!(text(3), epochs[0][3], "an epoch can be asked for again");
}

#[test]
fn what_is_too_long_is_cut() {
    let (_place, conversations) = open(&[TURNS]);
    let tokenizer = Tokenizer::open("byte").unwrap();
    let conversation = conversations.unwrap().sample(0, &tokenizer, 45).unwrap();
    assert_eq!(
        (conversation.ids.len(), conversation.learned.len()),
        (45, 45)
    );
}

#[test]
fn bad_lines_are_named() {
    for (line, says) in [
        ("{", "line 2: not a conversation"),
        (r#"{"text": "a"}"#, "line 2: not a conversation"),
        (
            r#"[{"role": "nobody", "content": "a"}]"#,
            "line 2: not a conversation",
        ),
        (
            r#"[{"role": "user", "content": "a"}]"#,
            "line 2: has no words of an assistant",
        ),
    ] {
        let (_place, opened) = open(&[TURNS, line]);
        let error = opened.err().unwrap();
        assert!(
            error.contains("chat.jsonl") && error.contains(says),
            "{error}"
        );
    }
    let (_place, opened) = open(&["", " "]);
    assert!(opened.err().unwrap().contains("holds no documents"));
}
