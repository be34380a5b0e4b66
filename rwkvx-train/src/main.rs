//! `rwkvx-train`: from options to a run. Without options, the demo.

use std::fmt::Display;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::backend::{self, BackendName, Task};
use rwkvx_train::config::TrainConfig;
use rwkvx_train::data::DataConfig;
use rwkvx_train::phase::StageChoice;
use rwkvx_train::plan::{Place, Plan};
use rwkvx_train::precision::Precision;
use rwkvx_train::report::RunReport;
use rwkvx_train::run::{self, RunOptions};
use rwkvx_train::{Error, Result, presets, stop};
use serde::Serialize;

/// Where runs go that were not told where.
const RUNS: &str = "runs";

/// Trains RWKV-X: a plain RWKV-7 base, its expansion by sparse attention blocks, alignment, long contexts.
///
/// Without options it runs the demo: a model of two million parameters learns on the CPU, in minutes, to find facts and
/// needles in generated texts up to sixteen times as long as any it was trained on.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Configuration of the run, a JSON file; the presets in rwkvx-train/configs/ are examples
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["preset", "resume"])]
    config: Option<PathBuf>,

    /// Configuration that comes with the program: demo, demo-short, rwkvx-0.2b, rwkvx-3.6b or sft-0.2b [default: demo]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    preset: Option<String>,

    /// Token file to train on, without its ending (PREFIX.bin and PREFIX.idx), or conversations as JSON lines
    #[arg(long, value_name = "PREFIX|FILE.jsonl", conflicts_with = "resume")]
    data: Option<PathBuf>,

    /// Weights to start from: .pth or .safetensors, RWKV-7 or RWKV-X
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "resume")]
    model: Option<PathBuf>,

    /// Directory of the run [default: the next free runs/NAME-N; with --resume, the newest run]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Which stage to train [default: that of the configuration, mostly all]
    #[arg(long, value_enum, conflicts_with = "resume")]
    stage: Option<StageChoice>,

    /// Go on with a run from its last checkpoint
    #[arg(long)]
    resume: bool,

    /// Number type of the passes; parameters and optimiser stay f32 [default: that of the configuration]
    #[arg(long, value_enum, conflicts_with = "resume")]
    precision: Option<Precision>,

    /// Devices that share each step: GPUs, or on a CPU threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    devices: usize,

    /// Leave out steps whose loss or gradient is no number, up to ten in a row, instead of ending the run
    #[arg(long)]
    skip_bad_steps: bool,

    /// What one device could do, in 10^12 operations per second, for the metric `mfu`
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,

    /// Print what the run will need in memory and operations, and do nothing
    #[arg(long, conflicts_with = "resume")]
    plan: bool,

    /// Backend, of those this program was built with [default: the first]
    #[arg(long, value_enum)]
    backend: Option<BackendName>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Lines of text instead of the dashboard
    #[arg(long)]
    plain: bool,
}

fn main() -> ExitCode {
    match start(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stopped @ Error::Stopped { .. }) => {
            eprintln!("{stopped}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> Result<()> {
    if options.plan {
        let backend = options.backend.unwrap_or_else(BackendName::preferred);
        let place = Place {
            devices: options.devices,
            cpu: backend.is_cpu(),
        };
        let plan = Plan::of(&configured(options)?, place)?;
        print(&plan, options.json);
        return Ok(());
    }
    let (config, directory) = match options.resume {
        true => resumed(options)?,
        false => new_run(options)?,
    };
    eprintln!("run directory: {}", directory.display());
    stop::on_signals().map_err(|error| Error::Signals { error })?;
    let training = Training {
        config: &config,
        directory: &directory,
        options: RunOptions {
            devices: options.devices,
            skip_bad_steps: options.skip_bad_steps,
            peak_tflops: options.peak_tflops,
            dashboard: std::io::stdout().is_terminal() && !options.plain && !options.json,
        },
    };
    let report = backend::run(options.backend, training)??;
    print(&report, options.json);
    Ok(())
}

/// Prints for people or for machines. Nobody may be reading any more.
fn print<T: Serialize + Display>(value: &T, json: bool) {
    let text = match json {
        true => serde_json::to_string_pretty(value).unwrap_or_default(),
        false => value.to_string(),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
}

struct Training<'a> {
    config: &'a TrainConfig,
    directory: &'a Path,
    options: RunOptions,
}

impl Task for Training<'_> {
    type Output = Result<RunReport>;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<RunReport> {
        run::train::<B>(self.config, self.directory, device, self.options)
    }
}

/// The configuration that the options ask for.
fn configured(options: &Options) -> Result<TrainConfig> {
    let mut config = match &options.config {
        Some(path) => TrainConfig::read(path)?,
        None => presets::preset(options.preset.as_deref().unwrap_or("demo"))?,
    };
    if let Some(stage) = options.stage {
        config.stage = stage;
    }
    if let Some(precision) = options.precision {
        config.precision = precision;
    }
    if let Some(model) = &options.model {
        config.start_from = Some(model.clone());
    }
    if let Some(data) = &options.data {
        match &mut config.data {
            DataConfig::Tokens { prefix, .. } => *prefix = Some(data.clone()),
            DataConfig::Chat { files } => *files = vec![data.clone()],
            DataConfig::Needles(_) => {
                return Err(Error::Option {
                    option: "--data",
                    reason: format!(
                        "{} trains on generated texts; use a configuration whose `data` is `tokens`",
                        config.name
                    ),
                });
            }
        }
    }
    Ok(config)
}

/// The configuration that the options ask for, and a new directory that holds it.
fn new_run(options: &Options) -> Result<(TrainConfig, PathBuf)> {
    let config = configured(options)?;
    let directory = match &options.out {
        Some(directory) => directory.clone(),
        None => next_free(Path::new(RUNS), &config.name),
    };
    run::create(&config, &directory)?;
    Ok((config, directory))
}

fn resumed(options: &Options) -> Result<(TrainConfig, PathBuf)> {
    let directory = match &options.out {
        Some(directory) => directory.clone(),
        None => newest(Path::new(RUNS))?,
    };
    let config = directory.join(run::CONFIG);
    if !config.exists() {
        return Err(Error::Option {
            option: "--resume",
            reason: format!(
                "{} holds no run: it has no {}",
                directory.display(),
                run::CONFIG
            ),
        });
    }
    Ok((TrainConfig::read(&config)?, directory))
}

/// `parent/name-N` with the least N that is not taken.
fn next_free(parent: &Path, name: &str) -> PathBuf {
    (1..)
        .map(|number| parent.join(format!("{name}-{number}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| parent.join(name))
}

/// The run that was changed last.
fn newest(parent: &Path) -> Result<PathBuf> {
    let changed =
        |path: &Path| fs::metadata(path.join(run::CONFIG)).and_then(|file| file.modified());
    fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| Some((changed(&path).ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .ok_or_else(|| Error::Option {
            option: "--resume",
            reason: format!("there is no run in {}; pass `--out DIR`", parent.display()),
        })
}
