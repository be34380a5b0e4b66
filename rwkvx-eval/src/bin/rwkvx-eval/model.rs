//! Which model is asked: found, loaded, with its tokenizer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use rwkvx_datasets::Tokenizer;
use rwkvx_eval::provenance::InputFile;
use rwkvx_eval::report::ModelInfo;
use rwkvx_eval::{Error, Result, runs};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::RwkvX;
use rwkvx_model::checkpoint::{self, LoadOptions};

#[derive(Args)]
pub(crate) struct ModelOptions {
    /// Checkpoint: .pth or .safetensors, RWKV-7 or RWKV-X [default: model.safetensors of the newest run in runs/];
    /// several, each by its own --model, are asked in turn
    #[arg(long, global = true, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Tokens per attention chunk, in place of the checkpoint's (2048 where it has none)
    #[arg(long, global = true, value_name = "TOKENS")]
    chunk_size: Option<usize>,
    /// Chunks a query attends to, its own included, in place of the checkpoint's (3 where it has none)
    #[arg(long, global = true, value_name = "CHUNKS")]
    top_k: Option<usize>,
    /// rwkv-world, byte, needles or a tokenizer.json, in place of the checkpoint's
    #[arg(long, global = true, value_name = "SPEC")]
    tokenizer: Option<String>,
}

/// A model that is ready to be asked.
pub(crate) struct Loaded<B: KernelBackend> {
    pub(crate) model: RwkvX<B>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) info: ModelInfo,
}

impl ModelOptions {
    /// The models to ask.
    pub(crate) fn paths(&self) -> Result<Vec<PathBuf>> {
        match self.model.is_empty() {
            true => Ok(vec![runs::newest_model(Path::new(runs::RUNS))?]),
            false => Ok(self.model.clone()),
        }
    }

    pub(crate) fn load<B: KernelBackend>(
        &self,
        path: &Path,
        device: &B::Device,
    ) -> Result<Loaded<B>> {
        let options = LoadOptions {
            chunk_size: self.chunk_size,
            top_k: self.top_k,
        };
        // A sign of life on a terminal.
        let busy = ProgressBar::new_spinner().with_message(format!("reading {}", path.display()));
        busy.enable_steady_tick(Duration::from_millis(100));
        let checkpoint = checkpoint::load_as_stored::<B>(path, &options, device);
        busy.finish_and_clear();
        let checkpoint = checkpoint?;
        let tokenizer = checkpoint.open_tokenizer(self.tokenizer.as_deref())?;
        let config = checkpoint.model.config().clone();
        // A model may have more rows than its tokenizer has ids, but not fewer.
        let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if ids > rows {
            return Err(Error::Option {
                option: "--tokenizer",
                reason: format!(
                    "{} has {ids} ids, the model's vocabulary {rows}; give the one it was trained with",
                    tokenizer.spec()
                ),
            });
        }
        Ok(Loaded {
            info: ModelInfo {
                file: InputFile::read(path)?,
                parameters: config.parameters(),
                config,
                tokenizer: tokenizer.spec().to_owned(),
            },
            model: checkpoint.model,
            tokenizer,
        })
    }
}
