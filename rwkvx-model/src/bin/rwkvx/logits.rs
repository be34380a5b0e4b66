//! `rwkvx logits`: the logits of every position, as a safetensors file.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{tokens, write_beside};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;

use crate::model::ModelOptions;

/// Positions computed at a time; their logits are all that is held in memory.
const PIECE: usize = 512;

#[derive(Args)]
pub(crate) struct Logits {
    #[command(flatten)]
    model: ModelOptions,
    /// Token ids: 1,2,3 or @FILE with a JSON array of them
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    ids: String,
    /// File to write: tensor `logits`, f32 [tokens, vocabulary]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Logits {
    pub(crate) fn run<B: KernelBackend>(
        self,
        json: bool,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let ids = parse_ids(&self.ids)?;
        let model = self.model.load::<B>(device)?.model;
        let vocab = model.config().vocab_size;
        let ids_tensor = tokens::ids_tensor::<B>(&[&ids], vocab, device).context("--ids")?;

        let progress = ProgressBar::new(ids.len() as u64).with_style(ProgressStyle::with_template(
            "{bar:40} {pos}/{len} tokens, {eta} left",
        )?);
        let header = header(ids.len(), vocab)?;
        write_beside(&self.out, |file| {
            file.write_all(&header)?;
            let mut state = model.state(1);
            state.reserve(ids.len());
            for piece in ids_tensor.split(PIECE, 1) {
                let length = piece.dims()[1];
                let logits = model.prefill_all(piece, &mut state).into_data();
                file.write_all(logits.convert::<f32>().as_bytes())?;
                progress.inc(length as u64);
            }
            Ok(())
        })?;
        progress.finish_and_clear();

        if json {
            println!(
                "{}",
                json!({ "tokens": ids.len(), "vocab_size": vocab, "out": self.out })
            );
        } else {
            println!(
                "logits [{}, {vocab}] written to {}",
                ids.len(),
                self.out.display()
            );
        }
        Ok(())
    }
}

/// The start of a safetensors file that holds nothing but the logits.
fn header(tokens: usize, vocab: usize) -> anyhow::Result<Vec<u8>> {
    let info = TensorInfo {
        dtype: Dtype::F32,
        shape: vec![tokens, vocab],
        data_offsets: (0, size_of::<f32>() * tokens * vocab),
    };
    let header = Metadata::new(None, vec![("logits".to_owned(), info)])?;
    let mut json = serde_json::to_vec(&header)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// Reads `1,2,3` or `@FILE`.
fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    let ids: Vec<u32> = match text.strip_prefix('@') {
        Some(file) => read_ids(Path::new(file)).with_context(|| format!("--ids @{file}"))?,
        None => text
            .split(',')
            .map(|id| id.trim().parse())
            .collect::<Result<_, _>>()
            .with_context(|| format!("--ids {text}: give numbers as in 1,2,3, or @FILE"))?,
    };
    if ids.is_empty() {
        bail!("--ids: no token ids; give at least one");
    }
    Ok(ids)
}

fn read_ids(file: &Path) -> anyhow::Result<Vec<u32>> {
    let text = std::fs::read_to_string(file)?;
    serde_json::from_str(&text).context("expected a JSON array of token ids")
}
