//! One module per subcommand.

pub(crate) mod inspect;
pub(crate) mod needles;
pub(crate) mod prepare;
pub(crate) mod tokenize;

use std::io::Write;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_datasets::sampler::magic_prime;
use serde::Serialize;

/// Contexts that a file's magic primes are shown for.
const CONTEXTS: [u64; 4] = [512, 1024, 4096, 65_536];

/// A progress bar on standard error, which shows only on a terminal.
fn progress_bar(template: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style)
}

/// What a token file holds, as every command that writes or opens one tells it.
#[derive(Serialize)]
struct Description {
    prefix: String,
    tokens: u64,
    documents: usize,
    dtype: &'static str,
    magic_primes: Vec<MagicPrime>,
}

#[derive(Serialize)]
struct MagicPrime {
    ctx: u64,
    magic_prime: u64,
}

impl Description {
    fn new(
        prefix: &std::path::Path,
        tokens: u64,
        documents: usize,
        dtype: rwkvx_datasets::binidx::Dtype,
    ) -> Self {
        let prime = |ctx| {
            let magic_prime = magic_prime(tokens, ctx).ok()?;
            Some(MagicPrime { ctx, magic_prime })
        };
        Self {
            prefix: prefix.display().to_string(),
            tokens,
            documents,
            dtype: dtype.name(),
            magic_primes: CONTEXTS.into_iter().filter_map(prime).collect(),
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            return print_json(self);
        }
        let Self {
            prefix,
            tokens,
            documents,
            dtype,
            ..
        } = self;
        let mut text = format!(
            "{prefix}.bin, {prefix}.idx: {tokens} tokens ({dtype}) in {documents} documents"
        );
        for MagicPrime { ctx, magic_prime } in &self.magic_primes {
            text.push_str(&format!("\nmagic prime {magic_prime} at ctx {ctx}"));
        }
        print(&text)
    }
}

/// Prints a line; a full disk is an error like any other.
fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string(value)?)
}
