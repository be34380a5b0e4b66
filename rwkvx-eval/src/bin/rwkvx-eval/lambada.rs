//! `rwkvx-eval lambada`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_eval::report::Report;
use rwkvx_eval::{Result, lambada, runs};
use rwkvx_kernels::KernelBackend;
use serde::Serialize;

use crate::Common;

#[derive(Args)]
pub(crate) struct Lambada {
    /// The texts: lines of JSON, {"text": "..."}
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Score the first so many texts only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

/// What was asked for.
#[derive(Serialize)]
struct Settings {
    file: PathBuf,
    limit: Option<u32>,
}

impl Lambada {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let loaded = common.model.load::<B>(device)?;
        let limit = self.limit.map(|limit| limit as usize);
        let texts = lambada::read(&self.file, &loaded.tokenizer, limit)?;
        let style =
            ProgressStyle::with_template("lambada {wide_bar} {pos}/{len} texts, {eta} left");
        let bar = ProgressBar::new(texts.len() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let started = Instant::now();
        let scores = lambada::run(&loaded.model, texts, &bar);
        bar.finish_and_clear();
        let report = Report {
            benchmark: "lambada".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: loaded.info,
            settings: Settings {
                file: self.file.clone(),
                limit: self.limit,
            },
            result: scores?,
            seconds: started.elapsed().as_secs_f64(),
        };
        let directory = match &common.out {
            Some(directory) => directory.clone(),
            None => runs::next_free(Path::new(runs::RUNS), "lambada"),
        };
        report.write(&directory)?;
        if common.json {
            println!("{}", report.to_json());
            return Ok(());
        }
        let scores = &report.result;
        println!(
            "lambada: {}, {} parameters, tokenizer {}\n",
            report.model.path.display(),
            report.model.parameters,
            report.model.tokenizer
        );
        println!(
            "accuracy    {:.2}% +- {:.2}",
            100.0 * scores.accuracy,
            100.0 * scores.accuracy_stderr
        );
        match scores.perplexity {
            large if large >= 1e6 => println!("perplexity  {large:.2e}"),
            usual => println!("perplexity  {usual:.2}"),
        }
        println!(
            "\n{} texts in {:.1} s; the report is in {}",
            scores.texts,
            report.seconds,
            directory.display()
        );
        Ok(())
    }
}
