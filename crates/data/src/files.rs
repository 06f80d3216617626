//! Where data is: local paths, globs and S3-compatible stores.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::table::{DataError, shown};

mod s3;

/// What a local path looks like when it is a pattern.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// A file as the caller named it, and where its bytes are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Path or URI.
    pub name: String,
    /// A local file.
    pub path: PathBuf,
}

/// Where copies and decoded files go.
pub struct Place {
    dir: PathBuf,
    /// Removes the directory, where the caller named none.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    /// `dir`, made if need be, or a temporary directory that is removed with this value.
    pub fn new(dir: Option<&Path>) -> std::io::Result<Self> {
        match dir {
            Some(dir) => {
                std::fs::create_dir_all(dir)?;
                Ok(Self { dir: dir.to_owned(), _temporary: None })
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("highroad-data-").tempdir()?;
                Ok(Self { dir: temporary.path().to_owned(), _temporary: Some(temporary) })
            }
        }
    }

    /// A file without a name that is gone when it is no longer open or mapped.
    pub(crate) fn temporary(&self) -> std::io::Result<File> {
        tempfile::tempfile_in(&self.dir)
    }
}

/// The files that `names` mean: a path or an `s3://` URI as it is, a pattern's matches sorted by name. Objects are copied to
/// `place`, unless they are there.
pub fn resolve(names: &[String], storage: &BTreeMap<String, String>, place: &Place) -> Result<Vec<Local>, DataError> {
    let mut files = Vec::new();
    for name in names {
        if let Some(rest) = name.strip_prefix("s3://") {
            files.extend(s3::fetch(name, rest, storage, &place.dir)?);
        } else if name.contains(WILDCARDS) && !Path::new(name).exists() {
            files.extend(matching(name)?);
        } else {
            files.push(Local { name: name.clone(), path: PathBuf::from(name) });
        }
    }
    Ok(files)
}

fn matching(pattern: &str) -> Result<Vec<Local>, DataError> {
    let broken = |reason: String| DataError::File { path: pattern.to_owned(), reason };
    let mut files = Vec::new();
    for path in glob::glob(pattern).map_err(|error| broken(error.to_string()))? {
        let path = path.map_err(|error| broken(error.to_string()))?;
        if path.is_file() {
            files.push(Local { name: shown(&path), path });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if files.is_empty() { Err(DataError::NoMatch(pattern.to_owned())) } else { Ok(files) }
}
