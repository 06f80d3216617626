//! An index whose vectors and documents lie in a table of LanceDB, on this machine or in a bucket, for corpora that outgrow memory.
//!
//! LanceDB runs in Python processes beside this one, watched like those of PyTorch: this program links none of it. What they find they
//! send with its vectors, and the scores and the order are made here, by the product that every index is searched with, so that what
//! one version of a table finds has the same bits on every machine. An index is one version of its table, which it opens and no other.

mod build;
mod process;
mod survey;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use highroad_worker::{Crew, Pool, Tell, WorkerError, find_python};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use build::{LanceBuilder, Phase, Plan};
pub use survey::{Survey, Surveyed};

use super::recall::Recall;
use super::{Description, IndexError, Nearest, SearchError, dot};
use process::{Answered, Ask, LanceProcess, Opened};

/// What errors call it.
pub(super) const WHAT: &str = "LanceDB";
/// Most documents of an index in Lance.
pub(super) const MAX_DOCUMENTS: usize = 2_000_000_000;
/// Searches that wait for each process; more are refused at once.
const WAITING_PER_PROCESS: usize = 64;
const MAX_MS: u64 = 3_600_000;

/// Where an index lies in LanceDB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The folder or bucket, `s3://bucket/prefix`, that the table is in; beside the description if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Its name there.
    pub name: String,
    /// The version that is searched.
    pub version: u64,
    /// How it is searched, where not every vector is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ann: Option<Ann>,
}

/// An approximate index of Lance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ann {
    /// What kind it is.
    pub kind: AnnKind,
    /// Number of partitions.
    pub n_partitions: usize,
    /// How many of them a query reads at least.
    pub n_probes: usize,
    /// How many times as many documents are found by their compressed vectors as are compared by the whole ones.
    pub refine: usize,
    /// Against the exact search, when the index was built.
    pub recall: Recall,
}

/// Kinds of approximate indexes, as Lance has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnnKind {
    /// Whole vectors in lists by the nearest of as many centroids.
    IvfFlat,
    /// The same with vectors compressed by product quantisation: the least to read.
    IvfPq,
    /// A graph over vectors of a byte a dimension: the fastest, and the slowest to build.
    IvfHnswSq,
}

impl AnnKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::IvfFlat, Self::IvfPq, Self::IvfHnswSq];

    /// As options have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IvfFlat => "ivf-flat",
            Self::IvfPq => "ivf-pq",
            Self::IvfHnswSq => "ivf-hnsw-sq",
        }
    }
}

/// How LanceDB runs beside a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanceConfig {
    /// The interpreter; that of the folder or the active environment if `None`.
    pub python: Option<PathBuf>,
    /// Processes that search: each answers one query at a time.
    pub n_workers: usize,
    /// Most memory of one process, MiB; not looked at if `None`.
    pub memory_mb: Option<u64>,
    /// What one process keeps of the table in memory, MiB.
    pub cache_mb: u64,
    /// Until one search is answered; the process is ended after it.
    pub timeout: Duration,
    /// Until a process has imported LanceDB and opened the table.
    pub start_timeout: Duration,
}

impl Default for LanceConfig {
    fn default() -> Self {
        Self {
            python: None,
            n_workers: 2,
            memory_mb: None,
            cache_mb: 256,
            timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(120),
        }
    }
}

/// Keys of [`LanceConfig`] in the table of an index.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct LanceKeys {
    python: Option<PathBuf>,
    workers: Option<usize>,
    memory_mb: Option<u64>,
    cache_mb: Option<u64>,
    timeout_ms: Option<u64>,
    start_timeout_ms: Option<u64>,
}

