//! The filler around needles, and fitting it to a number of tokens.

use std::iter::Cycle;
use std::str::SplitWhitespace;

use crate::prose::Prose;
use crate::{Error, Result, Tokenizer};

/// RULER's noise, a line of its own in RULER and repeated without end in RWKV-X's passkey script.
pub(crate) const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// An endless text, counted in units: lines of noise, or words of an essay.
pub(crate) struct Haystack<'a> {
    source: Source<'a>,
    /// As much of the text as has been asked for.
    text: String,
    /// Where each unit in `text` ends.
    ends: Vec<usize>,
}

enum Source<'a> {
    Noise,
    Essay(Cycle<SplitWhitespace<'a>>),
    Prose(Prose),
}

impl<'a> Haystack<'a> {
    /// The noise sentences, one line after the other.
    pub(crate) fn noise() -> Self {
        Self::new(Source::Noise)
    }

    /// Generated sentences.
    pub(crate) fn prose(seed: u64) -> Self {
        Self::new(Source::Prose(Prose::new(seed)))
    }

    /// The words of `essay`, white space normalised, from the beginning again at its end.
    pub(crate) fn essay(essay: &'a str) -> Result<Self> {
        let words = essay.split_whitespace();
        if words.clone().next().is_none() {
            return Err(Error::value(
                "haystack",
                "the text is empty; give a file with text in it",
            ));
        }
        Ok(Self::new(Source::Essay(words.cycle())))
    }

    fn new(source: Source<'a>) -> Self {
        Self {
            source,
            text: String::new(),
            ends: Vec::new(),
        }
    }

    /// What stands between two pieces.
    pub(crate) fn separator(&self) -> &'static str {
        match self.source {
            Source::Noise => "\n",
            Source::Essay(_) | Source::Prose(_) => " ",
        }
    }

    /// The first `units` units, cut into the pieces that a needle may stand between: lines, or sentences.
    fn pieces(&mut self, units: usize) -> Vec<&str> {
        self.grow(units);
        let text = &self.text[..self.end(units)];
        match self.source {
            Source::Noise => text.lines().collect(),
            Source::Essay(_) | Source::Prose(_) => sentences(text),
        }
    }

    /// A separator and what follows the first `units` units after `skip` characters, `chars` characters in all.
    fn padding(&mut self, units: usize, skip: usize, chars: usize) -> String {
        // A unit has at least one character, so that many more units are always enough.
        self.grow(units + skip + chars + 1);
        let following = match units {
            0 => &self.text,
            _ => &self.text[self.end(units) + self.separator().len()..],
        };
        let padding = self.separator().chars().chain(following.chars().skip(skip));
        padding.take(chars).collect()
    }

    fn end(&self, units: usize) -> usize {
        match units {
            0 => 0,
            _ => self.ends[units - 1],
        }
    }

    fn grow(&mut self, units: usize) {
        while self.ends.len() < units {
            match &mut self.source {
                Source::Noise => self.push(NOISE),
                Source::Essay(words) => {
                    if let Some(word) = words.next() {
                        self.push(word);
                    }
                }
                Source::Prose(prose) => {
                    let sentence = prose.next().unwrap_or_default();
                    sentence.split(' ').for_each(|word| self.push(word));
                }
            }
        }
    }

    fn push(&mut self, unit: &str) {
        if !self.text.is_empty() {
            self.text.push_str(self.separator());
        }
        self.text.push_str(unit);
        self.ends.push(self.text.len());
    }
}

/// A text fitted to a number of tokens.
pub(crate) struct Fitted {
    pub(crate) text: String,
    pub(crate) tokens: usize,
}

/// Renders `haystack` to as many tokens as `budget` allows.
///
/// With `step` the filler is a multiple of so many units (or, if not even one step fits, as many units as fit). Without,
/// it is padded with part of what follows, cut anywhere, so that the text has exactly `budget` tokens. `render` is given
/// the pieces of filler, the last of them padded, and a tail to close them with: the padding where there is no piece,
/// else nothing.
///
/// The result exceeds `budget` only if there is no filler left in it: then it is the least text there is. With an exact
/// fit it falls short of `budget` where the tokenizer has no such text.
pub(crate) fn fit(
    haystack: &mut Haystack<'_>,
    tokenizer: &Tokenizer,
    budget: usize,
    step: Option<usize>,
    render: impl Fn(&[&str], &str) -> String,
) -> Result<Fitted> {
    let count = |text: &str| tokenizer.encode(text).map(|ids| ids.len());
    let mut whole = |units: usize| render(&haystack.pieces(units), "");
    let mut units = 0;
    for step in [step.unwrap_or(1), 1] {
        if units == 0 {
            units = step * largest(budget, |steps| count(&whole(steps * step)))?;
        }
    }
    let text = whole(units);
    let tokens = count(&text)?;
    if step.is_some() || tokens >= budget {
        return Ok(Fitted { text, tokens });
    }
    let mut padded = |units: usize, skip: usize, chars: usize| {
        let padding = haystack.padding(units, skip, chars);
        let mut pieces = haystack.pieces(units);
        match pieces.pop() {
            None => render(&[], &padding),
            Some(last) => {
                let last = format!("{last}{padding}");
                pieces.push(&last);
                render(&pieces, "")
            }
        }
    };
    // One character more is nearly always at most one token more, so that the first try is nearly always exact. It is
    // not where a separator and a character are two tokens; a padding with another beginning gets past that.
    let other_beginnings = (0..PADDING_BEGINNINGS).map(|skip| (units.saturating_sub(1), skip));
    for (units, skip) in std::iter::once((units, 0)).chain(other_beginnings) {
        let chars = largest(budget, |chars| count(&padded(units, skip, chars)))?;
        let text = padded(units, skip, chars);
        if count(&text)? == budget {
            return Ok(Fitted {
                text,
                tokens: budget,
            });
        }
    }
    Ok(Fitted { text, tokens })
}

