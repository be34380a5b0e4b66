//! The `rwkvx` command, end to end.

use std::path::Path;
use std::process::{Command, Output};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::support::{Golden, assert_close, data};

fn rwkvx(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rwkvx"))
        .args(arguments)
        .output()
        .expect("rwkvx runs")
}

/// What a command that must succeed prints.
#[track_caller]
pub(crate) fn output(arguments: &[&str]) -> String {
    let output = rwkvx(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The JSON such a command prints.
#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&output(&[arguments, &["--json"]].concat())).expect("JSON")
}

/// A command that must fail with exit code 1 and one or two lines that name this.
#[track_caller]
pub(crate) fn assert_fails(arguments: &[&str], named: &str) {
    let output = rwkvx(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.lines().count() <= 2,
        "{stderr}"
    );
    assert!(stderr.contains(named), "`{stderr}` does not name `{named}`");
    assert!(
        stderr.matches("os error").count() <= 1,
        "said twice: {stderr}"
    );
    assert!(output.stdout.is_empty(), "{arguments:?} printed something");
}

pub(crate) fn model(name: &str) -> String {
    data(name).to_str().expect("UTF-8 path").to_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Shape and values of the tensor `logits`.
fn read_logits(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.names(), ["logits"]);
    let view = tensors.tensor("logits").unwrap();
    assert_eq!(view.dtype(), Dtype::F32);
    let values = view
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (view.shape().to_vec(), values.collect())
}

#[test]
fn logits_equal_the_oracles() {
    let folder = tempfile::tempdir().unwrap();
    let (out, ids_file) = (
        folder.path().join("logits.safetensors"),
        folder.path().join("ids.json"),
    );
    for name in ["rwkv7_tiny", "rwkvx_tiny"] {
        let golden = Golden::read(&format!("{name}.safetensors"));
        let ids = &golden.ids()[0];
        let ids = &ids[..ids.len() - 1];
        let expected = &golden.f32("logits")[..ids.len() * 97];
        let list: Vec<String> = ids.iter().map(i64::to_string).collect();
        std::fs::write(&ids_file, serde_json::to_string(ids).unwrap()).unwrap();

        for ids_argument in [list.join(","), format!("@{}", text(&ids_file))] {
            let model = model(&format!("{name}.pth"));
            let arguments = [
                "logits",
                "--model",
                &model,
                "--ids",
                &ids_argument,
                "--out",
                text(&out),
            ];
            let printed = json(&[&arguments[..], &["--chunk-size", "16", "--top-k", "3"]].concat());
            assert_eq!(printed["tokens"], ids.len());
            let (shape, logits) = read_logits(&out);
            assert_eq!(shape, [ids.len(), 97]);
            assert_close(name, &logits, expected);
        }
    }
}

#[test]
fn converting_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let converted = folder.path().join("model.safetensors");
    let original = model("rwkvx_tiny_bf16.pth");
    output(&[
        "convert",
        "--model",
        &original,
        "--chunk-size",
        "16",
        "--out",
        text(&converted),
    ]);
    let logits = |model: &str, options: &[&str]| {
        let out = folder.path().join("logits.safetensors");
        let arguments = [
            "logits",
            "--model",
            model,
            "--ids",
            "5,6,7,96,0",
            "--out",
            text(&out),
        ];
        output(&[&arguments[..], options].concat());
        read_logits(&out).1
    };
    assert_eq!(
        logits(text(&converted), &[]),
        logits(&original, &["--chunk-size", "16"])
    );

    let (before, after) = (
        json(&["inspect", "--model", &original, "--chunk-size", "16"]),
        json(&["inspect", "--model", text(&converted)]),
    );
    assert_eq!(before["config"], after["config"]);
    assert_eq!(before["config"]["chunk_size"], 16);
    let names = |summary: &Value| -> Vec<(Value, Value)> {
        let tensors = summary["tensors"].as_array().unwrap();
        tensors
            .iter()
            .map(|tensor| (tensor["name"].clone(), tensor["shape"].clone()))
            .collect()
    };
    assert_eq!(names(&before), names(&after));
    assert_eq!(
        (
            &before["tensors"][0]["dtype"],
            &after["tensors"][0]["dtype"]
        ),
        (&"BF16".into(), &"F32".into())
    );
}

/// As in `rwkvx inspect ... | true`.
#[cfg(unix)]
#[test]
fn nobody_reading_is_no_error() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_rwkvx"))
        .args(["inspect", "--model", &model("rwkvx_tiny.pth")])
        .stdout(writer)
        .output()
        .expect("rwkvx runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn inspect_tells_sizes_and_tensors() {
    let printed = output(&["inspect", "--model", &model("rwkvx_tiny.pth")]);
    for part in [
        "\"n_sparse\":2",
        "parameters  3",
        "tokenizer   unknown",
        "moba.1.ffn.key.weight",
        "[256, 64]",
    ] {
        assert!(printed.contains(part), "`{part}` is not in\n{printed}");
    }
}

/// Arguments of `generate` on the golden hybrid, whose 97 tokens the byte tokenizer reads as the bytes below 96.
fn generate(prompt: &str, options: &[&str]) -> Vec<String> {
    let fixed = [
        "generate",
        "--tokenizer",
        "byte",
        "--prompt",
        prompt,
        "--tokens",
        "24",
    ];
    let model = ["--model".to_owned(), model("rwkvx_tiny.pth")];
    fixed
        .iter()
        .chain(options)
        .map(|&text| text.to_owned())
        .chain(model)
        .collect()
}

