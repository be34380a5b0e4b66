//! `rwkvx-eval latency`.

use std::path::Path;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rwkvx_eval::latency::{self, Point, Settings};
use rwkvx_eval::lengths::Length;
use rwkvx_eval::report::Report;
use rwkvx_eval::{Result, runs};
use rwkvx_kernels::KernelBackend;
use serde::Serialize;

use crate::Common;

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
        let loaded = common.model.load::<B>(device)?;
        let mut lengths: Vec<usize> = self.lengths.iter().map(|length| length.0).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let settings = Settings {
            lengths,
            tokens: self.tokens as usize,
            batch: self.batch as usize,
        };
        let mut models = Vec::new();
        if loaded.model.config().n_sparse > 0 {
            models.push(("rwkv7", loaded.model.without_sparse_blocks()));
            models.push(("rwkvx", loaded.model));
        } else {
            models.push(("rwkv7", loaded.model));
        }

        let style =
            ProgressStyle::with_template("latency {wide_bar} {pos}/{len} tokens, {eta} left");
        let longest = settings.lengths.last().copied().unwrap_or_default();
        let all = models.len() * settings.batch * (longest + settings.tokens);
        let bar = ProgressBar::new(all as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let started = Instant::now();
        let bandwidth = latency::bandwidth::<B>(device);
        let mut points = Vec::new();
        for (name, model) in &models {
            points.extend(latency::run(name, model, &settings, bandwidth, |tokens| {
                bar.inc(tokens as u64)
            })?);
        }
        bar.finish_and_clear();
        let report = Report {
            benchmark: "latency".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: loaded.info,
            settings,
            result: Measured { bandwidth, points },
            seconds: started.elapsed().as_secs_f64(),
        };
        let directory = match &common.out {
            Some(directory) => directory.clone(),
            None => runs::next_free(Path::new(runs::RUNS), "latency"),
        };
        report.write(&directory)?;
        if common.json {
            println!("{}", report.to_json());
            return Ok(());
        }
        println!(
            "latency: {}, {} parameters, {} texts at once, a matrix is read at {:.1} GB/s\n",
            report.model.path.display(),
            report.model.parameters,
            report.settings.batch,
            report.result.bandwidth / 1e9
        );
        print!("{}", latency::table(&report.result.points));
        println!(
            "\nfloor: the bytes a step must read at that rate; share: of the time. {:.1} s; the report is in {}",
            report.seconds,
            directory.display()
        );
        Ok(())
    }
}
