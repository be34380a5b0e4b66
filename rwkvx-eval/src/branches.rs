//! Prompts with common beginnings, each beginning read once.
//!
//! A long haystack is the same up to the needle, wherever the needle stands. The state after a beginning is kept and
//! branches where prompts part, as long as there are prompts that go on from it.

use burn::tensor::{ElementConversion, Tensor};
use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, State, tokens};

use crate::Result;

/// Tokens read at once.
const PIECE: usize = 4096;

/// [`LanguageModel::greedy`](crate::language_model::LanguageModel::greedy), one prompt after another. `on_read` is told
/// the tokens of a common beginning as often as prompts have it.
pub(crate) fn greedy<B: KernelBackend>(
    model: &RwkvX<B>,
    prompts: &[&[u32]],
    max_tokens: usize,
    enough: &dyn Fn(usize, &[u32]) -> bool,
    on_read: &mut dyn FnMut(usize),
    on_said: &mut dyn FnMut(usize, Vec<u32>) -> Result<()>,
) -> Result<()> {
    if prompts.iter().any(|prompt| prompt.is_empty()) {
        let reason = "a prompt needs at least one token".to_owned();
        return Err(rwkvx_model::Error::TokenRows(reason).into());
    }
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&index| prompts[index]);
    let mut reader = Reader {
        model,
        prompts,
        max_tokens,
        enough,
        on_read,
        on_said,
    };
    reader.read(&order, 0, model.state(1))
}

struct Reader<'a, B: KernelBackend> {
    model: &'a RwkvX<B>,
    prompts: &'a [&'a [u32]],
    max_tokens: usize,
    enough: &'a dyn Fn(usize, &[u32]) -> bool,
    on_read: &'a mut dyn FnMut(usize),
    on_said: &'a mut dyn FnMut(usize, Vec<u32>) -> Result<()>,
}

impl<B: KernelBackend> Reader<'_, B> {
    /// Reads the prompts of a sorted group, which agree in their first `start` tokens; `state` is the one after those.
    fn read(&mut self, group: &[usize], start: usize, mut state: State<B>) -> Result<()> {
        let prompts = self.prompts;
        let (Some(&first), Some(&last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        // Of sorted prompts the first and the last part earliest. A prompt's last token is left to what is said after it.
        let shortest = group.iter().map(|&index| prompts[index].len()).min();
        let common = prompts[first][start..]
            .iter()
            .zip(&prompts[last][start..])
            .take_while(|(a, b)| a == b)
            .count();
        let end = (start + common).min(shortest.unwrap_or(1) - 1);
        for piece in prompts[first][start..end].chunks(PIECE) {
            self.prefill(piece, &mut state)?;
            (self.on_read)(piece.len() * group.len());
        }
        let (ending, longer): (Vec<usize>, Vec<usize>) = group
            .iter()
            .partition(|&&index| prompts[index].len() == end + 1);
        for index in ending {
            self.speak(index, state.clone())?;
        }
        let mut parts: Vec<&[usize]> = longer
            .chunk_by(|&a, &b| prompts[a][end] == prompts[b][end])
            .collect();
        // The largest part comes last and goes on with the state itself, so that few states are held at a time.
        parts.sort_by_key(|part| part.len());
        let Some(largest) = parts.pop() else {
            return Ok(());
        };
        for part in parts {
            self.read(part, end, state.clone())?;
        }
        self.read(largest, end, state)
    }

    /// Goes on from a prompt; `state` is the one before its last token.
    fn speak(&mut self, index: usize, mut state: State<B>) -> Result<()> {
        let prompt = self.prompts[index];
        let mut next = prompt[prompt.len() - 1];
        let mut said = Vec::with_capacity(self.max_tokens);
        (self.on_read)(1);
        for _ in 0..self.max_tokens {
            let logits = self.prefill(&[next], &mut state)?; // [1, vocab]
            next = logits.argmax(1).into_scalar().elem();
            said.push(next);
            if (self.enough)(index, &said) {
                break;
            }
        }
        (self.on_said)(index, said)
    }

    /// The logits after the next tokens of a prompt, `[1, vocab]`.
    fn prefill(&self, ids: &[u32], state: &mut State<B>) -> Result<Tensor<B, 2>> {
        let vocab_size = self.model.config().vocab_size;
        let ids = tokens::ids_tensor::<B>(&[ids], vocab_size, &self.model.device())?; // [1, time]
        Ok(self.model.prefill(ids, state))
    }
}
