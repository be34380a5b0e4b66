//! Files that are not in order: every one an error that names the file and what is wrong, none a panic.

mod pth;
mod safetensors;
mod tensors;

use std::path::PathBuf;

use rwkvx_model::Error;
use rwkvx_model::checkpoint::{self, LoadOptions, Metadata};

use crate::support::{Flex, data, golden_model};

/// A folder with one file in it.
struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn with(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.ckpt");
        std::fs::write(&path, bytes).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }
}

/// The errors of loading a file of these bytes for training and for inference; their texts name the file.
fn errors_of(bytes: &[u8]) -> [Error; 2] {
    let place = Place::with(bytes);
    let (options, device) = (LoadOptions::default(), Default::default());
    let loaded = [
        checkpoint::load::<Flex>(&place.path, &options, &device),
        checkpoint::load_as_stored::<Flex>(&place.path, &options, &device),
    ];
    loaded.map(|loaded| {
        let error = loaded.map(|_| ()).expect_err("a bad file loaded");
        assert!(error.to_string().contains("model.ckpt"), "{error}");
        assert!(error.to_string().lines().count() <= 2, "{error}");
        error
    })
}

/// The error of loading a file of these bytes for training.
fn error_of(bytes: &[u8]) -> Error {
    let [error, _] = errors_of(bytes);
    error
}

#[track_caller]
fn assert_error(case: &str, bytes: &[u8], named: &str) {
    for error in errors_of(bytes) {
        let error = error.to_string();
        assert!(
            error.contains(named),
            "{case}: `{error}` does not name `{named}`"
        );
    }
}

#[test]
fn files_of_no_kind_are_named_as_such() {
    for (case, bytes) in [
        ("empty", &b""[..]),
        ("short", b"PK"),
        ("text", b"this is no checkpoint, it is a sentence"),
        ("zeros", &[0; 4096]),
        (
            "noise",
            &std::array::from_fn::<u8, 4096, _>(|i| (i * 167 + i / 7) as u8),
        ),
    ] {
        assert_error(case, bytes, "neither");
    }
    assert_error(
        "old PyTorch",
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "older than 1.6",
    );
}

#[test]
fn missing_files_and_folders_are_named() {
    let load = |path: &std::path::Path| {
        let loaded = checkpoint::load::<Flex>(path, &LoadOptions::default(), &Default::default());
        loaded.map(|_| ()).unwrap_err().to_string()
    };
    assert!(load("/no/such/file.pth".as_ref()).starts_with("/no/such/file.pth: "));
    let folder = tempfile::tempdir().unwrap();
    assert!(load(folder.path()).contains("is a folder"));
}

#[test]
fn damage_anywhere_in_the_structure_is_an_error_or_harmless_but_no_panic() {
    for whole in [
        std::fs::read(data("rwkv7_tiny.pth")).unwrap(),
        safetensors::golden(),
    ] {
        // The pickle and the header are at the start, the zip's directory at the end.
        let places = (0..6000)
            .step_by(13)
            .chain((whole.len() - 9000..whole.len()).step_by(29));
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] = bytes[at].wrapping_add(0x55);
            let place = Place::with(&bytes);
            let _ = checkpoint::inspect::<Flex>(&place.path, &LoadOptions::default());
        }
    }
}

#[test]
fn impossible_options_are_errors() {
    for options in [
        LoadOptions {
            chunk_size: Some(0),
            top_k: None,
        },
        LoadOptions {
            chunk_size: None,
            top_k: Some(0),
        },
    ] {
        let loaded =
            checkpoint::load::<Flex>(&data("rwkvx_tiny.pth"), &options, &Default::default());
        assert!(loaded.map(|_| ()).unwrap_err().to_string().contains("is 0"));
    }
}

#[test]
fn a_save_that_fails_leaves_the_old_file_and_no_other() {
    let model = golden_model::<Flex>("rwkv7_tiny.pth");
    let place = Place::with(b"the old file");
    let blocked = place.path.join("model.safetensors");
    let error = checkpoint::save(&model, &Metadata::default(), &blocked).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    // A folder where the file should go: everything is written, and the renaming fails.
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.safetensors");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("kept"), b"").unwrap();
    checkpoint::save(&model, &Metadata::default(), &target).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(target.join("kept").exists());
}
