//! An endless text in essay-like sentences, for haystacks when no essays are given.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::words::{ADJECTIVES, NOUNS, pick};

/// A seeded stream of sentences. Two seeds give two texts; the same seed gives the same text everywhere.
///
/// The sentences hold no digits and no hyphens, so that nothing in them looks like a needle.
///
/// ```
/// use rwkvx_datasets::prose::Prose;
///
/// let text: Vec<String> = Prose::new(7).take(3).collect();
/// assert_eq!(text, Prose::new(7).take(3).collect::<Vec<_>>());
/// ```
#[derive(Clone, Debug)]
pub struct Prose {
    rng: ChaCha8Rng,
}

impl Prose {
    /// The text of this seed, from its beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }
}

impl Iterator for Prose {
    type Item = String;

    /// The next sentence; there is always one.
    fn next(&mut self) -> Option<String> {
        let mut sentence = expand(pick(SENTENCES, &mut self.rng), &mut self.rng);
        if self.rng.random_range(0..4) == 0 {
            let opening = pick(OPENINGS, &mut self.rng);
            sentence = format!("{opening} {sentence}");
        }
        capitalise(&mut sentence);
        sentence.push('.');
        Some(sentence)
    }
}

/// Fills the slots of a template.
fn expand(template: &str, rng: &mut impl Rng) -> String {
    let mut text = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').unwrap_or((after, ""));
        text.push_str(before);
        let word = match slot {
            "adj" => pick(&ADJECTIVES, rng),
            "noun" => pick(&NOUNS, rng),
            "who" => pick(PEOPLE, rng),
            "where" => pick(PLACES, rng),
            "when" => pick(TIMES, rng),
            "did" => pick(DEEDS, rng),
            "what" => pick(SUBJECTS, rng),
            "how" => pick(MANNERS, rng),
            _ => pick(VERDICTS, rng),
        };
        text.push_str(word);
        rest = after;
    }
    text.push_str(rest);
    text
}

fn capitalise(sentence: &mut str) {
    if let Some(first) = sentence.get_mut(..1) {
        first.make_ascii_uppercase();
    }
}

const SENTENCES: &[&str] = &[
    "{who} {did} the {adj} {noun} {where}",
    "{who} {did} the {noun} {how}, and nobody {where} asked about the {noun}",
    "{when} {who} {did} the {noun}, the {noun} and the {adj} {noun}",
    "{what} is {verdict}, though {who} would call it {verdict}",
    "{what} is {verdict} when it is done {how}",
    "the {noun} {where} was {adj} and the {noun} was {adj}",
    "{who} spoke {how} about {what}, and {when} the talk turned to the {noun}",
    "if {what} is {verdict}, then {what} must be {verdict} too",
    "there was a time when {who} {did} every {noun} {where}",
    "people who learn {what} {how} seldom forget it, and {who} was one of them",
    "between the {adj} {noun} and the {noun} stood {who}, waiting {how}",
    "it took {who} the whole season to see that {what} is {verdict}",
    "{who} kept the {noun} beside the {adj} {noun}, and {when} {did} both",
    "what matters in {what} is the {noun}, not the {noun}",
    "{when} the {adj} {noun} {where} looked smaller than {who} remembered",
    "nothing {where} was as {adj} as the {noun} that {who} {did}",
    "{who} wrote that {what} is {verdict}, and {where} they still quote it",
    "even the {noun} can be {adj} and still be of use to {who}",
    "{when} the question of {what} came back, and {who} answered it {how}",
    "every {noun} {where} had its own {noun}, and every {noun} its own story",
    "{who} never {did} any {noun} without thinking of {what}",
    "the more {who} thought about {what}, the less the {adj} {noun} mattered",
    "some say that {what} is {verdict}; {who}, who {did} the {noun} {how}, says otherwise",
    "they carried the {noun} {how} and left it {where}",
];

const OPENINGS: &[&str] = &[
    "after all,",
    "and so",
    "as a rule,",
    "at first",
    "besides,",
    "for a while",
    "in the end",
    "in those days",
    "it seems that",
    "most of the time",
    "no doubt",
    "now and then",
    "of course",
    "oddly enough,",
    "on the other hand,",
    "perhaps",
    "to be fair,",
    "year after year",
];