impl LanceKeys {
    /// Errors, in words, where a number is out of its range. A path with a `/` is relative to `base`; `None` where no key is there.
    pub(crate) fn config(self, base: &Path) -> Result<Option<LanceConfig>, String> {
        let usual = LanceConfig::default();
        let Self { python, workers, memory_mb, cache_mb, timeout_ms, start_timeout_ms } = self;
        let numbers = [workers.map(|n| n as u64), memory_mb, cache_mb, timeout_ms, start_timeout_ms];
        if python.is_none() && numbers.iter().all(Option::is_none) {
            return Ok(None);
        }
        let within = |key: &str, value: Option<u64>, usual: u64, most: u64| match value.unwrap_or(usual) {
            value if (1..=most).contains(&value) => Ok(value),
            _ => Err(format!("`{key}` is from 1 to {most}")),
        };
        let beside = |python: PathBuf| if python.components().count() > 1 { base.join(python) } else { python };
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(MAX_MS);
        Ok(Some(LanceConfig {
            python: python.map(beside),
            n_workers: within("workers", workers.map(|n| n as u64), usual.n_workers as u64, 64)? as usize,
            memory_mb: memory_mb.map(|mb| within("memory_mb", Some(mb), 1, 1 << 24)).transpose()?,
            cache_mb: within("cache_mb", cache_mb, usual.cache_mb, 1 << 24)?,
            timeout: Duration::from_millis(within("timeout_ms", timeout_ms, ms(usual.timeout), MAX_MS)?),
            start_timeout: Duration::from_millis(within(
                "start_timeout_ms",
                start_timeout_ms,
                ms(usual.start_timeout),
                MAX_MS,
            )?),
        }))
    }
}

impl Table {
    /// What keeps a description's table from being one, in words.
    pub(super) fn problem(&self) -> Option<String> {
        let is_named = !self.name.is_empty() && self.name.len() <= 128;
        let is_plain = self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !is_named || !is_plain {
            return Some("the table's name is none".to_owned());
        }
        if let Some(problem) = self.uri.as_deref().and_then(uri_problem) {
            return Some(problem);
        }
        let ann = self.ann?;
        let is_right = (1..=ann.n_partitions).contains(&ann.n_probes) && (1..=MAX_REFINE).contains(&ann.refine);
        (!is_right).then(|| format!("{} of {} partitions, {} times", ann.n_probes, ann.n_partitions, ann.refine))
    }
}

/// Most times as many documents as are asked for are found first.
const MAX_REFINE: usize = 100;

/// Why a table cannot lie at `uri`, in words. Credentials in it would be written into descriptions and logs.
pub fn uri_problem(uri: &str) -> Option<String> {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return uri.is_empty().then(|| "the table's place is empty".to_owned());
    };
    if !["s3", "gs", "az"].contains(&scheme) {
        return Some(format!("`{scheme}://` is no place of a table: a folder, or s3://, gs:// or az://"));
    }
    let is_plain = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    (!is_plain).then(|| {
        format!("a table's place is `{scheme}://BUCKET/PREFIX` and nothing else: credentials are of the environment")
    })
}

/// A table that is open in its processes.
pub(super) struct Lance {
    pool: Pool<LanceProcess>,
    ann: Option<Ann>,
    dimensions: usize,
    n_documents: usize,
    timeout: Duration,
    places: Arc<Semaphore>,
}

impl Lance {
    /// Opens the table of the index in `folder` in as many processes as `config` says and waits for them. Errors unless each finds exactly
    /// the version, the number of documents and the width that the description says.
    pub(super) fn open(
        folder: &Path,
        description: &Description,
        table: &Table,
        config: &LanceConfig,
        tell: Tell,
    ) -> Result<Self, IndexError> {
        let uri = place(folder, table);
        let refused = |error: WorkerError| refused(&uri, &error);
        let opened = Opened { uri: uri.clone(), table: table.name.clone(), version: Some(table.version) };
        let (config, expected) = (config.clone(), [description.n_documents, description.dimensions]);
        let (n_workers, timeout) = (config.n_workers, config.timeout);
        let python = python(config.python.as_deref())?;
        let start = move |lines| {
            let (process, there) = LanceProcess::start(&python, &opened, &config, Some(lines))?;
            match [there.n_rows, there.dimensions] == expected && there.version == opened.version.unwrap_or_default() {
                true => Ok(process),
                false => Err(other(expected, &there)),
            }
        };
        let pool = Pool::start(WHAT, n_workers, start, tell).map_err(refused)?;
        let places = Arc::new(Semaphore::new(n_workers * (1 + WAITING_PER_PROCESS)));
        let Description { n_documents, dimensions, .. } = *description;
        Ok(Self { pool, ann: table.ann, dimensions, n_documents, timeout, places })
    }

    pub(super) fn crew(&self) -> Crew {
        self.pool.crew()
    }

