//! What is said to a LanceDB process, and what it answers: every number in it is checked here.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use highroad_worker::{Hello, Launch, Lines, Process, WorkerError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use super::{Ann, LanceConfig, WHAT};
use crate::index::{Document, MAX_DIMENSIONS, MAX_DOCUMENT_BYTES};

/// What a process runs.
const WORKER: &str = include_str!("worker.py");
/// The secrets by which buckets are opened. A table in a folder gets none of them.
const SECRETS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
];

/// What a scan may read before it is asked for: Lance's own limit is 2 GiB.
const READ_AHEAD_BYTES: u64 = 64 << 20;

/// The table that a process opens.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub uri: String,
    pub table: String,
    /// To be searched; `None` to be built.
    pub version: Option<u64>,
}

/// What a process found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct There {
    pub n_rows: usize,
    pub version: u64,
    pub dimensions: usize,
    pub lancedb: String,
}

/// What is asked for rows.
pub(super) enum Ask<'a> {
    /// The nearest to `query`.
    Search { top: usize, ann: Option<Ann>, query: &'a [f32] },
    /// The next ones of all.
    Next { n_rows: usize },
}

/// Rows that came.
#[derive(Debug, Default)]
pub(super) struct Answered {
    pub positions: Vec<i64>,
    /// `[n, dimensions]`
    pub vectors: Vec<f32>,
    pub documents: Vec<Arc<Document>>,
}

/// A process on one table.
pub(super) struct LanceProcess(Process);

impl AsRef<Process> for LanceProcess {
    fn as_ref(&self) -> &Process {
        &self.0
    }
}

impl LanceProcess {
    /// Starts a process that searches a version, with what it found there.
    pub(super) fn start(
        python: &Path,
        opened: &Opened,
        config: &LanceConfig,
        lines: Option<Lines>,
    ) -> Result<(Self, There), WorkerError> {
        Self::launch(python, opened, config, json!({ "version": opened.version }), lines)
    }

    /// Starts a process that builds a table for vectors of `dimensions`, or goes on building it.
    pub(super) fn build(
        python: &Path,
        opened: &Opened,
        config: &LanceConfig,
        dimensions: usize,
    ) -> Result<(Self, There), WorkerError> {
        Self::launch(python, opened, config, json!({ "dimensions": dimensions }), None)
    }

    fn launch(
        python: &Path,
        opened: &Opened,
        config: &LanceConfig,
        mut argument: Value,
        lines: Option<Lines>,
    ) -> Result<(Self, There), WorkerError> {
        argument["uri"] = json!(opened.uri);
        argument["table"] = json!(opened.table);
        argument["cache_mb"] = json!(config.cache_mb);
        let launch = Launch {
            what: WHAT,
            python: python.to_owned(),
            variables: vec![("LANCE_DEFAULT_IO_BUFFER_SIZE".to_owned(), READ_AHEAD_BYTES.to_string().into())],
            secrets: if opened.uri.contains("://") { SECRETS } else { &[] },
            memory_bytes: config.memory_mb.map(|mb| mb << 20),
            start_timeout: config.start_timeout,
        };
        let (process, hello) = Process::start(WORKER, &argument.to_string(), &launch, lines)?;
        let number = |key: &str| number(&process, &hello, key);
        let (n_rows, dimensions) = (number("rows")? as usize, number("dimensions")? as usize);
        let lancedb = hello.get("lancedb").cloned().unwrap_or_default();
        let there = There { n_rows, version: number("version")?, dimensions, lancedb };
        Ok((Self(process), there))
    }

    /// The rows that are asked for, of `dimensions` each.
    pub(super) fn rows(&self, ask: &Ask<'_>, dimensions: usize, timeout: Duration) -> Result<Answered, WorkerError> {
        let (said, query, n_most) = match ask {
            Ask::Search { top, ann, query } => {
                (json!({ "op": "search", "top": top, "ann": ann.map(searched) }), Some(*query), *top)
            }
            Ask::Next { n_rows } => (json!({ "op": "next", "rows": n_rows }), None, *n_rows),
        };
        let query = query.map(bytes);
        let tensors = query.iter().map(|query| (Dtype::F32, vec![query.len() / 4], query.as_slice())).collect();
        let (frame, _) = self.ask(&said, tensors, timeout)?;
        rows(&frame, dimensions, n_most).map_err(|reason| self.0.garbage(reason))
    }

