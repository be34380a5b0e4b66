//! JSON lines, plain text, Parquet or tokens of another tokenizer into a token file, as RWKV's `make_data.py` does it.
//!
//! Every document is tokenised, checked (decoding must give its text back) and ended by
//! [`END_OF_DOCUMENT`]. The documents are written once per epoch, in a new order each time if
//! they are shuffled. Tokenising is parallel; the result does not depend on the number of threads.
//!
//! The input is read once, in its order and a batch at a time, into a draft beside the token file; the token file is
//! then written from the draft, whose documents any order can reach. Both lie on the disk for a moment, so there must
//! be room for one epoch more. A run that was interrupted left its draft with a journal, and the same run goes on from
//! there: the result is the same, byte for byte.

mod byte_level;
mod draft;
mod jsonl;
mod mds;
mod parquet;
mod prolong;
mod source;
#[cfg(test)]
mod tests;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use draft::{Draft, Encoded, Job};
use source::{Reader, Record, Source};

use crate::binidx::{Dtype, TokenFileWriter};
use crate::{END_OF_DOCUMENT, Error, Result, Tokenizer};

/// Bytes of records that are tokenised at a time: enough work for every thread, little enough to hold in memory.
const BATCH_BYTES: usize = 16 << 20;

/// What the inputs hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A JSON object a line, with the document in its field `text`; blank lines are skipped
    Jsonl,
    /// One document a file
    Text,
    /// Parquet files, or folders of them, with a document a row (MiniPile and other Hugging Face data sets)
    Minipile,
    /// Folders of MosaicML MDS shards of token ids (ProLong), decoded with the tokenizer that made them
    Prolong,
}

impl Format {
    /// As the command takes it.
    fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Text => "text",
            Self::Minipile => "minipile",
            Self::Prolong => "prolong",
        }
    }
}

/// How to read and write the documents.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// How often every document is written.
    pub epochs: u32,
    /// Whether each epoch has an order of its own; otherwise all keep the order of the input.
    pub shuffle: bool,
    /// Decides the orders.
    pub seed: u64,
    /// Tokens of each entry of the token file: what is written is cut anew, across documents, and the last entry is
    /// shorter. `None` makes each document an entry. The tokens are the same.
    pub pack: Option<u32>,
    /// Column with the documents: `text` by default in Parquet files, `input_ids` in MDS shards.
    pub column: Option<String>,
    /// The byte-level `tokenizer.json` that made the ids of [`Format::Prolong`].
    pub source_tokenizer: Option<PathBuf>,
    /// Whether to discard what an interrupted run with the same output left; otherwise the run goes on from it.
    pub restart: bool,
}

