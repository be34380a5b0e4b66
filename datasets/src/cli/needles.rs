//! `rwkvx-datasets needles`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use rayon::prelude::*;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::binidx::{Dtype, TokenFileWriter};
use rwkvx_datasets::needles::{CountRange, Kind, KindWeights, Needle, NeedleConfig, NeedleStream};

use super::{Description, progress_bar};

/// Documents generated at a time, in parallel.
const BATCH: u64 = 256;

/// Generate retrieval documents, facts in filler and questions about them, into a token file
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where the token file goes, without extension
    #[arg(long, value_name = "PREFIX")]
    out: PathBuf,
    /// Number of documents
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    documents: u64,
    /// Length of each document in tokens, its end included
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 28))]
    tokens: u32,
    /// Kinds of documents, separated by commas; all by default, as training mixes them
    #[arg(long, value_delimiter = ',')]
    kind: Vec<Kind>,
    /// Another seed is other documents
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// byte, needles, rwkv-world, or the path of a tokenizer.json
    #[arg(long, default_value = "byte")]
    tokenizer: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let tokenizer = Tokenizer::open(&arguments.tokenizer)?;
    let tokens = arguments.tokens as usize;
    let mut config = NeedleConfig {
        ctx: tokens - 1,
        document_tokens: CountRange {
            min: tokens,
            max: tokens,
        },
        ..NeedleConfig::default()
    };
    if !arguments.kind.is_empty() {
        config.mix = KindWeights::only(&arguments.kind);
    }
    let stream = NeedleStream::new(&config, &tokenizer, arguments.seed)?;
    let dtype = Dtype::for_vocabulary(tokenizer.vocab_size());
    let mut writer = TokenFileWriter::create(&arguments.out, dtype)?;
    let progress = progress_bar("{bar:40} {pos}/{len} documents {eta}");
    progress.set_length(arguments.documents);
    for first in (0..arguments.documents).step_by(BATCH as usize) {
        let batch = first..arguments.documents.min(first + BATCH);
        let samples: Vec<Needle> = batch
            .into_par_iter()
            .map(|index| stream.sample(index))
            .collect::<rwkvx_datasets::Result<_>>()?;
        for sample in &samples {
            if sample.answers.is_empty() {
                bail!(
                    "--tokens {tokens} leaves no room for a question; use more tokens, or --kind facts"
                );
            }
            writer.push(&sample.ids)?;
        }
        progress.inc(samples.len() as u64);
    }
    let description = Description::new(&arguments.out, writer.tokens(), writer.documents(), dtype);
    writer.finish()?;
    progress.finish_and_clear();
    description.print(arguments.json)
}
