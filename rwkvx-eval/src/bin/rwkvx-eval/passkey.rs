//! `rwkvx-eval passkey`.

use clap::Args;
use rwkvx_eval::Result;
use rwkvx_eval::lengths::Length;
use rwkvx_eval::passkey::{self, Settings};
use rwkvx_kernels::KernelBackend;

use crate::Common;
use crate::grid::{finish, open_journal};
use crate::session::{ask_each, progress};

#[derive(Args)]
pub(crate) struct Passkey {
    /// Nominal lengths in tokens (3.75 characters each), such as 2000,4000,64000
    #[arg(
        long,
        value_name = "L[,L...]",
        value_delimiter = ',',
        default_value = "2000,4000,8000"
    )]
    len: Vec<Length>,
    /// Depths, evenly from 0 to 90 percent
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    depths: u16,
    /// Keys per length and depth, at most the script's five
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=5))]
    samples: u16,
}

impl Passkey {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let settings = Settings {
            lengths: self.len.iter().map(|length| length.0).collect(),
            depths: self.depths.into(),
            samples: self.samples.into(),
        };
        let reported = ask_each::<B, _, _>(common, device, "passkey", |loaded, directory| {
            let mut journal = open_journal(directory, &loaded.info, &settings)?;
            let bar = progress(settings.tokens());
            let answers = passkey::run(
                &loaded.model,
                &loaded.tokenizer,
                &settings,
                &mut journal,
                &bar,
            );
            bar.finish_and_clear();
            Ok((settings.clone(), answers?))
        })?;
        let remark = format!(
            "depths: {}, keys: {}; lengths are nominal, 3.75 characters a token",
            settings.depths, settings.samples
        );
        finish(&reported, &remark, common)
    }
}
