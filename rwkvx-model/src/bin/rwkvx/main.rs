//! `rwkvx`: look into, run and convert RWKV-7 and RWKV-X checkpoints.

mod convert;
mod generate;
mod inspect;
mod logits;
mod model;
mod score;
mod stop;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::backend::{self, BackendName, Task};
use rwkvx_model::compute_on_this_thread;

#[derive(Parser)]
#[command(
    version,
    about = "Look into, run and convert RWKV-7 and RWKV-X checkpoints"
)]
struct Cli {
    /// Where to compute; the first of those compiled in if not given
    #[arg(long, global = true, value_enum)]
    backend: Option<BackendName>,
    /// Print one JSON object for machines
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the logits of every position of a text given by its token ids
    Logits(logits::Logits),
    /// Go on from a prompt, printing text as it comes
    Generate(generate::Generate),
    /// Say how likely continuations are after their contexts
    Score(score::Score),
    /// Print the sizes, tensors and tokenizer of a checkpoint
    Inspect(inspect::Inspect),
    /// Write a checkpoint as safetensors in 32, 16 or 8 bits, under the published names
    Convert(convert::Convert),
}

/// A command and how to print what it has to say.
struct Invocation {
    command: Command,
    json: bool,
}

impl Task for Invocation {
    type Output = anyhow::Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device) -> anyhow::Result<()> {
        match self.command {
            Command::Logits(command) => command.run::<B>(self.json, device),
            Command::Generate(command) => command.run::<B>(self.json, device),
            Command::Score(command) => command.run::<B>(self.json, device),
            Command::Inspect(command) => command.run::<B>(self.json),
            Command::Convert(command) => command.run::<B>(self.json, device),
        }
    }
}

fn main() -> ExitCode {
    // Output that is cut off, as by `| head`, ends the program without a word.
    sigpipe::reset();
    let Cli {
        backend,
        json,
        command,
    } = Cli::parse();
    compute_on_this_thread();
    let done = backend::run(backend, Invocation { command, json });
    match done.map_err(anyhow::Error::from).flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
