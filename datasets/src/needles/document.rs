//! One document: its content drawn, and then fitted to a number of tokens.

use std::collections::HashSet;
use std::ops::Range;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{CountRange, Kind, NeedleConfig, ValueWeights};
use crate::haystack::{Haystack, NOISE, fit};
use crate::ruler::{self, Task};
use crate::{END_OF_DOCUMENT, Result, Tokenizer, passkey, words};

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

pub(super) struct Fact {
    key: String,
    value: String,
    /// Where in the filler it is told, from 0 to 1.
    place: f64,
}

/// What follows the fitted part of a document.
enum Segment {
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
                let mut facts = draw_facts(draw_count(config.facts, rng), &config.values, rng);
                // Questions ask for the first facts in this order, which is not the order in the text.
                facts.shuffle(rng);
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
                    let attempt = fit_facts(tokenizer, tokens, *filler, facts, questions)?;
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

fn draw_facts(count: usize, values: &ValueWeights, rng: &mut ChaCha8Rng) -> Vec<Fact> {
    type Draw = fn(&mut ChaCha8Rng) -> String;
    let types: [(Draw, f32); 3] = [
        (
            |rng| {
                let digits = rng.random_range(4..=7);
                words::number(digits, rng)
            },
            values.number,
        ),
        (words::hex, values.hex),
        (words::uuid, values.uuid),
    ];
    let mut keys = HashSet::with_capacity(count);
    let mut facts = Vec::with_capacity(count);
    while facts.len() < count {
        let key = words::key(rng);
        if !keys.insert(key.clone()) {
            continue;
        }
        let draw = types.choose_weighted(rng, |(_, weight)| *weight);
        let value = draw.map(|(draw, _)| draw(rng)).unwrap_or_default();
        facts.push(Fact {
            key,
            value,
            place: rng.random(),
        });
    }
    facts
}

fn fit_facts(
    tokenizer: &Tokenizer,
    tokens: usize,
    filler: Filler,
    facts: &[Fact],
    questions: usize,
) -> Result<Attempt> {
    let question = |fact: &Fact| format!("\nWhat is {0}? {0} is", fact.key);
    let mut told: Vec<&Fact> = facts.iter().collect();
    told.sort_by(|left, right| left.place.total_cmp(&right.place));
    let told: Vec<(f64, String)> = told
        .into_iter()
        .map(|fact| (fact.place, format!("{} is {}.", fact.key, fact.value)))
        .collect();

    let asked = &facts[..questions];
    let first = asked.first().map(question).unwrap_or_default();
    let mut segments = Vec::with_capacity(2 * questions);
    for (place, fact) in asked.iter().enumerate() {
        segments.push(Segment::Answer(format!(" {}", fact.value)));
        let next = asked.get(place + 1).map(question).unwrap_or_default();
        segments.push(Segment::Text(format!(".{next}")));
    }
    assemble(tokenizer, tokens, filler, &segments, |pieces, tail| {
        let mut text: Vec<&str> = Vec::with_capacity(pieces.len() + told.len());
        let mut rest = pieces;
        for (place, sentence) in &told {
            let until = (pieces.len() as f64 * place).round() as usize;
            let (before, after) = rest.split_at(until - (pieces.len() - rest.len()));
            text.extend(before);
            text.push(sentence);
            rest = after;
        }
        text.extend(rest);
        format!("{}{tail}{first}", text.join(" "))
    })
}

/// Fits the part before `segments`, so that all together and the end of the document make `tokens` tokens.
///
/// Answers are encoded apart from what is before them, as a model meets them when it is asked.
fn assemble(
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
