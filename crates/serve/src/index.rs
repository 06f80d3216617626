//! An index of documents by their embeddings: what `highroad index` builds and pipelines search.
//!
//! A folder of three files, or four. `index.json` says which package embedded the documents, and the digests of the others; `vectors.f32` holds
//! the vectors, `[n, dimensions]` little-endian f32, each of length 1; `documents.jsonl` the documents, one a line, in the same order.
//! Search is exact unless the index says otherwise: the inner product with every vector, summed in one fixed order, so that the same query finds the same documents
//! with the same bits on every machine with the same numerics, and an answer can be replayed. It reads every vector for every query:
//! 150 MB for 100,000 documents of 384 dimensions. An approximate search follows the links of a [graph], which is the fourth file, `graph.u32`, and
//! compares what it finds by the same product.
//!
//! For corpora that outgrow memory the vectors and documents lie in a table of [LanceDB](lance) instead, of which `index.json` names the version.
//!
//! The same documents embedded by another package lie beside the first build, in a folder inside it that is called after the
//! package's digest: a member that moves on finds there what its new package made.

mod graph;
pub mod lance;
mod recall;

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highroad_package::Digest;
use highroad_worker::{Crew, Tell, WorkerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

pub use graph::Approximate;
pub use recall::Recall;

use graph::{GRAPH, Graph};
use lance::{Lance, LanceConfig, Table};

/// The description in an index.
pub const DESCRIPTION: &str = "index.json";
const VECTORS: &str = "vectors.f32";
const DOCUMENTS: &str = "documents.jsonl";
const FORMAT: u32 = 1;
/// Of an index in Lance, which earlier versions do not read.
const FORMAT_LANCE: u32 = 2;
/// Largest description, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 1 << 20;
/// Longest document with what is noted of it, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Most documents: what one process may reasonably hold and read for each query.
pub const MAX_DOCUMENTS: usize = 10_000_000;
/// Widest vector.
const MAX_DIMENSIONS: usize = 1 << 16;

/// Why an index cannot be built or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum IndexError {
    #[error("cannot read or write `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` is no index: {reason}", path.display())]
    Description { path: PathBuf, reason: String },
    #[error("`{}` is not what the index says: {reason}", path.display())]
    Changed { path: PathBuf, reason: String },
    #[error("document {line}: {reason}")]
    Document { line: usize, reason: String },
    #[error("`{}` exists already", path.display())]
    Exists { path: PathBuf },
    #[error("the documents cannot be linked: {0}")]
    Graph(String),
    #[error("query {position}: its vector does not fit")]
    Query { position: usize },
    #[error("two documents have one id")]
    Twice { hash: Vec<u8> },
    #[error("the index in LanceDB at `{uri}`: {reason}")]
    Lance { uri: String, reason: String },
    #[error(
        "no Python was found for an index in LanceDB: name one with the package `lancedb` as `python = \"…\"`, or set HIGHROAD_PYTHON. The \
         serving image has none: build one from an image with Python and the `highroad` binary"
    )]
    NoPython,
    #[error(
        "`{kind}` finds {:.1} % of the nearest documents at most, and {:.1} % are wanted: `ivf-flat` finds as many as are wanted",
        100.0 * found, 100.0 * wanted
    )]
    Recall { kind: &'static str, found: f64, wanted: f64 },
    #[error("`{}` is not in LanceDB: `workers`, `python`, `memory_mb`, `cache_mb` and timeouts are for such", path.display())]
    NotLance { path: PathBuf },
}

/// Why a search found nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SearchError {
    #[error("the query's vector does not fit")]
    Query,
    #[error("{0}")]
    Store(WorkerError),
    #[error("LanceDB gave what is no answer: {0}")]
    Wrong(String),
    #[error("too many searches wait")]
    Busy,
}

/// What an index is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    format: u32,
    /// Which package made the vectors: the only one whose vectors may be compared with them.
    pub embedder: Embedder,
    /// Number of documents.
    pub n_documents: usize,
    /// Width of each vector.
    pub dimensions: usize,
    vectors: Digest,
    documents: Digest,
    /// How it is searched, where not every vector is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approximate: Option<Approximate>,
    /// Where vectors and documents are, where not beside this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lance: Option<Table>,
}

