//! Building an index in Lance: rows as they come, an approximate index over them, and all of it read back before it is described.
//!
//! The table is called after the package and the corpus, so a build that was interrupted is gone on with by the same command; only the
//! description, written last, makes an index of it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use highroad_package::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::process::{Answered, Ask, Batch, LanceProcess, Opened, There};
use super::{Ann, AnnKind, LanceConfig, Surveyed, Table, python, refused, uri_problem};
use crate::index::recall::{Found, N_NEIGHBOURS, N_QUERIES, Recall, enough, spread};
use crate::index::{
    DESCRIPTION, Description, Document, Embedder, FORMAT_LANCE, IndexError, Wanted, dot, io, line_of, place, unit,
};

/// Rows that go into the table at one time. Each time makes a file of it, and of few large files more are read at once.
const APPEND_ROWS: usize = 1 << 16;
const APPEND_BYTES: usize = 32 << 20;
/// About what a process takes by itself, and how many times the rows of an append while it writes them: within a limit of memory fewer
/// go at one time.
const PROCESS_BYTES: u64 = 220 << 20;
const COPIES: u64 = 8;
/// Rows that are read back at one time, as many as have about these bytes, also where some are much longer than others.
const READ_ROWS: usize = 1024;
const READ_BYTES: usize = 1 << 20;
const MAX_READ_BYTES: usize = 32 << 20;
/// Longest time that one step of a build may take: an approximate index over very many rows.
const STEP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Of a query that is no document.
const NO_ROW: i64 = -1;
/// About how many documents a graph holds.
const ROWS_PER_GRAPH: usize = 250_000;
const MAX_PARTITIONS: usize = 1 << 16;

/// What is built.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The index's folder.
    pub target: PathBuf,
    /// Where the table goes; into the folder if `None`.
    pub uri: Option<String>,
    /// Who makes the vectors.
    pub embedder: Embedder,
    /// Their width.
    pub dimensions: usize,
    /// Of what.
    pub surveyed: Surveyed,
    /// An approximate index, and what it is to find.
    pub ann: Option<(AnnKind, Wanted)>,
    /// Threads that read back.
    pub n_threads: usize,
    /// How the process runs.
    pub config: LanceConfig,
}

/// What a build is at, once all rows are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Making the approximate index.
    Indexing,
    /// Reading back every row.
    Reading,
    /// Measuring recall.
    Measuring,
}

/// An index in Lance that is being built.
pub struct LanceBuilder {
    plan: Plan,
    /// Where the description will be.
    place: PathBuf,
    /// Where everything in the folder lies until it is whole.
    staging: PathBuf,
    uri: String,
    table: String,
    process: LanceProcess,
    n_rows: usize,
    batch: Batch,
}

impl LanceBuilder {
    /// Begins an index, or goes on with one of the same documents by the same package that was interrupted. Errors if something else is in
    /// its place.
    pub fn begin(plan: Plan) -> Result<Self, IndexError> {
        if let Some(problem) = plan.uri.as_deref().and_then(uri_problem) {
            return Err(IndexError::Lance { uri: plan.uri.unwrap_or_default(), reason: problem });
        }
        let place = place(&plan.target, &plan.embedder.package)?;
        let key = key(&plan);
        let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let staging = parent.join(format!(".index-{key}"));
        std::fs::create_dir_all(&staging).map_err(io(&staging))?;
        let absolute = std::path::absolute(&staging).map_err(io(&staging))?;
        let uri = plan.uri.clone().unwrap_or_else(|| absolute.display().to_string());
        let (python, table) = (python(plan.config.python.as_deref())?, format!("highroad-{key}"));
        let opened = Opened { uri: uri.clone(), table: table.clone(), version: None };
        let begun = LanceProcess::build(&python, &opened, &plan.config, plan.dimensions);
        let (process, There { n_rows, dimensions, .. }) = begun.map_err(|error| {
            // Where nothing was begun there is nothing to go on with: a folder that holds something stays.
            _ = std::fs::remove_dir(&staging);
            refused(&uri, &error)
        })?;
        let n_most = plan.surveyed.n_documents;
        if dimensions != plan.dimensions || n_rows > n_most {
            let reason =
                format!("it holds {n_rows} documents of {dimensions} dimensions and is no beginning of this index");
            return Err(IndexError::Lance { uri, reason });
        }
        Ok(Self { place, staging, uri, table, process, n_rows, batch: Batch::default(), plan })
    }