    /// Of each of `queries` (`[n, dimensions]`) the positions of the `top` that are found, in LanceDB's own order.
    pub(super) fn positions(
        &self,
        queries: &[f32],
        (top, ann): (usize, Ann),
        dimensions: usize,
        timeout: Duration,
    ) -> Result<Vec<Vec<i64>>, WorkerError> {
        let n_queries = queries.len() / dimensions;
        let said = json!({ "op": "positions", "top": top, "ann": searched(ann) });
        let (frame, _) = self.ask(&said, vec![(Dtype::F32, vec![n_queries, dimensions], &bytes(queries))], timeout)?;
        let read = || {
            let tensors = SafeTensors::deserialize(&frame).map_err(|error| error.to_string())?;
            let all = i64s(&tensors, "0")?;
            match all.len() == n_queries * top {
                true => Ok(all.chunks_exact(top).map(<[i64]>::to_vec).collect()),
                false => Err(format!("{} positions of {n_queries} queries", all.len())),
            }
        };
        read().map_err(|reason: String| self.0.garbage(reason))
    }

    /// Adds rows, in order, and says how many there are now.
    pub(super) fn append(&self, batch: &Batch, dimensions: usize, timeout: Duration) -> Result<usize, WorkerError> {
        let vectors = bytes(&batch.vectors);
        let shape = vec![batch.n_rows(), dimensions];
        let tensors =
            vec![(Dtype::F32, shape, vectors.as_slice()), (Dtype::U8, vec![batch.lines.len()], batch.lines.as_slice())];
        let (_, said) = self.ask(&json!({ "op": "append" }), tensors, timeout)?;
        Ok(number(&self.0, &said, "rows")? as usize)
    }

    /// Makes an approximate index over all rows, and says in which version of the table it is.
    pub(super) fn index(&self, ask: &Value, timeout: Duration) -> Result<u64, WorkerError> {
        let (_, said) = self.ask(ask, Vec::new(), timeout)?;
        number(&self.0, &said, "version")
    }

    /// Keeps a version from being cleaned up.
    pub(super) fn tag(&self, tag: &str, version: u64, timeout: Duration) -> Result<(), WorkerError> {
        self.ask(&json!({ "op": "tag", "tag": tag, "version": version }), Vec::new(), timeout).map(drop)
    }

    /// The vectors at `positions`, which are in order, `[n, dimensions]`.
    pub(super) fn vectors(
        &self,
        positions: &[usize],
        dimensions: usize,
        timeout: Duration,
    ) -> Result<Vec<f32>, WorkerError> {
        let (frame, _) = self.ask(&json!({ "op": "vectors", "positions": positions }), Vec::new(), timeout)?;
        let read = || -> Result<Vec<f32>, String> {
            let tensors = SafeTensors::deserialize(&frame).map_err(|error| error.to_string())?;
            let found = i64s(&tensors, "0")?;
            match found.iter().map(|&position| position as usize).eq(positions.iter().copied()) {
                true => f32s(&tensors, "1", found.len(), dimensions),
                false => Err("other rows than were asked for".to_owned()),
            }
        };
        read().map_err(|reason| self.0.garbage(reason))
    }

    fn ask(
        &self,
        said: &Value,
        tensors: Vec<(Dtype, Vec<usize>, &[u8])>,
        timeout: Duration,
    ) -> Result<(Vec<u8>, Hello), WorkerError> {
        let refused = |reason: String| WorkerError::Refused { what: WHAT, reason };
        let views = tensors.into_iter().enumerate().map(|(idx, (dtype, shape, data))| {
            Ok((idx.to_string(), TensorView::new(dtype, shape, data).map_err(|error| refused(error.to_string()))?))
        });
        let views = views.collect::<Result<Vec<_>, WorkerError>>()?;
        let metadata = HashMap::from([("ask".to_owned(), said.to_string())]);
        let question = safetensors::serialize(views, Some(metadata)).map_err(|error| refused(error.to_string()))?;
        self.0.ask(question, timeout)
    }
}

/// Rows that are on their way into a table.
#[derive(Default)]
pub(super) struct Batch {
    /// `[n, dimensions]`
    pub vectors: Vec<f32>,
    /// A line of JSON each: id, text, and what else is noted as JSON in a text, or null.
    lines: Vec<u8>,
    n_rows: usize,
}

impl Batch {
    pub(super) fn add(&mut self, document: &Document, vector: &[f32]) {
        self.vectors.extend_from_slice(vector);
        let more = (!document.more.is_empty()).then(|| json!(document.more).to_string());
        let line = serde_json::to_vec(&(&document.id, &document.text, more)).expect("texts are JSON");
        self.lines.extend_from_slice(&line);
        self.lines.push(b'\n');
        self.n_rows += 1;
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.lines.len() + 4 * self.vectors.len()
    }
}

