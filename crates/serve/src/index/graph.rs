//! Approximate search: a graph of the documents that links each to near ones, as DiskANN's Vamana builds and walks it (Subramanya et al.,
//! NeurIPS 2019). The algorithms are those of the crate `diskann`; the vectors, the distance and the file are ours.
//!
//! Distances along the way are those of vectors rounded to a byte a dimension, whose products are whole numbers: the same on every
//! machine, and a quarter of the memory to read. What the walk finds is then compared by the exact product. Documents are linked in a
//! fixed order, in parts whose results do not depend on threads, and no random number has a part in it: one corpus gives one graph, and
//! one index finds the same documents for one query wherever it runs.
//!
//! How far a search looks around is chosen when the index is built, as the least that reaches the wanted recall against the exact search:
//! on queries that are given, or on documents that are linked last, and sought before. A document that is linked already would be found
//! by its own links, and promise too much.

use std::convert::Infallible;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufReader, Read, Seek as _};
use std::ops::Deref;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, ScopedJoinHandle};

use diskann::graph::config::{Builder, MaxDegree, PruneKind};
use diskann::graph::glue::{
    Batch, CopyIds, HybridPredicate, InsertStrategy, MultiInsertStrategy, PruneAccessor, PruneStrategy, SearchAccessor,
    SearchStrategy,
};
use diskann::graph::search::Knn;
use diskann::graph::workingset::View;
use diskann::graph::{AdjacencyList, Config, DiskANNIndex};
use diskann::neighbor::Neighbor;
use diskann::provider::{
    DataProvider, ExecutionContext, HasId, NeighborAccessor, NeighborAccessorMut, NoopGuard, SetElement,
};
use diskann::{ANNError, ANNResult};
use diskann_utils::Reborrow;
use diskann_vector::DistanceFunction;
use diskann_vector::distance::{Distance, Metric};
use futures_util::FutureExt as _;
use hashbrown::HashTable;
use highroad_package::Digest;
use serde::{Deserialize, Serialize};

use super::recall::{Found, N_NEIGHBOURS, N_QUERIES, Recall, enough, spread};
use super::{Hit, IndexError, Wanted, io as failed, top_hits};

/// The graph's file.
pub(super) const GRAPH: &str = "graph.u32";
/// Links that each document keeps to near ones, and the most that it has between two prunings of them.
const N_LINKS: usize = 32;
const MAX_LINKS: usize = 41;
/// How far the search looks around for those to link to; 96 is as far as recall gained from it (64 to 128 tried).
const BUILD_BREADTH: usize = 96;
/// Documents that are linked at one time: a part of those that are there, so that the first ones see each other.
const MAX_PART: usize = 256;
const PART_OF_THOSE_THERE: usize = 16;
/// The furthest that a search looks around.
const MAX_BREADTH: usize = 4096;

/// What an index says about its approximate search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approximate {
    /// Number of links in the graph.
    pub n_links: usize,
    /// How many of the nearest documents so far a search keeps and follows the links of.
    pub breadth: usize,
    /// Against the exact search, when the index was built.
    pub recall: Recall,
    /// Where each search begins: the document nearest to the mean of all, of those that differ.
    start: u32,
    /// Digest of the graph.
    graph: Digest,
}

/// A graph of documents, those with equal codes in one node.
pub(super) struct Graph {
    index: Arc<DiskANNIndex<Store>>,
    breadth: usize,
}

