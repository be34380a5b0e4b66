use std::fs;

use rwkvx_datasets::Tokenizer;
use serde::Deserialize;
use tempfile::tempdir;

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
}

/// Texts and ids of the published tokenizer (`rwkv_vocab_v20230424`), one JSON object a line.
fn golden() -> Vec<Golden> {
    let lines = include_str!("../data/rwkv_world_tokenizer.jsonl").lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn world_ids_are_exactly_the_published_ones() {
    let tokenizer = Tokenizer::open("rwkv-world").unwrap();
    let golden = golden();
    assert!(golden.len() > 50);
    for Golden { text, ids } in golden {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn world_ids_decode_to_the_text_whole_and_streamed() {
    let tokenizer = Tokenizer::open("rwkv-world").unwrap();
    for Golden { text, ids } in golden() {
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
        let mut stream = tokenizer.stream();
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, text);
    }
}

/// A byte-level BPE with the 256 bytes of GPT-2's alphabet and one merge, `th`.
fn byte_level_json() -> String {
    let plain = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    let plain: Vec<u8> = plain.collect();
    let mut next = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=255u8 {
        let char = if plain.contains(&byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
        vocabulary.insert(char.to_string(), u32::from(byte).into());
    }
    vocabulary.insert("th".to_owned(), 300.into());
    serde_json::json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["t h"]},
        "added_tokens": []
    })
    .to_string()
}

#[test]
fn a_tokenizer_json_encodes_decodes_and_streams() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, byte_level_json()).unwrap();
    let tokenizer = Tokenizer::open(path.to_str().unwrap()).unwrap();
    // The largest id is 300, though there are only 257 tokens.
    assert_eq!(tokenizer.vocab_size(), 301);
    let ids = tokenizer.encode("the é😀").unwrap();
    assert_eq!(ids, [300, 101, 32, 0xc3, 0xa9, 0xf0, 0x9f, 0x98, 0x80]);
    assert_eq!(tokenizer.decode_lossy(&ids), "the é😀");
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(pieces, ["th", "e", " ", "", "é", "", "", "", "😀"]);
    assert_eq!(stream.finish(), "");
    let mut cut = tokenizer.stream();
    assert_eq!(
        (cut.push(0xc3), cut.finish()),
        (String::new(), "\u{FFFD}".to_owned())
    );
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    let folder = tempdir().unwrap();
    let whole = byte_level_json();
    let contents = [
        "",
        "{}",
        "[1, 2",
        "\0\u{1}garbage",
        &whole[..whole.len() / 2],
    ];
    for content in contents {
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, content).unwrap();
        let message = Tokenizer::open(path.to_str().unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("tokenizer.json") && message.lines().count() <= 2,
            "{message}"
        );
    }
    assert!(Tokenizer::open(folder.path().to_str().unwrap()).is_err());
}
