//! The program from outside: whole runs, what they leave, and running it in tests.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rwkvx_model::checkpoint::{self, LoadOptions};
use rwkvx_train::config::{StageConfig, StageConfigs, TrainConfig};
use rwkvx_train::data::DataConfig;
use rwkvx_train::journal::{self, Line};
use rwkvx_train::outcome::Speed;
use rwkvx_train::phase::{Phase, StageChoice};
use rwkvx_train::presets;
use rwkvx_train::report::RunReport;

use crate::support::B;

/// The program with these arguments, run in `directory`.
pub(crate) fn program(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkvx-train"));
    command
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[track_caller]
pub(crate) fn succeed(directory: &Path, arguments: &[&str]) -> Output {
    let output = program(directory, arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    output
}

/// All stages in a few seconds: a tiny model, a checkpoint every two steps, no questions.
pub(crate) fn tiny_config() -> TrainConfig {
    let mut config = presets::preset("demo-short").unwrap();
    config.name = "tiny".to_owned();
    config.model.channels = 32;
    config.model.head_size = 16;
    config.questions = None;
    config.checkpoints.every_steps = 2;
    for (stage, steps) in stages(&mut config).into_iter().zip([5, 3, 4]) {
        stage.steps = steps;
    }
    config
}

/// Base, stage 1 and stage 2.
fn stages(config: &mut TrainConfig) -> [&mut StageConfig; 3] {
    let StageConfigs {
        base,
        stage1,
        stage2,
        ..
    } = &mut config.stages;
    [base, stage1, stage2].map(|stage| stage.as_mut().unwrap())
}

pub(crate) fn write_config(directory: &Path, config: &TrainConfig) -> String {
    let path = directory.join(format!("{}.json", config.name));
    std::fs::write(&path, serde_json::to_vec_pretty(config).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What must not depend on how often a run was stopped: everything but the speed.
pub(crate) fn numbers(run: &Path) -> Vec<Line> {
    let mut lines = journal::read(&run.join(journal::FILE)).unwrap();
    for line in &mut lines {
        line.speed = Speed::default();
    }
    lines
}

#[test]
fn a_whole_run_leaves_what_it_promises() {
    let place = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config.questions = presets::preset("demo-short").unwrap().questions;
    let file = write_config(place.path(), &config);
    let output = succeed(place.path(), &["--config", &file, "--json"]);
    let report: RunReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.run, Path::new("runs/tiny-1"));
    let run = place.path().join(&report.run);
    assert_eq!(TrainConfig::read(&run.join("config.json")).unwrap(), config);

    let lines = numbers(&run);
    let steps = |phase| lines.iter().filter(|line| line.stage == phase).count();
    let counts: Vec<usize> = Phase::ALL.into_iter().map(steps).collect();
    assert_eq!(counts, [5, 3, 4, 0, 3, 4]);
    assert!(
        lines
            .iter()
            .all(|line| line.loss.is_finite() && line.grad_norm > 0.0)
    );
    assert_eq!(report.phases.len(), 5);

    let load = |name: &str| {
        let path = run.join(name);
        checkpoint::load::<B>(&path, &LoadOptions::default(), &Default::default()).unwrap()
    };
    let hybrid = load("model.safetensors");
    assert_eq!(*hybrid.model.config(), config.model);
    assert_eq!(hybrid.metadata.tokenizer.as_deref(), Some("byte"));
    assert_eq!(load("base.safetensors").model.config().n_sparse, 0);
    assert_eq!(load("rwkv7.safetensors").model.config().n_sparse, 0);
    let kept = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(kept, config.checkpoints.keep);
    assert!(run.join("loss.svg").exists() && run.join("loss.png").exists());

    let asked: Vec<_> = report
        .answers
        .iter()
        .map(|model| model.scores.len())
        .collect();
    assert_eq!(asked, [4, 4]);
    for model in &report.answers {
        assert!(
            model
                .scores
                .iter()
                .all(|score| score.asked > 0 && score.correct <= score.asked)
        );
    }
}

#[test]
fn stages_run_one_by_one_give_what_they_give_in_one_run() {
    let place = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config.compare_base = false;
    let file = write_config(place.path(), &config);
    succeed(place.path(), &["--config", &file, "--out", "all"]);
    succeed(
        place.path(),
        &["--config", &file, "--out", "a", "--stage", "base"],
    );
    let base = [
        "--config",
        &file,
        "--out",
        "b",
        "--stage",
        "1",
        "--model",
        "a/model.safetensors",
    ];
    succeed(place.path(), &base);
    let stage1 = [
        "--config",
        &file,
        "--out",
        "c",
        "--stage",
        "2",
        "--model",
        "b/model.safetensors",
    ];
    succeed(place.path(), &stage1);
    let parts: Vec<Line> = ["a", "b", "c"]
        .iter()
        .flat_map(|run| numbers(&place.path().join(run)))
        .collect();
    assert_eq!(parts, numbers(&place.path().join("all")));
    let model =
        |run: &str| std::fs::read(place.path().join(run).join("model.safetensors")).unwrap();
    assert!(model("c") == model("all"));
}

#[test]
fn the_same_configuration_gives_the_same_numbers() {
    let place = tempfile::tempdir().unwrap();
    let file = write_config(place.path(), &tiny_config());
    succeed(place.path(), &["--config", &file]);
    succeed(place.path(), &["--config", &file]);
    assert_eq!(
        numbers(&place.path().join("runs/tiny-1")),
        numbers(&place.path().join("runs/tiny-2"))
    );
}

#[test]
fn every_preset_is_a_possible_run() {
    for name in presets::names() {
        let mut config = presets::preset(name).unwrap();
        assert_eq!(config.name, name);
        if config.stages.base.is_none() {
            config.start_from = Some("base.pth".into());
        }
        config
            .validate()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        config.open_tokenizer().unwrap();
    }
    let parameters = |name| presets::preset(name).unwrap().model.parameters();
    assert_eq!(parameters("rwkvx-0.2b"), 219_361_536);
    assert_eq!(parameters("rwkvx-3.6b"), 3_576_983_040);
}

/// Steps do not depend on how many devices share them but by rounding, and a run can go on with another number.
#[test]
fn several_devices_train_as_one_does_and_a_run_goes_on_with_another_number() {
    let place = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config.checkpoints.keep = 100;
    for stage in stages(&mut config) {
        (stage.batch, stage.micro_batch, stage.threads) = (4, 1, 1);
    }
    let file = write_config(place.path(), &config);
    let train = |arguments: &[&str]| succeed(place.path(), arguments);
    train(&["--config", &file, "--out", "one"]);
    for devices in ["2", "4"] {
        train(&["--config", &file, "--out", devices, "--devices", devices]);
    }
    // As if killed after the second step of stage 1.
    train(&["--config", &file, "--out", "cut", "--devices", "2"]);
    let cut = place.path().join("cut/checkpoints");
    for entry in std::fs::read_dir(&cut).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("base") && name != "stage1-00000002" {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    train(&["--resume", "--out", "cut", "--devices", "4"]);

    let expected = numbers(&place.path().join("one"));
    for run in ["2", "4", "cut"] {
        let found = numbers(&place.path().join(run));
        assert_eq!(found.len(), expected.len(), "{run}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.step, found.tokens), (expected.step, expected.tokens));
            let (stage, step) = (expected.stage, expected.step);
            for (what, found, expected) in [
                ("loss", found.loss, expected.loss),
                ("gradient", found.grad_norm, expected.grad_norm),
            ] {
                let difference = (found / expected - 1.0).abs();
                assert!(
                    difference < 1e-3,
                    "{run}, {stage} {step}: {what} {found} {expected}"
                );
            }
        }
    }

    let output = program(place.path(), &["--config", &file, "--devices", "3"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("--devices: is 3, but base has batches of 4"),
        "{errors}"
    );
}

#[test]
fn a_plan_is_printed_without_data_weights_or_a_run() {
    let place = tempfile::tempdir().unwrap();
    let output = succeed(place.path(), &["--plan", "--preset", "rwkvx-0.2b"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("219361536 parameters") && text.contains("stage2, 1 x 64000, recompute"),
        "{text}"
    );
    let output = succeed(
        place.path(),
        &[
            "--plan",
            "--preset",
            "rwkvx-3.6b",
            "--devices",
            "8",
            "--json",
        ],
    );
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["parameters"], 3_576_983_040_u64);
    // The state of the optimiser, 8 bytes per parameter, is shared, so that a device of 80 GB is enough.
    let memory = &plan["phases"][1]["memory"];
    assert_eq!(memory["optimizer"], 3_576_983_040_u64);
    let bytes = |kind: &str| memory[kind].as_u64().unwrap();
    let held: u64 = ["parameters", "optimizer", "gradients", "activations"]
        .map(bytes)
        .iter()
        .sum();
    assert!(held + bytes("head").max(bytes("layer") + bytes("kernels")) < 80_000_000_000);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

/// A tiny model learns by heart what the assistant says, and nothing of what the user says.
#[test]
fn fine_tuning_learns_what_the_assistant_says() {
    let place = tempfile::tempdir().unwrap();
    let chat = place.path().join("chat.jsonl");
    let lines: String = (0..8)
        .map(|number| {
            let question = "what ".repeat(number % 3 + 1);
            format!(r#"{{"messages": [{{"role": "user", "content": "{question}"}}, {{"role": "assistant", "content": "It is so."}}]}}"#) + "\n"
        })
        .collect();
    std::fs::write(&chat, &lines).unwrap();
    let mut config = tiny_config();
    let stage = StageConfig {
        steps: 60,
        context: 64,
        batch: 4,
        micro_batch: 2,
        learning_rate: 1e-2,
        final_learning_rate: 1e-3,
        ..config.stages.base.clone().unwrap()
    };
    config.model.n_sparse = 0;
    config.compare_base = false;
    config.stage = StageChoice::Base;
    let base = write_config(place.path(), &config);
    succeed(place.path(), &["--config", &base, "--out", "base"]);
    config.name = "chat".to_owned();
    config.stage = StageChoice::Sft;
    config.l2_wrap = false;
    config.stages.sft = Some(stage);
    config.data = DataConfig::Chat { files: Vec::new() };
    let config = write_config(place.path(), &config);
    let arguments = |data| {
        let model = "base/model.safetensors";
        [
            "--config", &config, "--model", model, "--data", data, "--out", "chat", "--json",
        ]
        .map(str::to_owned)
    };
    let good = arguments("chat.jsonl");
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let output = succeed(place.path(), &good);
    let report: RunReport = serde_json::from_slice(&output.stdout).unwrap();
    let phase = &report.phases[0];
    assert_eq!(phase.phase, Phase::Sft);
    assert!(phase.first_nll > 1.0 && phase.last_nll < 0.1, "{phase:?}");

    std::fs::write(&chat, lines + "{}").unwrap();
    std::fs::remove_dir_all(place.path().join("chat")).unwrap();
    let output = program(place.path(), &good).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("chat.jsonl, line 9: not a conversation"),
        "{errors}"
    );
}