impl Graph {
    /// A graph of `vectors` (`[n, dimensions]`, n at least 1, each of length 1), searched so far around that as many of the nearest documents
    /// are found as are wanted. `tell` hears how many documents are linked.
    pub(super) fn build(
        vectors: &[f32],
        dimensions: usize,
        wanted: &Wanted,
        tell: &(dyn Fn(usize) + Sync),
    ) -> Result<(Self, Recall), IndexError> {
        let n_threads = wanted.n_threads;
        let queries = wanted.units(dimensions)?;
        let nodes = Nodes::of(vectors, dimensions);
        let n = nodes.len();
        let start = nodes.start(vectors);
        let links = (0..n).map(|_| RwLock::default()).collect();
        let store = Store { nodes: Arc::new(nodes), start, links };
        let index = Arc::new(DiskANNIndex::new(config(n_threads)?, store, None));
        let mut graph = Self { index, breadth: 1 };
        let nodes = Arc::clone(&graph.store().nodes);
        let is_sought = {
            let mut is_sought = vec![false; n];
            // A quarter at most, so that a small graph has documents to find.
            let sought = if queries.is_empty() { spread(n, N_QUERIES.min(n / 4)) } else { Vec::new() };
            sought.into_iter().for_each(|node| is_sought[node] = node != start as usize);
            is_sought
        };
        let (late, early): (Vec<u32>, Vec<u32>) =
            (0..n as u32).filter(|&node| node != start).partition(|&node| is_sought[node as usize]);
        graph.link(&early, n - late.len() - early.len(), n_threads, tell)?;
        let row = |node: &u32| &vectors[nodes.documents(*node)[0] as usize * dimensions..][..dimensions];
        let sought: Vec<&[f32]> = queries.iter().map(Vec::as_slice).chain(late.iter().map(row)).collect();
        let is_there = |node: &u32| !is_sought[*node as usize];
        let there: Vec<u32> = (0..n as u32).filter(is_there).flat_map(|node| nodes.documents(node)).copied().collect();
        let all_near = in_parallel(&sought, n_threads, |query| {
            top_hits(vectors, dimensions, query, there.iter().copied(), N_NEIGHBOURS)
        });
        let near: Vec<(&[f32], Vec<Hit>)> = sought.into_iter().zip(all_near).collect();
        let measure = |breadth: usize| {
            let found = in_parallel(&near, n_threads, |(query, near)| -> Found {
                let candidates = graph.candidates(query, breadth).unwrap_or_default();
                let found = top_hits(vectors, dimensions, query, candidates, N_NEIGHBOURS);
                [near.iter().filter(|hit| found.contains(hit)).count(), near.len()]
            });
            enough(&found, wanted.recall)
        };
        let (breadth, recall) = least(measure, N_NEIGHBOURS, MAX_BREADTH.min(n.max(N_NEIGHBOURS)));
        graph.breadth = breadth;
        graph.link(&late, n - late.len(), n_threads, tell)?;
        Ok((graph, recall))
    }

    fn store(&self) -> &Store {
        self.index.provider()
    }