/// Who made an index's vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedder {
    /// Its package.
    pub package: Digest,
    /// Name in the package's manifest.
    pub name: String,
    /// What decided the bits.
    pub numerics_id: String,
    /// The prompt of that package that went before each document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// One document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Document {
    /// Its name, unique in the index.
    pub id: String,
    /// What was embedded, and what a reranker or generator reads.
    pub text: String,
    /// What else is noted of it, handed through.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An index, ready to be searched.
pub struct Index {
    description: Description,
    digest: Digest,
    held: Held,
}

/// Where an index is.
enum Held {
    Memory(Memory),
    Lance(Lance),
}

/// An index that is held whole.
struct Memory {
    dimensions: usize,
    vectors: Vec<f32>,
    documents: Vec<Arc<Document>>,
    search: Search,
}

/// How an index is searched.
enum Search {
    /// Every vector is read.
    Exact,
    /// Documents are found by their links.
    Graph(Graph),
}

/// A document that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// Cosine of the angle between query and document, from -1 to 1.
    pub score: f32,
    /// It.
    pub document: Arc<Document>,
}

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Hit {
    document_idx: usize,
    score: f32,
}

impl Document {
    /// Reads a line of JSONL: an object with `text` and, unless `id` is there, named by its line. Errors say what is missing or too long.
    pub fn parse(line: &str, line_number: usize) -> Result<Self, IndexError> {
        let error = |reason: String| IndexError::Document { line: line_number, reason };
        if line.len() > MAX_DOCUMENT_BYTES {
            return Err(error(format!("{} bytes; at most {MAX_DOCUMENT_BYTES} are taken", line.len())));
        }
        let mut value: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| error(format!("it is no JSON object: {e}")))?;
        let id = match value.remove("id") {
            None => line_number.to_string(),
            Some(Value::String(id)) if !id.is_empty() => id,
            Some(Value::Number(id)) => id.to_string(),
            Some(_) => return Err(error("`id` is neither a text nor a number".to_owned())),
        };
        match value.remove("text") {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(Self { id, text, more: value }),
            Some(Value::String(_)) => Err(error("`text` is empty".to_owned())),
            _ => Err(error("it has no `text`".to_owned())),
        }
    }
}

impl Description {
    /// Reads the description of the index in `folder`, and its bytes.
    fn read(folder: &Path) -> Result<(Self, Vec<u8>), IndexError> {
        let path = folder.join(DESCRIPTION);
        let wrong = |reason: String| IndexError::Description { path: path.clone(), reason };
        let mut text = Vec::new();
        let file = File::open(&path).map_err(io(&path))?;
        file.take(MAX_DESCRIPTION_BYTES + 1).read_to_end(&mut text).map_err(io(&path))?;
        if text.len() as u64 > MAX_DESCRIPTION_BYTES {
            return Err(wrong(format!("it has over {MAX_DESCRIPTION_BYTES} bytes")));
        }
        let description: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let Self { format, n_documents, dimensions, ref lance, .. } = description;
        let (right, most) = match lance {
            None => (FORMAT, MAX_DOCUMENTS),
            Some(_) => (FORMAT_LANCE, lance::MAX_DOCUMENTS),
        };
        if format != right {
            return Err(wrong(format!(
                "it has format {format}; this program reads {FORMAT}, and {FORMAT_LANCE} in Lance"
            )));
        }
        if let Some(problem) = lance.as_ref().and_then(Table::problem) {
            return Err(wrong(problem));
        }
        if n_documents > most || !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(wrong(format!("{n_documents} documents of {dimensions} dimensions")));
        }
        Ok((description, text))
    }
}

