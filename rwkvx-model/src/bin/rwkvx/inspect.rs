//! `rwkvx inspect`: what a checkpoint holds, without reading its weights.

use burn::tensor::backend::Backend;
use clap::Args;
use rwkvx_model::checkpoint;
use serde_json::json;

use crate::model::ModelOptions;

#[derive(Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    model: ModelOptions,
}

impl Inspect {
    pub(crate) fn run<B: Backend>(self, json: bool) -> anyhow::Result<()> {
        let summary = checkpoint::inspect::<B>(&self.model.model, &self.model.load_options())?;
        let config = &summary.config;
        let tokenizer = summary.metadata.tokenizer_for(config.vocab_size);
        if json {
            println!(
                "{}",
                json!({
                    "config": config,
                    "parameters": config.parameters(),
                    "tokenizer": tokenizer,
                    "notes": summary.metadata.notes,
                    "tensors": summary.tensors,
                })
            );
            return Ok(());
        }
        println!("config      {}", serde_json::to_string(config)?);
        println!("parameters  {}", config.parameters());
        println!("tokenizer   {}", tokenizer.unwrap_or("unknown"));
        for (name, note) in &summary.metadata.notes {
            println!("{name:<11} {note}");
        }
        println!("tensors     {}", summary.tensors.len());
        for tensor in &summary.tensors {
            println!(
                "  {:<40} {:<4} {:?}",
                tensor.name, tensor.dtype, tensor.shape
            );
        }
        Ok(())
    }
}
