//! What `sniah` and `passkey` have in common: progress, and what becomes of the answers.

use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_eval::grid::Answer;
use rwkvx_eval::report::{ModelInfo, Report, write_grid};
use rwkvx_eval::{Result, runs, table};
use serde::Serialize;

use crate::Common;

/// A benchmark that was asked, and what it leaves.
pub(crate) struct Asked<S> {
    pub(crate) benchmark: &'static str,
    pub(crate) model: ModelInfo,
    pub(crate) settings: S,
    pub(crate) answers: Vec<Answer>,
    /// When asking began.
    pub(crate) started: Instant,
    /// Tokens read.
    pub(crate) tokens: u64,
    /// Lines for people about how it was asked.
    pub(crate) remarks: Vec<String>,
}

/// A bar that counts tokens, on a terminal only.
pub(crate) fn progress(tokens: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {human_pos}/{human_len} tokens, {per_sec}, {eta} left",
    );
    ProgressBar::new(tokens).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl<S: Serialize> Asked<S> {
    /// Writes the files and prints the table, or the report as JSON.
    pub(crate) fn finish(self, common: &Common) -> Result<()> {
        let seconds = self.started.elapsed().as_secs_f64();
        let directory = match &common.out {
            Some(directory) => directory.clone(),
            None => runs::next_free(Path::new(runs::RUNS), self.benchmark),
        };
        let title = format!(
            "{}: {}, {} parameters",
            self.benchmark,
            self.model.path.display(),
            self.model.parameters
        );
        let report = Report {
            benchmark: self.benchmark.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model,
            settings: self.settings,
            result: self.answers,
            seconds,
        };
        report.write(&directory)?;
        write_grid(&report.result, &title, &directory)?;
        if common.json {
            println!("{}", report.to_json());
            return Ok(());
        }
        println!("{title}, tokenizer {}", report.model.tokenizer);
        for remark in self.remarks {
            println!("{remark}");
        }
        println!("\n{}", table::by_length(&report.result));
        println!(
            "{} tokens read in {seconds:.1} s, {:.0} per second; every cell and answer is in {}",
            self.tokens,
            self.tokens as f64 / seconds,
            directory.display()
        );
        Ok(())
    }
}