/// Where the build of the index in `folder` by `package` lies, if there is one: `folder` itself, or the folder in it that is
/// called after the package.
///
/// Errors if `folder` holds no index.
pub fn build_by(folder: &Path, package: &Digest) -> Result<Option<PathBuf>, IndexError> {
    if Description::read(folder)?.0.embedder.package == *package {
        return Ok(Some(folder.to_owned()));
    }
    let beside = folder.join(package.hex());
    if !beside.join(DESCRIPTION).exists() {
        return Ok(None);
    }
    let (Description { embedder, .. }, _) = Description::read(&beside)?;
    if embedder.package != *package {
        let reason = format!("it was embedded by {}, and its folder is called after another package", embedder.package);
        return Err(IndexError::Description { path: beside.join(DESCRIPTION), reason });
    }
    Ok(Some(beside))
}

/// Who embedded the first build of the index in `folder`.
pub fn first_embedder(folder: &Path) -> Result<Embedder, IndexError> {
    Ok(Description::read(folder)?.0.embedder)
}

/// Where a build by `package` goes that is asked to lie in `target`. Errors if something else is there.
fn place(target: &Path, package: &Digest) -> Result<PathBuf, IndexError> {
    let exists = |path: &Path| IndexError::Exists { path: path.to_owned() };
    if !target.exists() {
        return Ok(target.to_owned());
    }
    if !target.join(DESCRIPTION).exists() {
        return Err(exists(target));
    }
    match build_by(target, package)? {
        Some(place) => Err(exists(&place)),
        None => Ok(target.join(package.hex())),
    }
}

/// Writes an index, document after document, and puts it in place when it is whole.
pub struct Builder {
    target: PathBuf,
    folder: tempfile::TempDir,
    embedder: Embedder,
    dimensions: usize,
    vectors: Hashed,
    documents: Hashed,
    ids: HashSet<String>,
    approximate: Option<Wanted>,
}

/// The approximate search that is wanted of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The share of the nearest documents that is to be found, above 0 and up to 1.
    pub recall: f64,
    /// Queries of which it is to be found, `[n, dimensions]`; where there are none, documents are sought.
    pub queries: Vec<f32>,
    /// Threads that build; they change no bit.
    pub n_threads: usize,
}

impl Wanted {
    /// The queries, each at length 1. Errors if one has no direction or another width.
    fn units(&self, dimensions: usize) -> Result<Vec<Vec<f32>>, IndexError> {
        let unit = |(i, query)| {
            unit(query).filter(|unit| unit.len() == dimensions).ok_or(IndexError::Query { position: i + 1 })
        };
        self.queries.chunks(dimensions).enumerate().map(unit).collect()
    }
}

struct Hashed {
    path: PathBuf,
    file: BufWriter<File>,
    sha256: Sha256,
}

