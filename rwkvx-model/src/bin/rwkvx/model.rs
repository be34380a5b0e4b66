//! Options every command shares: which model, and how its attention is cut.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::checkpoint::{self, Checkpoint, LoadOptions};

#[derive(Args)]
pub(crate) struct ModelOptions {
    /// Checkpoint: .pth or .safetensors, RWKV-7 or RWKV-X
    #[arg(long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Tokens per attention chunk, in place of the checkpoint's (2048 where it has none)
    #[arg(long, value_name = "TOKENS")]
    pub(crate) chunk_size: Option<usize>,
    /// Chunks a query attends to, its own included, in place of the checkpoint's (3 where it has none)
    #[arg(long, value_name = "CHUNKS")]
    pub(crate) top_k: Option<usize>,
}

impl ModelOptions {
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            chunk_size: self.chunk_size,
            top_k: self.top_k,
        }
    }

    pub(crate) fn load<B: KernelBackend>(
        &self,
        device: &B::Device,
    ) -> anyhow::Result<Checkpoint<B>> {
        let _busy = busy(format!("reading {}", self.model.display()));
        Ok(checkpoint::load_as_stored(
            &self.model,
            &self.load_options(),
            device,
        )?)
    }
}

/// Checks that a model has a row for every id that a tokenizer made.
pub(crate) fn check_ids(
    ids: &[u32],
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> anyhow::Result<()> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        bail!(
            "tokenizer {} makes token id {id}, the model's vocabulary has {vocab_size}; give the tokenizer it was trained \
             with by --tokenizer",
            tokenizer.spec()
        );
    }
    Ok(())
}

/// A sign of life on a terminal for work of unknown length, until it is dropped.
pub(crate) fn busy(doing: String) -> impl Drop {
    struct Busy(ProgressBar);
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.finish_and_clear();
        }
    }
    let spinner = ProgressBar::new_spinner().with_message(doing);
    spinner.enable_steady_tick(Duration::from_millis(100));
    Busy(spinner)
}
