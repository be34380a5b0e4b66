//! The phases of a run and what each of them trains.

use std::fmt;

use rwkvx_model::names::NamedParam;
use serde::{Deserialize, Serialize};

/// One stretch of training with one set of trainable parameters, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The plain RWKV-7 model, from nothing.
    Base,
    /// Alignment: sparse blocks were added to the base, and only they train.
    Stage1,
    /// Long contexts: everything trains.
    Stage2,
    /// Fine-tuning on conversations: everything trains.
    Sft,
    /// For comparison: the plain base goes on with the data of stage 1, everything training.
    Rwkv7Stage1,
    /// For comparison: the plain base goes on with the data of stage 2.
    Rwkv7Stage2,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 6] = [
        Self::Base,
        Self::Stage1,
        Self::Stage2,
        Self::Sft,
        Self::Rwkv7Stage1,
        Self::Rwkv7Stage2,
    ];

    /// The name in `metrics.jsonl`, in checkpoint folders and on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Stage1 => "stage1",
            Self::Stage2 => "stage2",
            Self::Sft => "sft",
            Self::Rwkv7Stage1 => "rwkv7-stage1",
            Self::Rwkv7Stage2 => "rwkv7-stage2",
        }
    }

    /// Which of the configured stages gives the settings.
    pub fn stage(self) -> Stage {
        match self {
            Self::Base => Stage::Base,
            Self::Stage1 | Self::Rwkv7Stage1 => Stage::Stage1,
            Self::Stage2 | Self::Rwkv7Stage2 => Stage::Stage2,
            Self::Sft => Stage::Sft,
        }
    }

    /// Whether the model has the sparse blocks of the configuration.
    pub fn is_hybrid(self) -> bool {
        matches!(self, Self::Stage1 | Self::Stage2 | Self::Sft)
    }

    /// Whether the recurrent blocks, the embedding and the head are frozen.
    pub fn freezes_rwkv(self) -> bool {
        self == Self::Stage1
    }

    /// Whether the phase changes a parameter.
    pub fn trains(self, parameter: &NamedParam) -> bool {
        !self.freezes_rwkv() || parameter.is_sparse()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// A set of training settings in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `stages.base`
    Base,
    /// `stages.stage1`
    Stage1,
    /// `stages.stage2`
    Stage2,
    /// `stages.sft`
    Sft,
}

/// What `--stage` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum StageChoice {
    /// Only the plain RWKV-7 model
    Base,
    /// Only the alignment of new sparse blocks
    #[serde(rename = "1")]
    #[value(name = "1")]
    Stage1,
    /// Only the long-context stage
    #[serde(rename = "2")]
    #[value(name = "2")]
    Stage2,
    /// Only the fine-tuning on conversations
    Sft,
    /// Every stage of the configuration, one after the other
    #[default]
    All,
}

impl StageChoice {
    /// Whether this choice runs `stage`.
    pub fn includes(self, stage: Stage) -> bool {
        match self {
            Self::All => true,
            Self::Base => stage == Stage::Base,
            Self::Stage1 => stage == Stage::Stage1,
            Self::Stage2 => stage == Stage::Stage2,
            Self::Sft => stage == Stage::Sft,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_run_in_the_order_of_their_names_and_serialise_as_them() {
        assert!(Phase::ALL.is_sorted());
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }

    #[test]
    fn stage_one_alone_freezes_the_recurrent_part() {
        let frozen: Vec<_> = Phase::ALL
            .into_iter()
            .filter(|phase| phase.freezes_rwkv())
            .collect();
        assert_eq!(frozen, [Phase::Stage1]);
    }
}
