//! Where prompts come from.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;

#[derive(Args)]
#[group(required = true, multiple = true, args = ["prompt", "prompt_file", "prompts", "chat", "state_in"])]
pub(super) struct PromptOptions {
    /// Text to go on from
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) prompt: Option<String>,
    /// File with the text to go on from (-: standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// File of several texts, a JSON string or {"prompt": "..."} per line (-: standard input); those of equal length in tokens are made together
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "chat", "state_in", "state_out"])]
    prompts: Option<PathBuf>,
}

/// A line of `--prompts`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text(String),
    Object { prompt: String },
}

impl PromptOptions {
    /// The texts to go on from, and the option they came by.
    pub(super) fn texts(&self) -> anyhow::Result<(Vec<String>, &'static str)> {
        if let Some(prompt) = &self.prompt {
            return Ok((vec![prompt.clone()], "--prompt"));
        }
        if let Some(file) = &self.prompt_file {
            return Ok((vec![read(file)?], "--prompt-file"));
        }
        let Some(file) = &self.prompts else {
            return Ok((Vec::new(), "--prompt"));
        };
        let mut texts = Vec::new();
        for (number, line) in read(file)?.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let line = serde_json::from_str(line).ok().with_context(|| {
                format!(
                    "--prompts {}, line {}: expected a JSON string or {{\"prompt\": \"...\"}}",
                    file.display(),
                    number + 1
                )
            })?;
            texts.push(match line {
                Line::Text(prompt) | Line::Object { prompt } => prompt,
            });
        }
        if texts.is_empty() {
            bail!("--prompts {}: no prompts in it", file.display());
        }
        Ok((texts, "--prompts"))
    }
}

/// A file or standard input, as text.
fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    };
    let name = match file == Path::new("-") {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    read.context(name)?;
    Ok(text)
}
