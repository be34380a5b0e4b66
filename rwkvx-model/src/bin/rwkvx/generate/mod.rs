//! `rwkvx generate`: prompts go on, their text printed as it comes.

mod chat;
mod prompts;
mod text;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use rwkvx_datasets::{END_OF_DOCUMENT, Tokenizer};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::sample::{Sampler, SamplerConfig};
use rwkvx_model::{CacheBudget, GenerateOptions, RwkvX, Session};
use serde_json::Value;

use self::prompts::PromptOptions;
use self::text::Text;
use crate::model::{ModelOptions, check_ids};

/// Texts made together at most.
const BATCH: usize = 64;

#[derive(Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    prompts: PromptOptions,
    /// Converse: every line of standard input is what the user says, in the form RWKV's chat models know
    #[arg(long, conflicts_with = "prompt_file")]
    chat: bool,
    /// Go on from a state that --state-out wrote, before the prompt if there is one
    #[arg(long, value_name = "FILE")]
    state_in: Option<PathBuf>,
    /// Write the state after all that was read and made; with --tokens 0 after the prompt
    #[arg(long, value_name = "FILE")]
    state_out: Option<PathBuf>,
    /// Keep at most so many tokens per sparse block (20000 if no number is given), those that are attended to least let go; without it all are kept
    #[arg(long, value_name = "TOKENS", num_args = 0..=1, default_missing_value = "20000", conflicts_with = "state_in")]
    cache_budget: Option<usize>,
    /// rwkv-world, byte, needles or a tokenizer.json, in place of the checkpoint's
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
    /// The same seed makes the same text; prompt n of several (from 0) is made with this plus n
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What all texts of a run share.
struct Run<'a, B: KernelBackend> {
    model: &'a RwkvX<B>,
    tokenizer: &'a Tokenizer,
    config: SamplerConfig,
    options: GenerateOptions,
    stop_texts: Vec<String>,
    json: bool,
}

impl Generate {
    pub(crate) fn run<B: KernelBackend>(
        self,
        json: bool,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let config = self.sampler_config();
        config.validate()?;
        let budget = self.cache_budget.map(CacheBudget::of);
        if let Some(error) = budget.and_then(|budget| budget.error()) {
            bail!("--cache-budget: {error}");
        }
        let (texts, option) = self.prompts.texts()?;
        let loaded = self.model.load::<B>(device)?;
        let vocab_size = loaded.model.config().vocab_size;
        if let Some(&id) = self.ban.iter().find(|&&id| id as usize >= vocab_size) {
            bail!(
                "--ban {id}: the model's vocabulary has {vocab_size} tokens, ids end before that"
            );
        }
        let tokenizer = loaded.open_tokenizer(self.tokenizer.as_deref())?;
        let (stop_ids, stop_texts) = self.stops();
        let mut run = Run {
            model: &loaded.model,
            tokenizer: &tokenizer,
            config,
            options: GenerateOptions {
                max_tokens: self.tokens,
                stop: stop_ids,
                log_probabilities: json,
            },
            stop_texts,
            json,
        };
        let session = match &self.state_in {
            Some(file) => Some(Session::load(run.model, file).context("--state-in")?),
            None => None,
        };
        let of_one = session
            .as_ref()
            .is_none_or(|session| session.state().batch() == 1);
        if !of_one {
            bail!("--state-in: it is of several texts, and generate goes on from one");
        }
        let session = session.unwrap_or_else(|| Session::new(run.model, 1, budget));
        let failed = || format!("--model {}", self.model.model.display());
        if self.chat {
            let session = run.chat(session, texts).with_context(failed)?;
            return self.save(&run, &session);
        }
        let mut prompts = texts
            .iter()
            .map(|text| run.encode(text, option))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if prompts.len() > 1 {
            return run.many(&prompts, budget).with_context(failed);
        }
        let mut prompt = prompts.pop().unwrap_or_default();
        if prompt.is_empty() && session.logits().is_none() {
            // A text begins where the one before it ended.
            prompt.push(END_OF_DOCUMENT);
        }
        let session = run.one(session, &prompt).with_context(failed)?;
        self.save(&run, &session)
    }

