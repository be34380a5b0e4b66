//! Texts that end generation when they appear.

/// Passes text on, holding back what may be the beginning of a stop text.
pub(crate) struct StopTexts {
    stops: Vec<String>,
    held: String,
}

/// What may be printed now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) text: String,
    /// Whether a stop text has appeared; `text` is what stood before it.
    pub(crate) stopped: bool,
}

impl StopTexts {
    /// Empty stop texts are left out, they would end every text.
    pub(crate) fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop))
            .min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Passed {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let may_begin = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let keep_from = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| may_begin(&self.held[at..]))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep_from);
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What was held back, once no more text comes.
    pub(crate) fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut texts = StopTexts::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut passed = Vec::new();
        for piece in pieces {
            let next = texts.push(piece);
            passed.push(next.text);
            if next.stopped {
                return (passed, true);
            }
        }
        passed.push(texts.finish());
        (passed, false)
    }

    #[test]
    fn text_that_begins_no_stop_passes_at_once() {
        assert_eq!(
            run(&["END"], &["ab", "cd"]),
            (vec!["ab".into(), "cd".into(), String::new()], false)
        );
    }

    #[test]
    fn a_stop_across_pieces_ends_the_text_before_it() {
        let (passed, stopped) = run(&["\n\nUser", "##"], &["yes\n", "\n", "Us", "er: more"]);
        assert_eq!((passed.concat().as_str(), stopped), ("yes", true));
        assert_eq!(passed[0], "yes");
    }

    #[test]
    fn what_turns_out_to_be_no_stop_is_passed_late() {
        let (passed, stopped) = run(&["\n\nUser"], &["é\n", "\n", "Uno"]);
        assert_eq!(passed, ["é", "", "\n\nUno", ""]);
        assert!(!stopped);
        assert_eq!(run(&["ab"], &["xa"]), (vec!["x".into(), "a".into()], false));
    }

    #[test]
    fn the_earliest_of_several_stops_counts() {
        assert_eq!(run(&["c", "b"], &["abc"]), (vec!["a".into()], true));
        assert_eq!(run(&[""], &["a"]), (vec!["a".into(), String::new()], false));
    }
}
