//! `rwkvx convert`: any checkpoint as safetensors.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::checkpoint::{self, WeightFormat};
use serde_json::json;

use crate::model::{ModelOptions, busy};

#[derive(Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    model: ModelOptions,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Number format of the matrices; vectors stay f32
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Dtype {
    /// 32 bits
    F32,
    /// 16 bits, the range of f32
    Bf16,
    /// 16 bits, more precise than bf16 up to 65504
    F16,
    /// 8 bits and a scale per 128 inputs for projections and head, off by 0.6%; bf16 for the other matrices
    Int8,
}

impl Convert {
    pub(crate) fn run<B: KernelBackend>(
        self,
        json: bool,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let loaded = self.model.load::<B>(device)?;
        let weights = match self.dtype {
            Dtype::F32 => WeightFormat::F32,
            Dtype::Bf16 => WeightFormat::Bf16,
            Dtype::F16 => WeightFormat::F16,
            Dtype::Int8 => WeightFormat::Int8,
        };
        let writing = busy(format!("writing {}", self.out.display()));
        checkpoint::save_as(&loaded.model, &loaded.metadata, weights, &self.out)?;
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
