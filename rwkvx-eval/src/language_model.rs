//! What a benchmark asks of a language model.

use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, Score, ScoredText, greedy, score};

use crate::{Result, branches};

/// Prompts longer than this are read one after another, common beginnings once: they keep a device busy alone.
const LONG: usize = 1 << 14;
/// Tokens of prompts that are read side by side. A batch keeps the matrix products large; beyond this a batch only costs
/// memory, which the caches of the sparse blocks take by the token.
const BATCH_TOKENS: usize = 1 << 16;
/// Most prompts in a batch.
const MAX_BATCH: usize = 16;

/// A model that can go on from a text.
pub trait Speaker {
    /// Gives `on_said` the most likely next tokens of each prompt by its index, in any order: at most `max_tokens`, and
    /// perhaps no more once `enough` says so of those so far. `on_read` is told how many tokens of the prompts are done,
    /// piece by piece.
    ///
    /// # Errors
    ///
    /// If a prompt is empty or holds an id past the vocabulary, or `on_said` fails.
    fn greedy(
        &self,
        prompts: &[&[u32]],
        max_tokens: usize,
        enough: &dyn Fn(usize, &[u32]) -> bool,
        on_read: &mut dyn FnMut(usize),
        on_said: &mut dyn FnMut(usize, Vec<u32>) -> Result<()>,
    ) -> Result<()>;
}

/// A model that can say how likely a text is.
pub trait Scorer {
    /// How likely the ends of texts are, in the order of the texts. `on_read` is told how many tokens were read, piece by
    /// piece.
    ///
    /// # Errors
    ///
    /// If a text has no end or nothing before it, or holds an id past the vocabulary.
    fn score(&self, texts: &[ScoredText], on_read: &mut dyn FnMut(usize)) -> Result<Vec<Score>>;
}

impl<B: KernelBackend> Speaker for RwkvX<B> {
    fn greedy(
        &self,
        prompts: &[&[u32]],
        max_tokens: usize,
        enough: &dyn Fn(usize, &[u32]) -> bool,
        on_read: &mut dyn FnMut(usize),
        on_said: &mut dyn FnMut(usize, Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        if prompts.iter().any(|prompt| prompt.len() > LONG) {
            return branches::greedy(self, prompts, max_tokens, enough, on_read, on_said);
        }
        let indices: Vec<usize> = (0..prompts.len()).collect();
        let alike = indices.chunk_by(|&a, &b| prompts[a].len() == prompts[b].len());
        let batches = alike.flat_map(|alike| {
            let rows = BATCH_TOKENS / prompts[alike[0]].len().max(1);
            alike.chunks(rows.clamp(1, MAX_BATCH))
        });
        for batch in batches {
            let rows: Vec<&[u32]> = batch.iter().map(|&index| prompts[index]).collect();
            let all_enough = |rows: &[Vec<u32>]| {
                let mut rows = batch.iter().zip(rows);
                rows.all(|(&index, row)| enough(index, row))
            };
            let said = greedy(self, &rows, max_tokens, all_enough, &mut *on_read)?;
            for (&index, row) in batch.iter().zip(said) {
                on_said(index, row)?;
            }
        }
        Ok(())
    }
}

impl<B: KernelBackend> Scorer for RwkvX<B> {
    fn score(&self, texts: &[ScoredText], on_read: &mut dyn FnMut(usize)) -> Result<Vec<Score>> {
        Ok(score(self, texts, on_read)?)
    }
}
