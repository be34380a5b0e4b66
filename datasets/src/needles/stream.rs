//! Samples packed from documents.

use std::ops::Range;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::document::{Attempt, Content, Document};
use super::{Kind, NeedleConfig};
use crate::prose::Prose;
use crate::{Result, Tokenizer};

/// An endless stream of samples; see the [module's text](super).
///
/// ```
/// use rwkvx_datasets::Tokenizer;
/// use rwkvx_datasets::needles::{NeedleConfig, NeedleStream};
///
/// let config = NeedleConfig { ctx: 256, ..NeedleConfig::default() };
/// let stream = NeedleStream::new(&config, &Tokenizer::open("byte")?, 42)?;
/// let sample = stream.sample(7)?;
/// assert_eq!((sample.ids.len(), sample.weights.len()), (257, 256));
/// # Ok::<(), rwkvx_datasets::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct NeedleStream {
    config: NeedleConfig,
    tokenizer: Tokenizer,
    seed: u64,
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Needle {
    /// `ctx + 1` ids: inputs are all but the last, targets all but the first.
    pub ids: Vec<u32>,
    /// Weight of each of the `ctx` targets in the loss.
    pub weights: Vec<f32>,
    /// Where among the targets the answers stand, the space before each included.
    pub answers: Vec<Range<usize>>,
}