    /// Documents that are there already, from the first on.
    pub fn n_there(&self) -> usize {
        self.n_rows
    }

    /// Adds the next document and its vector, which is brought to length 1.
    pub fn add(&mut self, document: &Document, vector: &[f32]) -> Result<(), IndexError> {
        let line = self.n_rows + self.batch.n_rows() + 1;
        let error = |reason: String| IndexError::Document { line, reason };
        if vector.len() != self.plan.dimensions {
            return Err(error(format!("its vector has {} dimensions, not {}", vector.len(), self.plan.dimensions)));
        }
        let unit = unit(vector).ok_or_else(|| error("its vector has no direction".to_owned()))?;
        self.batch.add(document, &unit);
        let is_full = self.batch.n_rows() >= APPEND_ROWS || self.batch.n_bytes() >= self.append_bytes();
        if is_full { self.append() } else { Ok(()) }
    }

    fn append_bytes(&self) -> usize {
        let Some(limit_mb) = self.plan.config.memory_mb else { return APPEND_BYTES };
        let left = (limit_mb << 20).saturating_sub(PROCESS_BYTES) / COPIES;
        usize::try_from(left).unwrap_or(APPEND_BYTES).clamp(1 << 20, APPEND_BYTES)
    }

    fn append(&mut self) -> Result<(), IndexError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.n_rows() == 0 {
            return Ok(());
        }
        let found = self.process.append(&batch, self.plan.dimensions, STEP_TIMEOUT);
        let found = found.map_err(|error| refused(&self.uri, &error))?;
        self.n_rows += batch.n_rows();
        match found == self.n_rows {
            true => Ok(()),
            false => {
                Err(self.other(format!("it holds {found} documents and not {}: another build adds to it", self.n_rows)))
            }
        }
    }

    /// Makes the approximate index, reads everything back, and describes it: then it is an index, in the folder that is returned.
    pub fn finish(mut self, tell: &mut dyn FnMut(Phase, [usize; 2])) -> Result<PathBuf, IndexError> {
        self.append()?;
        let n = self.plan.surveyed.n_documents;
        if self.n_rows != n {
            return Err(self.other(format!("it holds {} documents, not {n}", self.n_rows)));
        }
        let dimensions = self.plan.dimensions;
        let mut version = self.version()?;
        let ann = self.plan.ann.as_ref().map(|(kind, wanted)| (*kind, n_partitions(*kind, n), wanted));
        let mut queries = Queries::default();
        if let Some((kind, n_partitions, wanted)) = ann {
            queries = self.queries(wanted)?;
            tell(Phase::Indexing, [0, 1]);
            let ask = json!({ "op": "index", "kind": kind, "n_partitions": n_partitions });
            version = self.process.index(&ask, STEP_TIMEOUT).map_err(|error| refused(&self.uri, &error))?;
        }
        let read = self.read_back(&queries, tell)?;
        let tune = |(kind, n_partitions, wanted): (_, _, &Wanted)| {
            self.tune(kind, n_partitions, wanted.recall, &queries, &read.neighbours, tell)
        };
        let ann = ann.map(tune).transpose()?;
        let tag = format!("highroad-{version}");
        self.process.tag(&tag, version, STEP_TIMEOUT).map_err(|error| refused(&self.uri, &error))?;
        let table = Table { uri: self.plan.uri.clone(), name: self.table.clone(), version, ann };
        let description = Description {
            format: FORMAT_LANCE,
            embedder: self.plan.embedder.clone(),
            n_documents: n,
            dimensions,
            vectors: read.vectors,
            documents: read.documents,
            approximate: None,
            lance: Some(table),
        };
        self.describe(&description)
    }

    fn describe(self, description: &Description) -> Result<PathBuf, IndexError> {
        let path = self.staging.join(DESCRIPTION);
        let text = serde_json::to_string_pretty(description).expect("a description is JSON");
        std::fs::write(&path, text + "\n").map_err(io(&path))?;
        std::fs::rename(&self.staging, &self.place).map_err(io(&self.place))?;
        Ok(self.place)
    }

    /// The version that holds every row, of a table without an approximate index.
    fn version(&self) -> Result<u64, IndexError> {
        self.process.index(&json!({ "op": "version" }), STEP_TIMEOUT).map_err(|error| refused(&self.uri, &error))
    }

    /// The queries that were given, or documents, evenly spread.
    fn queries(&self, wanted: &Wanted) -> Result<Queries, IndexError> {
        let given = wanted.units(self.plan.dimensions)?;
        if !given.is_empty() {
            return Ok(Queries { own: vec![NO_ROW; given.len()], vectors: given.concat() });
        }
        let positions = spread(self.n_rows, N_QUERIES);
        let vectors = self.process.vectors(&positions, self.plan.dimensions, STEP_TIMEOUT);
        let own = positions.into_iter().map(|position| position as i64).collect();
        Ok(Queries { own, vectors: vectors.map_err(|error| refused(&self.uri, &error))? })
    }

    /// Goes through every row in order. Errors unless they are the documents of the survey.
    fn read_back(&self, queries: &Queries, tell: &mut dyn FnMut(Phase, [usize; 2])) -> Result<Read, IndexError> {
        let dimensions = self.plan.dimensions;
        let (mut vectors, mut documents, mut n_read) = (Sha256::new(), Sha256::new(), 0);
        let n_rows = self.rows_at_once();
        let mut neighbours = vec![Vec::new(); queries.own.len()];
        loop {
            tell(Phase::Reading, [n_read, self.n_rows]);
            let rows = self.process.rows(&Ask::Next { n_rows }, dimensions, STEP_TIMEOUT);
            let rows = rows.map_err(|error| refused(&self.uri, &error))?;
            if rows.positions.is_empty() {
                break;
            }
            if !rows.positions.iter().copied().eq(n_read as i64..(n_read + rows.positions.len()) as i64) {
                return Err(self.other(format!("its rows are out of order after {n_read} documents")));
            }
            rows.documents.iter().for_each(|document| documents.update(line_of(document)));
            rows.vectors.iter().for_each(|value| vectors.update(value.to_le_bytes()));
            queries.compare(&rows, dimensions, self.plan.n_threads, &mut neighbours);
            n_read += rows.positions.len();
        }
        let (vectors, documents) = (Digest::finish(vectors), Digest::finish(documents));
        if n_read != self.n_rows || documents != self.plan.surveyed.documents {
            return Err(
                self.other("what was read back is not what the corpus says: delete it, and build anew".to_owned())
            );
        }
        let neighbours = neighbours.into_iter().map(|near| near.into_iter().map(|(_, id)| id).collect()).collect();
        Ok(Read { vectors, documents, neighbours })
    }

    fn rows_at_once(&self) -> usize {
        let Surveyed { n_documents, n_bytes, n_bytes_longest, .. } = self.plan.surveyed;
        let wide = 4 * self.plan.dimensions;
        let usual = READ_BYTES / (n_bytes / n_documents.max(1) + wide);
        usual.min(MAX_READ_BYTES / (n_bytes_longest + wide)).clamp(1, READ_ROWS)
    }

    /// Chooses the fewest partitions that reach the wanted recall, and as little refinement.
    fn tune(
        &self,
        kind: AnnKind,
        n_partitions: usize,
        wanted: f64,
        queries: &Queries,
        neighbours: &[Vec<i64>],
        tell: &mut dyn FnMut(Phase, [usize; 2]),
    ) -> Result<Ann, IndexError> {
        let mut best = 0.0f64;
        for &refine in refinements(kind) {
            let mut measured = |n_probes: usize| {
                tell(Phase::Measuring, [n_probes, n_partitions]);
                let recall = Recall { at: N_NEIGHBOURS, value: 0.0, n_queries: queries.own.len() };
                let ann = Ann { kind, n_partitions, n_probes, refine, recall };
                let (is_enough, recall) = enough(&self.found(ann, queries, neighbours)?, wanted);
                best = best.max(recall.value);
                Ok::<_, IndexError>((is_enough, Ann { recall, ..ann }))
            };
            // Doubled first: over a large table the last partitions cost the most.
            let (mut too_few, mut fewest, mut n_probes) = (0, None, 1);
            loop {
                let (is_enough, ann) = measured(n_probes)?;
                if is_enough {
                    fewest = Some(ann);
                    break;
                }
                too_few = n_probes;
                if n_probes == n_partitions {
                    break;
                }
                n_probes = (2 * n_probes).min(n_partitions);
            }
            let Some(mut fewest) = fewest else { continue };
            while fewest.n_probes - too_few > 1 {
                let (is_enough, ann) = measured(usize::midpoint(too_few, fewest.n_probes))?;
                if is_enough { fewest = ann } else { too_few = ann.n_probes }
            }
            return Ok(fewest);
        }
        Err(IndexError::Recall { kind: kind.as_str(), found: best, wanted })
    }

    fn found(&self, ann: Ann, queries: &Queries, neighbours: &[Vec<i64>]) -> Result<Vec<Found>, IndexError> {
        let found =
            self.process.positions(&queries.vectors, (N_NEIGHBOURS + 1, ann), self.plan.dimensions, STEP_TIMEOUT);
        let found = found.map_err(|error| refused(&self.uri, &error))?;
        let count = |((found, &own), near): ((Vec<i64>, &i64), &Vec<i64>)| {
            let found: Vec<i64> = found.into_iter().filter(|&one| one != own).take(N_NEIGHBOURS).collect();
            [near.iter().filter(|position| found.contains(position)).count(), near.len()]
        };
        Ok(found.into_iter().zip(&queries.own).zip(neighbours).map(count).collect())
    }

    fn other(&self, reason: String) -> IndexError {
        IndexError::Lance { uri: self.uri.clone(), reason: format!("table `{}`: {reason}", self.table) }
    }
}

