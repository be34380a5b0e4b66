//! Answers written down as they come, so that a long benchmark goes on where it was interrupted.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::grid::{Answer, Place};
use crate::{Error, Result};

/// Name of the journal in the folder of a benchmark that has not come to its end.
pub const FILE: &str = "answers.partial.jsonl";

/// Answers so far.
#[derive(Debug, Default)]
pub struct Journal {
    answers: Vec<Answer>,
    kept: Option<Kept>,
}

/// Where answers are written down.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// The first line.
    header: String,
    /// Bytes of whole lines that are there.
    whole: u64,
    /// Opened for the first answer.
    file: Option<File>,
}

impl Journal {
    /// A journal that is not kept.
    pub fn unkept() -> Self {
        Self::default()
    }

    /// Opens the journal in a folder; the first answer makes both where they are not there. `inputs` is all that decides
    /// the answers; a journal of others is refused. A line that was cut off as it was written is dropped.
    ///
    /// # Errors
    ///
    /// If the journal there belongs to other inputs or is damaged, or cannot be read.
    pub fn open(directory: &Path, inputs: &Value) -> Result<Self> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let refused = |reason: &str| Error::Input {
            path: path.clone(),
            reason: format!("{reason}; give another --out, or remove the file to ask anew"),
        };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let mut lines = whole.lines();
        let mut answers = Vec::new();
        if let Some(header) = lines.next() {
            let header: Value = serde_json::from_str(header)
                .map_err(|error| refused(&format!("not a journal of answers: {error}")))?;
            if header != *inputs {
                return Err(refused(
                    "holds answers of a run with another model or other settings",
                ));
            }
        }
        for (line, number) in lines.zip(2..) {
            let answer = serde_json::from_str(line)
                .map_err(|error| refused(&format!("line {number}: {error}")))?;
            answers.push(answer);
        }
        Ok(Self {
            answers,
            kept: Some(Kept {
                whole: whole.len() as u64,
                path,
                header: inputs.to_string(),
                file: None,
            }),
        })
    }

    /// Number of answers that are there already.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// The answer to the question of a place, if it was asked before.
    pub fn answer(&self, task: &str, place: Place) -> Option<Answer> {
        let asked = |answer: &&Answer| {
            let found = (answer.length, answer.depth, answer.sample);
            answer.task == task && found == (place.length, place.depth, place.sample)
        };
        self.answers.iter().find(asked).cloned()
    }

    /// Removes the journal of a folder, which its report has made useless; there may be none.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub fn remove(directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Writes an answer down.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&mut self, answer: &Answer) -> Result<()> {
        match &mut self.kept {
            Some(kept) => kept.write(answer).map_err(Error::io(&kept.path)),
            None => Ok(()),
        }
    }
}

impl Kept {
    fn write(&mut self, answer: &Answer) -> std::io::Result<()> {
        let mut line = serde_json::to_string(answer)? + "\n";
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                if let Some(directory) = self.path.parent() {
                    fs::create_dir_all(directory)?;
                }
                let opened = File::options().create(true).append(true).open(&self.path)?;
                opened.set_len(self.whole)?;
                if self.whole == 0 {
                    line = format!("{}\n{line}", self.header);
                }
                none.insert(opened)
            }
        };
        file.write_all(line.as_bytes())
    }
}
