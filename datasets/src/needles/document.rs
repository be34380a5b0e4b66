//! One document: its content drawn, and then fitted to a number of tokens.

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::facts::{self, Fact};
use super::{CountRange, Kind, NeedleConfig};
use crate::haystack::{Haystack, NOISE, fit};
use crate::ruler::{self, Task};
use crate::{END_OF_DOCUMENT, Result, Tokenizer, passkey};

/// Ids of a document, its end included.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) ids: Vec<u32>,
    /// Where in `ids` the answers stand.
    pub(super) answers: Vec<Range<usize>>,
}

/// What became of a document of a given length.
pub(super) enum Attempt {
    Made(Document),
    /// It would have to be this long.
    Needs(usize),
}

/// A document's content, all random choices made but for how much filler is around it.
pub(super) enum Content {
    Ruler {
        needle: ruler::Needle,
        filler: Filler,
    },
    Passkey {
        key: u32,
        depth: f64,
        filler: Filler,
    },
    Facts {
        facts: Vec<Fact>,
        questions: usize,
        filler: Filler,
    },
}

/// What a haystack is made of; it is made anew for each attempt.
#[derive(Clone, Copy)]
pub(super) enum Filler {
    NoiseLines,
    NoiseSentences,
    Prose(u64),
}

/// What follows the fitted part of a document.
pub(super) enum Segment {
    Answer(String),
    Text(String),
}

impl Content {
    pub(super) fn draw(kind: Kind, config: &NeedleConfig, rng: &mut ChaCha8Rng) -> Self {
        let ruler = |task, rng: &mut ChaCha8Rng| Self::Ruler {
            needle: ruler::Needle::draw(task, None, rng),
            filler: match task {
                Task::Passkey => Filler::NoiseLines,
                Task::Number | Task::Uuid => Filler::Prose(rng.random()),
            },
        };
        match kind {
            Kind::RulerPasskey => ruler(Task::Passkey, rng),
            Kind::RulerNumber => ruler(Task::Number, rng),
            Kind::RulerUuid => ruler(Task::Uuid, rng),
            Kind::Passkey => Self::Passkey {
                key: rng.random_range(1..50_000),
                depth: rng.random(),
                filler: Filler::NoiseSentences,
            },
            Kind::Facts => {
                let facts = facts::draw(draw_count(config.facts, rng), &config.values, rng);
                Self::Facts {
                    questions: draw_count(config.questions, rng).min(facts.len()),
                    facts,
                    filler: match rng.random() {
                        true => Filler::NoiseSentences,
                        false => Filler::Prose(rng.random()),
                    },
                }
            }
        }
    }

    /// A document of `tokens` tokens, rarely less where the tokenizer has no such text.
    pub(super) fn fit(&self, tokenizer: &Tokenizer, tokens: usize) -> Result<Attempt> {
        match self {
            Self::Ruler { needle, filler } => {
                let separator = filler.haystack()?.separator();
                let answer = Segment::Answer(format!(" {}", needle.value));
                assemble(tokenizer, tokens, *filler, &[answer], |pieces, tail| {
                    needle.prompt(pieces, tail, separator)
                })
            }
            Self::Passkey { key, depth, filler } => {
                let render = |opening: &str, pieces: &[&str], tail: &str| {
                    let (before, after) = pieces.split_at((pieces.len() as f64 * depth) as usize);
                    let (before, after) = (before.join(" "), after.join(" "));
                    let statement = passkey::statement(*key);
                    format!(
                        "{opening}{before}\n{statement}\n{after}{tail}\n{}",
                        passkey::QUESTION
                    )
                };
                let opening = format!("{}\n", passkey::TASK);
                let whole = tokenizer.encode(&render(&opening, &[], ""))?.len();
                let opening = if 2 * whole <= tokens {
                    opening.as_str()
                } else {
                    ""
                };
                let answer = Segment::Answer(format!(" {key}"));
                assemble(tokenizer, tokens, *filler, &[answer], |pieces, tail| {
                    render(opening, pieces, tail)
                })
            }
            Self::Facts {
                facts,
                questions,
                filler,
            } => {
                let (mut facts, mut questions) = (facts.as_slice(), *questions);
                loop {
                    let attempt = facts::fit(tokenizer, tokens, *filler, facts, questions)?;
                    let Attempt::Needs(needed) = attempt else {
                        return Ok(attempt);
                    };
                    if facts.len() == 1 {
                        return Ok(attempt);
                    }
                    let fewer = (facts.len() * tokens / needed).clamp(1, facts.len() - 1);
                    facts = &facts[..fewer];
                    questions = questions.min(fewer);
                }
            }
        }
    }
}

impl Filler {
    fn haystack(self) -> Result<Haystack<'static>> {
        match self {
            Self::NoiseLines => Ok(Haystack::noise()),
            Self::NoiseSentences => Haystack::essay(NOISE),
            Self::Prose(seed) => Ok(Haystack::prose(seed)),
        }
    }
}

fn draw_count(range: CountRange, rng: &mut ChaCha8Rng) -> usize {
    rng.random_range(range.min..=range.max)
}

/// Fits the part before `segments`, so that all together and the end of the document make `tokens` tokens.
///
/// Answers are encoded apart from what is before them, as a model meets them when it is asked.
pub(super) fn assemble(
    tokenizer: &Tokenizer,
    tokens: usize,
    filler: Filler,
    segments: &[Segment],
    render: impl Fn(&[&str], &str) -> String,
) -> Result<Attempt> {
    let mut after = Document::default();
    for segment in segments {
        let start = after.ids.len();
        let (Segment::Answer(text) | Segment::Text(text)) = segment;
        after.ids.extend(tokenizer.encode(text)?);
        if matches!(segment, Segment::Answer(_)) {
            after.answers.push(start..after.ids.len());
        }
    }
    after.ids.push(END_OF_DOCUMENT);
    let budget = tokens.saturating_sub(after.ids.len());
    let fitted = fit(&mut filler.haystack()?, tokenizer, budget, None, render)?;
    if fitted.tokens > budget {
        return Ok(Attempt::Needs(fitted.tokens + after.ids.len()));
    }
    let mut document = Document {
        ids: tokenizer.encode(&fitted.text)?,
        answers: Vec::new(),
    };
    document.append(after);
    Ok(Attempt::Made(document))
}

impl Document {
    pub(super) fn append(&mut self, other: Self) {
        let offset = self.ids.len();
        self.ids.extend(other.ids);
        let shifted = other
            .answers
            .into_iter()
            .map(|span| span.start + offset..span.end + offset);
        self.answers.extend(shifted);
    }
}