impl Hashed {
    fn create(path: PathBuf) -> Result<Self, IndexError> {
        let file = File::create(&path).map_err(io(&path))?;
        Ok(Self { path, file: BufWriter::new(file), sha256: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        self.sha256.update(bytes);
        self.file.write_all(bytes).map_err(io(&self.path))
    }

    fn finish(mut self) -> Result<Digest, IndexError> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(io(&self.path))?;
        Ok(Digest::finish(self.sha256))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> IndexError {
    let path = path.to_owned();
    move |source| IndexError::Io { path, source }
}

impl Builder {
    /// Begins an index in `target`, which must not exist, or hold the same index as other packages embedded it.
    pub fn new(target: &Path, embedder: Embedder, dimensions: usize) -> Result<Self, IndexError> {
        let target = place(target, &embedder.package)?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = tempfile::Builder::new().prefix(".index-").tempdir_in(parent).map_err(io(parent))?;
        let vectors = Hashed::create(folder.path().join(VECTORS))?;
        let documents = Hashed::create(folder.path().join(DOCUMENTS))?;
        Ok(Self { target, folder, embedder, dimensions, vectors, documents, ids: HashSet::new(), approximate: None })
    }

    /// The same with an approximate search.
    #[must_use]
    pub fn approximate(self, wanted: Option<Wanted>) -> Self {
        Self { approximate: wanted, ..self }
    }

    /// Adds a document and its vector `[dimensions]`, which is brought to length 1.
    ///
    /// Errors if the id is there already, the vector is not as wide as the others, or is zero or not finite.
    pub fn add(&mut self, document: &Document, vector: &[f32]) -> Result<(), IndexError> {
        let line = self.ids.len() + 1;
        let error = |reason: String| IndexError::Document { line, reason };
        if line > MAX_DOCUMENTS {
            return Err(error(format!("an index holds at most {MAX_DOCUMENTS} documents")));
        }
        if vector.len() != self.dimensions {
            return Err(error(format!("its vector has {} dimensions, not {}", vector.len(), self.dimensions)));
        }
        let unit = unit(vector).ok_or_else(|| error("its vector has no direction".to_owned()))?;
        if !self.ids.insert(document.id.clone()) {
            return Err(error(format!("the id `{}` is there already", document.id)));
        }
        let bytes: Vec<u8> = unit.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.vectors.write(&bytes)?;
        self.documents.write(&line_of(document))
    }

    /// Writes the description and puts the folder in place, which is returned. `tell` hears how many documents of an approximate search are
    /// linked.
    ///
    /// Errors if a query has no direction, or is not as wide as documents are.
    pub fn finish(self, tell: &(dyn Fn(usize) + Sync)) -> Result<PathBuf, IndexError> {
        let mut description = Description {
            format: FORMAT,
            embedder: self.embedder,
            n_documents: self.ids.len(),
            dimensions: self.dimensions,
            vectors: self.vectors.finish()?,
            documents: self.documents.finish()?,
            approximate: None,
            lance: None,
        };
        if let Some(wanted) = self.approximate.filter(|_| description.n_documents > 0) {
            let vectors = read_vectors(&self.folder.path().join(VECTORS), &description)?;
            let (graph, recall) = Graph::build(&vectors, description.dimensions, &wanted, tell)?;
            let (path, bytes) = (self.folder.path().join(GRAPH), graph.bytes());
            std::fs::write(&path, &bytes).map_err(io(&path))?;
            description.approximate = Some(graph.described(recall, &bytes));
        }
        let path = self.folder.path().join(DESCRIPTION);
        let text = serde_json::to_string_pretty(&description).expect("a description is JSON");
        std::fs::write(&path, text + "\n").map_err(io(&path))?;
        let folder = self.folder.keep();
        std::fs::rename(&folder, &self.target).map_err(io(&self.target))?;
        Ok(self.target)
    }
}

/// A document as it is kept: a line of JSON.
fn line_of(document: &Document) -> Vec<u8> {
    let mut text = serde_json::to_vec(document).expect("a document is JSON");
    text.push(b'\n');
    text
}

/// `vector` at length 1; `None` where it has no direction.
fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    (length.is_finite() && length > 0.0)
        .then(|| vector.iter().map(|&value| (f64::from(value) / length) as f32).collect())
}

/// What the index in `folder` is, and its digest, without a look at what it describes.
pub fn describe(folder: &Path) -> Result<(Description, Digest), IndexError> {
    let (description, text) = Description::read(folder)?;
    Ok((description, Digest::of(&text)))
}

impl Index {
    /// Reads `folder` whole and checks every byte against the description; of a table in Lance, searched by one process, that its version
    /// is there and holds as many documents of that width.
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        let config = LanceConfig { n_workers: 1, ..LanceConfig::default() };
        Self::open_with(folder, &config, Arc::new(|_| ()))
    }

    /// The same; an index in Lance is searched as `config` says, and `tell` hears what happens to its processes.
    pub fn open_with(folder: &Path, config: &LanceConfig, tell: Tell) -> Result<Self, IndexError> {
        let (description, text) = Description::read(folder)?;
        let held = match &description.lance {
            Some(table) => Held::Lance(Lance::open(folder, &description, table, config, tell)?),
            None => Held::Memory(Memory::read(folder, &description)?),
        };
        Ok(Self { digest: Digest::of(&text), description, held })
    }

    /// Whether `folder` has the description that this was read by.
    pub fn is_still_in(&self, folder: &Path) -> bool {
        let mut text = Vec::new();
        let file = File::open(folder.join(DESCRIPTION));
        let read = file.and_then(|file| file.take(MAX_DESCRIPTION_BYTES + 1).read_to_end(&mut text));
        read.is_ok() && Digest::of(&text) == self.digest
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Digest of its description, which holds those of everything else.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The `top` documents nearest to `query` (`[dimensions]`), nearest first, those at the same distance by their position; of an
    /// approximate index those of them that it finds. Blocks for as long as that takes.
    pub fn find(&self, query: &[f32], top: usize) -> Result<Vec<Nearest>, SearchError> {
        let dimensions = self.description.dimensions;
        let query = unit(query).filter(|query| query.len() == dimensions).ok_or(SearchError::Query)?;
        match &self.held {
            Held::Memory(memory) => Ok(memory.find(&query, top)),
            Held::Lance(lance) => lance.search(&query, top),
        }
    }

    /// Whether a search takes long enough to keep others from the thread that it is on.
    pub(crate) fn blocks(&self) -> bool {
        let Description { n_documents, dimensions, approximate, .. } = &self.description;
        let n_read = approximate.map_or(*n_documents, |told| graph::n_read(&told).min(*n_documents));
        matches!(self.held, Held::Lance(_)) || n_read * dimensions > SEARCH_INLINE_VALUES
    }

    /// What a search has to hold until it is over: errors where too many do, or wait to.
    pub(crate) fn place(&self) -> Result<Option<OwnedSemaphorePermit>, SearchError> {
        match &self.held {
            Held::Memory(_) => Ok(None),
            Held::Lance(lance) => lance.place().map(Some).ok_or(SearchError::Busy),
        }
    }

    /// How many processes search of those that should, where there are any.
    pub(crate) fn crew(&self) -> Option<Crew> {
        match &self.held {
            Held::Memory(_) => None,
            Held::Lance(lance) => Some(lance.crew()),
        }
    }
}

/// More values than this are read on another thread than those that answer requests: a millisecond's work.
const SEARCH_INLINE_VALUES: usize = 1 << 22;

impl Memory {
    fn read(folder: &Path, description: &Description) -> Result<Self, IndexError> {
        let Description { dimensions, approximate, .. } = description;
        let vectors = read_vectors(&folder.join(VECTORS), description)?;
        let documents = read_documents(&folder.join(DOCUMENTS), description)?;
        let search = match approximate {
            None => Search::Exact,
            Some(told) => Search::Graph(Graph::read(&folder.join(GRAPH), told, &vectors, *dimensions)?),
        };
        Ok(Self { dimensions: *dimensions, vectors, documents, search })
    }

    fn find(&self, query: &[f32], top: usize) -> Vec<Nearest> {
        let Self { dimensions, ref vectors, ref documents, .. } = *self;
        let near = match &self.search {
            Search::Exact => None,
            Search::Graph(graph) => graph.near(query, top),
        };
        let hits = match near {
            Some(near) => top_hits(vectors, dimensions, query, near, top),
            // As many as `MAX_DOCUMENTS` fit.
            None => top_hits(vectors, dimensions, query, 0..documents.len() as u32, top),
        };
        let nearest = |hit: Hit| Nearest { score: hit.score, document: Arc::clone(&documents[hit.document_idx]) };
        hits.into_iter().map(nearest).collect()
    }
}

/// The `top` of `ids` whose rows of `vectors` (`[n, dimensions]`) are nearest to `query`, nearest first, equally near ones by their
/// position.
fn top_hits(
    vectors: &[f32],
    dimensions: usize,
    query: &[f32],
    ids: impl IntoIterator<Item = u32>,
    top: usize,
) -> Vec<Hit> {
    let hit = |id: u32| {
        let document_idx = id as usize;
        Hit { document_idx, score: dot(query, &vectors[document_idx * dimensions..][..dimensions]) }
    };
    let mut hits: Vec<Hit> = ids.into_iter().map(hit).collect();
    let nearer = |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then(a.document_idx.cmp(&b.document_idx));
    if (1..hits.len()).contains(&top) {
        hits.select_nth_unstable_by(top - 1, nearer);
    }
    hits.truncate(top);
    hits.sort_unstable_by(nearer);
    debug_assert!(hits.windows(2).all(|pair| nearer(&pair[0], &pair[1]) == Ordering::Less));
    hits
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index({})", self.digest)
    }
}

const LANES: usize = 16;

/// The inner product in one fixed order: sixteen running sums, added up pairwise. Compilers turn the lanes into vectors, and with
/// separate products and sums every width of vector gives the same bits.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

fn read_vectors(path: &Path, description: &Description) -> Result<Vec<f32>, IndexError> {
    let changed = |reason: String| IndexError::Changed { path: path.to_owned(), reason };
    let file = File::open(path).map_err(io(path))?;
    let n_values = description.n_documents * description.dimensions;
    let size = file.metadata().map_err(io(path))?.len();
    if size != 4 * n_values as u64 {
        return Err(changed(format!("{size} bytes, not {}", 4 * n_values)));
    }
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut sha256, mut vectors, mut row) =
        (Sha256::new(), Vec::with_capacity(n_values), vec![0; 4 * description.dimensions]);
    for _ in 0..description.n_documents {
        reader.read_exact(&mut row).map_err(io(path))?;
        sha256.update(&row);
        vectors.extend(row.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
    }
    if Digest::finish(sha256) != description.vectors {
        return Err(changed("its digest is another".to_owned()));
    }
    Ok(vectors)
}

fn read_documents(path: &Path, description: &Description) -> Result<Vec<Arc<Document>>, IndexError> {
    let changed = |reason: String| IndexError::Changed { path: path.to_owned(), reason };
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(io(path))?);
    let (mut sha256, mut documents, mut line) = (Sha256::new(), Vec::new(), Vec::new());
    loop {
        line.clear();
        let limit = 2 * MAX_DOCUMENT_BYTES as u64;
        let n = (&mut reader).take(limit).read_until(b'\n', &mut line).map_err(io(path))?;
        if n == 0 {
            break;
        }
        sha256.update(&line);
        if documents.len() == description.n_documents {
            return Err(changed(format!("more than {} documents", description.n_documents)));
        }
        let text = std::str::from_utf8(&line).map_err(|_| changed("it is not UTF-8".to_owned()))?;
        documents.push(Arc::new(Document::parse(text.trim_end(), documents.len() + 1)?));
    }
    if Digest::finish(sha256) != description.documents {
        return Err(changed("its digest is another".to_owned()));
    }
    if documents.len() != description.n_documents {
        return Err(changed(format!("{} documents, not {}", documents.len(), description.n_documents)));
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedder() -> Embedder {
        Embedder { package: Digest::of(b"package"), name: "tiny".to_owned(), numerics_id: "n".to_owned(), prompt: None }
    }

    fn built(folder: &Path, vectors: &[&[f32]]) -> Result<PathBuf, IndexError> {
        built_by(folder, embedder(), vectors)
    }

    fn built_by(folder: &Path, embedder: Embedder, vectors: &[&[f32]]) -> Result<PathBuf, IndexError> {
        let mut builder = Builder::new(folder, embedder, vectors[0].len())?;
        for (i, vector) in vectors.iter().enumerate() {
            let line = format!("{{\"id\": \"d{i}\", \"text\": \"text {i}\", \"year\": {i}}}");
            builder.add(&Document::parse(&line, i + 1)?, vector)?;
        }
        builder.finish(&|_| ())
    }

    #[test]
    fn what_is_nearest_comes_first_and_ties_by_position() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("index");
        built(&folder, &[&[1.0, 0.0, 0.0], &[0.0, 2.0, 0.0], &[0.0, 1.0, 0.0], &[-1.0, 0.0, 0.0]]).unwrap();
        let index = Index::open(&folder).unwrap();
        let found = index.find(&[0.1, 5.0, 0.0], 3).unwrap();
        assert_eq!(found.iter().map(|nearest| nearest.document.id.as_str()).collect::<Vec<_>>(), ["d1", "d2", "d0"]);
        assert_eq!(found[0].document.more["year"], 1);
        assert_eq!(index.find(&[0.1, 5.0, 0.0], 100).unwrap().len(), 4);
        assert_eq!(index.find(&[0.1, 5.0, 0.0], 0).unwrap(), []);
        for query in [&[1.0, 2.0][..], &[0.0, 0.0, 0.0], &[f32::NAN, 0.0, 0.0]] {
            assert!(matches!(index.find(query, 3), Err(SearchError::Query)));
        }
    }

