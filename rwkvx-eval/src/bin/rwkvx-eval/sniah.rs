//! `rwkvx-eval sniah`.

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rwkvx_datasets::ruler::{TOKENS_TO_GENERATE, Task};
use rwkvx_eval::lengths::Length;
use rwkvx_eval::sniah::{self, Settings};
use rwkvx_eval::{Error, Result};
use rwkvx_kernels::KernelBackend;

use crate::Common;
use crate::grid::{finish, open_journal};
use crate::session::{ask_each, progress};

#[derive(Args)]
pub(crate) struct Sniah {
    /// Lengths in tokens, the room for the answer included, such as 1K,4K,65536
    #[arg(
        long,
        value_name = "L[,L...]",
        value_delimiter = ',',
        default_value = "1K,2K,4K"
    )]
    len: Vec<Length>,
    /// Which of the three tasks
    #[arg(long, value_enum, default_value_t = TaskChoice::All)]
    task: TaskChoice,
    /// Depths, evenly from the beginning of the text to its end
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    depths: u16,
    /// Questions per task, length and depth
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Tokens of each length that are left for the answer
    #[arg(long, value_name = "N", default_value_t = TOKENS_TO_GENERATE as u32, value_parser = clap::value_parser!(u32).range(1..))]
    answer_tokens: u32,
    /// Text file of the essays in which number and UUID hide; without it they are generated
    #[arg(long, value_name = "FILE")]
    haystack: Option<PathBuf>,
    /// The same seed asks the same questions
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskChoice {
    /// A number in repeated noise (RULER's niah_single_1)
    Passkey,
    /// A number in essays (niah_single_2)
    Number,
    /// A UUID in essays (niah_single_3)
    Uuid,
    /// All three
    All,
}

impl TaskChoice {
    fn tasks(self) -> Vec<Task> {
        match self {
            Self::Passkey => vec![Task::Passkey],
            Self::Number => vec![Task::Number],
            Self::Uuid => vec![Task::Uuid],
            Self::All => Task::ALL.to_vec(),
        }
    }
}

impl Sniah {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let essays = self.haystack.as_ref().map(|path| {
            fs::read_to_string(path).map_err(|error| Error::Option {
                option: "--haystack",
                reason: format!("{}: {error}", path.display()),
            })
        });
        let essays = essays.transpose()?;
        let settings = Settings {
            tasks: self
                .task
                .tasks()
                .iter()
                .map(|task| task.name().to_owned())
                .collect(),
            lengths: self.len.iter().map(|length| length.0).collect(),
            depths: self.depths.into(),
            samples: self.samples as usize,
            answer_tokens: self.answer_tokens as usize,
            seed: self.seed,
            haystack: self
                .haystack
                .as_ref()
                .map(|path| path.display().to_string()),
        };
        let essays_from = match &settings.haystack {
            Some(path) => format!("from {path}"),
            None => "generated".to_owned(),
        };
        let remark = format!(
            "depths: {}, questions for each: {}, seed {}; noise as RULER's, essays {essays_from}",
            settings.depths, settings.samples, settings.seed
        );
        let reported = ask_each::<B, _, _>(common, device, "sniah", |loaded, directory| {
            let mut journal = open_journal(directory, &loaded.info, &settings)?;
            let bar = progress(settings.tokens());
            let answers = sniah::run(
                &loaded.model,
                &loaded.tokenizer,
                &settings,
                essays.as_deref(),
                &mut journal,
                &bar,
            );
            bar.finish_and_clear();
            Ok((settings.clone(), answers?))
        })?;
        finish(&reported, &remark, common)
    }
}
