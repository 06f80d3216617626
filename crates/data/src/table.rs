//! Files as one list of samples: every record is checked once, and any can be read by its number.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use highroad_tensor::Storage;
use sha2::{Digest as _, Sha256};

use crate::field::{Cell, Field, Kind, Value};
use crate::files::{Local, Place};
use crate::threads::in_parallel;

mod columnar;
mod csv;
mod lines;

pub(crate) use columnar::{Columnar, guarded};

/// Longest record of JSONL, CSV and text files.
pub const MAX_RECORD_BYTES: usize = 16 << 20;
/// Most samples of a table.
pub const MAX_SAMPLES: u64 = u32::MAX as u64;
/// Most bad records that are listed; all are counted.
pub const MAX_LISTED_BAD: usize = 1_000;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
    /// The same, separated by tabs.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream format.
    Arrow,
    /// One sample a line; the field is called `text`.
    Text,
}

impl Format {
    /// The format called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "jsonl" | "ndjson" => Self::Jsonl,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "parquet" => Self::Parquet,
            "arrow" | "feather" | "ipc" => Self::Arrow,
            "text" | "txt" => Self::Text,
            _ => return None,
        })
    }

    fn of_path(path: &str) -> Option<Self> {
        let suffix = Path::new(path).extension()?.to_str()?.to_ascii_lowercase();
        Self::from_name(&suffix)
    }
}

/// What to do with a record that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// End with the first one.
    Fail,
    /// Count it, say where it is, go on without it.
    Skip,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its file, as the caller named it.
    pub path: String,
    /// The line on which it begins, or its row, counted from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// Why data cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DataError {
    #[error("cannot read `{path}`: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("cannot read `{path}`: {reason}")]
    File { path: String, reason: String },
    #[error("{}:{}: {}", .0.path, .0.line, .0.reason)]
    Record(BadRecord),
    #[error("no file matches `{0}`")]
    NoMatch(String),
    #[error("the format of `{0}` is not known by its suffix; name it: jsonl, csv, tsv, parquet, arrow or text")]
    UnknownFormat(String),
    #[error("there are over {MAX_SAMPLES} samples")]
    TooMany,
    #[error("{0}")]
    Tokenizer(#[from] crate::TokenizerError),
    #[error("{0}")]
    Plan(#[from] crate::plan::TooFewRows),
    #[error("{0}")]
    State(String),
    #[error("a thread of the loader failed; this is a defect of Highroad")]
    Panic,
    #[error("cannot write to the cache directory: {0}")]
    Cache(std::io::Error),
}

/// Records of one file in its own format.
trait Rows: Send + Sync {
    /// Number of good records.
    fn len(&self) -> usize;
    /// The values of `fields` in record `row`, or why it has none.
    fn read<'a>(&'a self, row: usize, fields: &[Field]) -> Result<Vec<Cell<'a>>, String>;
    /// Every field with the types that occur in it.
    fn schema(&self) -> Vec<(String, String)>;
}

/// Bad records by line; more than are listed are only counted.
#[derive(Default)]
struct Bad {
    listed: Vec<(u64, String)>,
    n: u64,
}

impl Bad {
    fn add(&mut self, line: u64, reason: String) {
        self.n += 1;
        if self.listed.len() < MAX_LISTED_BAD {
            self.listed.push((line, reason));
        }
    }

    fn extend(&mut self, lines_before: u64, other: Self) {
        self.n += other.n;
        let room = MAX_LISTED_BAD - self.listed.len();
        self.listed.extend(other.listed.into_iter().take(room).map(|(line, reason)| (lines_before + line, reason)));
    }
}

/// A file of a table.
struct File {
    name: String,
    bytes: Storage,
    rows: Box<dyn Rows>,
    n_bad: u64,
}

/// What one file contributes to a run record.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FilePrint {
    /// The file as the caller named it.
    pub path: String,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// Its size.
    pub size_bytes: usize,
    /// Good records.
    pub rows: usize,
    /// Bad records.
    pub bad: u64,
}

/// Samples of several files, in order.
pub struct Table {
    files: Vec<File>,
    /// Number of samples up to and including each file.
    ends: Vec<u64>,
    fields: Vec<Field>,
    bad: Vec<BadRecord>,
}

impl Table {
    /// Opens files and checks every record for `fields`.
    ///
    /// `format` is by suffix where it is `None`. Errors on the first bad record unless they are skipped, and on a file that
    /// is broken as a whole.
    pub fn open(
        files: &[Local],
        format: Option<Format>,
        fields: Vec<Field>,
        on_bad: OnBad,
        place: &Place,
        threads: usize,
    ) -> Result<Self, DataError> {
        let mut table = Self { files: Vec::new(), ends: Vec::new(), fields, bad: Vec::new() };
        for local in files {
            table.add(local, format, on_bad, place, threads)?;
        }
        Ok(table)
    }

