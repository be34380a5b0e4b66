//! How likely the ends of texts are after their beginnings: what benchmarks and evaluation harnesses ask of a model.
//!
//! Texts of about the same length are read side by side, the longest first, long ones in pieces. Rows are padded on the
//! right, which changes nothing before it in a causal model. Only the positions before scored tokens get logits.

use burn::tensor::{Int, Tensor, TensorData};
use rwkvx_datasets::Tokenizer;
use rwkvx_kernels::{KernelBackend, cross_entropy_rows};

use crate::Error;
use crate::model::RwkvX;
use crate::session::PREFILL_PIECE;
use crate::tokens::ids_tensor;

/// Most rows of a batch, each of which has a state.
const MAX_ROWS: usize = 64;
/// Positions whose logits are held at once.
const LOGIT_ROWS: usize = 256;

/// A text whose end is to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoredText {
    /// All of it.
    pub ids: Vec<u32>,
    /// Tokens before the part that is scored, at least one.
    pub context: usize,
}

impl ScoredText {
    /// `continuation` after `context`, cut into tokens as lm-evaluation-harness cuts them: white space at the end of the
    /// context goes to the continuation, and both are encoded as one text, whose tokens past the number of the context's
    /// own are the continuation's. `prefix` stands before the context.
    ///
    /// # Errors
    /// If the tokenizer refuses a text.
    pub fn new(
        tokenizer: &Tokenizer,
        prefix: &[u32],
        context: &str,
        continuation: &str,
    ) -> Result<Self, rwkvx_datasets::Error> {
        let whole = tokenizer.encode(&[context, continuation].concat())?;
        let context = tokenizer.encode(context.trim_end())?;
        let end = whole.get(context.len()..).unwrap_or_default();
        Ok(Self {
            ids: [prefix, &context, end].concat(),
            context: prefix.len() + context.len(),
        })
    }

    /// The scored part.
    pub fn continuation(&self) -> &[u32] {
        self.ids.get(self.context..).unwrap_or_default()
    }

    /// What the model reads: all but the last token.
    fn input(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    fn check(&self, index: usize, vocab_size: usize) -> Result<(), Error> {
        if self.context == 0 {
            let reason = format!("text {index} has no token before the part that is scored");
            return Err(Error::Scoring(reason));
        }
        if self.continuation().is_empty() {
            let reason = format!("text {index} has no token to score after its context");
            return Err(Error::Scoring(reason));
        }
        match self.ids.iter().position(|&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(position) => Err(Error::TokenId {
                id: self.ids[position],
                position,
                vocab_size,
            }),
        }
    }
}

/// How likely a text's end is.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Natural logarithm of each scored token's probability.
    pub log_probabilities: Vec<f32>,
    /// The most likely token in the place of each.
    pub likeliest: Vec<u32>,
    /// Whether each scored token is the most likely one.
    pub greedy: bool,
}

impl Score {
    /// Natural logarithm of the probability of the whole end.
    pub fn log_probability(&self) -> f64 {
        self.log_probabilities.iter().copied().map(f64::from).sum()
    }
}

/// Scores the ends of texts; the scores come in the order of the texts. `on_read` is told the tokens read piece by
/// piece, which in all are one less than the texts have for each of them.
///
/// Texts that differ only in their last token are read once.
///
/// # Errors
/// If a text has nothing to score or nothing before it, or holds an id past the vocabulary, or the weights are broken.
pub fn score<B: KernelBackend>(
    model: &RwkvX<B>,
    texts: &[ScoredText],
    mut on_read: impl FnMut(usize),
) -> Result<Vec<Score>, Error> {
    for (index, text) in texts.iter().enumerate() {
        text.check(index, model.config().vocab_size)?;
    }
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&index| {
        let input = texts[index].input();
        (std::cmp::Reverse(input.len()), input)
    });
    let passages: Vec<&[usize]> = order
        .chunk_by(|&a, &b| texts[a].input() == texts[b].input())
        .collect();
    let unscored = Score {
        log_probabilities: Vec::new(),
        likeliest: Vec::new(),
        greedy: true,
    };
    let mut scores = vec![unscored; texts.len()];
    let mut left = passages.as_slice();
    while let Some(longest) = left.first() {
        let rows = PREFILL_PIECE / texts[longest[0]].input().len();
        let (batch, others) = left.split_at(rows.clamp(1, MAX_ROWS).min(left.len()));
        score_batch(model, texts, batch, &mut scores, &mut on_read)?;
        left = others;
    }
    Ok(scores)
}

