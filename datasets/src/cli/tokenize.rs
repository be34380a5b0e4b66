//! `rwkvx-datasets tokenize`

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rwkvx_datasets::Tokenizer;
use serde::Serialize;

/// Print the token ids of a text as a JSON array; without --text and --file the text is read from standard input
#[derive(Args)]
pub(crate) struct Arguments {
    /// The text
    #[arg(long, conflicts_with = "file")]
    text: Option<String>,
    /// A UTF-8 file with the text
    #[arg(long)]
    file: Option<PathBuf>,
    /// rwkv-world, byte, needles, or the path of a tokenizer.json
    #[arg(long, default_value = "rwkv-world")]
    tokenizer: String,
    /// Print an object with the tokenizer, the number of tokens and the ids
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    tokenizer: &'a str,
    tokens: usize,
    ids: &'a [u32],
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let tokenizer = Tokenizer::open(&arguments.tokenizer)?;
    let text = match (&arguments.text, &arguments.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| path.display().to_string())?
        }
        (None, None) => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input")?;
            text
        }
    };
    let ids = tokenizer.encode(&text)?;
    if !arguments.json {
        return super::print_json(&ids);
    }
    super::print_json(&Output {
        tokenizer: tokenizer.spec(),
        tokens: ids.len(),
        ids: &ids,
    })
}
