//! What `sniah`, `facts` and `passkey` have in common: what becomes of the answers.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use rwkvx_eval::grid::Answer;
use rwkvx_eval::journal::Journal;
use rwkvx_eval::report::{ModelInfo, write_grid};
use rwkvx_eval::{Result, runs, table};
use serde::Serialize;
use serde_json::json;

use crate::Common;
use crate::session::{Reported, headline, print_json};

/// The journal of a model's answers in its folder; tells on a terminal where it is.
pub(crate) fn open_journal(
    directory: &Path,
    model: &ModelInfo,
    settings: &impl Serialize,
) -> Result<Journal> {
    let journal = Journal::open(directory, &json!({ "model": model, "settings": settings }))?;
    let folder = directory.display();
    if !journal.is_empty() {
        eprintln!("{} answers are in {folder} already", journal.len());
    } else if std::io::stderr().is_terminal() {
        eprintln!("if this is interrupted, the same command with --out {folder} goes on");
    }
    Ok(journal)
}

/// Draws the grids and prints the tables, or the reports as JSON.
pub(crate) fn finish<S: Serialize>(
    reported: &[Reported<S, Vec<Answer>>],
    remark: &str,
    common: &Common,
) -> Result<()> {
    for Reported { directory, report } in reported {
        write_grid(&report.result, &headline(report), directory)?;
        Journal::remove(directory)?;
    }
    if common.json {
        print_json(reported);
        return Ok(());
    }
    let paths: Vec<PathBuf> = reported
        .iter()
        .map(|it| it.report.model.file.path.clone())
        .collect();
    let answers = reported.iter().map(|it| it.report.result.as_slice());
    let models: Vec<(String, &[Answer])> = runs::names(&paths).into_iter().zip(answers).collect();
    for Reported { directory, report } in reported {
        println!("{}", headline(report));
        let folder = directory.display();
        println!(
            "{:.1} s; every cell and answer is in {folder}",
            report.seconds
        );
    }
    println!("{remark}\n\n{}", table::by_length(&models));
    Ok(())
}
