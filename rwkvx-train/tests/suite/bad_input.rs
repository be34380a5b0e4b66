//! What is wrong with the input is said in a line that names it, and nothing panics.

use std::fs;
use std::path::Path;

use rwkvx_datasets::binidx::{Dtype, TokenFileWriter};
use rwkvx_model::checkpoint::{self, Metadata};
use rwkvx_train::config::TrainConfig;
use rwkvx_train::data::{DataConfig, Order};
use serde_json::{Value, json};

use crate::binary::{program, succeed, tiny_config, write_config};
use crate::support::small_model;

/// Runs the program and checks that it fails with a short message that holds every one of `parts`.
#[track_caller]
fn assert_fails(directory: &Path, arguments: &[&str], parts: &[&str]) {
    let output = program(directory, arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    let message = errors.lines().rfind(|line| line.starts_with("error: "));
    let message = message.unwrap_or_else(|| panic!("{arguments:?}: {errors}"));
    for part in parts {
        assert!(
            message.contains(part),
            "{arguments:?}: {message:?} lacks {part:?}"
        );
    }
}

#[test]
fn a_bad_configuration_names_the_field() {
    let place = tempfile::tempdir().unwrap();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 18] = [
        ("stages.base.micro_batch", |c| {
            c["stages"]["base"]["micro_batch"] = json!(3)
        }),
        ("stages.stage1.steps", |c| {
            c["stages"]["stage1"]["steps"] = json!(0)
        }),
        ("stages.stage2.context", |c| {
            c["stages"]["stage2"]["context"] = json!(0)
        }),
        ("stages.base.learning_rate", |c| {
            c["stages"]["base"]["learning_rate"] = json!(-1.0)
        }),
        ("stages.stage2.longce.gamma", |c| {
            c["stages"]["stage2"]["longce"]["gamma"] = json!(0.0)
        }),
        ("stages.stage2.choice_weight", |c| {
            c["stages"]["stage2"]["choice_weight"] = json!(-1.0)
        }),
        ("longce must be", |c| {
            c["stages"]["stage2"]["longce"] = json!("other")
        }),
        ("optimizer.beta_2", |c| {
            c["optimizer"]["beta_2"] = json!(1.5)
        }),
        ("checkpoints.keep", |c| c["checkpoints"]["keep"] = json!(0)),
        ("n_layer", |c| c["model"]["n_sparse"] = json!(3)),
        ("channels", |c| c["model"]["channels"] = json!(33)),
        ("model.n_sparse", |c| c["model"]["n_sparse"] = json!(0)),
        ("data.needles", |c| {
            c["data"]["needles"]["answer_weight"] = json!(-1.0)
        }),
        ("learning_rates", |c| {
            c["stages"]["base"]["learning_rates"] = json!(1.0)
        }),
        ("seed", |c| c["seed"] = json!("one")),
        ("missing field `tokenizer`", |c| {
            drop(c.as_object_mut().unwrap().remove("tokenizer"))
        }),
        ("compare_base", |c| {
            drop(c["stages"].as_object_mut().unwrap().remove("base"))
        }),
        ("stages", |c| c["stages"] = json!({})),
    ];
    for (part, change) in cases {
        let mut config = serde_json::to_value(tiny_config()).unwrap();
        config["start_from"] = json!("base.pth");
        if part == "model.n_sparse" {
            config["model"]["n_layer"] = json!(2);
        }
        change(&mut config);
        let file = place.path().join("bad.json");
        fs::write(&file, config.to_string()).unwrap();
        assert_fails(place.path(), &["--config", "bad.json"], &[part]);
    }
    assert!(
        !place.path().join("runs").exists(),
        "a bad configuration must not start a run"
    );
}

#[test]
fn bad_options_and_files_are_named() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    fs::write(at.join("garbage.json"), "{\"name\": ").unwrap();
    fs::write(at.join("garbage.pth"), [7; 100]).unwrap();
    let device = Default::default();
    let _: &burn::backend::flex::FlexDevice = &device;
    checkpoint::save(
        &small_model(0),
        &Metadata::default(),
        &at.join("small.safetensors"),
    )
    .unwrap();
    checkpoint::save(
        &small_model(1),
        &Metadata::default(),
        &at.join("hybrid.safetensors"),
    )
    .unwrap();
    fs::create_dir(at.join("full")).unwrap();
    fs::write(at.join("full/something"), "").unwrap();
    let tiny = write_config(at, &tiny_config());
    let wrong_vocabulary = TrainConfig {
        name: "vocabulary".to_owned(),
        tokenizer: "rwkv-world".to_owned(),
        ..tiny_config()
    };
    let vocabulary = write_config(at, &wrong_vocabulary);
    let no_tokenizer = TrainConfig {
        name: "no_tokenizer".to_owned(),
        tokenizer: "nowhere.json".to_owned(),
        ..tiny_config()
    };
    let no_tokenizer = write_config(at, &no_tokenizer);
    let cases: [(&[&str], &[&str]); 12] = [
        (
            &["--config", "absent.json"],
            &["absent.json", "No such file"],
        ),
        (&["--config", "garbage.json"], &["garbage.json", "line 1"]),
        (&["--preset", "demi"], &["--preset", "demi", "demo-short"]),
        (
            &["--config", &tiny, "--data", "tokens"],
            &["--data", "generated"],
        ),
        (
            &["--config", &tiny, "--stage", "1"],
            &["start_from", "--model"],
        ),
        (
            &["--config", &tiny, "--out", "full"],
            &["--out", "full", "not empty"],
        ),
        (
            &["--config", &tiny, "--model", "absent.pth"],
            &["absent.pth"],
        ),
        (
            &["--config", &tiny, "--model", "garbage.pth"],
            &["garbage.pth"],
        ),
        (
            &["--config", &tiny, "--model", "small.safetensors"],
            &["model", "small.safetensors"],
        ),
        (
            &["--config", &tiny, "--model", "hybrid.safetensors"],
            &["hybrid.safetensors", "1 sparse"],
        ),
        (
            &["--config", &vocabulary],
            &["model.vocab_size", "257", "65536"],
        ),
        (&["--config", &no_tokenizer], &["nowhere.json"]),
    ];
    for (arguments, parts) in cases {
        assert_fails(at, arguments, parts);
    }
    assert_fails(
        &at.join("full"),
        &["--resume"],
        &["--resume", "no run in runs"],
    );
    assert_fails(
        at,
        &["--resume", "--out", "full"],
        &["--resume", "full", "config.json"],
    );
    assert_fails(at, &["--preset", "rwkvx-0.2b"], &["start_from", "--model"]);
}