/// Beginnings of a padding that an exact fit tries: enough to leave out each of several words.
const PADDING_BEGINNINGS: usize = 32;

/// Some `n` with `cost(n) <= budget < cost(n + 1)`, 0 if already `cost(0)` exceeds `budget`.
///
/// For a growing cost it is the largest that fits, and a cost that hardly grows (a tokenizer with one token for
/// everything) is given up on at [`MOST_PER_TOKEN`]. The cost is close to linear, so interpolating between what is known
/// finds it in a handful of evaluations, which is what matters when each tokenises a long text.
fn largest(budget: usize, mut cost: impl FnMut(usize) -> Result<usize>) -> Result<usize> {
    let (mut low, mut low_cost) = (0, cost(0)?);
    if low_cost > budget {
        return Ok(0);
    }
    let most = MOST_PER_TOKEN * (budget + 1);
    let mut high: Option<(usize, usize)> = None;
    let mut guess = 8;
    for round in 0.. {
        let guess_cost = cost(guess)?;
        if guess_cost <= budget {
            // Where nothing is known above, the slope since `low` is what there is to go by.
            let gained = guess_cost.saturating_sub(low_cost).max(1);
            let jump = (budget - guess_cost) * (guess - low) / gained;
            (low, low_cost) = (guess, guess_cost);
            if low >= most {
                break;
            }
            guess = (low + jump.max(1)).min(most);
        } else {
            high = Some((guess, guess_cost));
        }
        if let Some((high, high_cost)) = high {
            if high == low + 1 {
                break;
            }
            // Every third round halves, in case the cost is far from linear.
            let share = if round % 3 == 2 {
                (high - low) / 2
            } else {
                (budget - low_cost) * (high - low) / (high_cost - low_cost)
            };
            guess = low + share.clamp(1, high - low - 1);
        }
    }
    Ok(low)
}

/// Units or characters that a token may stand for; far more than any useful tokenizer's longest tokens in prose.
const MOST_PER_TOKEN: usize = 16;

/// Splits at the spaces after `.`, `!` and `?`, with closing quotes and brackets kept to the sentence.
fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (space, _) in text.match_indices(' ') {
        let sentence = &text[start..space];
        let core = sentence.trim_end_matches(['"', '\'', ')', ']', '”', '’']);
        if core.ends_with(['.', '!', '?']) {
            sentences.push(sentence);
            start = space + 1;
        }
    }
    if start < text.len() {
        sentences.push(&text[start..]);
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found_in_few_evaluations() {
        for budget in [0, 1, 7, 100, 5_000, 1_000_000] {
            for per_unit in [1, 3, 25] {
                let mut evaluations = 0;
                let found = largest(budget, |n| {
                    evaluations += 1;
                    Ok(n * per_unit + n % 2)
                })
                .unwrap();
                assert!(found * per_unit + found % 2 <= budget);
                assert!((found + 1) * per_unit + (found + 1) % 2 > budget);
                assert!(
                    evaluations <= 16,
                    "{evaluations} evaluations for {budget}/{per_unit}"
                );
            }
        }
    }

    #[test]
    fn the_search_ends_for_a_cost_far_from_linear() {
        let square = |n: usize| Ok(n * n);
        assert_eq!(largest(1_000_000, square).unwrap(), 1_000);
        let flat_then_steep = |n: usize| Ok(if n < 500 { 0 } else { n * 100 });
        assert_eq!(largest(60_000, flat_then_steep).unwrap(), 600);
        assert_eq!(largest(99, |_| Ok(1)).unwrap(), 1_600);
    }

    #[test]
    fn an_exact_fit_has_exactly_the_tokens_asked_for() {
        for spec in ["byte", "rwkv-world"] {
            let tokenizer = Tokenizer::open(spec).unwrap();
            for budget in (40..400).step_by(7).chain([5_000, 20_001]) {
                for mut haystack in [Haystack::noise(), Haystack::prose(budget as u64)] {
                    let separator = haystack.separator();
                    let fitted = fit(&mut haystack, &tokenizer, budget, None, |pieces, tail| {
                        format!("{}{tail}\nWhat?", pieces.join(separator))
                    })
                    .unwrap();
                    assert_eq!(fitted.tokens, budget, "{spec}");
                    assert_eq!(tokenizer.encode(&fitted.text).unwrap().len(), budget);
                }
            }
        }
    }

    #[test]
    fn an_essay_too_short_is_repeated() {
        let mut haystack = Haystack::essay(" One two.\n\nThree   four. ").unwrap();
        assert_eq!(
            haystack.pieces(7),
            ["One two.", "Three four.", "One two.", "Three"]
        );
        assert_eq!(haystack.padding(7, 0, 8), " four. O");
        assert_eq!(haystack.padding(0, 1, 3), " ne");
        assert!(Haystack::essay(" \n").is_err());
    }

    #[test]
    fn sentences_end_after_closing_quotes() {
        let text = "He said \"Stop.\" She (who?) did. The price was 3.50 then";
        let expected = [
            "He said \"Stop.\"",
            "She (who?)",
            "did.",
            "The price was 3.50 then",
        ];
        assert_eq!(sentences(text), expected);
    }
}
