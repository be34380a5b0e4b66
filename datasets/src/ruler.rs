//! RULER's three single-needle tasks (S-NIAH), worded and sized as RULER does it.
//!
//! | task | in RULER | haystack | value |
//! | --- | --- | --- | --- |
//! | [`Task::Passkey`] | `niah_single_1` | one noise line, repeated | 7-digit number |
//! | [`Task::Number`] | `niah_single_2` | essays | 7-digit number |
//! | [`Task::Uuid`] | `niah_single_3` | essays | UUID |
//!
//! A prompt reads
//!
//! ```text
//! A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards.
//! The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
//! One of the special magic numbers for quiet-harbor is: 4093127.
//! The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
//! What is the special magic number for quiet-harbor mentioned in the provided text? The special magic number for quiet-harbor mentioned in the provided text is
//! ```
//!
//! and the model goes on with ` 4093127`. What differs from RULER: keys come from this crate's word lists, essays are
//! split into sentences by punctuation alone, and without a text for the haystack the essays are generated
//! ([`prose`](crate::prose)).
//!
//! # Length
//!
//! The length of a prompt counts everything the model sees, the answer's prefix included, and
//! [`tokens_to_generate`](PromptSpec::tokens_to_generate) tokens for the answer, 128 in RULER. [`Fit::Ruler`] fills
//! with whole steps of RULER's (25 noise lines, 5 below 4096 tokens; 500 words of an essay) and stays below the length
//! by up to one step. [`Fit::Exact`] adds single lines or words and then part of the next, cut anywhere, so that the
//! length is met exactly.

use std::fmt;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::haystack::{Haystack, fit};
use crate::{Error, Result, Tokenizer, words};

/// Tokens RULER leaves for the answer.
pub const TOKENS_TO_GENERATE: usize = 128;

/// Longest prompt, in tokens: far above any model's reach, and small enough to be held in memory.
pub(crate) const MAX_LENGTH: usize = 1 << 28;

/// Digits of a number in RULER.
const DIGITS: u32 = 7;

/// One of RULER's single-needle tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Task {
    /// A number in repeated noise.
    Passkey,
    /// A number in essays.
    Number,
    /// A UUID in essays.
    Uuid,
}

impl Task {
    /// The three, in RULER's order.
    pub const ALL: [Self; 3] = [Self::Passkey, Self::Number, Self::Uuid];

    /// Its name here: `passkey`, `number` or `uuid`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::Number => "number",
            Self::Uuid => "uuid",
        }
    }

    /// Its name in RULER: `niah_single_1` to `niah_single_3`.
    pub fn ruler_name(self) -> &'static str {
        match self {
            Self::Passkey => "niah_single_1",
            Self::Number => "niah_single_2",
            Self::Uuid => "niah_single_3",
        }
    }

    /// What the value is called in the prompt.
    fn value_noun(self) -> &'static str {
        match self {
            Self::Passkey | Self::Number => "number",
            Self::Uuid => "uuid",
        }
    }

    /// Units (noise lines or words) RULER adds at a time.
    fn step(self, length: usize) -> usize {
        match self {
            Self::Passkey if length < 4096 => 5,
            Self::Passkey => 25,
            Self::Number | Self::Uuid => 500,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// How filler is measured out; see the [module's text](self#length).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fit {
    /// In RULER's steps, at most the length asked for.
    #[default]
    Ruler,
    /// To exactly the length asked for.
    Exact,
}

/// Which prompt to build.
#[derive(Clone, Debug)]
pub struct PromptSpec {
    /// The task.
    pub task: Task,
    /// Tokens of the prompt and of the answer together.
    pub length: usize,
    /// Tokens of `length` that are left for the answer.
    pub tokens_to_generate: usize,
    /// How filler is measured out.
    pub fit: Fit,
    /// Where the needle stands, in percent of the haystack's lines or sentences: 0 is before the first, 100 after the
    /// last. `None` draws it as RULER does: any line, or one of 40 depths from 0 to 100.
    pub depth: Option<f32>,
    /// Decides the key, the value, a depth of `None` and generated essays.
    pub seed: u64,
}

impl PromptSpec {
    /// RULER's own settings for a task and a length, with seed 0.
    pub fn new(task: Task, length: usize) -> Self {
        Self {
            task,
            length,
            tokens_to_generate: TOKENS_TO_GENERATE,
            fit: Fit::Ruler,
            depth: None,
            seed: 0,
        }
    }
}

/// A prompt and the answer it asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What the model is given. It ends in `is`, without a space.
    pub text: String,
    /// What the model should say next; RULER looks for it anywhere in the model's words, in any case.
    pub answer: String,
    /// Tokens of `text`.
    pub tokens: usize,
    /// Where the needle stands, in percent.
    pub depth_percent: f32,
    /// The key that is asked for.
    pub key: String,
}

