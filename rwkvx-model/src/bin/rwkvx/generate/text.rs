//! One text as it is made: its tokens, what of it may be printed, and where it ends.

use std::ops::ControlFlow;

use rwkvx_datasets::Tokenizer;
use rwkvx_datasets::tokenizer::DecodeStream;
use rwkvx_model::Made;
use serde_json::{Value, json};

use crate::stop::StopTexts;

pub(super) struct Text<'a> {
    decoder: Option<DecodeStream<'a>>,
    stop: Option<StopTexts>,
    /// Everything that may be printed so far.
    pub(super) text: String,
    tokens: Vec<u32>,
    log_probabilities: Vec<f32>,
    stopped: bool,
}

impl<'a> Text<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, stop: &[String]) -> Self {
        Self {
            decoder: Some(tokenizer.stream()),
            stop: Some(StopTexts::new(stop.iter().cloned())),
            text: String::new(),
            tokens: Vec::new(),
            log_probabilities: Vec::new(),
            stopped: false,
        }
    }

    /// Takes the next token: what may be printed now, and whether to go on.
    pub(super) fn push(&mut self, made: Made) -> (&str, ControlFlow<()>) {
        self.tokens.push(made.token);
        self.log_probabilities.extend(made.log_probability);
        let (Some(decoder), Some(stop)) = (&mut self.decoder, &mut self.stop) else {
            return ("", ControlFlow::Break(()));
        };
        let passed = stop.push(&decoder.push(made.token));
        self.stopped = passed.stopped;
        let go_on = match self.stopped {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        (self.print(&passed.text), go_on)
    }

    /// What is left to print, once no more tokens come.
    pub(super) fn finish(&mut self) -> &str {
        let (Some(decoder), Some(mut stop)) = (self.decoder.take(), self.stop.take()) else {
            return "";
        };
        if self.stopped {
            return "";
        }
        let last = stop.push(&decoder.finish());
        self.stopped = last.stopped;
        let rest = match self.stopped {
            true => String::new(),
            false => stop.finish(),
        };
        self.print(&(last.text + &rest))
    }

    fn print(&mut self, piece: &str) -> &str {
        let from = self.text.len();
        self.text.push_str(piece);
        &self.text[from..]
    }

    /// For machines; `limit` tokens were allowed.
    pub(super) fn report(&self, prompt_tokens: usize, limit: usize, seconds: f64) -> Value {
        let ended = self.stopped || self.tokens.len() < limit;
        json!({
            "prompt_tokens": prompt_tokens,
            "tokens": self.tokens,
            "log_probabilities": self.log_probabilities,
            "text": self.text,
            "ended_by": if ended { "stop" } else { "length" },
            "seconds": seconds,
        })
    }
}