    fn add(
        &mut self,
        local: &Local,
        format: Option<Format>,
        on_bad: OnBad,
        place: &Place,
        threads: usize,
    ) -> Result<(), DataError> {
        let name = &local.name;
        let format = format.or_else(|| Format::of_path(name)).ok_or_else(|| DataError::UnknownFormat(name.clone()))?;
        let io = |source| DataError::Io { path: name.clone(), source };
        let bytes = Storage::map(&std::fs::File::open(&local.path).map_err(io)?).map_err(io)?;
        let broken = |reason| DataError::File { path: name.clone(), reason };
        let (rows, bad) = match format {
            Format::Jsonl => lines::Lines::open(bytes.clone(), lines::Kind::Json, &self.fields, threads),
            Format::Text => lines::Lines::open(bytes.clone(), lines::Kind::Text, &self.fields, threads),
            Format::Csv => csv::Csv::open(bytes.clone(), b',', &self.fields).map_err(broken)?,
            Format::Tsv => csv::Csv::open(bytes.clone(), b'\t', &self.fields).map_err(broken)?,
            Format::Parquet => Columnar::parquet(&bytes, &self.fields, place, threads).map_err(broken)?,
            Format::Arrow => Columnar::arrow(&bytes, &self.fields, place, threads).map_err(broken)?,
        };
        let n_bad = bad.n;
        for (line, reason) in bad.listed {
            let record = BadRecord { path: name.clone(), line, reason };
            if on_bad == OnBad::Fail {
                return Err(DataError::Record(record));
            }
            if self.bad.len() < MAX_LISTED_BAD {
                self.bad.push(record);
            }
        }
        let end = self.len() + rows.len() as u64;
        if end > MAX_SAMPLES {
            return Err(DataError::TooMany);
        }
        self.ends.push(end);
        self.files.push(File { name: name.clone(), bytes, rows, n_bad });
        Ok(())
    }

    /// Number of good records.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is read of each record.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The first bad records, in order.
    pub fn bad(&self) -> &[BadRecord] {
        &self.bad
    }

    /// Number of all bad records.
    pub fn n_bad(&self) -> u64 {
        self.files.iter().map(|file| file.n_bad).sum()
    }

    /// The fields of a sample that are text, in their order.
    pub fn texts(&self, sample: u32) -> Result<Vec<Cow<'_, str>>, DataError> {
        let text = |cell| if let Cell::Str(text) = cell { Some(text) } else { None };
        Ok(self.read(sample)?.into_iter().filter_map(text).collect())
    }

    /// The fields of a sample that are floats, in their order.
    pub fn numbers(&self, sample: u32) -> Result<Vec<f64>, DataError> {
        let number = |cell| if let Cell::Float(number) = cell { Some(number) } else { None };
        Ok(self.read(sample)?.into_iter().filter_map(number).collect())
    }

    /// The fields of a sample.
    pub(crate) fn read(&self, sample: u32) -> Result<Vec<Cell<'_>>, DataError> {
        let sample = u64::from(sample);
        let file = self.ends.partition_point(|&end| end <= sample);
        let row = sample - if file == 0 { 0 } else { self.ends[file - 1] };
        let file = &self.files[file];
        file.rows.read(row as usize, &self.fields).map_err(|reason| {
            let reason = format!("{reason}; the file has changed since it was opened");
            DataError::Record(BadRecord { path: file.name.clone(), line: row + 1, reason })
        })
    }

    /// Digest and size of each file.
    pub fn files(&self, threads: usize) -> Vec<FilePrint> {
        in_parallel(self.files.len(), threads, |i| {
            let file = &self.files[i];
            FilePrint {
                path: file.name.clone(),
                sha256: hex::encode(Sha256::digest(file.bytes.bytes())),
                size_bytes: file.bytes.bytes().len(),
                rows: file.rows.len(),
                bad: file.n_bad,
            }
        })
    }

    /// Name, size and number of rows of each file: tells other data from the same without reading it.
    pub(crate) fn outline(&self) -> impl Iterator<Item = (usize, usize)> {
        self.files.iter().map(|file| (file.bytes.bytes().len(), file.rows.len()))
    }

    /// Every field with the types that occur in it, over all files.
    pub fn schema(&self) -> std::collections::BTreeMap<String, String> {
        let mut types = std::collections::BTreeMap::<String, std::collections::BTreeSet<String>>::new();
        for (name, kind) in self.files.iter().flat_map(|file| file.rows.schema()) {
            types.entry(name).or_default().extend(kind.split('|').map(str::to_owned));
        }
        types.into_iter().map(|(name, kinds)| (name, kinds.into_iter().collect::<Vec<_>>().join("|"))).collect()
    }
}

/// Each field's cell out of the values that a record has; `None` where it has none.
fn cells<'a>(fields: &[Field], values: Vec<Option<Value<'a>>>) -> Result<Vec<Cell<'a>>, String> {
    fields.iter().zip(values).map(|(field, value)| field.cell(value)).collect()
}

/// Names of the types, without those that only text files know.
pub(crate) fn kind_names(kind: &Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Int => "int64",
        Kind::F32 => "float32",
        Kind::F64 => "float64",
        Kind::Bool => "bool",
        Kind::Str => "str",
        Kind::Class(_) => "class",
    }
}

/// A path for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Storage as an owner of bytes that Arrow and Parquet share.
pub(crate) struct Owner(pub(crate) Arc<Storage>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}