    /// Links `nodes` to the `n_there` that are linked so far.
    fn link(
        &self,
        nodes: &[u32],
        n_there: usize,
        n_threads: usize,
        tell: &(dyn Fn(usize) + Sync),
    ) -> Result<(), IndexError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(n_threads.max(1))
            .build()
            .map_err(failed(Path::new(GRAPH)))?;
        let all = Arc::clone(&self.store().nodes);
        let linking = async {
            let mut n_linked = 0;
            while n_linked < nodes.len() {
                let n_part =
                    ((n_there + n_linked) / PART_OF_THOSE_THERE).clamp(1, MAX_PART).min(nodes.len() - n_linked);
                let ids: Arc<[u32]> = nodes[n_linked..][..n_part].into();
                let part = Arc::new(Part { nodes: Arc::clone(&all), ids: Arc::clone(&ids) });
                self.index.multi_insert::<Walks, Part>(Walks, &Unwatched, part, ids).await?;
                n_linked += n_part;
                tell(n_there + n_linked);
            }
            Ok(())
        };
        // Whoever builds may be on a runtime of its own, in which another cannot be waited for.
        let linked: ANNResult<()> = thread::scope(|scope| joined(scope.spawn(|| runtime.block_on(linking))));
        linked.map_err(|error| IndexError::Graph(error.to_string()))
    }

    /// Documents near `query`, at least `top`; `None` where all have to be read for that, or it takes no longer.
    pub(super) fn near(&self, query: &[f32], top: usize) -> Option<Vec<u32>> {
        let breadth = self.breadth.max(top);
        let near =
            (breadth.saturating_mul(N_LINKS) < self.store().nodes.len()).then(|| self.candidates(query, breadth));
        near.flatten().filter(|near| near.len() >= top)
    }

    /// The documents of the `breadth` nodes nearest to `query` that a walk finds.
    fn candidates(&self, query: &[f32], breadth: usize) -> Option<Vec<u32>> {
        let mut codes = Vec::with_capacity(query.len());
        let scale = code(query, &mut codes);
        let query = Coded { codes: &codes, scale };
        let mut found: Vec<Neighbor<u32>> = Vec::with_capacity(breadth);
        let knn = Knn::new_default(breadth).ok()?;
        // Nothing in it waits.
        self.index.search_with(knn, &Walks, CopyIds, &Unwatched, query, &mut found).now_or_never()?.ok()?;
        Some(found.iter().flat_map(|near| self.store().nodes.documents(*near.id())).copied().collect())
    }

    /// How many links each node has, and then to which nodes, little-endian.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let links: Vec<Vec<u32>> = self.store().links.iter().map(|links| read(links).clone()).collect();
        let lengths = links.iter().map(|links| links.len() as u32);
        lengths.chain(links.iter().flatten().copied()).flat_map(u32::to_le_bytes).collect()
    }

    pub(super) fn described(&self, recall: Recall, bytes: &[u8]) -> Approximate {
        let n_links = bytes.len() / 4 - self.store().links.len();
        Approximate { n_links, breadth: self.breadth, recall, start: self.store().start, graph: Digest::of(bytes) }
    }

    /// Reads the graph of an index with these vectors. Errors unless the bytes are those of the description, and no link leads outside.
    pub(super) fn read(
        path: &Path,
        told: &Approximate,
        vectors: &[f32],
        dimensions: usize,
    ) -> Result<Self, IndexError> {
        let changed = |reason: String| IndexError::Changed { path: path.to_owned(), reason };
        let nodes = Nodes::of(vectors, dimensions);
        let (n, Approximate { n_links, breadth, start, .. }) = (nodes.len(), *told);
        if n_links > n * MAX_LINKS || !(1..=MAX_BREADTH).contains(&breadth) || start as usize >= n {
            return Err(changed(format!(
                "{n_links} links of {n} documents, searched from {start} with breadth {breadth}"
            )));
        }
        let n_bytes = 4 * (n + n_links);
        let mut file = File::open(path).map_err(failed(path))?;
        let found = file.metadata().map_err(failed(path))?.len();
        if found != n_bytes as u64 {
            return Err(changed(format!("{found} bytes, not {n_bytes}")));
        }
        if Digest::of_reader(&file).map_err(failed(path))? != told.graph {
            return Err(changed("its digest is another".to_owned()));
        }
        file.rewind().map_err(failed(path))?;
        // Link by link: all of them at once would be in memory twice.
        let mut file = BufReader::new(file);
        let mut links = Vec::with_capacity(n);
        let mut n_left = n_links;
        for length in numbers(&mut file, n).map_err(failed(path))? {
            let length = Some(length as usize).filter(|&length| length <= MAX_LINKS.min(n_left));
            let length = length.ok_or_else(|| changed("a document has more links than it may".to_owned()))?;
            n_left -= length;
            links.push(RwLock::new(numbers(&mut file, length).map_err(failed(path))?));
        }
        if n_left > 0 || links.iter().any(|links| read(links).iter().any(|&to| to as usize >= n)) {
            return Err(changed("a link leads to no document".to_owned()));
        }
        let store = Store { nodes: Arc::new(nodes), start, links };
        Ok(Self { index: Arc::new(DiskANNIndex::new(config(1)?, store, None)), breadth })
    }
}

/// The next `n` numbers of a graph's file.
fn numbers(file: &mut impl Read, n: usize) -> io::Result<Vec<u32>> {
    let mut bytes = vec![0; 4 * n];
    file.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect())
}

/// How many documents a search reads, about.
pub(super) fn n_read(told: &Approximate) -> usize {
    told.breadth * N_LINKS
}

fn config(n_threads: usize) -> Result<Config, IndexError> {
    let more = |config: &mut Builder| {
        config.max_minibatch_par(n_threads.max(1));
    };
    let config =
        Builder::new_with(N_LINKS, MaxDegree::new(MAX_LINKS), BUILD_BREADTH, PruneKind::TriangleInequality, more);
    config.build().map_err(|error| IndexError::Graph(error.to_string()))
}

