//! `rwkvx generate`: a prompt goes on, its text printed as it comes.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use rwkvx_datasets::END_OF_DOCUMENT;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::sample::{Sampler, SamplerConfig};
use rwkvx_model::{GenerateOptions, generate};
use serde_json::json;

use crate::model::ModelOptions;
use crate::stop::StopTexts;

#[derive(Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    model: ModelOptions,
    /// Text to go on from
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// rwkv-world, byte or a tokenizer.json, in place of the checkpoint's
    #[arg(long, value_name = "SPEC")]
    tokenizer: Option<String>,
    /// At most so many tokens are made
    #[arg(long, value_name = "N", default_value_t = 256)]
    tokens: usize,
    /// Above 1 is wilder, below 1 tamer, 0 always takes the likeliest token
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true)]
    temperature: f32,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 0.7)]
    top_p: f32,
    /// Keep at most so many tokens to choose from (0: all)
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k_tokens: usize,
    /// Taken from the logit of every token made before
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    presence_penalty: f32,
    /// Taken from the logit of a token for every time it was made before
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    frequency_penalty: f32,
    /// What is left of those times after every further token
    #[arg(long, default_value_t = 0.996)]
    penalty_decay: f32,
    /// Token id that is never made; may be given again
    #[arg(long, value_name = "ID")]
    ban: Vec<u32>,
    /// Token id, or any other text, that ends the output and is not printed; may be given again. Id 0, the end of a
    /// document, always does
    #[arg(long, value_name = "ID|TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// The same seed makes the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Generate {
    pub(crate) fn run<B: KernelBackend>(
        self,
        json: bool,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let mut sampler = Sampler::new(self.sampler_config())?;
        let loaded = self.model.load::<B>(device)?;
        let vocab_size = loaded.model.config().vocab_size;
        if let Some(&id) = self.ban.iter().find(|&&id| id as usize >= vocab_size) {
            bail!(
                "--ban {id}: the model's vocabulary has {vocab_size} tokens, ids end before that"
            );
        }
        let tokenizer = loaded.open_tokenizer(self.tokenizer.as_deref())?;
        let mut prompt = tokenizer.encode(&self.prompt).context("--prompt")?;
        if prompt.is_empty() {
            // A text begins where the one before it ended.
            prompt.push(END_OF_DOCUMENT);
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            bail!(
                "--prompt: tokenizer {} makes token id {id}, the model's vocabulary has {vocab_size}; \
                 give the tokenizer it was trained with by --tokenizer",
                tokenizer.spec()
            );
        }
        let (stop_ids, stop_texts) = self.stops();
        let options = GenerateOptions {
            max_tokens: self.tokens,
            stop: stop_ids,
        };

        let mut decoder = tokenizer.stream();
        let mut stop = StopTexts::new(stop_texts);
        let (mut text, mut made, mut stopped) = (String::new(), Vec::new(), false);
        let mut printed = Ok(());
        let mut print = |piece: &str| {
            text.push_str(piece);
            if json {
                return Ok(());
            }
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()
        };
        let start = Instant::now();
        generate(&loaded.model, &prompt, &mut sampler, &options, |token| {
            made.push(token);
            let passed = stop.push(&decoder.push(token));
            stopped = passed.stopped;
            printed = print(&passed.text);
            match stopped || printed.is_err() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .with_context(|| format!("--model {}", self.model.model.display()))?;
        printed.context("standard output")?;
        if !stopped {
            let last = stop.push(&decoder.finish());
            stopped = last.stopped;
            print(&last.text).context("standard output")?;
            if !stopped {
                print(&stop.finish()).context("standard output")?;
            }
        }

        let seconds = start.elapsed().as_secs_f64();
        if json {
            let ended = stopped || made.len() < self.tokens;
            println!(
                "{}",
                json!({
                    "prompt_tokens": prompt.len(),
                    "tokens": made,
                    "text": text,
                    "ended_by": if ended { "stop" } else { "length" },
                    "seconds": seconds,
                })
            );
        } else {
            println!();
        }
        Ok(())
    }

    fn sampler_config(&self) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k_tokens,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_decay: self.penalty_decay,
            banned: self.ban.clone(),
            seed: self.seed,
        }
    }

    /// Stop ids and stop texts, told apart by whether they are numbers.
    fn stops(&self) -> (Vec<u32>, Vec<String>) {
        let mut ids = vec![END_OF_DOCUMENT];
        let mut texts = Vec::new();
        for stop in &self.stop {
            match stop.parse() {
                Ok(id) => ids.push(id),
                Err(_) => texts.push(stop.clone()),
            }
        }
        (ids, texts)
    }
}