    /// A place among those that search or wait; `None` where there are too many.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// The `top` documents nearest to `query`, of length 1. Blocks until a process has answered, or did not in time.
    pub(super) fn search(&self, query: &[f32], top: usize) -> Result<Vec<Nearest>, SearchError> {
        let top = top.min(self.n_documents);
        if top == 0 {
            return Ok(Vec::new());
        }
        let ask = Ask::Search { top, ann: self.ann, query };
        let question = |process: &LanceProcess| process.rows(&ask, self.dimensions, self.timeout);
        let asked = self.pool.ask(self.timeout, question, |error| Some(error));
        let rows = asked.and_then(|asked| asked).map_err(SearchError::Store)?;
        nearest(query, rows, top).map_err(SearchError::Wrong)
    }
}

/// Documents in the order of their products with `query`, equally near ones by their position. Errors, in words, where one is there twice.
fn nearest(query: &[f32], rows: Answered, top: usize) -> Result<Vec<Nearest>, String> {
    let vectors = rows.vectors.chunks_exact(query.len());
    let scored = rows.positions.into_iter().zip(vectors).zip(rows.documents);
    let mut found: Vec<_> =
        scored.map(|((position, vector), document)| (dot(query, vector), position, document)).collect();
    found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if found.windows(2).any(|pair| pair[0].1 == pair[1].1) {
        return Err("a document came twice".to_owned());
    }
    Ok(found.into_iter().take(top).map(|(score, _, document)| Nearest { score, document }).collect())
}

/// Where the table of the index in `folder` is.
fn place(folder: &Path, table: &Table) -> String {
    match &table.uri {
        Some(uri) => uri.clone(),
        None => std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()).display().to_string(),
    }
}

fn python(told: Option<&Path>) -> Result<PathBuf, IndexError> {
    told.map(Path::to_owned).or_else(|| find_python(Path::new("."))).ok_or(IndexError::NoPython)
}

fn refused(uri: &str, error: &WorkerError) -> IndexError {
    IndexError::Lance { uri: uri.to_owned(), reason: error.to_string() }
}

fn other([n_rows, dimensions]: [usize; 2], there: &process::There) -> WorkerError {
    let reason = format!(
        "version {} of the table holds {} documents of {} dimensions, and the index says {n_rows} of {dimensions}",
        there.version, there.n_rows, there.dimensions
    );
    WorkerError::Refused { what: WHAT, reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::index::Document;

    #[test]
    fn a_table_lies_in_a_folder_or_a_bucket_and_its_place_holds_no_secret() {
        for uri in ["/data/tables", "tables", "s3://bucket/some/prefix", "gs://bucket", "az://container/a_b"] {
            assert_eq!(uri_problem(uri), None, "{uri}");
        }
        for uri in
            ["", "s3://", "s3://key:secret@bucket", "s3://bucket?secret=a", "http://host/a", "db://cloud", "s3://a b"]
        {
            let told = uri_problem(uri).unwrap();
            assert!(!told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn keys_of_lance_have_their_ranges() {
        let read = |text: &str| toml::from_str::<LanceKeys>(text).unwrap().config(Path::new("/base"));
        assert_eq!(read(""), Ok(None));
        let found = read("workers = 4\npython = 'env/bin/python'\ntimeout_ms = 500").unwrap().unwrap();
        assert_eq!((found.n_workers, found.timeout), (4, Duration::from_millis(500)));
        assert_eq!(found.python, Some("/base/env/bin/python".into()));
        for text in ["workers = 0", "workers = 65", "memory_mb = 0", "cache_mb = 0", "timeout_ms = 3600001"] {
            assert!(read(text).unwrap_err().contains("is from 1 to"), "{text}");
        }
    }

    #[test]
    fn rows_are_ordered_by_this_programs_own_product_and_ties_by_position() {
        let document = |id: &str| Arc::new(Document { id: id.to_owned(), text: "a".to_owned(), more: Map::new() });
        let rows = |positions: Vec<i64>| Answered {
            vectors: [[0.0f32, 1.0], [1.0, 0.0], [0.0, 1.0]].concat(),
            documents: positions.iter().map(|position| document(&format!("d{position}"))).collect(),
            positions,
        };
        let found = nearest(&[0.6, 0.8], rows(vec![9, 2, 4]), 2).unwrap();
        assert_eq!(found.iter().map(|near| near.document.id.as_str()).collect::<Vec<_>>(), ["d4", "d9"]);
        assert!(nearest(&[0.6, 0.8], rows(vec![9, 2, 9]), 2).unwrap_err().contains("twice"));
    }
}
