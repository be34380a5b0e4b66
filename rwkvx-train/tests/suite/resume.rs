//! Killed or stopped at any moment, a run goes on bit for bit.

use std::path::Path;
use std::time::{Duration, Instant};

use rwkvx_train::journal;
use rwkvx_train::phase::StageChoice;

use crate::binary::{numbers, program, succeed, tiny_config, write_config};

/// Starts the program and kills it, as `kill -9` does, once the run has `lines` metrics lines. False if it ended before.
fn kill_after(directory: &Path, run: &str, arguments: &[&str], lines: usize) -> bool {
    let mut child = program(directory, arguments).spawn().unwrap();
    let path = directory.join(run).join(journal::FILE);
    let started = Instant::now();
    loop {
        let written = std::fs::read_to_string(&path)
            .unwrap_or_default()
            .lines()
            .count();
        if written >= lines {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return false;
        }
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no line {lines} within two minutes"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_killed_again_and_again_equals_one_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let file = write_config(place.path(), &tiny_config());
    succeed(place.path(), &["--config", &file, "--out", "whole"]);

    // In every phase: before the first checkpoint, between two, at one, at the end of a phase.
    let mut killed = kill_after(place.path(), "cut", &["--config", &file, "--out", "cut"], 1);
    for lines in [2, 3, 5, 6, 8, 10, 12, 13, 15, 18] {
        killed &= kill_after(place.path(), "cut", &["--resume", "--out", "cut"], lines);
    }
    assert!(killed, "a run ended before it could be killed");
    succeed(place.path(), &["--resume", "--out", "cut"]);

    assert_eq!(
        numbers(&place.path().join("cut")),
        numbers(&place.path().join("whole"))
    );
    for file in ["base.safetensors", "model.safetensors", "rwkv7.safetensors"] {
        let read = |run: &str| std::fs::read(place.path().join(run).join(file)).unwrap();
        assert!(read("cut") == read("whole"), "{file} differs");
    }
}

/// Also between two checkpoints: the signal makes one.
#[cfg(unix)]
#[test]
fn a_run_stopped_by_signals_saves_succeeds_and_equals_one_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config.checkpoints.every_steps = 1000;
    let file = write_config(place.path(), &config);
    succeed(place.path(), &["--config", &file, "--out", "whole"]);

    let lines = place.path().join("cut").join(journal::FILE);
    let count = || std::fs::read_to_string(&lines).map_or(0, |text| text.lines().count());
    let mut stops = 0;
    let mut arguments = vec!["--config", &file, "--out", "cut"];
    for signal in ["-INT", "-TERM"].into_iter().cycle() {
        let before = count();
        let mut child = program(place.path(), &arguments).spawn().unwrap();
        while count() <= before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let id = child.id().to_string();
        // Fails if the run has just ended.
        let _ = std::process::Command::new("kill")
            .args([signal, &id])
            .status();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{signal}: {errors}");
        arguments = vec!["--resume", "--out", "cut"];
        if !errors.contains("go on with `--resume --out cut`") {
            break;
        }
        stops += 1;
    }
    assert!(stops >= 3, "stopped {stops} times only");
    assert_eq!(
        numbers(&place.path().join("cut")),
        numbers(&place.path().join("whole"))
    );
    let read = |run: &str| std::fs::read(place.path().join(run).join("model.safetensors")).unwrap();
    assert!(read("cut") == read("whole"));
}

#[test]
fn without_a_directory_the_newest_run_is_resumed() {
    let place = tempfile::tempdir().unwrap();
    let file = write_config(place.path(), &tiny_config());
    assert!(kill_after(
        place.path(),
        "runs/tiny-1",
        &["--config", &file],
        4
    ));
    succeed(place.path(), &["--resume"]);
    assert_eq!(numbers(&place.path().join("runs/tiny-1")).len(), 19);
}

#[test]
fn what_a_kill_left_half_written_is_cleared_and_a_finished_run_can_be_resumed() {
    let place = tempfile::tempdir().unwrap();
    let file = write_config(place.path(), &tiny_config());
    succeed(place.path(), &["--config", &file, "--out", "run"]);
    let half = place.path().join("run/checkpoints/stage1-00000002.partial");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("model.safetensors"), "half").unwrap();
    let before = numbers(&place.path().join("run"));
    succeed(place.path(), &["--resume", "--out", "run"]);
    assert!(!half.exists());
    assert_eq!(numbers(&place.path().join("run")), before);
}

/// A limit on the size of files stands for a full disk: writing fails in the middle of a file.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_the_run_and_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config.stage = StageChoice::Base;
    let file = write_config(place.path(), &config);
    succeed(place.path(), &["--config", &file, "--out", "run"]);
    let run = place.path().join("run");
    let whole = numbers(&run);
    let model = std::fs::read(run.join("model.safetensors")).unwrap();
    std::fs::remove_file(run.join("model.safetensors")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/base-00000005")).unwrap();

    let limited = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} --resume --out run",
        env!("CARGO_BIN_EXE_rwkvx-train")
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &limited])
        .current_dir(place.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let error = errors.lines().last().unwrap_or_default();
    assert!(!output.status.success(), "{errors}");
    assert!(
        error.starts_with("error: run/checkpoints/base-00000005.partial/model.safetensors: "),
        "{errors}"
    );
    assert!(
        run.join("checkpoints/base-00000004/checkpoint.json")
            .exists()
    );

    succeed(place.path(), &["--resume", "--out", "run"]);
    assert_eq!(numbers(&run), whole);
    assert!(std::fs::read(run.join("model.safetensors")).unwrap() == model);
}
