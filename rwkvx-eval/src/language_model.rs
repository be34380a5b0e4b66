//! What a benchmark asks of a language model.

use burn::tensor::{Int, Tensor, TensorData, activation};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, greedy, tokens};

use crate::Result;

/// A model that can go on from a text, and say how likely a text is.
pub trait LanguageModel {
    /// The most likely next tokens of prompts of equal length: at most `max_tokens` each, and no more once `enough` says
    /// so of the rows so far. `on_read` is told how many tokens were read, piece by piece.
    ///
    /// # Errors
    ///
    /// If a prompt is empty or holds an id past the vocabulary.
    fn greedy(
        &self,
        prompts: &[&[u32]],
        max_tokens: usize,
        enough: &dyn Fn(&[Vec<u32>]) -> bool,
        on_read: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u32>>>;

    /// How likely the ends of texts are. The texts may differ in length; each must hold a token before its end.
    ///
    /// # Errors
    ///
    /// If a text holds an id past the vocabulary.
    fn score(&self, texts: &[ScoredText]) -> Result<Vec<Likelihood>>;
}

/// A text whose end is to be scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredText {
    /// All of it.
    pub ids: Vec<u32>,
    /// Tokens before the part that is scored, at least one.
    pub context: usize,
}

/// How likely a text's end is after its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Sum of the natural logarithms of its tokens' probabilities.
    pub log_probability: f64,
    /// Whether each of its tokens is the most likely one.
    pub greedy: bool,
}

impl<B: KernelBackend> LanguageModel for RwkvX<B> {
    fn greedy(
        &self,
        prompts: &[&[u32]],
        max_tokens: usize,
        enough: &dyn Fn(&[Vec<u32>]) -> bool,
        on_read: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u32>>> {
        Ok(greedy(self, prompts, max_tokens, enough, on_read)?)
    }

    fn score(&self, texts: &[ScoredText]) -> Result<Vec<Likelihood>> {
        // The model is causal, so that what pads a row on the right changes nothing before it.
        let time = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let padded: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| {
                let padding = std::iter::repeat_n(0, time - text.ids.len());
                text.ids.iter().copied().chain(padding).collect()
            })
            .collect();
        let device = self.device();
        let ids = tokens::ids_tensor::<B>(&padded, self.config().vocab_size, &device)?;
        let hidden = self.hidden(ids); // [batch, time, channels]

        // Logits of the positions that predict scored tokens, and of no other: they are what costs memory.
        let mut places: Vec<i64> = Vec::new();
        let mut targets: Vec<i64> = Vec::new();
        for (row, text) in texts.iter().enumerate() {
            for at in text.context..text.ids.len() {
                places.push((row * time + at - 1) as i64);
                targets.push(i64::from(text.ids[at]));
            }
        }
        let scored = targets.len();
        let index = |values: &[i64]| {
            Tensor::<B, 1, Int>::from_data(TensorData::new(values.to_vec(), [scored]), &device)
        };
        let [batch, _, channels] = hidden.dims();
        let hidden = hidden
            .reshape([batch * time, channels])
            .select(0, index(&places)); // [scored, channels]
        let logits = self.head(hidden.unsqueeze::<3>()).squeeze::<2>(); // [scored, vocab]
        let likeliest = logits.clone().argmax(1).into_data();
        let of_targets = activation::log_softmax(logits, 1)
            .gather(1, index(&targets).unsqueeze_dim(1)) // [scored, 1]
            .into_data();

        let mut tokens = of_targets
            .iter::<f64>()
            .zip(likeliest.iter::<i64>().zip(targets));
        Ok(texts
            .iter()
            .map(|text| {
                let end = text.ids.len() - text.context;
                tokens.by_ref().take(end).fold(
                    Likelihood {
                        log_probability: 0.0,
                        greedy: true,
                    },
                    |sum, (log_probability, (likeliest, target))| Likelihood {
                        log_probability: sum.log_probability + log_probability,
                        greedy: sum.greedy && likeliest == target,
                    },
                )
            })
            .collect())
    }
}
