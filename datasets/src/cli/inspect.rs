//! `rwkvx-datasets inspect`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::binidx::TokenFile;

use super::{Description, print, print_json};

/// Say what a token file holds, or show one of its documents
#[derive(Args)]
pub(crate) struct Arguments {
    /// The token file, without extension
    prefix: PathBuf,
    /// Show the text of this document, from 0
    #[arg(long, value_name = "NUMBER")]
    document: Option<usize>,
    /// What decodes the document: rwkv-world, byte, needles, or the path of a tokenizer.json
    #[arg(long, default_value = "rwkv-world")]
    tokenizer: String,
    /// Print JSON: an object, or the text of the document as a string
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let file = TokenFile::open(&arguments.prefix)?;
    let Some(document) = arguments.document else {
        return Description::new(
            &arguments.prefix,
            file.len(),
            file.documents(),
            file.dtype(),
        )
        .print(arguments.json);
    };
    let tokenizer = Tokenizer::open(&arguments.tokenizer)?;
    let tokens = file.document(document).with_context(|| {
        let last = file.documents().saturating_sub(1);
        format!("--document {document}: the last document is {last}")
    })?;
    let mut ids = vec![0; (tokens.end - tokens.start) as usize];
    file.read(tokens.start, &mut ids)?;
    let text = tokenizer.decode_lossy(&ids);
    if arguments.json {
        print_json(&text)
    } else {
        print(&text)
    }
}
