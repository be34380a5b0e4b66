//! Conversations to fine-tune on: JSON lines of turns, and which of their tokens are to be learned.
//!
//! A line is a list of turns, or an object with the list as `conversations` or `messages`. A turn is an object with `from` or `role` (`user` or `human`,
//! `assistant` or `gpt`, `system`) and `value` or `content`. What the model reads is
//!
//! ```text
//! User: What is the tallest mountain?
//!
//! Assistant: Mount Everest.
//!
//! ```
//!
//! without blank lines inside a turn. The assistant's words and the blank line after them are to be learned, but not `Assistant:`; so the prompt of a reply ends
//! in `Assistant:`, and a reply in a blank line. Source: RWKV-X `sft/src/dataset.py`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;

use crate::files::{filled_lines, map};
use crate::{Error, Result, Tokenizer};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    System,
    #[serde(alias = "human")]
    User,
    #[serde(alias = "gpt")]
    Assistant,
}

impl Speaker {
    fn prefix(self) -> &'static str {
        match self {
            Self::System => "System:",
            Self::User => "User:",
            Self::Assistant => "Assistant:",
        }
    }
}

#[derive(Debug, Deserialize)]
struct Turn {
    #[serde(alias = "from")]
    role: Speaker,
    #[serde(alias = "value")]
    content: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Turns(Vec<Turn>),
    Object {
        #[serde(alias = "messages")]
        conversations: Vec<Turn>,
    },
}

/// Tokens of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// All of them.
    pub ids: Vec<u32>,
    /// Which of them are the assistant's.
    pub learned: Vec<bool>,
}

/// A line of an input file.
struct Place {
    path: Arc<Path>,
    number: u64,
    bytes: Bytes,
}

/// The conversations of some files, in an order of its own in every epoch.
pub struct Conversations {
    lines: Vec<Place>,
    seed: u64,
    /// The epoch that was asked for last, and its order.
    order: Mutex<(u64, Vec<usize>)>,
}

impl Conversations {
    /// Opens files of JSON lines and checks every line. `seed` decides the orders.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, a line is no conversation or has no words of an assistant (the error names the line), or there is none at all.
    pub fn open(paths: &[PathBuf], seed: u64) -> Result<Self> {
        let mut places = Vec::new();
        for path in paths {
            let shared: Arc<Path> = path.as_path().into();
            let place = |(number, bytes)| Place {
                path: shared.clone(),
                number,
                bytes,
            };
            places.extend(filled_lines(&map(path)?).map(place));
        }
        if places.is_empty() {
            let inputs = paths.iter().map(|path| path.display().to_string());
            return Err(Error::NoDocuments {
                inputs: inputs.collect::<Vec<_>>().join(", "),
            });
        }
        places
            .par_iter()
            .try_for_each(|place| place.turns().map(drop))?;
        Ok(Self {
            lines: places,
            seed,
            order: Mutex::new((u64::MAX, Vec::new())),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The conversation at `index` of the endless sequence of epochs, its first `most` tokens.
    ///
    /// # Errors
    ///
    /// If the tokenizer cannot encode it.
    pub fn sample(&self, index: u64, tokenizer: &Tokenizer, most: usize) -> Result<Conversation> {
        let count = self.lines.len() as u64;
        let line = self.place(index / count, (index % count) as usize);
        let mut conversation = Conversation::default();
        for turn in line.turns()? {
            let mut push = |text: &str, learned: bool| {
                let ids = tokenizer.encode(text)?;
                conversation
                    .learned
                    .resize(conversation.learned.len() + ids.len(), learned);
                conversation.ids.extend(ids);
                Ok::<_, Error>(())
            };
            push(turn.role.prefix(), false)?;
            push(&words(&turn.content), turn.role == Speaker::Assistant)?;
        }
        conversation.ids.truncate(most);
        conversation.learned.truncate(most);
        Ok(conversation)
    }

    /// The line at a place of an epoch's order.
    fn place(&self, epoch: u64, at: usize) -> &Place {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.0 != epoch {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            let mut lines: Vec<usize> = (0..self.lines.len()).collect();
            lines.shuffle(&mut rng);
            *order = (epoch, lines);
        }
        &self.lines[order.1[at]]
    }
}

impl Place {
    fn turns(&self) -> Result<Vec<Turn>> {
        let error = |reason: String| Error::Document {
            path: self.path.to_path_buf(),
            unit: "line",
            number: self.number,
            reason,
        };
        let turns = match serde_json::from_slice(&self.bytes) {
            Ok(Line::Turns(turns)) => turns,
            Ok(Line::Object { conversations }) => conversations,
            Err(_) => {
                return Err(error(
                    "not a conversation: expected a list of {\"role\": \"user\" or \"assistant\", \"content\": TEXT}, \
                     or an object with that list as \"messages\" or \"conversations\""
                        .to_owned(),
                ));
            }
        };
        match turns.iter().any(|turn| turn.role == Speaker::Assistant) {
            true => Ok(turns),
            false => Err(error(
                "has no words of an assistant, so nothing to learn".to_owned(),
            )),
        }
    }
}

/// What follows the speaker's name: the text on one side of a space, without blank lines inside, and a blank line.
fn words(text: &str) -> String {
    let filled = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty());
    let mut words = String::from(" ");
    words.push_str(filled.collect::<Vec<_>>().join("\n").trim());
    words.push_str("\n\n");
    words
}