/// A token that is scored.
struct Target {
    /// Index of its text.
    text: usize,
    /// Row and position of a piece that predict it, as one number.
    at: usize,
    id: u32,
}

/// Reads a batch, the longest row first; each row is the one input of the texts of a passage.
fn score_batch<B: KernelBackend>(
    model: &RwkvX<B>,
    texts: &[ScoredText],
    passages: &[&[usize]],
    scores: &mut [Score],
    on_read: &mut impl FnMut(usize),
) -> Result<(), Error> {
    let inputs = passages.iter().map(|passage| texts[passage[0]].input());
    let time = inputs.clone().map(<[u32]>::len).max().unwrap_or(0);
    let padded: Vec<Vec<u32>> = inputs
        .map(|input| {
            let mut row = input.to_vec();
            row.resize(time, 0);
            row
        })
        .collect();
    let rows = padded.len();
    let ids = ids_tensor::<B>(&padded, model.config().vocab_size, &model.device())?; // [rows, time]
    let mut state = model.state(rows);
    state.reserve(time);
    let piece = PREFILL_PIECE / rows;
    for start in (0..time).step_by(piece) {
        let end = (start + piece).min(time);
        let length = end - start;
        let hidden = model.prefill_hidden(ids.clone().slice([0..rows, start..end]), &mut state); // [rows, length, channels]
        let [.., channels] = hidden.dims();
        let hidden = hidden.reshape([rows * length, channels]);
        let (mut targets, mut read) = (Vec::new(), 0);
        for (row, &passage) in passages.iter().enumerate() {
            for &text in passage {
                let ScoredText { ids, context } = &texts[text];
                // The token after each position of the piece.
                let predicted = (*context).max(start + 1)..ids.len().min(end + 1);
                targets.extend(predicted.map(|position| Target {
                    text,
                    at: row * length + position - 1 - start,
                    id: ids[position],
                }));
                read += (ids.len() - 1).min(end).saturating_sub(start);
            }
        }
        for targets in targets.chunks(LOGIT_ROWS) {
            score_targets(model, &hidden, targets, scores)?;
        }
        on_read(read);
    }
    Ok(())
}

/// Adds the scores of tokens whose predictions stand in `hidden`, `[positions, channels]`.
fn score_targets<B: KernelBackend>(
    model: &RwkvX<B>,
    hidden: &Tensor<B, 2>,
    targets: &[Target],
    scores: &mut [Score],
) -> Result<(), Error> {
    let ints = |values: Vec<i64>| {
        let data = TensorData::new(values, [targets.len()]);
        Tensor::<B, 1, Int>::from_data(data, &hidden.device())
    };
    let at = ints(targets.iter().map(|target| target.at as i64).collect());
    let ids = ints(targets.iter().map(|target| i64::from(target.id)).collect());
    let logits = model.head(hidden.clone().select(0, at).unsqueeze()); // [1, targets, vocab]
    let losses = cross_entropy_rows(logits.squeeze_dim(0), ids); // [targets]
    let likeliest = losses.largest_at.into_data();
    let nll = losses.nll.into_data();
    for ((target, likeliest), nll) in targets.iter().zip(likeliest.iter::<u32>()).zip(nll.iter()) {
        let nll: f32 = nll;
        if !nll.is_finite() {
            let reason = "a probability is not a number; the weights are broken";
            return Err(Error::Scoring(reason.to_owned()));
        }
        let score = &mut scores[target.text];
        score.log_probabilities.push(-nll);
        score.likeliest.push(likeliest);
        score.greedy &= likeliest == target.id;
    }
    Ok(())
}
