//! An endless, seeded stream of retrieval documents to train on.
//!
//! Every sample is a pure function of the configuration, the seed and its index, so training resumes exactly and needs
//! no files. A sample has `ctx + 1` ids: `ctx` inputs and the `ctx` targets one further. It is packed from documents,
//! each ended by [`END_OF_DOCUMENT`](crate::END_OF_DOCUMENT), of these kinds:
//!
//! - [`Kind::RulerPasskey`], [`Kind::RulerNumber`], [`Kind::RulerUuid`]: a prompt of [`ruler`](crate::ruler) and its
//!   answer, so that what is learned can be scored by S-NIAH. With the byte tokenizer they need some 350 to 450 tokens.
//! - [`Kind::Passkey`]: the sentences of [`passkey`](crate::passkey), without its opening line where that would leave
//!   little room for anything else.
//! - [`Kind::Facts`]: several facts in filler, then several questions. It has the most questions per token:
//!
//! ```text
//! The grass is green. The sky is blue. The sun is yellow. quiet-harbor is 40931. brave-otter is 7f3a09c2. Here we go. plain-kite is 2204817. There and back again.
//! What is plain-kite? plain-kite is 2204817.
//! What is quiet-harbor? quiet-harbor is 40931.
//! ```
//!
//! Filler is RULER's noise or [`prose`](crate::prose). Where no document fits any more, the sample ends with filler.
//! The tokens of answers (` 2204817` and ` 40931` above) have their own weight in the loss; that they can be found in
//! the text is what makes them worth learning.

mod document;
mod facts;
mod stream;

use serde::{Deserialize, Serialize};

pub use facts::{AskedFact, FactsSpec, FactsText};
pub use stream::{Needle, NeedleStream};

use crate::ruler::MAX_LENGTH;
use crate::{Error, Result};

/// What a document of the stream looks like; see the [module's text](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// The passkey sentences of the RWKV-X script.
    Passkey,
    /// RULER's `niah_single_1`.
    RulerPasskey,
    /// RULER's `niah_single_2`, in generated prose.
    RulerNumber,
    /// RULER's `niah_single_3`, in generated prose.
    RulerUuid,
    /// Many facts, several questions.
    Facts,
}

/// What the stream generates.
///
/// The default suits a byte-level model of about a million parameters at a context of 512.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeedleConfig {
    /// Inputs (and targets) of a sample, in tokens.
    pub ctx: usize,
    /// Length of a document in tokens, its end included. A document is made longer where its kind needs it and the
    /// sample has the room, and never longer than the sample.
    pub document_tokens: CountRange,
    /// How often each kind is drawn.
    pub mix: KindWeights,
    /// Facts of a [`Kind::Facts`] document, fewer where they do not fit.
    pub facts: CountRange,
    /// Questions of a [`Kind::Facts`] document, at most one per fact, fewer where they do not fit.
    pub questions: CountRange,
    /// How often each type of value is drawn for a fact.
    pub values: ValueWeights,
    /// Weight in the loss of a token of an answer.
    pub answer_weight: f32,
    /// Weight in the loss of every other token.
    pub text_weight: f32,
}

impl Default for NeedleConfig {
    fn default() -> Self {
        Self {
            ctx: 512,
            document_tokens: CountRange { min: 160, max: 513 },
            mix: KindWeights::default(),
            facts: CountRange { min: 3, max: 8 },
            questions: CountRange { min: 2, max: 6 },
            values: ValueWeights::default(),
            answer_weight: 10.0,
            text_weight: 1.0,
        }
    }
}

/// Both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountRange {
    /// Least.
    pub min: usize,
    /// Most.
    pub max: usize,
}

/// Relative frequency of each [`Kind`]; one left out of a configuration is not drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindWeights {
    /// Of [`Kind::Passkey`].
    #[serde(default)]
    pub passkey: f32,
    /// Of [`Kind::RulerPasskey`].
    #[serde(default)]
    pub ruler_passkey: f32,
    /// Of [`Kind::RulerNumber`].
    #[serde(default)]
    pub ruler_number: f32,
    /// Of [`Kind::RulerUuid`].
    #[serde(default)]
    pub ruler_uuid: f32,
    /// Of [`Kind::Facts`].
    #[serde(default)]
    pub facts: f32,
}

impl Default for KindWeights {
    fn default() -> Self {
        Self {
            passkey: 0.1,
            ruler_passkey: 0.3,
            ruler_number: 0.1,
            ruler_uuid: 0.05,
            facts: 0.45,
        }
    }
}

impl KindWeights {
    /// Only these kinds, equally often.
    pub fn only(kinds: &[Kind]) -> Self {
        let weight = |kind| if kinds.contains(&kind) { 1.0 } else { 0.0 };
        Self {
            passkey: weight(Kind::Passkey),
            ruler_passkey: weight(Kind::RulerPasskey),
            ruler_number: weight(Kind::RulerNumber),
            ruler_uuid: weight(Kind::RulerUuid),
            facts: weight(Kind::Facts),
        }
    }