impl NeedleStream {
    /// A stream; two streams with another `seed` have nothing in common.
    ///
    /// # Errors
    ///
    /// If the configuration is not [valid](NeedleConfig::validate).
    pub fn new(config: &NeedleConfig, tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config: config.clone(),
            tokenizer: tokenizer.clone(),
            seed,
        })
    }

    /// Sample `index`, the same whenever and in whichever order it is asked for.
    ///
    /// # Errors
    ///
    /// Only if a `tokenizer.json` refuses a text.
    pub fn sample(&self, index: u64) -> Result<Needle> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index);
        let wanted = self.config.ctx + 1;
        let mut sample = Document::default();
        while sample.ids.len() < wanted {
            let room = wanted - sample.ids.len();
            match self.document(room, &mut rng)? {
                Some(document) => sample.append(document),
                None => self.close(&mut sample.ids, wanted, rng.random())?,
            }
        }
        // Target `t` is id `t + 1`; no answer is at the very beginning of a text.
        let answers: Vec<_> = sample
            .answers
            .iter()
            .map(|span| span.start - 1..span.end - 1)
            .collect();
        let mut weights = vec![self.config.text_weight; self.config.ctx];
        for span in &answers {
            weights[span.clone()].fill(self.config.answer_weight);
        }
        Ok(Needle {
            ids: sample.ids,
            weights,
            answers,
        })
    }

    /// A document of at most `room` tokens, or `None` if no kind fits.
    fn document(&self, room: usize, rng: &mut ChaCha8Rng) -> Result<Option<Document>> {
        let lengths = self.config.document_tokens;
        // A rest too small for another document belongs to this one.
        let take_rest = |length: usize| {
            if length + lengths.min > room {
                room
            } else {
                length
            }
        };
        let length = take_rest(rng.random_range(lengths.min..=lengths.max));
        for kind in self.kinds(rng) {
            let content = Content::draw(kind, &self.config, rng);
            let attempt = match content.fit(&self.tokenizer, length)? {
                Attempt::Needs(needed) if needed <= room => {
                    let longer = take_rest(rng.random_range(needed..=room));
                    content.fit(&self.tokenizer, longer)?
                }
                attempt => attempt,
            };
            if let Attempt::Made(document) = attempt {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    /// A kind as the mix draws it, then the others of the mix, to fall back on.
    fn kinds(&self, rng: &mut ChaCha8Rng) -> Vec<Kind> {
        let pairs = self.config.mix.pairs();
        let drawn = pairs
            .choose_weighted(rng, |(_, weight)| *weight)
            .map(|(kind, _)| *kind);
        let possible = pairs
            .iter()
            .filter(|(_, weight)| *weight > 0.0)
            .map(|(kind, _)| *kind);
        drawn.into_iter().chain(possible.rev()).collect()
    }

    /// Fills up with prose, cut at the last token.
    fn close(&self, ids: &mut Vec<u32>, wanted: usize, seed: u64) -> Result<()> {
        for sentence in Prose::new(seed) {
            if ids.len() >= wanted {
                break;
            }
            ids.extend(self.tokenizer.encode(&format!("{sentence} "))?);
        }
        ids.truncate(wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CountRange, KindWeights};
    use super::*;
    use crate::END_OF_DOCUMENT;
    use crate::ruler::Task;

    fn stream(config: &NeedleConfig, tokenizer: &str) -> NeedleStream {
        NeedleStream::new(config, &Tokenizer::open(tokenizer).unwrap(), 3).unwrap()
    }

    fn only(kind: Kind, ctx: usize) -> NeedleConfig {
        NeedleConfig {
            ctx,
            mix: KindWeights::only(&[kind]),
            ..NeedleConfig::default()
        }
    }

    /// The text before each answer, back to the start of its document, and the answer.
    fn questions(stream: &NeedleStream, sample: &Needle) -> Vec<(String, String)> {
        let ask = |span: &Range<usize>| {
            let answer = span.start + 1..span.end + 1;
            let before = &sample.ids[..answer.start];
            let start = before
                .iter()
                .rposition(|&id| id == END_OF_DOCUMENT)
                .map_or(0, |end| end + 1);
            let text = stream.tokenizer.decode_lossy(&before[start..]);
            (text, stream.tokenizer.decode_lossy(&sample.ids[answer]))
        };
        sample.answers.iter().map(ask).collect()
    }

    #[test]
    fn every_sample_is_exactly_as_long_as_asked_with_answers_weighted() {
        for tokenizer in ["byte", "rwkv-world"] {
            for ctx in [1, 60, 128, 256, 512, 3_000] {
                let config = NeedleConfig {
                    ctx,
                    ..NeedleConfig::default()
                };
                let stream = stream(&config, tokenizer);
                for index in 0..20 {
                    let sample = stream.sample(index).unwrap();
                    assert_eq!((sample.ids.len(), sample.weights.len()), (ctx + 1, ctx));
                    let weighted = sample
                        .weights
                        .iter()
                        .filter(|weight| **weight == 10.0)
                        .count();
                    assert_eq!(
                        weighted,
                        sample.answers.iter().map(Range::len).sum::<usize>()
                    );
                }
            }
        }
    }

    #[test]
    fn every_answer_can_be_found_in_its_document() {
        for tokenizer in ["byte", "rwkv-world"] {
            let config = NeedleConfig {
                ctx: 2_000,
                ..NeedleConfig::default()
            };
            let stream = stream(&config, tokenizer);
            for index in 0..50 {
                for (before, answer) in questions(&stream, &stream.sample(index).unwrap()) {
                    assert!(answer.starts_with(' ') && answer.len() >= 2, "{answer:?}");
                    assert!(
                        before.contains(answer.trim()),
                        "{answer:?} is not in {before:?}"
                    );
                    assert!(before.ends_with(" is"), "{before:?}");
                }
            }
        }
    }

    #[test]
    fn a_sample_depends_on_its_index_and_seed_alone() {
        let config = NeedleConfig::default();
        let one = stream(&config, "byte");
        let forwards: Vec<Needle> = (0..5).map(|index| one.sample(index).unwrap()).collect();
        let again = stream(&config, "byte");
        let backwards: Vec<Needle> = (0..5)
            .rev()
            .map(|index| again.sample(index).unwrap())
            .collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        assert_ne!(forwards[0], forwards[1]);
        let other = NeedleStream::new(&config, &one.tokenizer, 4).unwrap();
        assert_ne!(other.sample(0).unwrap(), forwards[0]);
    }

    #[test]
    fn ruler_documents_are_rulers_prompts_to_the_letter() {
        for (kind, task) in [
            (Kind::RulerPasskey, Task::Passkey),
            (Kind::RulerUuid, Task::Uuid),
        ] {
            let stream = stream(&only(kind, 512), "byte");
            for index in 0..10 {
                let sample = stream.sample(index).unwrap();
                assert_eq!(sample.answers.len(), 1);
                assert_eq!(sample.ids.last(), Some(&END_OF_DOCUMENT));
                let (text, answer) = questions(&stream, &sample).remove(0);
                let noun = if task == Task::Uuid { "uuid" } else { "number" };
                let (before_key, rest) = text
                    .rsplit_once(&format!("The special magic {noun} for "))
                    .unwrap();
                let key = rest
                    .strip_suffix(" mentioned in the provided text is")
                    .unwrap();
                let needle = format!("One of the special magic {noun}s for {key} is:{answer}.");
                let filler = before_key.replacen(&needle, "", 1);
                assert_ne!(filler, before_key);
                assert!(text.starts_with(&format!(
                    "A special magic {noun} is hidden within the following text."
                )));
                let question = format!(
                    "\nWhat is the special magic {noun} for {key} mentioned in the provided text? "
                );
                assert!(filler.ends_with(&question));
            }
        }
    }

    #[test]
    fn a_context_of_256_bytes_holds_whole_passkey_documents() {
        let stream = stream(&only(Kind::Passkey, 256), "byte");
        for index in 0..20 {
            let sample = stream.sample(index).unwrap();
            assert!(!sample.answers.is_empty());
            for (text, answer) in questions(&stream, &sample) {
                assert!(text.contains(&format!(
                    "The pass key is{answer}. Remember it.{answer} is the pass key."
                )));
                assert!(text.ends_with("What is the pass key? The pass key is"));
            }
        }
    }

    #[test]
    fn facts_documents_ask_several_questions_and_tell_as_many_facts_as_configured() {
        let config = NeedleConfig {
            document_tokens: CountRange { min: 513, max: 513 },
            facts: CountRange { min: 6, max: 6 },
            questions: CountRange { min: 3, max: 3 },
            ..only(Kind::Facts, 512)
        };
        let mut config_of_numbers = config.clone();
        config_of_numbers.values.uuid = 0.0;
        let stream = stream(&config_of_numbers, "byte");
        for index in 0..20 {
            let sample = stream.sample(index).unwrap();
            let asked = questions(&stream, &sample);
            assert_eq!(asked.len(), 3);
            let body = asked[0].0.rsplit_once('\n').unwrap().0;
            let told = body.split(' ').filter(|word| word.contains('-')).count();
            assert_eq!(told, 6, "{body}");
        }
    }

    #[test]
    fn facts_that_do_not_fit_are_left_out() {
        let config = NeedleConfig {
            facts: CountRange { min: 50, max: 60 },
            questions: CountRange { min: 9, max: 9 },
            ..only(Kind::Facts, 256)
        };
        let stream = stream(&config, "byte");
        for index in 0..20 {
            assert!(!stream.sample(index).unwrap().answers.is_empty());
        }
    }

    #[test]
    fn with_room_for_no_document_there_is_only_filler() {
        let sample = stream(&only(Kind::RulerPasskey, 200), "byte")
            .sample(0)
            .unwrap();
        assert!(sample.answers.is_empty());
        assert!(!sample.ids.contains(&END_OF_DOCUMENT));
    }
}
