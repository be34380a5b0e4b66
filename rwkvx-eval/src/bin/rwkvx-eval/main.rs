//! `rwkvx-eval`: benchmarks of RWKV-7 and RWKV-X checkpoints.

mod choice;
mod compare;
mod facts;
mod grid;
mod lambada;
mod latency;
mod model;
mod passkey;
mod perplexity;
mod report;
mod session;
mod sniah;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rwkvx_eval::Result;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::backend::{self, BackendName, Task};
use rwkvx_model::compute_on_this_thread;

/// Benchmarks of RWKV-7 and RWKV-X models
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    model: model::ModelOptions,
    /// Where to compute; the first of those compiled in if not given
    #[arg(long, global = true, value_enum)]
    backend: Option<BackendName>,
    /// Print the report as one JSON object for machines
    #[arg(long, global = true)]
    json: bool,
    /// Directory for report.json and what else a command writes, of several models with a folder for each [default: the
    /// next free runs/COMMAND-N]
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<std::path::PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Benchmark(Benchmark),
    /// Two reports of a benchmark, question by question, with confidence intervals
    Compare(compare::Compare),
    /// All reports as one HTML page, beside the paper's own numbers; --out is its file [default: report.html]
    Report(report::Report),
}

/// What runs a model, and so needs a device.
#[derive(Subcommand)]
enum Benchmark {
    /// RULER's single needles (S-NIAH): passkey, number and UUID at a grid of lengths and depths
    Sniah(sniah::Sniah),
    /// Many facts in one text, of which some are asked: accuracy by their number and by the length of the text
    Facts(facts::Facts),
    /// The passkey test of the RWKV-X repository, by its own protocol
    Passkey(passkey::Passkey),
    /// Multiple choice, as in lm-evaluation-harness: HellaSwag, PIQA, ARC, WinoGrande, SciQ, MMLU
    Choice(choice::Choice),
    /// LAMBADA: the last word of a passage; accuracy and perplexity
    Lambada(lambada::Lambada),
    /// Loss on long texts by length and position, and LongPPL
    Perplexity(perplexity::Perplexity),
    /// Speed and memory of reading and going on at some lengths, beside the same model without its sparse blocks
    Latency(latency::Latency),
}

/// A benchmark, to be run on a device.
struct OnDevice {
    benchmark: Benchmark,
    common: Common,
}

impl Task for OnDevice {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<()> {
        let common = self.common;
        match self.benchmark {
            Benchmark::Sniah(command) => command.run::<B>(&common, device),
            Benchmark::Facts(command) => command.run::<B>(&common, device),
            Benchmark::Passkey(command) => command.run::<B>(&common, device),
            Benchmark::Choice(command) => command.run::<B>(&common, device),
            Benchmark::Lambada(command) => command.run::<B>(&common, device),
            Benchmark::Perplexity(command) => command.run::<B>(&common, device),
            Benchmark::Latency(command) => command.run::<B>(&common, device),
        }
    }
}

fn run(Cli { common, command }: Cli) -> Result<()> {
    match command {
        Command::Benchmark(benchmark) => {
            backend::run(common.backend, OnDevice { benchmark, common })?
        }
        Command::Compare(command) => command.run(common.json),
        Command::Report(command) => command.run(common.out.as_deref(), common.json),
    }
}

fn main() -> ExitCode {
    // Output that is cut off, as by `| head`, ends the program without a word.
    sigpipe::reset();
    let cli = Cli::parse();
    compute_on_this_thread();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
