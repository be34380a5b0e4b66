//! `rwkvx score`: how likely continuations are after their contexts.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_datasets::Tokenizer;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{ScoredText, score};
use serde::Deserialize;
use serde_json::json;

use crate::model::{ModelOptions, check_ids};

#[derive(Args)]
pub(crate) struct Score {
    #[command(flatten)]
    model: ModelOptions,
    /// Lines of JSON, {"context": "...", "continuation": "..."}; - is standard input
    #[arg(long, value_name = "FILE.jsonl")]
    requests: PathBuf,
    /// rwkv-world, byte, needles or a tokenizer.json, in place of the checkpoint's
    #[arg(long, value_name = "SPEC")]
    tokenizer: Option<String>,
    /// Text before every context, for requests that have none [default: a line break, as in RWKV's own evaluation]
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "\n",
        hide_default_value = true
    )]
    prefix: String,
}

/// A line; what else it holds is not needed.
#[derive(Deserialize)]
struct Request {
    context: String,
    continuation: String,
}

impl Score {
    pub(crate) fn run<B: KernelBackend>(
        self,
        json: bool,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let requests = self.read_requests()?;
        let loaded = self.model.load::<B>(device)?;
        let tokenizer = loaded.open_tokenizer(self.tokenizer.as_deref())?;
        let texts = self.encode(&requests, &tokenizer, loaded.model.config().vocab_size)?;

        let tokens: usize = texts.iter().map(|text| text.ids.len() - 1).sum();
        let progress = ProgressBar::new(tokens as u64).with_style(ProgressStyle::with_template(
            "{wide_bar} {human_pos}/{human_len} tokens, {per_sec}, {eta} left",
        )?);
        let scores = score(&loaded.model, &texts, |read| progress.inc(read as u64));
        progress.finish_and_clear();
        let scores = scores.with_context(|| format!("--model {}", self.model.model.display()))?;

        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for (((_, request), text), score) in requests.iter().zip(&texts).zip(scores) {
            let sum = score.log_probability();
            if json {
                let line = json!({
                    "log_probability": sum,
                    "greedy": score.greedy,
                    "tokens": text.continuation(),
                    "log_probabilities": score.log_probabilities,
                });
                writeln!(out, "{line}")
            } else {
                let greedy = if score.greedy { "greedy" } else { "" };
                writeln!(out, "{sum:>12.4}  {greedy:<6}  {:?}", request.continuation)
            }
            .context("standard output")?;
        }
        out.flush().context("standard output")
    }

    /// The requests and the lines they stand on.
    fn read_requests(&self) -> anyhow::Result<Vec<(usize, Request)>> {
        let name = self.requests.display();
        let from: Box<dyn BufRead> = if self.requests.as_os_str() == "-" {
            Box::new(std::io::stdin().lock())
        } else {
            let file = std::fs::File::open(&self.requests);
            Box::new(BufReader::new(
                file.with_context(|| format!("--requests {name}"))?,
            ))
        };
        let mut requests = Vec::new();
        for (line, number) in from.lines().zip(1..) {
            let at = || format!("--requests {name}, line {number}");
            let line = line.with_context(at)?;
            if !line.trim().is_empty() {
                let request = serde_json::from_str(&line).with_context(|| {
                    format!(
                        "{}: not a request like {{\"context\": \"...\", \"continuation\": \"...\"}}",
                        at()
                    )
                })?;
                requests.push((number, request));
            }
        }
        if requests.is_empty() {
            bail!("--requests {name}: holds no requests");
        }
        Ok(requests)
    }

    fn encode(
        &self,
        requests: &[(usize, Request)],
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> anyhow::Result<Vec<ScoredText>> {
        let prefix = tokenizer.encode(&self.prefix).context("--prefix")?;
        let encode = |(number, request): &(usize, Request)| {
            let at = || format!("--requests {}, line {number}", self.requests.display());
            let text = ScoredText::new(tokenizer, &prefix, &request.context, &request.continuation)
                .with_context(at)?;
            if text.context == 0 {
                bail!("{}: the context is empty, and so is --prefix", at());
            }
            if text.continuation().is_empty() {
                bail!("{}: the continuation has no token of its own", at());
            }
            check_ids(&text.ids, tokenizer, vocab_size).with_context(at)?;
            Ok(text)
        };
        requests.iter().map(encode).collect()
    }
}
