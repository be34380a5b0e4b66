//! A conversation in the form RWKV's chat models know: `User: ...`, an empty line, `Assistant: ...`, an empty line.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Instant;

use anyhow::Context;
use rwkvx_kernels::KernelBackend;
use rwkvx_model::Session;
use rwkvx_model::sample::Sampler;

use super::Run;

/// What ends the model's turn: it begins to speak for the user.
const END_OF_TURN: &str = "\n\nUser:";

impl<B: KernelBackend> Run<'_, B> {
    /// Answers `texts`, then every line of standard input, until it ends; gives the session after the last answer.
    pub(super) fn chat(
        &mut self,
        mut session: Session<B>,
        texts: Vec<String>,
    ) -> anyhow::Result<Session<B>> {
        self.stop_texts.push(END_OF_TURN.to_owned());
        let mut sampler = Sampler::new(self.config.clone())?;
        let given = !texts.is_empty();
        for text in texts {
            session = self.turn(session, &mut sampler, &text)?;
        }
        let stdin = std::io::stdin();
        let asks = stdin.is_terminal();
        if given && !asks {
            return Ok(session);
        }
        loop {
            if asks {
                eprint!("> ");
                std::io::stderr().flush().context("standard error")?;
            }
            let mut line = String::new();
            if stdin
                .lock()
                .read_line(&mut line)
                .context("standard input")?
                == 0
            {
                return Ok(session);
            }
            if !line.trim().is_empty() {
                session = self.turn(session, &mut sampler, line.trim())?;
            }
        }
    }

    /// Reads what the user says and answers it.
    fn turn(
        &self,
        mut session: Session<B>,
        sampler: &mut Sampler,
        said: &str,
    ) -> anyhow::Result<Session<B>> {
        let start = Instant::now();
        let question = format!("User: {}\n\nAssistant:", said.replace("\r\n", "\n"));
        let question = self.encode(&question, "--chat")?;
        session.read(self.model, &[&question], |_| ())?;
        // The answer is read again without what ended it.
        let mut branch = session.clone();
        let answer = self.go_on(&mut branch, sampler)?;
        drop(branch);
        let spoken = self.encode(&format!("{}\n\n", answer.text.trim_end()), "--chat")?;
        session.read(self.model, &[&spoken], |_| ())?;
        if self.json {
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{}",
                answer.report(question.len(), self.options.max_tokens, seconds)
            );
        } else {
            println!("\n");
        }
        Ok(session)
    }
}