impl Default for PrepareOptions {
    /// One epoch in the order of the input.
    fn default() -> Self {
        Self {
            epochs: 1,
            shuffle: false,
            seed: 42,
            pack: None,
            column: None,
            source_tokenizer: None,
            restart: false,
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Tokens of all epochs, the ends of documents included.
    pub tokens: u64,
    /// Entries of the token file: documents of all epochs, or packed sequences.
    pub documents: usize,
    /// How ids are stored.
    pub dtype: Dtype,
}

/// Writes the documents of `inputs` to `PREFIX.bin` and `PREFIX.idx`. `progress` counts bytes of the input.
///
/// # Errors
///
/// If an input cannot be read or parsed (the error names the file and the place), if there is no document at all, if a
/// document's ids do not decode to its text, if an interrupted run with other inputs or options left its draft, or if
/// writing fails. An existing token file stays as it was.
pub fn prepare(
    format: Format,
    inputs: &[PathBuf],
    out: &Path,
    tokenizer: &Tokenizer,
    options: &PrepareOptions,
    progress: &ProgressBar,
) -> Result<Prepared> {
    for (field, value) in [("epochs", Some(options.epochs)), ("pack", options.pack)] {
        if value == Some(0) {
            return Err(Error::value(field, "0 would write nothing; use at least 1"));
        }
    }
    let source = source::open(format, inputs, options)?;
    progress.set_length(source.bytes());
    let dtype = Dtype::for_vocabulary(tokenizer.vocab_size());
    let job = job(format, &*source, tokenizer, options)?;
    let mut draft = Draft::open(out, dtype, job, options.restart)?;
    tokenize(&*source, tokenizer, &mut draft, BATCH_BYTES, progress)?;
    let prepared = write(&draft, inputs, out, options)?;
    draft.remove();
    progress.finish_and_clear();
    Ok(prepared)
}

/// What decides the draft, to be compared with that of an interrupted run.
fn job(
    format: Format,
    source: &dyn Source,
    tokenizer: &Tokenizer,
    options: &PrepareOptions,
) -> Result<Job> {
    let inputs = source.files().into_iter().map(stamp);
    let inputs: Vec<Value> = inputs.collect::<Result<_>>()?;
    let spec = Path::new(tokenizer.spec());
    let tokenizer = if spec.is_file() {
        stamp(spec)?
    } else {
        json!(spec)
    };
    let source_tokenizer = options.source_tokenizer.as_deref().map(stamp);
    let job = [
        ("format", json!(format.name())),
        ("inputs", json!(inputs)),
        ("column", json!(options.column)),
        ("tokenizer", tokenizer),
        ("source-tokenizer", json!(source_tokenizer.transpose()?)),
    ];
    Ok(job
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect())
}

/// A file's path, and its size and time, which change with its content.
fn stamp(path: &Path) -> Result<Value> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    let modified = metadata.modified().map_err(Error::io(path))?;
    // A time before 1970 is as good as any other.
    let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let path = path.to_string_lossy();
    Ok(json!([
        path,
        metadata.len(),
        modified.as_nanos().to_string()
    ]))
}

/// Reads the input from where the draft ends. The next batch is read while one is tokenised.
fn tokenize(
    source: &dyn Source,
    tokenizer: &Tokenizer,
    draft: &mut Draft,
    batch_bytes: usize,
    progress: &ProgressBar,
) -> Result<()> {
    let dtype = draft.dtype();
    progress.set_position(draft.position().bytes);
    let mut reader = Reader::new(source, draft.position());
    let mut batch = reader.batch(batch_bytes)?;
    while !batch.records.is_empty() {
        let encode = || {
            let records = batch.records.par_iter();
            let encoded = records.map(|record| {
                let encoded = encode(source, record, tokenizer, dtype);
                progress.inc(record.bytes.len() as u64);
                encoded
            });
            encoded.collect::<Result<Vec<_>>>()
        };
        let (encoded, next) = rayon::join(encode, || reader.batch(batch_bytes));
        draft.push(&encoded?, batch.end)?;
        batch = next?;
    }
    Ok(())
}

/// The ids of a record's documents, each checked to decode to its text.
fn encode(
    source: &dyn Source,
    record: &Record,
    tokenizer: &Tokenizer,
    dtype: Dtype,
) -> Result<Encoded> {
    let mut encoded = Encoded::default();
    for text in source.documents(record)? {
        let mut ids = tokenizer.encode(&text)?;
        if tokenizer.decode(&ids) != text.as_bytes() {
            let reason = format!(
                "tokenizer {:?} does not give the text back when it decodes its ids; use one that keeps every byte",
                tokenizer.spec()
            );
            return Err(record.error(reason));
        }
        ids.push(END_OF_DOCUMENT);
        let size = i32::try_from(ids.len()).map_err(|_| {
            record
                .error("a document of more tokens than token files can say (2147483647); split it")
        })?;
        encoded.sizes.push(size);
        dtype.store(&ids, &mut encoded.ids);
    }
    Ok(encoded)
}

/// Writes the token file from a complete draft.
fn write(
    draft: &Draft,
    inputs: &[PathBuf],
    out: &Path,
    options: &PrepareOptions,
) -> Result<Prepared> {
    let (ids, mut documents) = draft.documents()?;
    if documents.is_empty() {
        let inputs = inputs.iter().map(|path| path.display().to_string());
        return Err(Error::NoDocuments {
            inputs: inputs.collect::<Vec<_>>().join(", "),
        });
    }
    let mut writer = TokenFileWriter::create(out, draft.dtype())?;
    for epoch in 0..options.epochs {
        reorder(&mut documents, options, epoch);
        for document in &documents {
            writer.push_stored(&ids[document.clone()])?;
        }
    }
    if let Some(size) = options.pack {
        writer.cut(size)?;
    }
    let prepared = Prepared {
        tokens: writer.tokens(),
        documents: writer.documents(),
        dtype: draft.dtype(),
    };
    writer.finish()?;
    Ok(prepared)
}

fn reorder<T>(documents: &mut [T], options: &PrepareOptions, epoch: u32) {
    if options.shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(epoch.into());
        documents.shuffle(&mut rng);
    }
}
