//! `rwkvx generate`, end to end: where prompts come from, states in files, conversations. The golden hybrid has 97 tokens, which the byte
//! tokenizer reads as the bytes below 96.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::data;

/// Runs `generate` on the golden hybrid, greedily unless told otherwise, with this on standard input.
fn run(options: &[&str], input: &str) -> Output {
    let greedy: &[&str] = match options.contains(&"--temperature") {
        true => &[],
        false => &["--temperature", "0"],
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_rwkvx"))
        .args(["generate", "--tokenizer", "byte"])
        .args(greedy)
        .args(["--ban", "0", "--chunk-size", "16", "--model"])
        .arg(data("rwkvx_tiny.pth"))
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("rwkvx runs");
    // A program that fails early need not read all of it.
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes());
    child.wait_with_output().expect("rwkvx ends")
}

#[track_caller]
fn text(options: &[&str], input: &str) -> String {
    let output = run(options, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The JSON of every line.
#[track_caller]
fn lines(options: &[&str], input: &str) -> Vec<Value> {
    let text = text(&[options, &["--json"]].concat(), input);
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[track_caller]
fn fails(options: &[&str], input: &str, named: &str) {
    let output = run(options, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{options:?}");
    assert!(stderr.contains(named), "`{stderr}` does not name `{named}`");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

const LONG: &str =
    "HELLO 12 AND SOME MORE, SO THAT IT IS WELL BEYOND THREE CHUNKS OF SIXTEEN TOKENS EACH";

#[test]
fn prompts_come_from_files_and_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, LONG).unwrap();
    let expected = text(&["--prompt", LONG, "--tokens", "9"], "");
    assert_eq!(
        text(&["--prompt-file", path(&file), "--tokens", "9"], ""),
        expected
    );
    assert_eq!(
        text(&["--prompt-file", "-", "--tokens", "9"], LONG),
        expected
    );
    fails(&["--prompt-file", "no/file"], "", "no/file");
    fails(&["--tokens", "9"], "", "--prompt");
}

#[test]
fn every_token_has_its_log_probability() {
    let line = &lines(&["--prompt", LONG, "--tokens", "9"], "")[0];
    let of = |name: &str| line[name].as_array().unwrap().clone();
    let log_probabilities = of("log_probabilities");
    assert_eq!(log_probabilities.len(), of("tokens").len());
    for value in log_probabilities {
        let value = value.as_f64().unwrap();
        // The likeliest of 97 tokens, but for the one that is banned.
        assert!((-8.0..=0.0).contains(&value), "{value}");
    }
}

#[test]
fn several_prompts_are_made_together_and_answered_in_order() {
    let prompts = ["HELLO 12", LONG, "GOODBYE!", "", "HELLO 12"];
    let input = "\"HELLO 12\"\n{\"prompt\": \"LONG\"}\n\n\"GOODBYE!\"\n\"\"\n\"HELLO 12\"\n";
    let input = input.replace("\"LONG\"", &format!("\"{LONG}\""));
    let found = lines(&["--prompts", "-", "--tokens", "7"], &input);
    assert_eq!(found.len(), prompts.len());
    for (prompt, found) in prompts.iter().zip(&found) {
        let alone = &lines(&["--prompt", prompt, "--tokens", "7"], "")[0];
        for name in ["prompt_tokens", "tokens", "text", "ended_by"] {
            assert_eq!(found[name], alone[name], "{prompt:?} {name}");
        }
    }
    // Drawn tokens depend on the seed and the place of the prompt.
    let wild = [
        "--prompts",
        "-",
        "--tokens",
        "7",
        "--temperature",
        "1.5",
        "--top-p",
        "1",
    ];
    let tokens = |options: &[&str], input: &str| -> Vec<Value> {
        let lines = lines(options, input);
        lines.iter().map(|line| line["tokens"].clone()).collect()
    };
    let found = tokens(&wild, &input);
    assert_eq!(found, tokens(&wild, &input));
    assert_ne!(found[0], found[4]);
    let fifth = [
        "--prompt",
        "HELLO 12",
        "--tokens",
        "7",
        "--temperature",
        "1.5",
        "--top-p",
        "1",
        "--seed",
        "4",
    ];
    assert_eq!(tokens(&fifth, "")[0], found[4]);

    fails(&["--prompts", "-"], "\"A\"\nB\n", "line 2");
    fails(&["--prompts", "-"], "\n", "no prompts");
    fails(
        &["--prompts", "-", "--state-out", "x"],
        "\"A\"",
        "--state-out",
    );
}

#[test]
fn a_state_in_a_file_goes_on_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.safetensors");
    let state = path(&state);
    for budget in [&[][..], &["--cache-budget", "50"]] {
        let prompt = ["--prompt", LONG];
        let whole = &lines(&[&prompt[..], &["--tokens", "20"], budget].concat(), "")[0]["tokens"];
        let whole = whole.as_array().unwrap();
        let tokens = |options: &[&str]| lines(options, "")[0]["tokens"].as_array().unwrap().clone();
        let first = tokens(
            &[
                &prompt[..],
                &["--tokens", "8", "--state-out", state],
                budget,
            ]
            .concat(),
        );
        let second = tokens(&["--state-in", state, "--tokens", "12"]);
        assert_eq!([first, second].concat(), *whole);

        // The state of a prompt alone, and of its halves.
        text(
            &[
                &[
                    "--prompt",
                    &LONG[..33],
                    "--tokens",
                    "0",
                    "--state-out",
                    state,
                ],
                budget,
            ]
            .concat(),
            "",
        );
        let rest = [
            "--state-in",
            state,
            "--prompt",
            &LONG[33..],
            "--tokens",
            "20",
        ];
        assert_eq!(tokens(&rest), *whole);
    }
    fails(&["--state-in", "no/state"], "", "no/state");
    fails(
        &["--state-in", path(&data("rwkvx_tiny.safetensors"))],
        "",
        "no saved state",
    );
    fails(
        &[
            "--prompt",
            "A",
            "--tokens",
            "1",
            "--state-out",
            "no/folder/state",
        ],
        "",
        "no/folder",
    );
    fails(
        &["--prompt", "A", "--cache-budget", "3"],
        "",
        "--cache-budget",
    );
}

/// A model of random weights with a token for every byte, in a file.
fn random_model(folder: &Path) -> String {
    use burn::module::{Module, ModuleMapper, Param};
    use burn::tensor::{Distribution, Tensor};
    use rwkvx_model::RwkvXConfig;
    use rwkvx_model::checkpoint::{self, Metadata};

    type B = crate::support::Flex;
    struct Shake;
    impl ModuleMapper<B> for Shake {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let noise = Distribution::Normal(0.0, 0.2);
            param.map(|tensor| tensor.clone() + tensor.random_like(noise))
        }
    }
    let model = RwkvXConfig::tiny(257)
        .init::<B>(&Default::default())
        .map(&mut Shake);
    let path = folder.join("random.safetensors");
    checkpoint::save(&model, &Metadata::default(), &path).unwrap();
    path.to_str().expect("UTF-8 path").to_owned()
}

#[test]
fn a_conversation_answers_every_line_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let model = random_model(folder.path());
    let state = folder.path().join("state.safetensors");
    let talk = |options: &[&str], input: &str| -> Vec<Value> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rwkvx"))
            .args([
                "generate",
                "--chat",
                "--model",
                &model,
                "--temperature",
                "0",
                "--tokens",
                "6",
                "--json",
            ])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("rwkvx runs");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().expect("rwkvx ends");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    };
    let both = talk(&[], "hello\n\nhow are you\n");
    assert_eq!(both.len(), 2);
    assert_eq!(both[0]["prompt_tokens"], "User: hello\n\nAssistant:".len());
    let alone = talk(&["--prompt", "how are you"], "");
    assert_ne!(alone[0]["log_probabilities"], both[1]["log_probabilities"]);

    // The conversation goes on from a file.
    let first = talk(&["--prompt", "hello", "--state-out", path(&state)], "");
    let second = talk(&["--prompt", "how are you", "--state-in", path(&state)], "");
    for name in ["text", "tokens"] {
        assert_eq!(first[0][name], both[0][name]);
        assert_eq!(second[0][name], both[1][name]);
    }
    // The form of a turn has lower-case letters, which the golden vocabulary has not.
    fails(&["--chat"], "HELLO\n", "vocabulary has 97");
}