fn searched(Ann { kind, n_partitions, n_probes, refine, .. }: Ann) -> Value {
    json!({ "kind": kind, "n_partitions": n_partitions, "n_probes": n_probes, "refine": refine })
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn number(process: &Process, said: &Hello, key: &str) -> Result<u64, WorkerError> {
    let number = said.get(key).and_then(|text| text.parse().ok());
    number.ok_or_else(|| process.garbage(format!("no number `{key}`")))
}

/// Reads rows, at most `n_most`. Errors, in words, where they are none of `dimensions`.
fn rows(frame: &[u8], dimensions: usize, n_most: usize) -> Result<Answered, String> {
    let tensors = SafeTensors::deserialize(frame).map_err(|error| error.to_string())?;
    let positions = i64s(&tensors, "0")?;
    if positions.len() > n_most {
        return Err(format!("{} rows, and {n_most} were asked for", positions.len()));
    }
    let vectors = f32s(&tensors, "1", positions.len(), dimensions)?;
    let text = tensors.tensor("2").map_err(|error| error.to_string())?.data();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let documents = lines.map(document).collect::<Result<Vec<_>, String>>()?;
    match documents.len() == positions.len() {
        true => Ok(Answered { positions, vectors, documents }),
        false => Err(format!("{} documents of {} rows", documents.len(), positions.len())),
    }
}

fn document(line: &[u8]) -> Result<Arc<Document>, String> {
    if line.len() > 8 * MAX_DOCUMENT_BYTES {
        return Err(format!("a document of {} bytes", line.len()));
    }
    let read: Result<(String, String, Option<String>), _> = serde_json::from_slice(line);
    // What is wrong with it is told without what it says.
    let (id, text, more) =
        read.map_err(|error| format!("a document is not JSON as it was written: {:?}", error.classify()))?;
    let more: Map<String, Value> = match more {
        None => Map::new(),
        Some(more) => serde_json::from_str(&more).map_err(|_| "what is noted of a document is no object".to_owned())?,
    };
    Ok(Arc::new(Document { id, text, more }))
}

fn i64s(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<i64>, String> {
    let view = tensors.tensor(name).map_err(|error| error.to_string())?;
    match (view.dtype(), view.shape()) {
        (Dtype::I64, [_]) => {
            Ok(view.data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect())
        }
        (dtype, shape) => Err(format!("positions of dtype {dtype:?} and shape {shape:?}")),
    }
}

/// Numbers `[n_rows, dimensions]`, all of them finite.
fn f32s(tensors: &SafeTensors<'_>, name: &str, n_rows: usize, dimensions: usize) -> Result<Vec<f32>, String> {
    let view = tensors.tensor(name).map_err(|error| error.to_string())?;
    if view.dtype() != Dtype::F32 || view.shape() != [n_rows, dimensions] || dimensions > MAX_DIMENSIONS {
        return Err(format!("vectors of dtype {:?} and shape {:?}", view.dtype(), view.shape()));
    }
    let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err("a vector is not finite".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(positions: &[i64], vectors: &[f32], shape: [usize; 2], lines: &str) -> Vec<u8> {
        let positions: Vec<u8> = positions.iter().flat_map(|position| position.to_le_bytes()).collect();
        let vectors = bytes(vectors);
        let views = [
            ("0", TensorView::new(Dtype::I64, vec![positions.len() / 8], &positions).unwrap()),
            ("1", TensorView::new(Dtype::F32, shape.to_vec(), &vectors).unwrap()),
            ("2", TensorView::new(Dtype::U8, vec![lines.len()], lines.as_bytes()).unwrap()),
        ];
        safetensors::serialize(views, None).unwrap()
    }

    const LINE: &str = "[\"a\", \"one\\ntwo\", \"{\\\"year\\\": 7}\"]\n";

    #[test]
    fn rows_come_as_they_were_added() {
        let found = rows(&frame(&[3], &[0.6, 0.8], [1, 2], LINE), 2, 1).unwrap();
        assert_eq!((found.positions, found.vectors), (vec![3], vec![0.6, 0.8]));
        assert_eq!((found.documents[0].id.as_str(), found.documents[0].text.as_str()), ("a", "one\ntwo"));
        assert_eq!(found.documents[0].more["year"], 7);
    }

    #[test]
    fn what_are_no_rows_is_told_without_what_it_says() {
        let two = LINE.repeat(2);
        let secret = "[\"a\", \"a-secret\"]\n";
        for (frame, reason) in [
            (frame(&[3, 4], &[0.0; 4], [2, 2], &two), "1 were asked for"),
            (frame(&[3], &[0.0; 3], [1, 3], LINE), "shape [1, 3]"),
            (frame(&[3], &[f32::NAN, 0.0], [1, 2], LINE), "not finite"),
            (frame(&[3], &[0.0; 2], [1, 2], &two), "2 documents of 1 rows"),
            (frame(&[3], &[0.0; 2], [1, 2], secret), "not JSON as it was written"),
            (frame(&[3], &[0.0; 2], [1, 2], "[\"a\", \"b\", \"[1]\"]\n"), "is no object"),
            (b"what".to_vec(), "header"),
        ] {
            let told = rows(&frame, 2, 1).unwrap_err();
            assert!(told.to_lowercase().contains(&reason.to_lowercase()) && !told.contains("a-secret"), "{told}");
        }
    }
}
