//! `rwkvx-eval report`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use rwkvx_eval::{Error, Result, page, runs};
use rwkvx_model::write_beside;
use serde_json::json;

#[derive(Args)]
pub(crate) struct Report {
    /// Reports, or folders that are searched for report.json and for runs of rwkvx-train
    #[arg(value_name = "PATH", default_value = runs::RUNS)]
    paths: Vec<PathBuf>,
    /// Heading of the page
    #[arg(long, value_name = "TEXT", default_value = "RWKV-X evaluation")]
    title: String,
}

/// Where the page goes if nothing else is said.
const PAGE: &str = "report.html";

impl Report {
    /// `out` is the page, or a folder for it.
    pub(crate) fn run(&self, out: Option<&Path>, as_json: bool) -> Result<()> {
        let sources = page::find(&self.paths)?;
        let html = page::render(&sources, &self.title)?;
        let out = match out {
            Some(folder) if folder.is_dir() => folder.join(PAGE),
            Some(file) => file.to_path_buf(),
            None => PathBuf::from(PAGE),
        };
        if let Some(folder) = out.parent() {
            fs::create_dir_all(folder).map_err(|error| Error::Io {
                path: folder.to_path_buf(),
                error,
            })?;
        }
        write_beside(&out, |file| file.write_all(html.as_bytes())).map_err(Error::from)?;
        let (reports, trainings) = (sources.reports.len(), sources.trainings.len());
        if as_json {
            println!(
                "{}",
                json!({ "page": out, "reports": reports, "training_runs": trainings })
            );
        } else {
            println!(
                "reports: {reports}, training runs: {trainings}; the page is {}",
                out.display()
            );
        }
        Ok(())
    }
}