/// The least breadth from `lowest` to `most` that is enough, and the recall with it; `most` where none is.
fn least(mut measure: impl FnMut(usize) -> (bool, Recall), lowest: usize, most: usize) -> (usize, Recall) {
    let (mut too_little, mut breadth) = (lowest - 1, lowest);
    let mut found = loop {
        let (is_enough, recall) = measure(breadth);
        if is_enough || breadth == most {
            break (breadth, recall);
        }
        too_little = breadth;
        breadth = (2 * breadth).min(most);
    };
    while found.0 - too_little > 1 {
        let breadth = usize::midpoint(too_little, found.0);
        match measure(breadth) {
            (true, recall) => found = (breadth, recall),
            (false, _) => too_little = breadth,
        }
    }
    found
}

/// The vectors of the documents, rounded: those that are equal then are one node.
struct Nodes {
    dimensions: usize,
    far: Far,
    /// `[n, dimensions]`
    codes: Vec<i8>,
    /// What a code of 1 stands for, `[n]`.
    scales: Vec<f32>,
    /// The documents of each node in turn, in their order, and where each node's end.
    documents: Vec<u32>,
    ends: Vec<u32>,
}

impl Nodes {
    fn of(vectors: &[f32], dimensions: usize) -> Self {
        let mut codes = Vec::with_capacity(vectors.len());
        let mut scales: Vec<f32> = vectors.chunks_exact(dimensions).map(|vector| code(vector, &mut codes)).collect();
        let node_of = equal_to_the_front(&mut codes, &mut scales, dimensions);
        // Of each node how many documents it has, then where its own begin, and once all are there where they end.
        let mut ends = vec![0u32; scales.len()];
        node_of.iter().for_each(|&node| ends[node as usize] += 1);
        let mut n_before = 0;
        for end in &mut ends {
            n_before += std::mem::replace(end, n_before);
        }
        let mut documents = vec![0; node_of.len()];
        for (document, &node) in node_of.iter().enumerate() {
            let place = &mut ends[node as usize];
            documents[*place as usize] = document as u32;
            *place += 1;
        }
        Self { dimensions, far: Far::new(dimensions), codes, scales, documents, ends }
    }

    fn len(&self) -> usize {
        self.scales.len()
    }

    fn get(&self, node: u32) -> Coded<'_> {
        let codes = &self.codes[node as usize * self.dimensions..][..self.dimensions];
        Coded { codes, scale: self.scales[node as usize] }
    }

    fn documents(&self, node: u32) -> &[u32] {
        let node = node as usize;
        let start = if node == 0 { 0 } else { self.ends[node - 1] };
        &self.documents[start as usize..self.ends[node] as usize]
    }

    /// The node nearest to the mean of all vectors, which is added up in f64 and in their order.
    fn start(&self, vectors: &[f32]) -> u32 {
        let mut mean = vec![0f64; self.dimensions];
        for vector in vectors.chunks_exact(self.dimensions) {
            mean.iter_mut().zip(vector).for_each(|(mean, &value)| *mean += f64::from(value));
        }
        let mut codes = Vec::with_capacity(self.dimensions);
        let scale = code(&mean.iter().map(|&value| value as f32).collect::<Vec<_>>(), &mut codes);
        let mean = Coded { codes: &codes, scale };
        let far = |node: &u32| -self.far.product(mean, self.get(*node));
        (0..self.len() as u32).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0)
    }
}

/// Leaves one of all equal codes, in the order of the first of each, and its scale; gives the node of every document. Takes some 10 bytes
/// a document while it works: a set of the codes themselves takes several times that.
fn equal_to_the_front(codes: &mut Vec<i8>, scales: &mut Vec<f32>, dimensions: usize) -> Vec<u32> {
    let hashes = RandomState::new();
    let mut nodes: HashTable<u32> = HashTable::with_capacity(scales.len());
    let mut node_of = Vec::with_capacity(scales.len());
    let mut n_nodes = 0;
    for document in 0..scales.len() {
        let (before, own) = codes.split_at(document * dimensions);
        let own = &own[..dimensions];
        let at = |node: &u32| &before[*node as usize * dimensions..][..dimensions];
        let found = nodes.entry(hashes.hash_one(own), |node| at(node) == own, |node| hashes.hash_one(at(node)));
        let node = *found.or_insert(n_nodes as u32).get();
        if node as usize == n_nodes {
            codes.copy_within(document * dimensions..(document + 1) * dimensions, n_nodes * dimensions);
            scales[n_nodes] = scales[document];
            n_nodes += 1;
        }
        node_of.push(node);
    }
    codes.truncate(n_nodes * dimensions);
    codes.shrink_to_fit();
    scales.truncate(n_nodes);
    scales.shrink_to_fit();
    node_of
}

