//! `rwkvx-eval choice`.

use std::path::{Path, PathBuf};

use clap::Args;
use rwkvx_eval::choice::{self, Scores};
use rwkvx_eval::provenance::InputFile;
use rwkvx_eval::records::{self, Record};
use rwkvx_eval::tasks::{Question, Task};
use rwkvx_eval::{Error, Result, requests};
use rwkvx_kernels::KernelBackend;
use serde::Serialize;

use crate::Common;
use crate::session::{Reported, ask_each, print_each, progress};

#[derive(Args)]
pub(crate) struct Choice {
    /// Which: hellaswag, piqa, arc_easy, arc_challenge, winogrande, sciq, mmlu, or all of them
    #[arg(
        long,
        value_name = "NAME[,NAME...]",
        value_delimiter = ',',
        required = true
    )]
    task: Vec<String>,
    /// Folder with the data sets as Hugging Face has them, each in a folder of its task's name; of a single task also its
    /// own folder or file
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Fetch data sets that are not there from Hugging Face first, in a build with the feature `download`
    #[arg(long)]
    download: bool,
    /// Ask the first so many questions of each task only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Write each request and its score as lines of JSON to requests.jsonl beside the report
    #[arg(long)]
    log_requests: bool,
}

/// What was asked for.
#[derive(Serialize)]
struct Settings {
    tasks: Vec<Task>,
    files: Vec<InputFile>,
    limit: Option<u32>,
}

/// A task and its questions.
struct Asked {
    task: Task,
    questions: Vec<Question>,
}

impl Choice {
    pub(crate) fn run<B: KernelBackend>(&self, common: &Common, device: &B::Device) -> Result<()> {
        let tasks = self.tasks()?;
        let (mut asked, mut files) = (Vec::new(), Vec::new());
        for task in tasks {
            let place = self.folder(&task);
            if self.download {
                fetch_missing(&task, &place)?;
            }
            let (questions, read) = self.questions(&task, place)?;
            asked.push(Asked { task, questions });
            files.extend(read);
        }
        let files = files.iter().map(|path| InputFile::read(path));
        let files = files.collect::<Result<Vec<_>>>()?;
        let reported = ask_each::<B, _, _>(common, device, "choice", |loaded, directory| {
            let (mut results, mut logged, mut scored) = (Vec::new(), Vec::new(), Vec::new());
            for Asked { task, questions } in &asked {
                let bar = progress(0).with_message(task.name.clone());
                let done = choice::run(&loaded.model, &loaded.tokenizer, task, questions, &bar);
                bar.finish_and_clear();
                let (result, scores) = done?;
                results.push(result);
                logged.extend(choice::requests(questions));
                scored.extend(scores);
            }
            if self.log_requests {
                requests::log(directory, &logged, &scored)?;
            }
            let settings = Settings {
                tasks: asked.iter().map(|asked| asked.task.clone()).collect(),
                files: files.clone(),
                limit: self.limit,
            };
            Ok((settings, results))
        })?;
        print_each(common, &reported, |Reported { directory, report }| {
            print_table(&report.result);
            println!(
                "\n{:.1} s; the report is in {}\n",
                report.seconds,
                directory.display()
            );
        });
        Ok(())
    }

    /// The tasks named, each once, in the order of all.
    fn tasks(&self) -> Result<Vec<Task>> {
        let mut tasks = Task::all();
        let is_task = |name: &str| name == "all" || tasks.iter().any(|task| task.name == name);
        if let Some(name) = self.task.iter().find(|name| !is_task(name)) {
            let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
            return Err(option(
                "--task",
                format!(
                    "there is no {name:?}; there are {}, and all",
                    names.join(", ")
                ),
            ));
        }
        tasks.retain(|task| {
            self.task
                .iter()
                .any(|name| *name == task.name || name == "all")
        });
        Ok(tasks)
    }

    /// Where a task's files are.
    fn folder(&self, task: &Task) -> PathBuf {
        let own = self.data.join(&task.name);
        match own.is_dir() || self.download || self.task != [task.name.clone()] {
            true => own,
            false => self.data.clone(),
        }
    }

    fn questions(&self, task: &Task, place: PathBuf) -> Result<(Vec<Question>, Vec<PathBuf>)> {
        let limit = self.limit.map(|limit| limit as usize);
        let (records, mut files) = read(task, &place, &task.split, limit)?;
        let examples = match &task.shots {
            Some(shots) => {
                let (examples, others) = read(task, &place, &shots.split, None)?;
                files.extend(others);
                examples
            }
            None => Vec::new(),
        };
        Ok((task.questions(&records, &examples)?, files))
    }
}

/// Fetches the splits of a task that are not in its folder.
fn fetch_missing(task: &Task, place: &Path) -> Result<()> {
    let shots = task.shots.as_ref().map(|shots| shots.split.as_str());
    let missing: Vec<&str> = [Some(task.split.as_str()), shots]
        .into_iter()
        .flatten()
        .filter(|split| records::split_files(place, &task.config, split).is_empty())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    #[cfg(feature = "download")]
    return rwkvx_eval::download::fetch(task, &missing, place);
    #[cfg(not(feature = "download"))]
    Err(Error::Download {
        repository: task.repository.clone(),
        reason: "this program was built without the feature `download`".to_owned(),
    })
}

/// The records of a split, and the files they are from.
fn read(
    task: &Task,
    place: &Path,
    split: &str,
    limit: Option<usize>,
) -> Result<(Vec<Record>, Vec<PathBuf>)> {
    let files = match place.is_file() && task.split == split {
        true => vec![place.to_path_buf()],
        false => records::split_files(place, &task.config, split),
    };
    if files.is_empty() {
        return Err(option(
            "--data",
            format!(
                "{} holds no {split} split of {}, such as {split}-00000-of-00001.parquet or {split}.jsonl; it is in {} on \
                 Hugging Face",
                place.display(),
                task.name,
                task.repository
            ),
        ));
    }
    Ok((records::read(&files, limit)?, files))
}

fn option(option: &'static str, reason: String) -> Error {
    Error::Option { option, reason }
}

fn print_table(results: &[Scores]) {
    println!(
        "{:<15}{:>10}  {:<10}{:>8}",
        "task", "questions", "metric", "%"
    );
    for scores in results {
        for (metric, mean) in &scores.metrics {
            println!(
                "{:<15}{:>10}  {:<10}{:>8.2} +- {:.2}",
                scores.task,
                scores.answers.len(),
                metric.name(),
                100.0 * mean.value,
                100.0 * mean.stderr
            );
        }
    }
}