fn token_config(prefix: Option<&Path>) -> TrainConfig {
    TrainConfig {
        name: "tokens".to_owned(),
        data: DataConfig::Tokens {
            prefix: prefix.map(Path::to_path_buf),
            order: Order::RwkvX,
        },
        ..tiny_config()
    }
}

fn write_tokens(prefix: &Path, ids: &[u32]) {
    let mut writer = TokenFileWriter::create(prefix, Dtype::U16).unwrap();
    writer.push(ids).unwrap();
    writer.finish().unwrap();
}

#[test]
fn bad_token_files_are_named_and_good_ones_are_trained_on() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    let ids: Vec<u32> = (0..2_000).map(|id| id % 250).collect();
    write_tokens(&at.join("good"), &ids);
    write_tokens(&at.join("short"), &ids[..200]);
    let mut foreign = ids.clone();
    foreign[70] = 300;
    write_tokens(&at.join("foreign"), &foreign);
    fs::write(at.join("garbage.idx"), "not an index").unwrap();
    fs::write(at.join("garbage.bin"), "").unwrap();
    let file = write_config(at, &token_config(None));
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--config", &file], &["data.tokens.prefix", "--data"]),
        (&["--config", &file, "--data", "absent"], &["absent"]),
        (&["--config", &file, "--data", "garbage"], &["garbage.idx"]),
        (
            &["--config", &file, "--data", "short"],
            &["200 tokens", "128"],
        ),
        (&["--config", &file, "--data", "foreign"], &["300", "257"]),
    ];
    for (number, (arguments, parts)) in cases.into_iter().enumerate() {
        let out = format!("run{number}");
        assert_fails(at, &[arguments, &["--out", &out]].concat(), parts);
    }
    succeed(
        at,
        &["--config", &file, "--data", "good", "--out", "good-run"],
    );
}

#[test]
fn damaged_checkpoints_are_named() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    let file = write_config(at, &tiny_config());
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 6] = [
        ("optimizer.safetensors", |newest| {
            truncate(&newest.join("optimizer.safetensors"))
        }),
        ("model.safetensors", |newest| {
            truncate(&newest.join("model.safetensors"))
        }),
        ("checkpoint.json", |newest| {
            truncate(&newest.join("checkpoint.json"))
        }),
        ("version 9", |newest| {
            let path = newest.join("checkpoint.json");
            let json = fs::read_to_string(&path).unwrap();
            fs::write(&path, json.replace("\"version\": 2", "\"version\": 9")).unwrap();
        }),
        ("optimizer.safetensors", |newest| {
            // As long as before, but garbage.
            let path = newest.join("optimizer.safetensors");
            let size = fs::metadata(&path).unwrap().len() as usize;
            fs::write(&path, vec![0xff; size]).unwrap();
        }),
        ("model.safetensors: is damaged", |newest| {
            // One bit of one number.
            let path = newest.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
        }),
    ];
    succeed(at, &["--config", &file, "--out", "run", "--stage", "base"]);
    // The newest checkpoint is the end of the phase; without it the run goes on from the one before.
    fs::remove_dir_all(at.join("run/checkpoints/base-00000005")).unwrap();
    let newest = at.join("run/checkpoints/base-00000004");
    let saved = tempfile::tempdir().unwrap();
    copy(&newest, saved.path());
    for (part, damage) in cases {
        copy(saved.path(), &newest);
        damage(&newest);
        assert_fails(at, &["--resume", "--out", "run"], &[part]);
    }
    copy(saved.path(), &newest);
    succeed(at, &["--resume", "--out", "run"]);
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_step_and_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config.checkpoints.every_steps = 1;
    let base = config.stages.base.as_mut().unwrap();
    base.learning_rate = 1e30;
    base.warmup_steps = 0;
    let file = write_config(place.path(), &config);
    let parts = ["base, step 2", "checkpoints/base-00000001", "learning_rate"];
    assert_fails(place.path(), &["--config", &file, "--out", "run"], &parts);
}
