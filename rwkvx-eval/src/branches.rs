//! Prompts with common beginnings, each beginning read once.
//!
//! A long haystack is the same up to the needle, wherever the needle stands. The state after a beginning is kept and
//! branches where prompts part, as long as there are prompts that go on from it.

use rwkvx_kernels::KernelBackend;
use rwkvx_model::{RwkvX, Session};

use crate::Result;

/// [`Speaker::greedy`](crate::language_model::Speaker::greedy), one prompt after another. `on_read` is told
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
    reader.read(&order, 0, Session::new(model, 1, None))
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
    /// Reads the prompts of a sorted group, which agree in their first `start` tokens; `session` has read those.
    fn read(&mut self, group: &[usize], start: usize, mut session: Session<B>) -> Result<()> {
        let prompts = self.prompts;
        let (Some(&first), Some(&last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        // Of sorted prompts the first and the last part earliest.
        let common = prompts[first][start..]
            .iter()
            .zip(&prompts[last][start..])
            .take_while(|(a, b)| a == b)
            .count();
        let end = start + common;
        if common > 0 {
            let on_read = |tokens| (self.on_read)(tokens * group.len());
            session.read(self.model, &[&prompts[first][start..end]], on_read)?;
        }
        let (ending, longer): (Vec<usize>, Vec<usize>) = group
            .iter()
            .partition(|&&index| prompts[index].len() == end);
        for index in ending {
            self.speak(index, session.clone())?;
        }
        let mut parts: Vec<&[usize]> = longer
            .chunk_by(|&a, &b| prompts[a][end] == prompts[b][end])
            .collect();
        // The largest part comes last and goes on with the session itself, so that few are held at a time.
        parts.sort_by_key(|part| part.len());
        let Some(largest) = parts.pop() else {
            return Ok(());
        };
        for part in parts {
            self.read(part, end, session.clone())?;
        }
        self.read(largest, end, session)
    }

    /// Goes on from a prompt that a session has read.
    fn speak(&mut self, index: usize, mut session: Session<B>) -> Result<()> {
        let enough = |rows: &[Vec<u32>]| rows.iter().all(|row| (self.enough)(index, row));
        let said = session.greedy(self.model, self.max_tokens, enough);
        said.into_iter()
            .try_for_each(|row| (self.on_said)(index, row))
    }
}
