//! JSON lines or plain text into a token file, as RWKV's `make_data.py` does it.
//!
//! Every document is tokenised, checked (decoding must give its text back) and ended by
//! [`END_OF_DOCUMENT`]. The documents are written once per epoch, in a new order each time if
//! they are shuffled. Tokenising is parallel; the result does not depend on the number of threads.

mod documents;

use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

pub use documents::Format;
use documents::{Document, Documents};

use crate::binidx::{Dtype, TokenFileWriter};
use crate::{END_OF_DOCUMENT, Error, Result, Tokenizer};

/// Bytes of text that are tokenised at a time: enough work for every thread, little enough to hold its ids in memory.
const BATCH_BYTES: usize = 16 << 20;

/// How to write the documents.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// How often every document is written.
    pub epochs: u32,
    /// Whether each epoch has an order of its own; otherwise all keep the order of the input.
    pub shuffle: bool,
    /// Decides the orders.
    pub seed: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Tokens of all epochs, the ends of documents included.
    pub tokens: u64,
    /// Documents of all epochs.
    pub documents: usize,
    /// How ids are stored.
    pub dtype: Dtype,
}

/// Writes the documents of `inputs` to `PREFIX.bin` and `PREFIX.idx`. `progress` counts bytes of text.
///
/// # Errors
///
/// If an input cannot be read or parsed (the error names file and line), if there is no document at all, if a
/// document's ids do not decode to its text, or if writing fails. An existing token file stays as it was.
pub fn prepare(
    format: Format,
    inputs: &[PathBuf],
    out: &Path,
    tokenizer: &Tokenizer,
    options: &PrepareOptions,
    progress: &ProgressBar,
) -> Result<Prepared> {
    if options.epochs == 0 {
        return Err(Error::value(
            "epochs",
            "0 would write nothing; use at least 1",
        ));
    }
    let documents = Documents::open(format, inputs)?;
    progress.set_length(documents.bytes());
    let dtype = Dtype::for_vocabulary(tokenizer.vocab_size());
    let mut writer = TokenFileWriter::create(out, dtype)?;

    // The first epoch is tokenised; the others copy its documents in another order.
    let mut order = documents.all();
    reorder(&mut order, options, 0);
    let mut ends = Vec::with_capacity(order.len());
    for batch in batches(&order) {
        let encoded: Vec<Vec<u32>> = batch
            .par_iter()
            .map(|document| encode(&documents, document, tokenizer))
            .collect::<Result<_>>()?;
        for ids in encoded {
            writer.push(&ids)?;
            ends.push(writer.tokens());
        }
        progress.inc(batch.iter().map(|document| document.bytes() as u64).sum());
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let mut written: Vec<_> = starts
        .zip(ends.iter().copied())
        .map(|(start, end)| start..end)
        .collect();
    for epoch in 1..options.epochs {
        reorder(&mut written, options, epoch);
        for tokens in &written {
            writer.repeat(tokens.clone())?;
        }
    }
    let prepared = Prepared {
        tokens: writer.tokens(),
        documents: writer.documents(),
        dtype,
    };
    writer.finish()?;
    progress.finish_and_clear();
    Ok(prepared)
}

fn reorder<T>(documents: &mut [T], options: &PrepareOptions, epoch: u32) {
    if options.shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(epoch.into());
        documents.shuffle(&mut rng);
    }
}

/// Cuts `documents` into runs of at least [`BATCH_BYTES`], the last one shorter.
fn batches(mut documents: &[Document]) -> impl Iterator<Item = &[Document]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let enough = documents.iter().position(|document| {
            bytes += document.bytes();
            bytes >= BATCH_BYTES
        });
        let (batch, rest) = documents.split_at(enough.map_or(documents.len(), |last| last + 1));
        documents = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

fn encode(documents: &Documents, document: &Document, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = documents.text(document)?;
    let mut ids = tokenizer.encode(&text)?;
    if tokenizer.decode(&ids) != text.as_bytes() {
        let reason = format!(
            "tokenizer {:?} does not give the text back when it decodes its ids; use one that keeps every byte",
            tokenizer.spec()
        );
        return Err(documents.error(document, reason));
    }
    ids.push(END_OF_DOCUMENT);
    Ok(ids)
}