impl Prompt {
    /// Whether a model that said this gave the answer: it stands somewhere in it, in any case.
    pub fn is_answered_by(&self, said: &str) -> bool {
        said.to_lowercase().contains(&self.answer.to_lowercase())
    }
}

/// Builds a prompt; the same arguments always give the same one. `haystack` is the text of the essays, repeated where
/// it is too short, and not used for [`Task::Passkey`]; without it essays are generated.
///
/// ```
/// use rwkvx_datasets::Tokenizer;
/// use rwkvx_datasets::ruler::{Fit, PromptSpec, Task, build};
///
/// let tokenizer = Tokenizer::open("rwkv-world")?;
/// let spec = PromptSpec { fit: Fit::Exact, depth: Some(50.0), ..PromptSpec::new(Task::Passkey, 1024) };
/// let prompt = build(&spec, &tokenizer, None)?;
/// assert_eq!(prompt.tokens, 1024 - 128);
/// assert!(prompt.text.contains(&format!("for {} is: {}.", prompt.key, prompt.answer)));
/// # Ok::<(), rwkvx_datasets::Error>(())
/// ```
///
/// # Errors
///
/// If the length is too short for the fixed text and the answer (the error names the least that works), if `depth` is
/// not a percentage, or if `haystack` has no words.
pub fn build(spec: &PromptSpec, tokenizer: &Tokenizer, haystack: Option<&str>) -> Result<Prompt> {
    if let Some(depth) = spec.depth.filter(|depth| !(0.0..=100.0).contains(depth)) {
        return Err(Error::value(
            "depth",
            format!("{depth} is not a percentage from 0 to 100"),
        ));
    }
    let what = spec.task.ruler_name();
    if spec.length > MAX_LENGTH {
        return Err(Error::PromptLength {
            what,
            asked: spec.length,
            reason: format!("at most {MAX_LENGTH} are possible"),
        });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
    let needle = Needle::draw(spec.task, spec.depth, &mut rng);
    let mut filler = match (spec.task, haystack) {
        (Task::Passkey, _) => Haystack::noise(),
        (_, Some(essay)) => Haystack::essay(essay)?,
        (_, None) => Haystack::prose(rng.random()),
    };
    let budget = spec.length.saturating_sub(spec.tokens_to_generate);
    let step = match spec.fit {
        Fit::Ruler => Some(spec.task.step(spec.length)),
        Fit::Exact => None,
    };
    let separator = filler.separator();
    let fitted = fit(&mut filler, tokenizer, budget, step, |pieces, tail| {
        needle.prompt(pieces, tail, separator)
    })?;
    if fitted.tokens > budget {
        return Err(Error::PromptTooShort {
            what,
            asked: spec.length,
            minimum: fitted.tokens + spec.tokens_to_generate,
        });
    }
    if spec.fit == Fit::Exact && fitted.tokens < budget {
        return Err(Error::PromptLength {
            what,
            asked: spec.length,
            reason:
                "this tokenizer has no such text of exactly this length; ask for another length"
                    .to_owned(),
        });
    }
    Ok(Prompt {
        text: fitted.text,
        answer: needle.value,
        tokens: fitted.tokens,
        depth_percent: needle.depth,
        key: needle.key,
    })
}

/// What is hidden and where.
pub(crate) struct Needle {
    task: Task,
    key: String,
    pub(crate) value: String,
    /// Percent.
    depth: f32,
}

impl Needle {
    /// Draws a key and a value, and a depth where none is given.
    pub(crate) fn draw(task: Task, depth: Option<f32>, rng: &mut ChaCha8Rng) -> Self {
        let key = words::key(rng);
        let value = match task {
            Task::Passkey | Task::Number => words::number(DIGITS, rng),
            Task::Uuid => words::uuid(rng),
        };
        let depth = depth.unwrap_or_else(|| match task {
            Task::Passkey => rng.random_range(0.0..100.0),
            Task::Number | Task::Uuid => ESSAY_DEPTHS.choose(rng).copied().unwrap_or_default(),
        });
        Self {
            task,
            key,
            value,
            depth,
        }
    }

    /// The whole prompt around pieces of filler.
    pub(crate) fn prompt(&self, pieces: &[&str], tail: &str, separator: &str) -> String {
        let (noun, key) = (self.task.value_noun(), &self.key);
        let sentence = format!(
            "One of the special magic {noun}s for {key} is: {}.",
            self.value
        );
        let place = (pieces.len() as f64 * f64::from(self.depth) / 100.0) as usize;
        let mut context = pieces.to_vec();
        context.insert(place, &sentence);
        format!(
            "A special magic {noun} is hidden within the following text. Make sure to memorize it. I will quiz you \
             about the {noun} afterwards.\n{}{tail}\nWhat is the special magic {noun} for {key} mentioned in the \
             provided text? The special magic {noun} for {key} mentioned in the provided text is",
            context.join(separator)
        )
    }
}

/// RULER's depths in essays: 40 from 0 to 100, rounded to whole percent.
const ESSAY_DEPTHS: [f32; 40] = {
    let mut depths = [0.0; 40];
    let mut place = 0;
    while place < 40 {
        depths[place] = ((place * 100 * 2 + 39) / (39 * 2)) as f32;
        place += 1;
    }
    depths
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haystack::NOISE;

    fn world() -> Tokenizer {
        Tokenizer::open("rwkv-world").unwrap()
    }

    #[test]
    fn noise_prompts_have_as_many_lines_as_rulers_own() {
        let tokenizer = world();
        let known = [
            (1_000, 30),
            (1_024, 30),
            (2_000, 70),
            (2_048, 70),
            (4_000, 150),
            (4_096, 150),
            (8_000, 300),
            (8_192, 300),
            (16_000, 625),
            (16_384, 625),
            (32_768, 1_300),
            (64_000, 2_550),
            (65_536, 2_600),
            (131_072, 5_225),
        ];
        for (length, lines) in known {
            let prompt = build(&PromptSpec::new(Task::Passkey, length), &tokenizer, None).unwrap();
            assert_eq!(prompt.text.matches(NOISE).count(), lines, "{length} tokens");
            assert_eq!(prompt.tokens, tokenizer.encode(&prompt.text).unwrap().len());
        }
    }

    #[test]
    fn a_noise_prompt_is_worded_as_rulers() {
        let spec = PromptSpec {
            depth: Some(100.0),
            ..PromptSpec::new(Task::Passkey, 360)
        };
        let Prompt {
            text, answer, key, ..
        } = build(&spec, &world(), None).unwrap();
        let noise = [NOISE; 5].join("\n");
        assert_eq!(
            text,
            format!(
                "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you \
                 about the number afterwards.\n{noise}\nOne of the special magic numbers for {key} is: {answer}.\n\
                 What is the special magic number for {key} mentioned in the provided text? The special magic number \
                 for {key} mentioned in the provided text is"
            )
        );
    }

    #[test]
    fn an_exact_prompt_and_its_answer_fill_the_length_at_every_depth() {
        for (spec, lengths) in [
            ("byte", [512, 1_000, 4_096]),
            ("rwkv-world", [300, 1_000, 65_536]),
        ] {
            let tokenizer = Tokenizer::open(spec).unwrap();
            for (task, length) in Task::ALL.into_iter().zip(lengths) {
                for depth in [Some(0.0), Some(37.5), Some(100.0), None] {
                    let spec = PromptSpec {
                        fit: Fit::Exact,
                        tokens_to_generate: 20,
                        depth,
                        seed: length as u64,
                        ..PromptSpec::new(task, length)
                    };
                    let prompt = build(&spec, &tokenizer, None).unwrap();
                    assert_eq!(prompt.tokens, length - 20);
                    assert_eq!(tokenizer.encode(&prompt.text).unwrap().len(), length - 20);
                    assert_eq!(prompt.text.matches(&prompt.answer).count(), 1);
                }
            }
        }
    }

    #[test]
    fn the_needle_stands_at_its_depth() {
        let tokenizer = world();
        for task in Task::ALL {
            for depth in [0.0, 25.0, 50.0, 75.0, 100.0] {
                let spec = PromptSpec {
                    fit: Fit::Exact,
                    depth: Some(depth),
                    ..PromptSpec::new(task, 8_192)
                };
                let prompt = build(&spec, &tokenizer, None).unwrap();
                let place = prompt.text.find("One of the special").unwrap() as f32;
                let share = 100.0 * place / prompt.text.len() as f32;
                assert!(
                    (share - depth).abs() < 2.0,
                    "{task}: {share}% instead of {depth}%"
                );
            }
        }
    }

    #[test]
    fn a_length_too_short_names_the_least_that_works() {
        let tokenizer = Tokenizer::open("byte").unwrap();
        let mut spec = PromptSpec {
            tokens_to_generate: 8,
            fit: Fit::Exact,
            ..PromptSpec::new(Task::Passkey, 200)
        };
        let Err(Error::PromptTooShort { minimum, .. }) = build(&spec, &tokenizer, None) else {
            panic!("200 bytes cannot be enough");
        };
        assert!((300..420).contains(&minimum), "{minimum}");
        for (length, fits) in [
            (minimum - 1, false),
            (minimum, true),
            (512, true),
            (0, false),
        ] {
            spec.length = length;
            assert_eq!(build(&spec, &tokenizer, None).is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn given_essays_are_the_haystack_and_repeat() {
        let tokenizer = world();
        let essay = "The first point is simple.\nThe second is not!";
        let spec = PromptSpec::new(Task::Number, 4_000);
        let prompt = build(&spec, &tokenizer, Some(essay)).unwrap();
        // In steps of 500 words, nine words an essay.
        let words = prompt.text.split_whitespace().count();
        assert!(
            prompt.text.matches("The second is not!").count() >= 500 / 9,
            "{words} words"
        );
        assert!(prompt.tokens <= 4_000 - 128);
        assert!(build(&spec, &tokenizer, Some("  ")).is_err());
    }

    #[test]
    fn the_seed_decides_everything() {
        let tokenizer = world();
        let with_seed = |seed| {
            let spec = PromptSpec {
                seed,
                ..PromptSpec::new(Task::Uuid, 2_000)
            };
            build(&spec, &tokenizer, None).unwrap()
        };
        assert_eq!(with_seed(5), with_seed(5));
        assert_ne!(with_seed(5), with_seed(6));
    }

    #[test]
    fn an_answer_counts_anywhere_and_in_any_case() {
        let prompt = Prompt {
            text: String::new(),
            answer: "3F2A-77".to_owned(),
            tokens: 0,
            depth_percent: 0.0,
            key: String::new(),
        };
        assert!(prompt.is_answered_by(" It is 3f2a-77, I think."));
        assert!(!prompt.is_answered_by("3f2a-7 7"));
    }

    #[test]
    fn a_depth_outside_0_to_100_is_refused() {
        for depth in [-1.0, 100.5, f32::NAN] {
            let spec = PromptSpec {
                depth: Some(depth),
                ..PromptSpec::new(Task::Passkey, 1_000)
            };
            assert!(
                build(&spec, &world(), None)
                    .unwrap_err()
                    .to_string()
                    .starts_with("depth")
            );
        }
    }

    #[test]
    fn essay_depths_are_numpys_rounded_linspace() {
        assert_eq!(ESSAY_DEPTHS[..5], [0.0, 3.0, 5.0, 8.0, 10.0]);
        assert_eq!(ESSAY_DEPTHS[37..], [95.0, 97.0, 100.0]);
    }
}
