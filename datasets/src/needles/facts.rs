//! Texts that tell many facts and ask for some of them: how much a model can keep, not only how far back it can look.

use std::collections::HashSet;
use std::ops::Range;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ValueWeights;
use super::document::{Attempt, Filler, Segment, assemble};
use crate::{Error, Result, Tokenizer, words};

/// Which text with facts to make.
#[derive(Clone, Debug, PartialEq)]
pub struct FactsSpec {
    /// Length in tokens, the end of the document included.
    pub tokens: usize,
    /// Facts told, under different keys, anywhere in generated prose.
    pub facts: usize,
    /// Facts asked for at the end, one after the other; at most as many as are told.
    pub questions: usize,
    /// How often each type of value is drawn.
    pub values: ValueWeights,
    /// Decides facts, their places and the prose.
    pub seed: u64,
}

/// A text with facts, questions and their answers.
#[derive(Clone, Debug, PartialEq)]
pub struct FactsText {
    /// The whole text.
    pub ids: Vec<u32>,
    /// What is asked, in the order of the text.
    pub asked: Vec<AskedFact>,
}

/// A fact that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedFact {
    /// Where in the ids the answer stands, the space before it included.
    pub answer: Range<usize>,
    /// Where in the prose the fact is told, in percent.
    pub depth_percent: f32,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

impl FactsText {
    /// The text of a specification.
    ///
    /// ```
    /// use rwkvx_datasets::Tokenizer;
    /// use rwkvx_datasets::needles::{FactsSpec, FactsText, ValueWeights};
    ///
    /// let tokenizer = Tokenizer::open("byte")?;
    /// let spec = FactsSpec { tokens: 1024, facts: 8, questions: 2, values: ValueWeights::NUMBERS, seed: 1 };
    /// let text = FactsText::new(&spec, &tokenizer)?;
    /// assert_eq!((text.ids.len(), text.asked.len()), (1024, 2));
    /// let answer = tokenizer.decode_lossy(&text.ids[text.asked[0].answer.clone()]);
    /// assert_eq!(answer, format!(" {}", text.asked[0].value));
    /// # Ok::<(), rwkvx_datasets::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If nothing is told or more asked than told, or if the facts do not fit; the error names the least length that works.
    pub fn new(spec: &FactsSpec, tokenizer: &Tokenizer) -> Result<Self> {
        if !(1..=super::MAX_FACTS).contains(&spec.facts) {
            let reason = format!("is {}, must be 1 to {}", spec.facts, super::MAX_FACTS);
            return Err(Error::value("facts", reason));
        }
        if !(1..=spec.facts).contains(&spec.questions) {
            let reason = format!("is {}, must be 1 to {}", spec.questions, spec.facts);
            return Err(Error::value("questions", reason));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
        let facts = draw(spec.facts, &spec.values, &mut rng);
        let filler = Filler::Prose(rng.random());
        let document = match fit(tokenizer, spec.tokens, filler, &facts, spec.questions)? {
            Attempt::Made(document) => document,
            Attempt::Needs(minimum) => {
                return Err(Error::PromptTooShort {
                    what: "facts",
                    asked: spec.tokens,
                    minimum,
                });
            }
        };
        let asked = facts.into_iter().zip(document.answers);
        let asked = asked.map(|(fact, answer)| AskedFact {
            answer,
            depth_percent: (100.0 * fact.place) as f32,
            key: fact.key,
            value: fact.value,
        });
        Ok(Self {
            asked: asked.collect(),
            ids: document.ids,
        })
    }

    /// Tokens before the first answer.
    pub fn context(&self) -> usize {
        self.asked[0].answer.start
    }

    /// What a model says to a question, where `tokens` are what it says in the place of each token after the
    /// [context](Self::context).
    pub fn said<'a>(&self, asked: &AskedFact, tokens: &'a [u32]) -> &'a [u32] {
        &tokens[asked.answer.start - self.context()..asked.answer.end - self.context()]
    }

    /// Whether that is the answer, all of it.
    pub fn is_answered(&self, asked: &AskedFact, tokens: &[u32]) -> bool {
        *self.said(asked, tokens) == self.ids[asked.answer.clone()]
    }
}

pub(super) struct Fact {
    key: String,
    value: String,
    /// Where in the filler it is told, from 0 to 1.
    place: f64,
}

/// Facts under different keys, in no order. Questions ask for the first of them.
pub(super) fn draw(count: usize, values: &ValueWeights, rng: &mut ChaCha8Rng) -> Vec<Fact> {
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
    facts.shuffle(rng);
    facts
}

/// A document of `tokens` tokens that tells all facts and asks for the first `questions`.
pub(super) fn fit(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(tokens: usize, facts: usize, questions: usize) -> FactsSpec {
        FactsSpec {
            tokens,
            facts,
            questions,
            values: ValueWeights::NUMBERS,
            seed: 5,
        }
    }

    #[test]
    fn every_answer_is_told_once_at_its_depth_and_asked_once() {
        for name in ["byte", "rwkv-world"] {
            let tokenizer = Tokenizer::open(name).unwrap();
            let text = FactsText::new(&spec(6_000, 60, 6), &tokenizer).unwrap();
            assert_eq!((text.ids.len(), text.asked.len()), (6_000, 6));
            let whole = tokenizer.decode_lossy(&text.ids);
            assert_eq!(whole.matches("\nWhat is ").count(), 6);
            let prose = whole.find("\nWhat is ").unwrap();
            for asked in &text.asked {
                let answer = tokenizer.decode_lossy(&text.ids[asked.answer.clone()]);
                assert_eq!(answer, format!(" {}", asked.value));
                let before = tokenizer.decode_lossy(&text.ids[..asked.answer.start]);
                assert!(before.ends_with(&format!("\nWhat is {0}? {0} is", asked.key)));
                let told = format!("{} is {}.", asked.key, asked.value);
                let at = whole.find(&told).unwrap();
                let depth = 100.0 * at as f32 / prose as f32;
                assert!(
                    (depth - asked.depth_percent).abs() < 15.0,
                    "{depth} {asked:?}"
                );
            }
        }
    }

    #[test]
    fn facts_that_do_not_fit_are_refused_with_the_length_that_works() {
        let tokenizer = Tokenizer::open("byte").unwrap();
        let error = FactsText::new(&spec(600, 60, 6), &tokenizer).unwrap_err();
        let Error::PromptTooShort { minimum, .. } = error else {
            panic!("{error}");
        };
        assert!(FactsText::new(&spec(minimum, 60, 6), &tokenizer).is_ok());
        for (facts, questions, field) in [(0, 1, "facts"), (3, 4, "questions"), (3, 0, "questions")]
        {
            let error = FactsText::new(&spec(600, facts, questions), &tokenizer).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}