/// A vector, rounded.
#[derive(Clone, Copy)]
struct Coded<'a> {
    codes: &'a [i8],
    scale: f32,
}

/// Appends `vector` as bytes; gives what a byte of 1 stands for.
fn code(vector: &[f32], codes: &mut Vec<i8>) -> f32 {
    let most = vector.iter().fold(0f32, |most, value| most.max(value.abs()));
    let scale = if most > 0.0 { most / f32::from(i8::MAX) } else { 1.0 };
    codes.extend(vector.iter().map(|value| (value / scale).round() as i8));
    scale
}

/// How far vectors are from each other.
#[derive(Clone, Copy)]
struct Far(Distance<i8, i8>);

impl Far {
    fn new(dimensions: usize) -> Self {
        Self(Distance::new(Metric::InnerProduct, Some(dimensions)))
    }

    fn product(self, a: Coded<'_>, b: Coded<'_>) -> f32 {
        // Added up as whole numbers by whatever instructions the machine has: `MAX_DIMENSIONS` products of two bytes fit in an i32.
        -self.0.call(a.codes, b.codes) * (a.scale * b.scale)
    }

    /// One minus the cosine, which is never below zero: pruning compares shares of it.
    fn distance(self, a: Coded<'_>, b: Coded<'_>) -> f32 {
        (1.0 - self.product(a, b)).max(0.0)
    }
}

impl DistanceFunction<Coded<'_>, Coded<'_>, f32> for Far {
    fn evaluate_similarity(&self, a: Coded<'_>, b: Coded<'_>) -> f32 {
        self.distance(a, b)
    }
}

impl<'short> Reborrow<'short> for Coded<'_> {
    type Target = Coded<'short>;

    fn reborrow(&'short self) -> Coded<'short> {
        *self
    }
}

/// What `diskann` walks through.
struct Store {
    nodes: Arc<Nodes>,
    start: u32,
    links: Vec<RwLock<Vec<u32>>>,
}

fn read(links: &RwLock<Vec<u32>>) -> impl Deref<Target = Vec<u32>> {
    links.read().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Unwatched;

impl ExecutionContext for Unwatched {}

impl DataProvider for Store {
    type Context = Unwatched;
    type InternalId = u32;
    type ExternalId = u32;
    type Error = ANNError;
    type Guard = NoopGuard<u32>;

    fn to_internal_id(&self, _: &Unwatched, node: &u32) -> ANNResult<u32> {
        Ok(*node)
    }

    fn to_external_id(&self, _: &Unwatched, node: u32) -> ANNResult<u32> {
        Ok(node)
    }
}

/// All vectors are there from the beginning.
impl<'a> SetElement<Coded<'a>> for Store {
    type SetError = ANNError;

    async fn set_element(&self, _: &Unwatched, node: &u32, _: Coded<'a>) -> ANNResult<NoopGuard<u32>> {
        Ok(NoopGuard::new(*node))
    }
}

/// A walk towards one query.
struct Walk<'a> {
    store: &'a Store,
    query: Coded<'a>,
}

impl Walk<'_> {
    fn distance(&self, node: u32) -> f32 {
        self.store.nodes.far.distance(self.query, self.store.nodes.get(node))
    }
}

impl HasId for Walk<'_> {
    type Id = u32;
}

