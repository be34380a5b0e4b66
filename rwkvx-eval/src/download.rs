//! Data sets from Hugging Face, which keeps every one of them as Parquet on the branch `refs/convert/parquet`.

use std::fs::{self, File};
use std::path::Path;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use rwkvx_model::write_beside;

use crate::tasks::Task;
use crate::{Error, Result};

/// Where Hugging Face keeps its conversions.
const REVISION: &str = "refs/convert/parquet";

/// Fetches the files of splits of a task's data set into `folder`, under the names that they have there.
///
/// # Errors
///
/// If the data set cannot be fetched or has no such split, or a file cannot be written.
pub fn fetch(task: &Task, splits: &[&str], folder: &Path) -> Result<()> {
    let failed = |error: ApiError| Error::Download {
        repository: task.repository.clone(),
        reason: error.to_string(),
    };
    let api = ApiBuilder::from_env().build().map_err(failed)?;
    let repository = api.repo(Repo::with_revision(
        task.repository.clone(),
        RepoType::Dataset,
        REVISION.to_owned(),
    ));
    let files = repository.info().map_err(failed)?.siblings;
    for split in splits {
        let start = format!("{}/{split}/", task.config);
        let is_of_split = |name: &&str| {
            let name = name.strip_prefix(&start).unwrap_or_default();
            name.ends_with(".parquet") && !name.contains('/')
        };
        let names = files.iter().map(|file| file.rfilename.as_str());
        let mut found = false;
        for name in names.filter(is_of_split) {
            found = true;
            let cached = repository.get(name).map_err(failed)?;
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(Error::io(&path))?;
            let mut cached = File::open(&cached).map_err(Error::io(&cached))?;
            write_beside(&path, |out| std::io::copy(&mut cached, out).map(|_| ()))?;
        }
        if !found {
            return Err(Error::Download {
                repository: task.repository.clone(),
                reason: format!("it has no {start}*.parquet on the branch {REVISION}"),
            });
        }
    }
    Ok(())
}
