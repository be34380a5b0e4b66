//! The command `rwkvx-datasets`: text to token files, needles, and a look at both.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Text to token ids to token files.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Tokenize(cli::tokenize::Arguments),
    Prepare(cli::prepare::Arguments),
    Needles(cli::needles::Arguments),
    Inspect(cli::inspect::Arguments),
}

fn main() -> ExitCode {
    // Output that is cut off, as by `| head`, ends the program without a word.
    sigpipe::reset();
    let result = match Arguments::parse().command {
        Command::Tokenize(arguments) => cli::tokenize::run(&arguments),
        Command::Prepare(arguments) => cli::prepare::run(&arguments),
        Command::Needles(arguments) => cli::needles::run(&arguments),
        Command::Inspect(arguments) => cli::inspect::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