impl SearchAccessor for Walk<'_> {
    async fn starting_points(&self) -> ANNResult<Vec<u32>> {
        Ok(vec![self.store.start])
    }

    async fn start_point_distances<F: FnMut(u32, f32) + Send>(&mut self, mut tell: F) -> ANNResult<()> {
        tell(self.store.start, self.distance(self.store.start));
        Ok(())
    }

    async fn expand_beam<Ids, P, F>(&mut self, ids: Ids, mut is_new: P, mut tell: F) -> ANNResult<()>
    where
        Ids: Iterator<Item = u32> + Send,
        P: HybridPredicate<u32> + Send + Sync,
        F: FnMut(u32, f32) + Send,
    {
        for node in ids {
            for &to in read(&self.store.links[node as usize]).iter() {
                if is_new.eval_mut(&to) {
                    tell(to, self.distance(to));
                }
            }
        }
        Ok(())
    }
}

/// How nodes are sought, linked and their links pruned.
#[derive(Clone, Copy)]
struct Walks;

impl<'a> SearchStrategy<'a, Store, Coded<'a>> for Walks {
    type SearchAccessorError = Infallible;
    type SearchAccessor = Walk<'a>;

    fn search_accessor(&'a self, store: &'a Store, _: &'a Unwatched, query: Coded<'a>) -> Result<Walk<'a>, Infallible> {
        Ok(Walk { store, query })
    }
}

impl<'a> InsertStrategy<'a, Store, Coded<'a>> for Walks {
    type SearchAccessor = Walk<'a>;
    type SearchAccessorError = Infallible;
    type PruneStrategy = Self;

    fn insert_search_accessor(
        &'a self,
        store: &'a Store,
        _: &'a Unwatched,
        query: Coded<'a>,
    ) -> Result<Walk<'a>, Infallible> {
        Ok(Walk { store, query })
    }

    fn prune_strategy(&self) -> Self {
        *self
    }
}

impl PruneStrategy<Store> for Walks {
    type PruneAccessor<'a> = Links<'a>;
    type PruneAccessorError = Infallible;

    fn prune_accessor<'a>(&'a self, store: &'a Store, _: &'a Unwatched, _: usize) -> Result<Links<'a>, Infallible> {
        Ok(Links(store))
    }
}

/// Nodes that are linked at one time.
struct Part {
    nodes: Arc<Nodes>,
    ids: Arc<[u32]>,
}

impl Batch for Part {
    type Element<'a> = Coded<'a>;

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn get(&self, i: usize) -> Coded<'_> {
        self.nodes.get(self.ids[i])
    }
}

impl MultiInsertStrategy<Store, Part> for Walks {
    type Seed = ();
    type FinishError = Infallible;
    type PruneStrategy = Self;
    type InsertStrategy = Self;

    fn insert_strategy(&self) -> Self {
        *self
    }

    async fn finish<Ids>(&self, _: &Store, _: &Unwatched, _: &Arc<Part>, _: Ids) -> Result<(), Infallible>
    where
        Ids: ExactSizeIterator<Item = u32> + Send,
    {
        Ok(())
    }

    fn seeded_prune_accessor<'a>(
        &'a self,
        store: &'a Store,
        _: &'a Unwatched,
        (): &'a (),
        _: usize,
    ) -> ANNResult<Links<'a>> {
        Ok(Links(store))
    }
}

#[derive(Clone, Copy)]
struct Links<'a>(&'a Store);

impl Links<'_> {
    fn change(self, node: u32, change: impl FnOnce(&mut Vec<u32>)) -> ANNResult<()> {
        change(&mut self.0.links[node as usize].write().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

impl HasId for Links<'_> {
    type Id = u32;
}

impl NeighborAccessor for Links<'_> {
    async fn get_neighbors(&mut self, node: u32, to: &mut AdjacencyList<u32>) -> ANNResult<()> {
        to.overwrite_trusted(&read(&self.0.links[node as usize]));
        Ok(())
    }
}

impl NeighborAccessorMut for Links<'_> {
    async fn set_neighbors(&mut self, node: u32, to: &[u32]) -> ANNResult<()> {
        self.change(node, |links| *links = to.to_vec())
    }

    async fn append_vector(&mut self, node: u32, to: &[u32]) -> ANNResult<()> {
        self.change(node, |links| {
            for to in to {
                if !links.contains(to) {
                    links.push(*to);
                }
            }
        })
    }
}

