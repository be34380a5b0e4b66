//! `rwkvx-eval lambada`.

use std::path::PathBuf;

use clap::Args;
use rwkvx_eval::provenance::InputFile;
use rwkvx_eval::{Result, lambada, requests};
use rwkvx_kernels::KernelBackend;
use serde::Serialize;

use crate::Common;
use crate::session::{Reported, ask_each, print_each, progress};

#[derive(Args)]
pub(crate) struct Lambada {
    /// The texts: Parquet, or lines of JSON, {"text": "..."}
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Score the first so many texts only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Write each request and its score as lines of JSON to requests.jsonl beside the report
    #[arg(long)]
    log_requests: bool,
}

/// What was asked for.
#[derive(Serialize)]
struct Settings {
    file: InputFile,
    limit: Option<u32>,
}

impl Lambada {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let limit = self.limit.map(|limit| limit as usize);
        let asked = lambada::read(self.file.clone(), limit)?;
        let file = InputFile::read(&self.file)?;
        let reported = ask_each::<B, _, _>(common, device, "lambada", |loaded, directory| {
            let bar = progress(0).with_message("lambada");
            let scores = requests::score(&loaded.model, &loaded.tokenizer, &asked, &bar);
            bar.finish_and_clear();
            let scores = scores?;
            if self.log_requests {
                requests::log(directory, &asked, &scores)?;
            }
            let settings = Settings {
                file: file.clone(),
                limit: self.limit,
            };
            Ok((settings, lambada::scores(&scores)))
        })?;
        print_each(common, &reported, |Reported { directory, report }| {
            let scores = &report.result;
            println!(
                "accuracy    {:.2}% +- {:.2}",
                100.0 * scores.accuracy.value,
                100.0 * scores.accuracy.stderr
            );
            match scores.perplexity {
                large if large >= 1e6 => println!("perplexity  {large:.2e}"),
                usual => println!("perplexity  {usual:.2}"),
            }
            println!(
                "\n{} texts in {:.1} s; the report is in {}\n",
                scores.answers.len(),
                report.seconds,
                directory.display()
            );
        });
        Ok(())
    }
}