    fn save<B: KernelBackend>(&self, run: &Run<'_, B>, session: &Session<B>) -> anyhow::Result<()> {
        match &self.state_out {
            Some(file) => session.save(run.model, file).context("--state-out"),
            None => Ok(()),
        }
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

impl<B: KernelBackend> Run<'_, B> {
    /// The ids of a text that came by an option.
    fn encode(&self, text: &str, option: &str) -> anyhow::Result<Vec<u32>> {
        let ids = self
            .tokenizer
            .encode(text)
            .with_context(|| option.to_owned())?;
        check_ids(&ids, self.tokenizer, self.model.config().vocab_size)
            .with_context(|| option.to_owned())?;
        Ok(ids)
    }

    /// Reads a prompt, if it is not empty, and goes on from it.
    fn one(&self, mut session: Session<B>, prompt: &[u32]) -> anyhow::Result<Session<B>> {
        let start = Instant::now();
        if !prompt.is_empty() {
            session.read(self.model, &[prompt], |_| ())?;
        }
        let mut sampler = Sampler::new(self.config.clone())?;
        let text = self.go_on(&mut session, &mut sampler)?;
        if self.json {
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{}",
                text.report(prompt.len(), self.options.max_tokens, seconds)
            );
        } else {
            println!();
        }
        Ok(session)
    }

    /// Goes on from what a session of one text has read, printing text as it comes unless it is for machines.
    fn go_on(&self, session: &mut Session<B>, sampler: &mut Sampler) -> anyhow::Result<Text<'_>> {
        let mut text = Text::new(self.tokenizer, &self.stop_texts);
        let print = |piece: &str| {
            if self.json || piece.is_empty() {
                return Ok(());
            }
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()
        };
        let mut printed = Ok(());
        let samplers = std::slice::from_mut(sampler);
        session.generate(self.model, samplers, &self.options, |made| {
            let (piece, go_on) = text.push(made);
            printed = print(piece);
            match printed.is_ok() {
                true => go_on,
                false => ControlFlow::Break(()),
            }
        })?;
        printed
            .and_then(|()| print(text.finish()))
            .context("standard output")?;
        Ok(text)
    }

    /// Goes on from several prompts, those of equal length together, and prints the texts in the order of the prompts.
    fn many(&self, prompts: &[Vec<u32>], budget: Option<CacheBudget>) -> anyhow::Result<()> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            by_length.entry(prompt.len()).or_default().push(index);
        }
        let mut reports: Vec<Option<(String, Value)>> = vec![None; prompts.len()];
        for indices in by_length.values().flat_map(|indices| indices.chunks(BATCH)) {
            let start = Instant::now();
            let rows: Vec<Vec<u32>> = indices
                .iter()
                .map(|&index| match prompts[index].as_slice() {
                    [] => vec![END_OF_DOCUMENT],
                    prompt => prompt.to_vec(),
                })
                .collect();
            let mut session = Session::new(self.model, rows.len(), budget);
            session.read(self.model, &rows, |_| ())?;
            let mut samplers = indices
                .iter()
                .map(|&index| {
                    let seed = self.config.seed.wrapping_add(index as u64);
                    Sampler::new(SamplerConfig {
                        seed,
                        ..self.config.clone()
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let mut texts: Vec<Text<'_>> = indices
                .iter()
                .map(|_| Text::new(self.tokenizer, &self.stop_texts))
                .collect();
            session.generate(self.model, &mut samplers, &self.options, |made| {
                texts[made.row].push(made).1
            })?;
            let seconds = start.elapsed().as_secs_f64();
            for (row, (&index, text)) in indices.iter().zip(&mut texts).enumerate() {
                text.finish();
                let report = text.report(rows[row].len(), self.options.max_tokens, seconds);
                reports[index] = Some((text.text.clone(), report));
            }
        }
        let mut out = std::io::stdout().lock();
        for (text, report) in reports.into_iter().flatten() {
            match self.json {
                true => writeln!(out, "{report}"),
                // An empty line apart.
                false => writeln!(out, "{text}\n"),
            }
            .context("standard output")?;
        }
        Ok(())
    }
}