impl PruneAccessor for Links<'_> {
    type Neighbors<'a>
        = Links<'a>
    where
        Self: 'a;
    type ElementRef<'a> = Coded<'a>;
    type View<'a>
        = &'a Nodes
    where
        Self: 'a;
    type Distance<'a>
        = Far
    where
        Self: 'a;

    fn neighbors(&mut self) -> Links<'_> {
        *self
    }

    async fn fill<Ids>(&mut self, _: Ids) -> ANNResult<(&Nodes, Far)>
    where
        Ids: ExactSizeIterator<Item = u32> + Clone + Send + Sync,
    {
        Ok((&*self.0.nodes, self.0.nodes.far))
    }
}

impl View<u32> for &Nodes {
    type ElementRef<'a> = Coded<'a>;
    type Element<'a>
        = Coded<'a>
    where
        Self: 'a;

    fn get(&self, node: u32) -> Option<Coded<'_>> {
        Some(Nodes::get(self, node))
    }
}

/// `work` on each of `all`, on so many threads; results in order.
fn in_parallel<A: Sync, T: Send>(all: &[A], n_threads: usize, work: impl Fn(&A) -> T + Sync) -> Vec<T> {
    let size = all.len().div_ceil(n_threads.max(1)).max(1);
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> =
            all.chunks(size).map(|part| scope.spawn(move || part.iter().map(work).collect::<Vec<T>>())).collect();
        running.into_iter().flat_map(joined).collect()
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(done) => done,
        Err(panic) => resume_unwind(panic),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::index::unit;

    const DIMENSIONS: usize = 24;

    /// Unit vectors around some centres, from sines alone: `n` from the `first` on.
    fn clustered(first: usize, n: usize) -> Vec<f32> {
        let vector = |id: usize| {
            let at = |dim: usize| {
                let centre = ((id % 37) as f32 * 1.7 + dim as f32 * 2.3).sin();
                centre + 0.4 * ((id * 13 + dim * 7) as f32 * 0.61).sin()
            };
            unit(&(0..DIMENSIONS).map(at).collect::<Vec<f32>>()).unwrap()
        };
        (first..first + n).flat_map(vector).collect()
    }

    fn built(vectors: &[f32], recall: f64, queries: Vec<f32>, n_threads: usize) -> (Graph, Recall) {
        Graph::build(vectors, DIMENSIONS, &Wanted { recall, queries, n_threads }, &|_| ()).unwrap()
    }

    /// The share of the ten nearest documents that is found of `queries`.
    fn found(graph: &Graph, vectors: &[f32], queries: &[f32]) -> f64 {
        let n = (vectors.len() / DIMENSIONS) as u32;
        let (mut n_found, mut n_all) = (0, 0);
        for query in queries.chunks_exact(DIMENSIONS) {
            let exact = top_hits(vectors, DIMENSIONS, query, 0..n, 10);
            let near = top_hits(vectors, DIMENSIONS, query, graph.near(query, 10).unwrap(), 10);
            n_found += near.iter().filter(|hit| exact.contains(hit)).count();
            n_all += exact.len();
        }
        n_found as f64 / n_all as f64
    }

    #[test]
    fn of_other_queries_as_much_is_found_as_was_wanted() {
        let (vectors, queries) = (clustered(0, 1500), clustered(90_000, 200));
        let (graph, recall) = built(&vectors, 0.95, Vec::new(), 2);
        let share = found(&graph, &vectors, &queries);
        assert!(recall.value >= 0.95 && share >= 0.95, "{recall:?} {share}");
        let (graph, recall) = built(&vectors, 0.95, queries.clone(), 2);
        assert_eq!(recall.n_queries, 200);
        assert!((recall.value - found(&graph, &vectors, &queries)).abs() < 1e-9);
        // More than a walk finds is read whole.
        let query = &queries[..DIMENSIONS];
        assert_eq!((graph.near(query, 10).is_some(), graph.near(query, 1000)), (true, None));
    }

    #[test]
    fn threads_change_nothing() {
        let vectors = clustered(0, 600);
        let [one, many] = [1, 7].map(|n_threads| built(&vectors, 0.9, Vec::new(), n_threads));
        assert_eq!((one.0.bytes(), one.0.breadth, one.1), (many.0.bytes(), many.0.breadth, many.1));
    }

    #[test]
    fn few_documents_and_equal_ones_have_a_graph_too() {
        for vectors in [clustered(0, 1), clustered(0, 2), clustered(0, 1).repeat(9), clustered(0, 50).repeat(40)] {
            let (graph, recall) = built(&vectors, 0.95, Vec::new(), 3);
            assert!((0.95..=1.0).contains(&recall.value), "{recall:?}");
            let nearest = graph.candidates(&vectors[..DIMENSIONS], 10).unwrap();
            assert!((0..vectors.len() / DIMENSIONS).step_by(50).all(|equal| nearest.contains(&(equal as u32))));
        }
    }

    #[test]
    fn documents_are_one_node_where_their_codes_are_equal() {
        // Of two numbers, so that many are equal; the slow, obvious version beside it.
        let vectors: Vec<f32> = (0..3000).map(|at| if at * at % 7 % 3 == at / 600 % 2 { 0.5 } else { -0.25 }).collect();
        for dimensions in [1, 3, 8, 24] {
            let nodes = Nodes::of(&vectors, dimensions);
            let mut codes = Vec::new();
            vectors.chunks_exact(dimensions).for_each(|vector| _ = code(vector, &mut codes));
            let mut first: Vec<(&[i8], Vec<u32>)> = Vec::new();
            for (document, codes) in codes.chunks_exact(dimensions).enumerate() {
                match first.iter_mut().find(|(of, _)| *of == codes) {
                    Some((_, documents)) => documents.push(document as u32),
                    None => first.push((codes, vec![document as u32])),
                }
            }
            assert!(first.len() < vectors.len() / dimensions && first.len() == nodes.len());
            for (node, (codes, documents)) in first.iter().enumerate() {
                assert_eq!(
                    (nodes.get(node as u32).codes, nodes.documents(node as u32)),
                    (*codes, documents.as_slice())
                );
            }
        }
    }

    #[test]
    fn queries_without_a_direction_are_refused() {
        let vectors = clustered(0, 40);
        for (queries, at) in
            [(vec![0.0; DIMENSIONS], 1), ([clustered(0, 1), vec![f32::NAN; DIMENSIONS]].concat(), 2), (vec![1.0; 3], 1)]
        {
            let wanted = Wanted { recall: 0.9, queries, n_threads: 1 };
            let refused = Graph::build(&vectors, DIMENSIONS, &wanted, &|_| ()).err().unwrap();
            assert!(matches!(refused, IndexError::Query { position } if position == at), "{refused}");
        }
    }

    #[test]
    fn a_graph_that_is_not_what_is_described_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(GRAPH);
        let vectors = clustered(0, 50);
        let (graph, recall) = built(&vectors, 0.9, Vec::new(), 1);
        let whole = graph.bytes();
        let told = graph.described(recall, &whole);
        let read = |bytes: &[u8], told: Approximate| {
            std::fs::write(&path, bytes).unwrap();
            Graph::read(&path, &told, &vectors, DIMENSIONS)
                .map(|graph| graph.bytes())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(&whole, told).unwrap(), whole);
        let with = |change: fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            read(&bytes, Approximate { graph: Digest::of(&bytes), ..told }).unwrap_err()
        };
        assert!(with(|bytes| bytes.truncate(100)).contains("bytes, not"));
        assert!(with(|bytes| bytes.iter_mut().rev().take(4).for_each(|byte| *byte = 255)).contains("no document"));
        assert!(with(|bytes| bytes[..4].copy_from_slice(&50u32.to_le_bytes())).contains("more links"));
        assert!(with(|bytes| bytes[49 * 4..50 * 4].copy_from_slice(&u32::MAX.to_le_bytes())).contains("more links"));
        assert!(with(|bytes| bytes[..200].fill(0)).contains("no document"));
        let mut changed = whole.clone();
        changed[0] ^= 1;
        assert!(read(&changed, told).unwrap_err().contains("digest"));
        for told in [
            Approximate { n_links: usize::MAX, ..told },
            Approximate { breadth: 0, ..told },
            Approximate { breadth: MAX_BREADTH + 1, ..told },
            Approximate { start: 50, ..told },
        ] {
            assert!(read(&whole, told).is_err());
        }
    }
}
