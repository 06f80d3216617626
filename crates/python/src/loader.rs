//! The training data loader; `highroad.data.Loader` wraps it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use highroad_data::{
    Array, Batch, DataError, Encoder, Field, Format, Kind, Layout, LoaderOptions, OnBad, Place, Remainder, Size, State,
    Table, Text, resolve,
};
use numpy::{PyArray1, PyArrayMethods as _};
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Deserialize;

use crate::errors;

/// How a loader is opened, as `highroad/data.py` checked and wrote it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    files: Vec<String>,
    format: Option<String>,
    text: Vec<String>,
    tokenizer: Option<String>,
    max_length: usize,
    add_special_tokens: bool,
    columns: Vec<(String, ColumnType)>,
    batch_size: Option<u32>,
    max_tokens: Option<u32>,
    bucket: bool,
    pack: bool,
    block_mask: bool,
    seed: Option<u64>,
    rank: u32,
    world_size: u32,
    remainder: String,
    skip_bad: bool,
    threads: NonZeroUsize,
    prefetch: NonZeroUsize,
    pad_to_multiple_of: NonZeroUsize,
    cache_dir: Option<PathBuf>,
    storage_options: BTreeMap<String, String>,
    /// Digest of the tokenizer and how it is used.
    tokenizer_digest: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ColumnType {
    Named(String),
    Classes(Vec<String>),
}

/// Batches of one process.
#[pyclass(frozen, module = "highroad._highroad")]
pub struct Loader {
    loader: Mutex<highroad_data::Loader>,
    threads: usize,
}

#[pymethods]
impl Loader {
    /// Opens the files that the JSON `request` names and checks every record.
    #[staticmethod]
    fn open(py: Python<'_>, request: &str) -> PyResult<Self> {
        let request: Request =
            serde_json::from_str(request).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let threads = request.threads.get();
        let loader = py.detach(|| open(request)).map_err(|error| fault(&error))?;
        Ok(Self { loader: Mutex::new(loader), threads })
    }

    /// The next batch as arrays over Rust's memory; `None` at the end of the epoch. Other Python threads go on meanwhile.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let batch = py.detach(|| self.lock().next()).map_err(|error| fault(&error))?;
        batch.map(|batch| to_python(py, batch)).transpose()
    }

    /// Where the loader stands, as JSON.
    fn state(&self) -> PyResult<String> {
        serde_json::to_string(&self.lock().state()).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Goes on from a state.
    fn restore(&self, py: Python<'_>, state: &str) -> PyResult<()> {
        let state: State = serde_json::from_str(state)
            .map_err(|error| PyValueError::new_err(format!("this is no state of a loader: {error}")))?;
        py.detach(|| self.lock().restore(&state)).map_err(|error| fault(&error))
    }

    /// Batches of this rank in the current epoch.
    fn n_batches(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.lock().n_batches()).map_err(|error| fault(&error))
    }

    /// Samples that no rank gets in the current epoch.
    fn n_dropped(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.lock().n_dropped()).map_err(|error| fault(&error))
    }

    fn n_samples(&self) -> u64 {
        self.lock().table().len()
    }

    fn epoch(&self) -> u64 {
        self.lock().epoch()
    }

    fn n_bad(&self) -> u64 {
        self.lock().table().n_bad()
    }

    /// Path, line and reason of the first bad records.
    fn bad_records(&self) -> Vec<(String, u64, String)> {
        let bad = |record: &highroad_data::BadRecord| (record.path.clone(), record.line, record.reason.clone());
        self.lock().table().bad().iter().map(bad).collect()
    }

    /// What the data is, as JSON: digests, rows, schema, balance.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<String> {
        let print = py.detach(|| {
            let loader = self.lock();
            let table = loader.table();
            Ok(serde_json::json!({
                "files": table.files(self.threads),
                "rows": table.len(),
                "schema": table.schema(),
                "balance": loader.balance()?,
            }))
        });
        print.map(|print| print.to_string()).map_err(|error: DataError| fault(&error))
    }
}

impl Loader {
    fn lock(&self) -> MutexGuard<'_, highroad_data::Loader> {
        self.loader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(request: Request) -> Result<highroad_data::Loader, DataError> {
    let invalid = |reason: String| DataError::State(reason);
    let place = Place::new(request.cache_dir.as_deref()).map_err(DataError::Cache)?;
    let format = match &request.format {
        None => None,
        Some(name) => Some(Format::from_name(name).ok_or_else(|| DataError::UnknownFormat(name.clone()))?),
    };
    let mut fields: Vec<Field> =
        request.text.iter().map(|name| Field { name: name.clone(), kind: Kind::Text }).collect();
    for (name, column) in request.columns {
        let kind = kind(&column).ok_or_else(|| invalid(format!("column `{name}` has an unknown type")))?;
        fields.push(Field { name, kind });
    }
    let text = match &request.tokenizer {
        None => None,
        Some(json) => Some(Text {
            n_texts: request.text.len(),
            encoder: Encoder::from_bytes(
                json.as_bytes(),
                request.text.len(),
                request.max_length,
                request.add_special_tokens,
            )?,
            digest: request.tokenizer_digest,
        }),
    };
    let size = match (request.batch_size, request.max_tokens) {
        (Some(rows), _) => Size::Rows(rows),
        (None, tokens) => Size::Tokens(tokens.unwrap_or(u32::MAX)),
    };
    let remainder = match request.remainder.as_str() {
        "drop" => Remainder::Drop,
        "uneven" => Remainder::Uneven,
        _ => Remainder::Split,
    };
    let pack = request.pack.then_some(request.max_length as u32);
    let options = LoaderOptions {
        layout: Layout { size, bucket: request.bucket, pack, seed: request.seed },
        rank: request.rank,
        world: request.world_size,
        remainder,
        threads: request.threads,
        prefetch: request.prefetch,
        pad_to_multiple_of: request.pad_to_multiple_of,
        block_mask: request.block_mask,
    };
    let files = resolve(&request.files, &request.storage_options, &place)?;
    let on_bad = if request.skip_bad { OnBad::Skip } else { OnBad::Fail };
    let table = Table::open(&files, format, fields, on_bad, &place, request.threads.get())?;
    highroad_data::Loader::new(table, text, options, &place)
}

fn kind(column: &ColumnType) -> Option<Kind> {
    Some(match column {
        ColumnType::Classes(names) => Kind::Class(names.clone()),
        ColumnType::Named(name) => match name.as_str() {
            "int64" => Kind::Int,
            "float32" => Kind::F32,
            "float64" => Kind::F64,
            "bool" => Kind::Bool,
            "str" => Kind::Str,
            _ => return None,
        },
    })
}

fn fault(error: &DataError) -> PyErr {
    errors::DataError::new_err(error.to_string())
}

/// NumPy takes the vectors as they are.
fn to_python(py: Python<'_>, batch: Batch) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, array) in batch.arrays {
        let value = match array {
            Array::Int { values, shape } => PyArray1::from_vec(py, values).reshape(shape)?.into_any(),
            Array::Int32 { values, shape } => PyArray1::from_vec(py, values).reshape(shape)?.into_any(),
            Array::F32 { values, shape } => PyArray1::from_vec(py, values).reshape(shape)?.into_any(),
            Array::F64 { values, shape } => PyArray1::from_vec(py, values).reshape(shape)?.into_any(),
            Array::Bool { values, shape } => PyArray1::from_vec(py, values).reshape(shape)?.into_any(),
            Array::Str(values) => values.into_bound_py_any(py)?,
            Array::Number(value) => value.into_bound_py_any(py)?,
        };
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