const PEOPLE: &[&str] = &[
    "a traveller",
    "an old friend",
    "her uncle",
    "his neighbour",
    "my teacher",
    "our guide",
    "the apprentice",
    "the baker",
    "the carpenter",
    "the clerk",
    "the ferryman",
    "the gardener",
    "the historian",
    "the innkeeper",
    "the judge",
    "the librarian",
    "the mayor",
    "the miller",
    "the painter",
    "the physician",
    "the printer",
    "the shepherd",
    "the tailor",
    "the watchmaker",
];

const PLACES: &[&str] = &[
    "across the bay",
    "along the canal",
    "at the edge of the forest",
    "at the far end of the square",
    "behind the mill",
    "below the old town",
    "beside the railway",
    "beyond the last houses",
    "by the harbour",
    "in the back room",
    "in the next valley",
    "in the northern provinces",
    "near the bridge",
    "on the eastern shore",
    "on the upper floor",
    "outside the walls",
    "under the arcades",
    "up in the hills",
];

const TIMES: &[&str] = &[
    "a week later",
    "after supper",
    "at noon",
    "before dawn",
    "during the long rains",
    "early in spring",
    "every other day",
    "from time to time",
    "in late summer",
    "just before the harvest",
    "on market days",
    "on the first cold morning",
    "one evening",
    "toward midnight",
    "when the bells rang",
    "when the lamps were lit",
];

const DEEDS: &[&str] = &[
    "admired",
    "borrowed",
    "bought",
    "carried",
    "cleaned",
    "copied",
    "described",
    "drew",
    "examined",
    "explained",
    "found",
    "guarded",
    "hid",
    "kept",
    "lost",
    "measured",
    "mended",
    "moved",
    "named",
    "noticed",
    "opened",
    "painted",
    "polished",
    "praised",
    "remembered",
    "repaired",
    "returned",
    "sketched",
    "sold",
    "studied",
    "weighed",
    "wrapped",
];

const SUBJECTS: &[&str] = &[
    "building things",
    "careful reading",
    "changing your mind",
    "choosing a trade",
    "drawing maps",
    "good conversation",
    "keeping a promise",
    "keeping bees",
    "learning a language",
    "making music",
    "patience",
    "saving money",
    "starting over",
    "telling stories",
    "the art of listening",
    "the history of the town",
    "the price of salt",
    "the weather",
    "walking",
    "working alone",
    "working with others",
    "writing letters",
];

const MANNERS: &[&str] = &[
    "at great length",
    "badly",
    "by candlelight",
    "carelessly",
    "for the first time",
    "gladly",
    "in good order",
    "in silence",
    "little by little",
    "once more",
    "patiently",
    "slowly",
    "twice over",
    "with both hands",
    "with great care",
    "without haste",
    "without saying why",
];

const VERDICTS: &[&str] = &[
    "a habit like any other",
    "a kind of freedom",
    "easier than it looks",
    "harder than it looks",
    "mostly a matter of luck",
    "mostly a matter of practice",
    "never quite finished",
    "not for everyone",
    "older than anyone thinks",
    "the work of a lifetime",
    "worth a long journey",
    "worth the trouble",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sentences_hardly_ever_repeat() {
        let sentences: HashSet<String> = Prose::new(3).take(10_000).collect();
        assert!(
            sentences.len() > 9_900,
            "{} of 10000 differ",
            sentences.len()
        );
    }

    #[test]
    fn sentences_are_whole_and_hold_nothing_that_looks_like_a_needle() {
        for sentence in Prose::new(11).take(5_000) {
            assert!(
                sentence.starts_with(|first: char| first.is_ascii_uppercase()),
                "{sentence}"
            );
            assert!(sentence.ends_with('.'), "{sentence}");
            let unwanted =
                |char: char| matches!(char, '{' | '}' | '-' | '\n') || char.is_ascii_digit();
            assert!(!sentence.contains(unwanted), "{sentence}");
        }
    }

    #[test]
    fn another_seed_is_another_text() {
        assert_ne!(Prose::new(1).next(), Prose::new(2).next());
    }
}
