//! `rwkvx-eval perplexity`.

use std::path::PathBuf;

use clap::Args;
use rwkvx_eval::lengths::{Length, rising};
use rwkvx_eval::perplexity::{self, KeyTokens, Scores, Settings};
use rwkvx_eval::provenance::InputFile;
use rwkvx_eval::{Result, records};
use rwkvx_kernels::KernelBackend;

use crate::Common;
use crate::session::{Reported, ask_each, print_each, progress};

#[derive(Args)]
pub(crate) struct Perplexity {
    /// Documents: .parquet or .jsonl files with the field `text`, or text files of one each
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Lengths in tokens; a document counts for those that it has
    #[arg(
        long,
        value_name = "L[,L...]",
        value_delimiter = ',',
        default_value = "2K,4K,8K,16K,32K"
    )]
    len: Vec<Length>,
    /// Tokens at the beginning of each document that are not read
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    skip: usize,
    /// Most documents
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    documents: u32,
    /// Parts of the longest length whose loss is told
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    parts: u16,
    /// Also LongPPL: the perplexity of the tokens that need the long context; takes five times as long
    #[arg(long)]
    long_ppl: bool,
    /// Tokens of LongPPL's short context
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..), requires = "long_ppl")]
    window: u32,
    /// Tokens that share a short context
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..), requires = "long_ppl")]
    stride: u32,
}

impl Perplexity {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let documents = records::texts(&self.files)?;
        let files = self.files.iter().map(|path| InputFile::read(path));
        let settings = Settings {
            files: files.collect::<Result<_>>()?,
            lengths: rising(self.len.iter().map(|length| length.0)),
            skip: self.skip,
            documents: self.documents as usize,
            parts: self.parts.into(),
            key_tokens: self.long_ppl.then(|| KeyTokens {
                window: self.window as usize,
                stride: self.stride as usize,
                ..KeyTokens::default()
            }),
        };
        let reported = ask_each::<B, _, _>(common, device, "perplexity", |loaded, _| {
            let texts = perplexity::texts(&documents, &loaded.tokenizer, &settings)?;
            let bar = progress(perplexity::tokens(&texts, &settings)).with_message("perplexity");
            let scores = perplexity::run(&loaded.model, &texts, &settings, &bar);
            bar.finish_and_clear();
            Ok((settings.clone(), scores?))
        })?;
        print_each(common, &reported, |Reported { directory, report }| {
            print_table(&report.result);
            println!(
                "\n{:.1} s; the report, with the loss by position, is in {}\n",
                report.seconds,
                directory.display()
            );
        });
        Ok(())
    }
}

fn print_table(scores: &Scores) {
    println!(
        "{:>10}{:>12}{:>18}{:>14}",
        "tokens", "documents", "nats per token", "perplexity"
    );
    for at in &scores.lengths {
        if at.documents > 0 {
            println!(
                "{:>10}{:>12}{:>18}{:>14.3}",
                Length(at.length),
                at.documents,
                match at.documents {
                    1 => format!("{:.4}", at.loss.value),
                    _ => format!("{:.4} +- {:.4}", at.loss.value, at.loss.stderr),
                },
                at.loss.value.exp()
            );
        } else {
            println!("{:>10}{:>12}", Length(at.length), 0);
        }
    }
    match &scores.long_ppl {
        None => {}
        Some(none) if none.key_tokens == 0 => println!(
            "\nno LongPPL: none of {} tokens needs the long context",
            none.tokens
        ),
        Some(long_ppl) => println!(
            "\nLongPPL {:.3} over {} key tokens of {}",
            long_ppl.perplexity, long_ppl.key_tokens, long_ppl.tokens
        ),
    }
}
