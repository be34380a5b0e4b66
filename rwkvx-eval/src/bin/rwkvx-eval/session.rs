//! What the commands have in common: each model in turn is loaded and asked, and leaves its report.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_eval::provenance::Program;
use rwkvx_eval::report::{self, Report};
use rwkvx_eval::{Error, Result, runs};
use rwkvx_kernels::KernelBackend;
use serde::Serialize;

use crate::Common;
use crate::model::Loaded;

/// The report of a model, and the folder it lies in.
pub(crate) struct Reported<S, R> {
    pub(crate) directory: PathBuf,
    pub(crate) report: Report<S, R>,
}

/// Asks every model that was given and writes the reports; `ask` gets the model and its folder, which may not be there yet.
pub(crate) fn ask_each<B: KernelBackend, S: Serialize, R: Serialize>(
    common: &Common,
    device: &B::Device,
    benchmark: &str,
    mut ask: impl FnMut(&Loaded<B>, &Path) -> Result<(S, R)>,
) -> Result<Vec<Reported<S, R>>> {
    let models = common.model.paths()?;
    let directory = match &common.out {
        Some(directory) => directory.clone(),
        None => runs::next_free(Path::new(runs::RUNS), benchmark),
    };
    let directories = match models.len() {
        1 => vec![directory],
        _ => runs::names(&models)
            .into_iter()
            .map(|name| directory.join(name))
            .collect(),
    };
    // Some may be there from a session that was interrupted.
    if directories
        .iter()
        .all(|directory| directory.join(report::FILE).exists())
    {
        return Err(Error::Option {
            option: "--out",
            reason: format!(
                "{} is there, and would be lost; remove it or choose another folder",
                directories[0].join(report::FILE).display()
            ),
        });
    }
    let mut reported = Vec::new();
    for (model, directory) in models.iter().zip(directories) {
        let loaded = common.model.load::<B>(model, device)?;
        let started = Instant::now();
        let (settings, result) = ask(&loaded, &directory)?;
        let report = Report {
            benchmark: benchmark.to_owned(),
            program: Program::here(B::name(device)),
            model: loaded.info,
            settings,
            result,
            seconds: started.elapsed().as_secs_f64(),
        };
        report.write(&directory)?;
        reported.push(Reported { directory, report });
    }
    Ok(reported)
}

/// Prints the reports: as JSON, or of each its headline and what `print` prints.
pub(crate) fn print_each<S: Serialize, R: Serialize>(
    common: &Common,
    reported: &[Reported<S, R>],
    print: impl Fn(&Reported<S, R>),
) {
    if common.json {
        return print_json(reported);
    }
    for reported in reported {
        println!("{}\n", headline(&reported.report));
        print(reported);
    }
}

/// Prints reports as JSON, one object or an array of several.
pub(crate) fn print_json<S: Serialize, R: Serialize>(reported: &[Reported<S, R>]) {
    let json: Vec<String> = reported.iter().map(|it| it.report.to_json()).collect();
    match json.as_slice() {
        [one] => println!("{one}"),
        several => println!("[{}]", several.join(",\n")),
    }
}

/// A bar that counts tokens, on a terminal only.
pub(crate) fn progress(tokens: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {human_pos}/{human_len} tokens, {per_sec}, {eta} left",
    );
    ProgressBar::new(tokens).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A line that says which model was asked.
pub(crate) fn headline<S, R>(report: &Report<S, R>) -> String {
    format!(
        "{}: {}, {} parameters, tokenizer {}",
        report.benchmark,
        report.model.file.path.display(),
        report.model.parameters,
        report.model.tokenizer
    )
}
