//! What the tests share: a scripted model, a small real one, the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use burn::backend::Flex;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::Result;
use rwkvx_eval::language_model::{Scorer, Speaker};
use rwkvx_model::checkpoint::{self, Metadata};
use rwkvx_model::{RwkvX, RwkvXConfig, Score, ScoredText};

pub(crate) type B = Flex;

/// A reader of needle prompts in bytes that answers from what lies within its reach.
pub(crate) struct Reader {
    /// Tokens at the end of the prompt that it sees.
    pub(crate) reach: usize,
    /// What it says before the answer.
    pub(crate) preamble: &'static str,
}

impl Reader {
    fn answer(&self, prompt: &[u32]) -> String {
        let byte = Tokenizer::open("byte").unwrap();
        let seen = byte.decode_lossy(&prompt[prompt.len().saturating_sub(self.reach)..]);
        let needle = ["s is: ", "The pass key is "]
            .into_iter()
            .find_map(|before| {
                // RULER's needle has a key between "for" and "is"; the question repeats the key without a value.
                let at = match before {
                    "s is: " => seen.find(" is: ")? + " is: ".len(),
                    _ => seen.find(before)? + before.len(),
                };
                seen[at..].split(['.', '\n']).next()
            });
        format!("{} {}", self.preamble, needle.unwrap_or("nothing"))
    }
}

impl Speaker for Reader {
    fn greedy(
        &self,
        prompts: &[&[u32]],
        max_tokens: usize,
        enough: &dyn Fn(usize, &[u32]) -> bool,
        on_read: &mut dyn FnMut(usize),
        on_said: &mut dyn FnMut(usize, Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let byte = Tokenizer::open("byte").unwrap();
        for (index, prompt) in prompts.iter().enumerate().rev() {
            on_read(prompt.len());
            let answer = byte.encode(&self.answer(prompt)).unwrap();
            let mut said = Vec::new();
            while said.len() < max_tokens && !enough(index, &said) {
                said.push(answer.get(said.len()).copied().unwrap_or(0));
            }
            on_said(index, said)?;
        }
        Ok(())
    }
}

/// A reader of scored texts that has been told their scores.
pub(crate) struct Told(pub(crate) Vec<Score>);

impl Scorer for Told {
    fn score(&self, texts: &[ScoredText], on_read: &mut dyn FnMut(usize)) -> Result<Vec<Score>> {
        assert_eq!(texts.len(), self.0.len());
        on_read(texts.iter().map(|text| text.ids.len() - 1).sum());
        Ok(self.0.clone())
    }
}

/// A small hybrid over bytes with random weights.
pub(crate) fn small_model() -> RwkvX<B> {
    use burn::tensor::backend::Backend;
    let config = RwkvXConfig {
        head_size: 16,
        n_sparse: 1,
        chunk_size: 32,
        top_k: 2,
        ..RwkvXConfig::rwkv7(257, 32, 2)
    };
    // Random numbers are the process's, and tests run side by side.
    static DRAWING: Mutex<()> = Mutex::new(());
    let _alone = DRAWING.lock().unwrap();
    B::seed(&Default::default(), 3);
    config.init(&Default::default())
}

/// Saves the small model as the result of a run called `name`.
pub(crate) fn save_run(place: &Path, name: &str) -> PathBuf {
    let path = place.join("runs").join(name).join("model.safetensors");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let metadata = Metadata {
        tokenizer: Some("byte".to_owned()),
        ..Metadata::default()
    };
    checkpoint::save(&small_model(), &metadata, &path).unwrap();
    path
}

/// Path of a file of the small benchmarks.
pub(crate) fn benchmark(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/benchmarks")
        .join(name)
}

/// The program in `place`, which reaches nothing outside of this machine.
pub(crate) fn command(place: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkvx-eval"));
    command
        .args(arguments)
        .current_dir(place)
        .stdin(Stdio::null())
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("NO_PROXY", "127.0.0.1");
    command
}

/// Runs the program in `place`.
pub(crate) fn program(place: &Path, arguments: &[&str]) -> Output {
    command(place, arguments).output().unwrap()
}

#[track_caller]
pub(crate) fn succeed(place: &Path, arguments: &[&str]) -> String {
    let output = program(place, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
