//! `rwkvx-eval compare`.

use std::path::{Path, PathBuf};

use clap::Args;
use rwkvx_eval::compare::{Difference, compare, different_settings};
use rwkvx_eval::{Result, report};
use serde_json::{Value, json};

#[derive(Args)]
pub(crate) struct Compare {
    /// The first report, or its folder
    #[arg(value_name = "A.json")]
    first: PathBuf,
    /// The second report, or its folder
    #[arg(value_name = "B.json")]
    second: PathBuf,
}

impl Compare {
    pub(crate) fn run(&self, as_json: bool) -> Result<()> {
        let (first, second) = (report::read(&self.first)?, report::read(&self.second)?);
        let differences = compare(&first, &second)?;
        let settings = different_settings(&first, &second);
        if as_json {
            let lines: Vec<Value> = differences
                .iter()
                .map(|difference| json!({ "difference": difference, "interval_95": difference.interval() }))
                .collect();
            println!(
                "{}",
                json!({ "different_settings": settings, "measures": lines })
            );
            return Ok(());
        }
        for (name, path, report) in [("A", &self.first, &first), ("B", &self.second, &second)] {
            println!("{name}  {}  {}", model(report), path.display());
        }
        if !settings.is_empty() {
            println!("settings differ: {}", settings.join(", "));
        }
        print_table(&differences);
        Ok(())
    }
}

/// The model of a report, as its path ends.
fn model(report: &Value) -> String {
    let path = report["model"]["path"].as_str().unwrap_or_default();
    let parts: Vec<_> = Path::new(path).iter().collect();
    let last = parts[parts.len().saturating_sub(2)..].iter();
    last.collect::<PathBuf>().display().to_string()
}

fn print_table(differences: &[Difference]) {
    println!(
        "\n{:<34}{:>8}{:>11}{:>11}{:>11}  {:<22}",
        "measure", "count", "A", "B", "B - A", "95% interval"
    );
    for difference in differences {
        // Four digits or more of whatever is measured; shares in percent.
        let (scale, digits) = match (difference.is_share, difference.first.value.abs()) {
            (true, _) => (100.0, 2),
            (false, ..100.0) => (1.0, 4),
            (false, _) => (1.0, 1),
        };
        let interval = match difference.interval() {
            Some([low, high]) => {
                let clear = if low > 0.0 || high < 0.0 { "  *" } else { "" };
                let (low, high) = (scale * low, scale * high);
                format!("{low:+.digits$} to {high:+.digits$}{clear}")
            }
            None => "one value tells of none".to_owned(),
        };
        println!(
            "{:<34}{:>8}{:>11.digits$}{:>11.digits$}{:>+11.digits$}  {interval}",
            difference.measure,
            difference.count,
            scale * difference.first.value,
            scale * difference.second.value,
            scale * difference.difference.value,
        );
    }
    println!("\n*: the interval does not hold 0; shares are in percent");
}