    #[test]
    fn the_fast_product_is_the_plain_one_within_rounding() {
        for width in [1, 7, 16, 17, 384, 1000] {
            let a: Vec<f32> = (0..width).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..width).map(|i| (i as f32 * 0.11).cos()).collect();
            let plain: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-4, "{width}");
        }
    }

    #[test]
    fn a_changed_byte_a_missing_line_and_a_foreign_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("index");
        built(&folder, &[&[1.0, 0.0], &[0.0, 1.0]]).unwrap();
        assert!(matches!(built(&folder, &[&[1.0, 0.0]]), Err(IndexError::Exists { .. })));
        for (name, change) in [
            (VECTORS, (|bytes| bytes[0] ^= 1) as fn(&mut Vec<u8>)),
            (VECTORS, |bytes| bytes.truncate(9)),
            (DOCUMENTS, |bytes| bytes[9] ^= 1),
            (DOCUMENTS, |bytes| bytes.truncate(45)),
            (DOCUMENTS, |bytes| bytes.extend_from_slice(b"{\"text\": \"more\"}\n")),
            (DESCRIPTION, |bytes| bytes.truncate(45)),
            (DESCRIPTION, |bytes| *bytes = b"[]".to_vec()),
        ] {
            let path = folder.join(name);
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            change(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            assert!(Index::open(&folder).is_err(), "{name}");
            std::fs::write(&path, whole).unwrap();
        }
        assert!(Index::open(&folder).is_ok());
    }

    #[test]
    fn another_package_builds_beside_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("index");
        let other = Embedder { package: Digest::of(b"other"), ..embedder() };
        assert_eq!(built(&folder, &[&[1.0, 0.0]]).unwrap(), folder);
        assert_eq!(build_by(&folder, &other.package).unwrap(), None);
        let beside = built_by(&folder, other.clone(), &[&[0.0, 1.0, 0.0]]).unwrap();
        assert_eq!(build_by(&folder, &other.package).unwrap().as_ref(), Some(&beside));
        assert_eq!(build_by(&folder, &embedder().package).unwrap(), Some(folder.clone()));
        assert_eq!(Index::open(&beside).unwrap().description().dimensions, 3);
        assert!(matches!(built_by(&folder, other.clone(), &[&[1.0]]), Err(IndexError::Exists { .. })));
        // A build in another's place is not taken for it.
        std::fs::remove_dir_all(&beside).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::fs::copy(folder.join(DESCRIPTION), beside.join(DESCRIPTION)).unwrap();
        assert!(matches!(build_by(&folder, &other.package), Err(IndexError::Description { .. })));
        assert!(matches!(built(dir.path(), &[&[1.0]]), Err(IndexError::Exists { .. })));
    }

    #[test]
    fn documents_that_are_none_are_told_by_line() {
        for (line, reason) in [
            ("", "no JSON object"),
            ("[]", "no JSON object"),
            ("{\"id\": \"a\"}", "no `text`"),
            ("{\"text\": \" \"}", "`text` is empty"),
            ("{\"text\": 1}", "no `text`"),
            ("{\"id\": [], \"text\": \"a\"}", "`id`"),
        ] {
            let error = Document::parse(line, 7).unwrap_err().to_string();
            assert!(error.starts_with("document 7: ") && error.contains(reason), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut builder = Builder::new(&dir.path().join("i"), embedder(), 2).unwrap();
        let document = Document::parse("{\"text\": \"a\"}", 1).unwrap();
        assert_eq!(document.id, "1");
        builder.add(&document, &[1.0, 0.0]).unwrap();
        assert!(builder.add(&document, &[1.0, 0.0]).unwrap_err().to_string().contains("there already"));
        let second = Document::parse("{\"text\": \"b\"}", 2).unwrap();
        for vector in [&[0.0, 0.0][..], &[f32::NAN, 0.0], &[f32::INFINITY, 0.0], &[1.0]] {
            assert!(builder.add(&second, vector).is_err());
        }
    }
}
