//! `rwkvx-eval latency`.

use clap::Args;
use rwkvx_eval::Result;
use rwkvx_eval::latency::{self, Point, Settings};
use rwkvx_eval::lengths::{Length, rising};
use rwkvx_kernels::KernelBackend;
use serde::Serialize;

use crate::Common;
use crate::session::{Reported, ask_each, print_each, progress};

#[derive(Args)]
pub(crate) struct Latency {
    /// Tokens of text at which to measure, such as 1K,64K,1M
    #[arg(
        long = "len",
        value_name = "LENGTHS",
        value_delimiter = ',',
        default_value = "1K,4K,16K"
    )]
    lengths: Vec<Length>,
    /// Tokens made at each length
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Texts at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Keep at most so many tokens per sparse block (20000 if no number is given), those that are attended to least let go; without it all are kept
    #[arg(long, value_name = "TOKENS", num_args = 0..=1, default_missing_value = "20000")]
    cache_budget: Option<usize>,
}

/// What was measured.
#[derive(Serialize)]
struct Measured {
    /// Bytes per second at which a matrix is read.
    bandwidth: f64,
    points: Vec<Point>,
}

impl Latency {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let settings = Settings {
            lengths: rising(self.lengths.iter().map(|length| length.0)),
            tokens: self.tokens as usize,
            batch: self.batch as usize,
            cache_budget: self.cache_budget,
        };
        let reported = ask_each::<B, _, _>(common, device, "latency", |loaded, _| {
            let model = &loaded.model;
            let mut models = vec![("rwkv7", model.without_sparse_blocks())];
            if model.config().n_sparse > 0 {
                models.push(("rwkvx", model.clone()));
            }
            let longest = settings.lengths.last().copied().unwrap_or_default();
            let all = models.len() * settings.batch * (longest + settings.tokens);
            let bar = progress(all as u64).with_message("latency");
            let bandwidth = latency::bandwidth::<B>(device);
            let mut points = Vec::new();
            for (name, model) in &models {
                points.extend(latency::run(name, model, &settings, bandwidth, |tokens| {
                    bar.inc(tokens as u64)
                })?);
            }
            bar.finish_and_clear();
            Ok((settings.clone(), Measured { bandwidth, points }))
        })?;
        print_each(common, &reported, |Reported { directory, report }| {
            print!("{}", latency::table(&report.result.points));
            println!(
                "\nfloor: the bytes a step must read, at {:.1} GB/s as a large matrix is read here; share: of the time\n\
                 texts at once: {}; {:.1} s; the report is in {}\n",
                report.result.bandwidth / 1e9,
                report.settings.batch,
                report.seconds,
                directory.display()
            );
        });
        Ok(())
    }
}
