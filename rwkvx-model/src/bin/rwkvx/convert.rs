//! `rwkvx convert`: any checkpoint as safetensors.

use std::path::PathBuf;

use burn::tensor::backend::Backend;
use clap::Args;
use rwkvx_model::checkpoint;
use serde_json::json;

use crate::model::{ModelOptions, busy};

#[derive(Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    model: ModelOptions,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Convert {
    pub(crate) fn run<B: Backend>(self, json: bool, device: &B::Device) -> anyhow::Result<()> {
        let loaded = self.model.load::<B>(device)?;
        let writing = busy(format!("writing {}", self.out.display()));
        checkpoint::save(&loaded.model, &loaded.metadata, &self.out)?;
        drop(writing);
        let parameters = loaded.model.config().parameters();
        if json {
            println!("{}", json!({ "parameters": parameters, "out": self.out }));
        } else {
            println!("{parameters} parameters written to {}", self.out.display());
        }
        Ok(())
    }
}
