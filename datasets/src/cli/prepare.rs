//! `rwkvx-datasets prepare`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::prepare::{Format, PrepareOptions, prepare};

use super::{Description, progress_bar};

/// Tokenize documents into a token file (PREFIX.bin and PREFIX.idx)
///
/// Token 0 ends each document. Shuffled documents have a new order in every epoch. Every document is decoded again and
/// compared with its text.
///
/// The disk must have room for one epoch more: documents are tokenized into PREFIX.part.* first. A run that is
/// interrupted leaves these files, and the same command goes on from there.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What the inputs hold
    format: Format,
    /// Input files; for minipile also folders of *.parquet files, for prolong folders with an index.json
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Where the token file goes, without extension
    #[arg(long, value_name = "PREFIX")]
    out: PathBuf,
    /// rwkv-world, byte, needles, or the path of a tokenizer.json
    #[arg(long, default_value = "rwkv-world")]
    tokenizer: String,
    /// Column with the documents [default: text for minipile, input_ids for prolong]
    #[arg(long)]
    column: Option<String>,
    /// The tokenizer.json that made the token ids of prolong data (Llama 3)
    #[arg(long, value_name = "FILE")]
    source_tokenizer: Option<PathBuf>,
    /// Cut the written tokens into sequences of N, across documents; the last one is shorter
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pack: Option<u32>,
    /// How often every document is written
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Decides the order of shuffled documents
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Shuffle the documents (the default)
    #[arg(long, overrides_with = "no_shuffle")]
    shuffle: bool,
    /// Keep the order of the input
    #[arg(long)]
    no_shuffle: bool,
    /// Threads that tokenize; all cores by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Discard what an interrupted run left instead of going on from it
    #[arg(long)]
    restart: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let tokenizer = Tokenizer::open(&arguments.tokenizer)?;
    let options = PrepareOptions {
        epochs: arguments.epochs,
        shuffle: !arguments.no_shuffle,
        seed: arguments.seed,
        pack: arguments.pack,
        column: arguments.column.clone(),
        source_tokenizer: arguments.source_tokenizer.clone(),
        restart: arguments.restart,
    };
    let progress = progress_bar("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let threads = arguments.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .context("--threads")?;
    let prepared = pool.install(|| {
        let (format, inputs) = (arguments.format, &arguments.inputs);
        prepare(
            format,
            inputs,
            &arguments.out,
            &tokenizer,
            &options,
            &progress,
        )
    })?;
    Description::new(
        &arguments.out,
        prepared.tokens,
        prepared.documents,
        prepared.dtype,
    )
    .print(arguments.json)
}
