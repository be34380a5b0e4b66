//! What the tests share: a scripted model, a small real one, the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use burn::backend::Flex;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::Result;
use rwkvx_eval::language_model::{LanguageModel, Likelihood, ScoredText};
use rwkvx_model::checkpoint::{self, Metadata};
use rwkvx_model::{RwkvX, RwkvXConfig};

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

impl LanguageModel for Reader {
    fn greedy(
        &self,
        prompts: &[&[u32]],
        max_tokens: usize,
        enough: &dyn Fn(&[Vec<u32>]) -> bool,
        on_read: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u32>>> {
        assert!(
            prompts
                .iter()
                .all(|prompt| prompt.len() == prompts[0].len())
        );
        on_read(prompts.len() * prompts[0].len());
        let byte = Tokenizer::open("byte").unwrap();
        let answers: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| byte.encode(&self.answer(prompt)).unwrap())
            .collect();
        let mut said = vec![Vec::new(); prompts.len()];
        for at in 0..max_tokens {
            for (row, answer) in said.iter_mut().zip(&answers) {
                row.push(answer.get(at).copied().unwrap_or(0));
            }
            if enough(&said) {
                break;
            }
        }
        Ok(said)
    }

    fn score(&self, _texts: &[ScoredText]) -> Result<Vec<Likelihood>> {
        unimplemented!("no needle benchmark scores texts")
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

/// Runs the program in `place`.
pub(crate) fn program(place: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rwkvx-eval"))
        .args(arguments)
        .current_dir(place)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
pub(crate) fn succeed(place: &Path, arguments: &[&str]) -> String {
    let output = program(place, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