    fn pairs(&self) -> [(Kind, f32); 5] {
        [
            (Kind::Passkey, self.passkey),
            (Kind::RulerPasskey, self.ruler_passkey),
            (Kind::RulerNumber, self.ruler_number),
            (Kind::RulerUuid, self.ruler_uuid),
            (Kind::Facts, self.facts),
        ]
    }
}

/// Relative frequency of each type of value in [`Kind::Facts`]; one left out of a configuration is not drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueWeights {
    /// Of numbers of 4 to 7 digits.
    #[serde(default)]
    pub number: f32,
    /// Of eight hexadecimal digits.
    #[serde(default)]
    pub hex: f32,
    /// Of UUIDs.
    #[serde(default)]
    pub uuid: f32,
}

impl ValueWeights {
    /// Numbers alone.
    pub const NUMBERS: Self = Self {
        number: 1.0,
        hex: 0.0,
        uuid: 0.0,
    };

    /// UUIDs alone.
    pub const UUIDS: Self = Self {
        number: 0.0,
        hex: 0.0,
        uuid: 1.0,
    };
}

impl Default for ValueWeights {
    fn default() -> Self {
        Self {
            number: 0.8,
            hex: 0.15,
            uuid: 0.05,
        }
    }
}

/// Most facts in a document: well below the number of keys, which must all differ.
const MAX_FACTS: usize = 10_000;

impl NeedleConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// If a count is 0 or a range empty, or if weights are negative, not finite, or all 0; the error names the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_LENGTH).contains(&self.ctx) {
            let reason = format!(
                "{} is no length of a sample; use 1 to {MAX_LENGTH}",
                self.ctx
            );
            return Err(Error::value("ctx", reason));
        }
        let ranges = [
            ("document_tokens", self.document_tokens),
            ("facts", self.facts),
            ("questions", self.questions),
        ];
        for (field, CountRange { min, max }) in ranges {
            if min == 0 || min > max {
                let reason = format!("{min} to {max} is no range; use 1 <= min <= max");
                return Err(Error::value(field, reason));
            }
        }
        if self.facts.max > MAX_FACTS {
            let reason = format!(
                "{} facts are too many; use at most {MAX_FACTS}",
                self.facts.max
            );
            return Err(Error::value("facts", reason));
        }
        let values = &self.values;
        check_weights("mix", &self.mix.pairs().map(|(_, weight)| weight))?;
        check_weights("values", &[values.number, values.hex, values.uuid])?;
        check_weights("answer_weight", &[self.answer_weight])?;
        if !self.text_weight.is_finite() || self.text_weight < 0.0 {
            let reason = format!("{} is no weight; use a number from 0 on", self.text_weight);
            return Err(Error::value("text_weight", reason));
        }
        Ok(())
    }
}

fn check_weights(field: &'static str, weights: &[f32]) -> Result<()> {
    if weights
        .iter()
        .any(|weight| !weight.is_finite() || *weight < 0.0)
    {
        return Err(Error::value(
            field,
            format!("{weights:?}: weights are finite numbers from 0 on"),
        ));
    }
    if weights.iter().all(|weight| *weight == 0.0) {
        return Err(Error::value(
            field,
            "is 0 throughout; give at least one a positive weight",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_impossible_field_is_named() {
        type Change = fn(&mut NeedleConfig);
        let changes: [(&str, Change); 10] = [
            ("ctx", |config| config.ctx = 0),
            ("ctx", |config| config.ctx = usize::MAX),
            ("document_tokens", |config| config.document_tokens.min = 600),
            ("facts", |config| config.facts.min = 0),
            ("facts", |config| config.facts.max = 100_000),
            ("questions", |config| config.questions.max = 1),
            ("mix", |config| config.mix = KindWeights::only(&[])),
            ("values", |config| config.values.hex = -1.0),
            ("answer_weight", |config| config.answer_weight = f32::NAN),
            ("text_weight", |config| config.text_weight = f32::INFINITY),
        ];
        NeedleConfig::default().validate().unwrap();
        for (field, change) in changes {
            let mut config = NeedleConfig::default();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(field), "{field}: {message}");
        }
    }

    #[test]
    fn a_configuration_names_what_differs_and_refuses_what_it_does_not_know() {
        let config: NeedleConfig =
            serde_json::from_str(r#"{"ctx": 256, "mix": {"facts": 1.0}}"#).unwrap();
        assert_eq!(
            (config.ctx, config.mix),
            (256, KindWeights::only(&[Kind::Facts]))
        );
        assert_eq!(config.facts, NeedleConfig::default().facts);
        assert!(serde_json::from_str::<NeedleConfig>(r#"{"context": 256}"#).is_err());
    }
}