/// What was read back.
struct Read {
    vectors: Digest,
    documents: Digest,
    /// Of each query the nearest documents but itself, by the exact product.
    neighbours: Vec<Vec<i64>>,
}

/// What is sought to measure recall.
#[derive(Default)]
struct Queries {
    /// The document that each is, which it is not to find.
    own: Vec<i64>,
    /// `[n, dimensions]`
    vectors: Vec<f32>,
}

impl Queries {
    /// Puts rows among the nearest of each query, which keep their order: nearest first, then by position.
    fn compare(&self, rows: &Answered, dimensions: usize, n_threads: usize, nearest: &mut [Vec<(f32, i64)>]) {
        let n_each = nearest.len().div_ceil(n_threads.max(1)).max(1);
        let queries = self.vectors.chunks(n_each * dimensions).zip(self.own.chunks(n_each));
        thread::scope(|scope| {
            for ((vectors, own), nearest) in queries.zip(nearest.chunks_mut(n_each)) {
                scope.spawn(move || {
                    for ((query, &own), nearest) in vectors.chunks_exact(dimensions).zip(own).zip(nearest) {
                        put(query, own, rows, nearest);
                    }
                });
            }
        });
    }
}

fn put(query: &[f32], own: i64, rows: &Answered, nearest: &mut Vec<(f32, i64)>) {
    for (&position, row) in rows.positions.iter().zip(rows.vectors.chunks_exact(query.len())) {
        let score = dot(query, row);
        let is_near = nearest.len() < N_NEIGHBOURS || nearest.last().is_some_and(|last| score > last.0);
        if position != own && is_near {
            let at = nearest.partition_point(|near| near.0 >= score);
            nearest.insert(at, (score, position));
            nearest.truncate(N_NEIGHBOURS);
        }
    }
}

/// The same documents by the same package have one key.
fn key(plan: &Plan) -> String {
    let Plan { embedder, dimensions, surveyed, .. } = plan;
    let Embedder { package, prompt, .. } = embedder;
    let text = format!("{package} {prompt:?} {dimensions} {} {}", surveyed.n_documents, surveyed.documents);
    Digest::of(text.as_bytes()).hex()[..16].to_owned()
}

fn n_partitions(kind: AnnKind, n: usize) -> usize {
    match kind {
        AnnKind::IvfFlat | AnnKind::IvfPq => ((n as f64).sqrt().round() as usize).clamp(1, MAX_PARTITIONS),
        AnnKind::IvfHnswSq => n.div_ceil(ROWS_PER_GRAPH).max(1),
    }
}

/// How many times as many documents are compared by their whole vectors as are asked for, where those in the index are compressed.
fn refinements(kind: AnnKind) -> &'static [usize] {
    match kind {
        AnnKind::IvfFlat => &[1],
        AnnKind::IvfPq => &[5, 20, 80],
        AnnKind::IvfHnswSq => &[2, 8, 32],
    }
}