#[track_caller]
fn generated(prompt: &str, options: &[&str]) -> Value {
    let arguments = generate(prompt, options);
    json(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn generation_streams_the_text_it_reports() {
    let greedy = ["--temperature", "0", "--ban", "0"];
    let reported = generated("HELLO 12", &greedy);
    assert_eq!(reported["prompt_tokens"], 8);
    assert_eq!(reported["ended_by"], "length");
    assert_eq!(reported["tokens"].as_array().unwrap().len(), 24);
    let arguments = generate("HELLO 12", &greedy);
    let streamed = output(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        streamed,
        format!("{}\n", reported["text"].as_str().unwrap())
    );
}

#[test]
fn the_seed_decides_what_is_generated() {
    let wild = |seed: &str| {
        generated(
            "HELLO",
            &[
                "--temperature",
                "1.5",
                "--top-p",
                "1",
                "--ban",
                "0",
                "--seed",
                seed,
            ],
        )
    };
    assert_eq!(wild("1")["tokens"], wild("1")["tokens"]);
    assert_ne!(wild("1")["tokens"], wild("2")["tokens"]);
}

#[test]
fn stop_ids_and_stop_texts_end_the_text_before_them() {
    let greedy = ["--temperature", "0", "--ban", "0"];
    let whole = generated("HELLO 12", &greedy);
    let (tokens, text) = (
        whole["tokens"].as_array().unwrap(),
        whole["text"].as_str().unwrap(),
    );

    let id = tokens[6].to_string();
    let first = tokens.iter().position(|token| *token == tokens[6]).unwrap();
    let stopped = generated("HELLO 12", &[&greedy[..], &["--stop", &id]].concat());
    assert_eq!(stopped["tokens"].as_array().unwrap()[..], tokens[..first]);
    assert_eq!(stopped["ended_by"], "stop");

    let stop = &text[10..13];
    assert!(stop.parse::<u32>().is_err(), "`{stop}` would be an id");
    let stopped = generated("HELLO 12", &[&greedy[..], &["--stop", stop]].concat());
    assert_eq!(stopped["text"], text[..text.find(stop).unwrap()]);
    assert_eq!(stopped["ended_by"], "stop");
}

#[test]
fn an_empty_prompt_begins_a_document() {
    assert_eq!(generated("", &["--temperature", "0"])["prompt_tokens"], 1);
}

#[test]
fn failures_name_the_file_or_option_and_the_mend() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let out = text(&out);
    let (hybrid, base) = (model("rwkvx_tiny.pth"), model("rwkv7_tiny.pth"));
    let logits = |model: &str, ids: &str, out: &str, named: &str| {
        assert_fails(
            &["logits", "--model", model, "--ids", ids, "--out", out],
            named,
        );
    };
    logits("no/such.pth", "1", out, "no/such.pth");
    logits(&hybrid, "1,97", out, "token id 97 at position 1");
    logits(&hybrid, "1,x", out, "--ids 1,x");
    logits(&hybrid, "", out, "--ids");
    logits(&hybrid, "-1", out, "--ids -1");
    logits(&hybrid, "@no/ids.json", out, "no/ids.json");
    logits(
        &hybrid,
        "1",
        "no/folder/out.safetensors",
        "no/folder/out.safetensors",
    );
    let broken = folder.path().join("ids.json");
    std::fs::write(&broken, "{\"ids\": [1]}").unwrap();
    logits(&hybrid, &format!("@{}", text(&broken)), out, "JSON array");
    assert!(!Path::new(out).exists());

    let chunk = [
        "logits",
        "--model",
        &hybrid,
        "--ids",
        "1",
        "--out",
        out,
        "--chunk-size",
        "0",
    ];
    assert_fails(&chunk, "chunk_size is 0");
    assert_fails(&["inspect", "--model", text(&broken)], "neither a .pth");
    assert_fails(
        &["convert", "--model", &base, "--out", "no/folder/x"],
        "no/folder/x",
    );

    let fails = |options: &[&str], named: &str| {
        let arguments = [&["generate", "--model", &base, "--prompt", "A"], options].concat();
        assert_fails(&arguments, named);
    };
    fails(&[], "--tokenizer");
    fails(&["--tokenizer", "no/tokenizer.json"], "no/tokenizer.json");
    fails(&["--tokenizer", "byte", "--ban", "97"], "--ban 97");
    fails(&["--tokenizer", "byte", "--top-p", "2"], "top_p");
    fails(
        &["--tokenizer", "byte", "--temperature", "-1"],
        "temperature",
    );
    let arguments = generate("lower", &[]);
    assert_fails(
        &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        "vocabulary has 97",
    );
}

#[test]
fn every_command_explains_itself() {
    let commands: [(&str, &[&str]); 6] = [
        ("", &["logits", "generate", "score", "inspect", "convert"]),
        (
            "score",
            &["--requests", "--prefix", "--tokenizer", "--json"],
        ),
        (
            "logits",
            &[
                "--ids",
                "--chunk-size",
                "--top-k",
                "--out",
                "--backend",
                "--json",
            ],
        ),
        (
            "generate",
            &[
                "--prompt",
                "--top-k-tokens",
                "--penalty-decay",
                "--stop",
                "--seed",
                "--backend",
            ],
        ),
        ("inspect", &["--model", "--json"]),
        ("convert", &["--model", "--out"]),
    ];
    for (command, options) in commands {
        let arguments: Vec<&str> = [command, "--help"]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect();
        let help = output(&arguments);
        for option in options {
            assert!(
                help.contains(option),
                "{command} --help does not tell of {option}"
            );
        }
    }
}
