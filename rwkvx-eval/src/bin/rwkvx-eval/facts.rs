//! `rwkvx-eval facts`.

use clap::{Args, ValueEnum};
use rwkvx_datasets::needles::ValueWeights;
use rwkvx_eval::Result;
use rwkvx_eval::facts::{self, Settings};
use rwkvx_eval::lengths::Length;
use rwkvx_kernels::KernelBackend;

use crate::Common;
use crate::grid::finish;
use crate::session::{ask_each, progress};

#[derive(Args)]
pub(crate) struct Facts {
    /// Facts of a text, such as 4,16,64,256; a number that does not fit a length is left out there
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_value = "4,16,64", value_parser = clap::value_parser!(u32).range(1..))]
    facts: Vec<u32>,
    /// Lengths in tokens, questions and answers included
    #[arg(
        long,
        value_name = "L[,L...]",
        value_delimiter = ',',
        default_value = "2K,4K"
    )]
    len: Vec<Length>,
    /// Texts for each number of facts and length
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    texts: u32,
    /// Questions at the end of a text, fewer where it has fewer facts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    questions: u32,
    /// What is told under each key
    #[arg(long, value_enum, default_value_t = Value::Number)]
    value: Value,
    /// The same seed asks the same questions
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Value {
    /// Numbers of 4 to 7 digits
    Number,
    /// UUIDs
    Uuid,
}

impl Facts {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let settings = Settings {
            facts: self.facts.iter().map(|&facts| facts as usize).collect(),
            lengths: self.len.iter().map(|length| length.0).collect(),
            texts: self.texts as usize,
            questions: self.questions as usize,
            values: match self.value {
                Value::Number => ValueWeights::NUMBERS,
                Value::Uuid => ValueWeights::UUIDS,
            },
            seed: self.seed,
        };
        let remark = format!(
            "{} texts, {} questions each, seed {}; right if every token of the answer is the likeliest",
            settings.texts, settings.questions, settings.seed
        );
        let reported = ask_each::<B, _, _>(common, device, "facts", |loaded, _| {
            let bar = progress(settings.tokens());
            let answers = facts::run(&loaded.model, &loaded.tokenizer, &settings, &bar);
            bar.finish_and_clear();
            Ok((settings.clone(), answers?))
        })?;
        finish(&reported, &remark, common)
    }
}
