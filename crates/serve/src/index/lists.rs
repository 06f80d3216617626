//! Approximate search: an inverted file. Documents lie in lists by the nearest of some centroids, and a query reads only the lists
//! of the centroids nearest to it, each vector with the same exact product as a whole search does.
//!
//! Everything is decided by the bytes of the index: centroids come from spherical k-means that begins at evenly spaced documents and
//! adds up in a fixed order, ties go to the first, and no clock, thread or random number has a part in it. So one index finds the
//! same documents for one query wherever it runs, and an answer can be replayed. How many lists are read is chosen when the index is
//! built, as the fewest that reach the wanted recall against the exact search.

use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use highroad_package::Digest;
use serde::{Deserialize, Serialize};

use super::{IndexError, dot, io, top_hits, unit};

/// The lists' file.
pub(super) const LISTS: &str = "lists.bin";
/// Most lists.
const MAX_LISTS: usize = 1 << 16;
/// Documents that a centroid is found from, and how often they are gone through.
const SAMPLE_PER_LIST: usize = 64;
const N_ROUNDS: usize = 10;
/// Documents that are sought to measure recall, and how many neighbours of each.
pub(super) const N_QUERIES: usize = 256;
pub(super) const N_NEIGHBOURS: usize = 10;

/// What an index says about its approximate search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approximate {
    /// Number of lists.
    pub n_lists: usize,
    /// How many of them a query reads.
    pub n_probe: usize,
    /// Against the exact search, when the index was built.
    pub recall: Recall,
    /// Digest of the lists.
    pub(super) lists: Digest,
}

/// The share of the exact search's nearest documents that the approximate one finds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Of so many nearest ones.
    pub at: usize,
    /// From 0 to 1.
    pub value: f64,
    /// Documents of the index that were sought, each without itself.
    pub n_queries: usize,
}

/// Documents by the centroid that is nearest to them.
pub(super) struct Lists {
    /// `[n_lists, dimensions]`, each of length 1.
    centroids: Vec<f32>,
    dimensions: usize,
    /// Where each list ends in `ids`.
    ends: Vec<u32>,
    /// Every document once.
    ids: Vec<u32>,
    n_probe: usize,
}

impl Lists {
    /// Lists of `vectors` (`[n, dimensions]`, n at least 1, each of length 1), read so far that `wanted` of the nearest documents are found.
    pub(super) fn build(vectors: &[f32], dimensions: usize, wanted: f64, n_threads: usize) -> (Self, Recall) {
        let n = vectors.len() / dimensions;
        let n_lists = ((n as f64).sqrt().round() as usize).clamp(1, MAX_LISTS);
        let centroids = centroids(vectors, dimensions, n_lists, n_threads);
        let nearest = nearest(vectors, &centroids, dimensions, n_threads);
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); n_lists];
        for (id, &list) in nearest.iter().enumerate() {
            members[list as usize].push(id as u32);
        }
        let ends = members.iter().scan(0, |end, list| {
            *end += list.len() as u32;
            Some(*end)
        });
        let mut lists = Self { ends: ends.collect(), ids: members.concat(), centroids, dimensions, n_probe: n_lists };
        let recall = lists.tune(vectors, &nearest, wanted, n_threads);
        (lists, recall)
    }

    /// Chooses the fewest lists that reach the wanted recall: the place of a neighbour's list in a query's order of lists is how many have to be read to find it.
    fn tune(&mut self, vectors: &[f32], nearest: &[u32], wanted: f64, n_threads: usize) -> Recall {
        let n = nearest.len();
        let queries: Vec<usize> = spread(n, N_QUERIES);
        let places = in_parallel(queries.len(), n_threads, |range| {
            queries[range].iter().flat_map(|&query| self.places(vectors, nearest, query)).collect::<Vec<usize>>()
        });
        let mut places: Vec<usize> = places.concat();
        places.sort_unstable();
        let n_wanted = ((places.len() as f64 * wanted).ceil() as usize).min(places.len());
        self.n_probe = n_wanted.checked_sub(1).map_or(1, |last| places[last] + 1);
        let n_found = places.iter().filter(|&&place| place < self.n_probe).count();
        let value = if places.is_empty() { 1.0 } else { n_found as f64 / places.len() as f64 };
        Recall { at: N_NEIGHBOURS, value, n_queries: queries.len() }
    }

    /// For each of a document's neighbours the place of its list.
    fn places(&self, vectors: &[f32], nearest: &[u32], query: usize) -> Vec<usize> {
        let vector = row(vectors, self.dimensions, query);
        let all = (0..nearest.len() as u32).filter(|&id| id as usize != query);
        let neighbours = top_hits(vectors, self.dimensions, vector, all, N_NEIGHBOURS);
        let mut place = vec![0; self.n_lists()];
        for (at, list) in self.order(vector).into_iter().enumerate() {
            place[list] = at;
        }
        neighbours.iter().map(|hit| place[nearest[hit.document_idx] as usize]).collect()
    }

    fn n_lists(&self) -> usize {
        self.ends.len()
    }

    /// The lists, the one whose centroid is nearest first.
    fn order(&self, query: &[f32]) -> Vec<usize> {
        let lists = top_hits(&self.centroids, self.dimensions, query, 0..self.n_lists() as u32, self.n_lists());
        lists.into_iter().map(|hit| hit.document_idx).collect()
    }

    /// The documents that a query is compared with: those of the nearest lists, and of further ones until there are `top`.
    pub(super) fn candidates(&self, query: &[f32], top: usize) -> Vec<u32> {
        let mut candidates = Vec::new();
        for (n_read, list) in self.order(query).into_iter().enumerate() {
            if n_read >= self.n_probe && candidates.len() >= top {
                break;
            }
            candidates.extend_from_slice(&self.ids[self.range(list)]);
        }
        candidates
    }

    fn range(&self, list: usize) -> Range<usize> {
        let start = if list == 0 { 0 } else { self.ends[list - 1] };
        start as usize..self.ends[list] as usize
    }

    /// The centroids, the lengths of the lists and their documents, little-endian.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let lengths = (0..self.n_lists()).map(|list| self.range(list).len() as u32);
        let centroids = self.centroids.iter().flat_map(|value| value.to_le_bytes());
        centroids.chain(lengths.chain(self.ids.iter().copied()).flat_map(u32::to_le_bytes)).collect()
    }

    pub(super) fn described(&self, recall: Recall) -> Approximate {
        Approximate { n_lists: self.n_lists(), n_probe: self.n_probe, recall, lists: Digest::of(&self.bytes()) }
    }

    /// Reads the lists of an index of `n` documents. Errors unless the bytes are those of the description, and name every document
    /// exactly once.
    pub(super) fn read(path: &Path, told: &Approximate, n: usize, dimensions: usize) -> Result<Self, IndexError> {
        let changed = |reason: String| IndexError::Changed { path: path.to_owned(), reason };
        let Approximate { n_lists, n_probe, .. } = *told;
        if !(1..=MAX_LISTS).contains(&n_lists) || !(1..=n_lists).contains(&n_probe) {
            return Err(changed(format!("{n_probe} of {n_lists} lists")));
        }
        let n_bytes = 4 * (n_lists * dimensions + n_lists + n);
        let mut file = File::open(path).map_err(io(path))?;
        let found = file.metadata().map_err(io(path))?.len();
        if found != n_bytes as u64 {
            return Err(changed(format!("{found} bytes, not {n_bytes}")));
        }
        let mut bytes = vec![0; n_bytes];
        file.read_exact(&mut bytes).map_err(io(path))?;
        if Digest::of(&bytes) != told.lists {
            return Err(changed("its digest is another".to_owned()));
        }
        let (centroids, numbers) = bytes.split_at(4 * n_lists * dimensions);
        let centroids: Vec<f32> = centroids.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let numbers: Vec<u32> = numbers.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        let (lengths, ids) = numbers.split_at(n_lists);
        if !centroids.iter().all(|value| value.is_finite()) {
            return Err(changed("a centroid is not finite".to_owned()));
        }
        let mut ends = Vec::with_capacity(n_lists);
        let mut end = 0u32;
        for &length in lengths {
            let next = end.checked_add(length).filter(|&end| end as usize <= n);
            end = next.ok_or_else(|| changed("its lists are longer than the index".to_owned()))?;
            ends.push(end);
        }
        let mut is_listed = vec![false; n];
        let mut is_new =
            |id: &u32| is_listed.get_mut(*id as usize).is_some_and(|listed| !std::mem::replace(listed, true));
        if end as usize != n || !ids.iter().all(&mut is_new) {
            return Err(changed("it does not list every document once".to_owned()));
        }
        Ok(Self { centroids, dimensions, ends, ids: ids.to_vec(), n_probe })
    }
}

/// Centroids of the vectors by spherical k-means, `[n_lists, dimensions]`.
fn centroids(vectors: &[f32], dimensions: usize, n_lists: usize, n_threads: usize) -> Vec<f32> {
    let n = vectors.len() / dimensions;
    let picked = |n_picked: usize| -> Vec<f32> {
        spread(n, n_picked).into_iter().flat_map(|id| row(vectors, dimensions, id)).copied().collect()
    };
    let (mut centroids, sample) = (picked(n_lists), picked(SAMPLE_PER_LIST * n_lists));
    for _ in 0..N_ROUNDS {
        let nearest = nearest(&sample, &centroids, dimensions, n_threads);
        // In f64 and in the documents' order.
        let mut sums = vec![0f64; centroids.len()];
        for (vector, &list) in sample.chunks_exact(dimensions).zip(&nearest) {
            let sum = &mut sums[list as usize * dimensions..][..dimensions];
            sum.iter_mut().zip(vector).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        for (centroid, sum) in centroids.chunks_exact_mut(dimensions).zip(sums.chunks_exact(dimensions)) {
            let mean: Vec<f32> = sum.iter().map(|&value| value as f32).collect();
            // A list that nothing is nearest to keeps its centroid.
            if let Some(mean) = unit(&mean) {
                centroid.copy_from_slice(&mean);
            }
        }
    }
    centroids
}

/// The nearest centroid of each vector, the first of equally near ones.
fn nearest(vectors: &[f32], centroids: &[f32], dimensions: usize, n_threads: usize) -> Vec<u32> {
    let nearest_of = |vector: &[f32]| {
        let scores = centroids.chunks_exact(dimensions).map(|centroid| dot(vector, centroid));
        let best = scores
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (list, score)| if score > best.1 { (list, score) } else { best });
        best.0 as u32
    };
    let n = vectors.len() / dimensions;
    let parts = in_parallel(n, n_threads, |range| {
        range.map(|id| nearest_of(row(vectors, dimensions, id))).collect::<Vec<u32>>()
    });
    parts.concat()
}

fn row(vectors: &[f32], dimensions: usize, id: usize) -> &[f32] {
    &vectors[id * dimensions..][..dimensions]
}

/// At most `n_most` of `n` positions, evenly spread.
pub(super) fn spread(n: usize, n_most: usize) -> Vec<usize> {
    let n_picked = n.min(n_most);
    (0..n_picked).map(|picked| picked * n / n_picked).collect()
}

/// `work` on parts of `0..n` at once, its results in order.
fn in_parallel<T: Send>(n: usize, n_threads: usize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    let size = n.div_ceil(n_threads.max(1)).max(1);
    let parts: Vec<Range<usize>> = (0..n).step_by(size).map(|start| start..(start + size).min(n)).collect();
    std::thread::scope(|scope| {
        let running: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| work(part))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        running.into_iter().map(join).collect()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DIMENSIONS: usize = 24;

    /// Unit vectors around some centres, from sines alone.
    fn clustered(n: usize) -> Vec<f32> {
        let vector = |id: usize| {
            let at = |dim: usize| {
                let centre = ((id % 37) as f32 * 1.7 + dim as f32 * 2.3).sin();
                centre + 0.4 * ((id * 13 + dim * 7) as f32 * 0.61).sin()
            };
            unit(&(0..DIMENSIONS).map(at).collect::<Vec<f32>>()).unwrap()
        };
        (0..n).flat_map(vector).collect()
    }

    #[test]
    fn what_is_found_is_found_with_exact_scores_and_the_measured_recall_holds() {
        let vectors = clustered(3000);
        let (lists, recall) = Lists::build(&vectors, DIMENSIONS, 0.9, 2);
        assert!(recall.value >= 0.9 && lists.n_probe < lists.n_lists(), "{recall:?}");
        let mut n_found = 0;
        for id in (7..3000).step_by(100) {
            let query = row(&vectors, DIMENSIONS, id);
            let exact = top_hits(&vectors, DIMENSIONS, query, 0..3000, 10);
            let near = top_hits(&vectors, DIMENSIONS, query, lists.candidates(query, 10), 10);
            assert_eq!(near[0], exact[0]);
            n_found += near.iter().filter(|hit| exact.contains(hit)).count();
        }
        assert!(n_found >= 255, "{n_found} of 300");
        // More than the lists that are read hold.
        assert_eq!(
            top_hits(
                &vectors,
                DIMENSIONS,
                &vectors[..DIMENSIONS],
                lists.candidates(&vectors[..DIMENSIONS], 2900),
                2900
            )
            .len(),
            2900
        );
    }

    #[test]
    fn threads_change_nothing_and_all_of_it_is_the_exact_search() {
        let vectors = clustered(500);
        let [one, many] = [1, 7].map(|n_threads| Lists::build(&vectors, DIMENSIONS, 0.9, n_threads));
        assert_eq!((one.0.bytes(), one.0.n_probe, one.1), (many.0.bytes(), many.0.n_probe, many.1));
        let (all, recall) = Lists::build(&vectors, DIMENSIONS, 1.0, 2);
        assert_eq!(recall.value, 1.0);
        assert!(all.n_probe <= all.n_lists());
    }

    #[test]
    fn few_documents_and_equal_ones_have_lists_too() {
        for vectors in [clustered(1), clustered(2), clustered(1).repeat(9)] {
            let n = vectors.len() / DIMENSIONS;
            let (lists, recall) = Lists::build(&vectors, DIMENSIONS, 0.95, 3);
            assert!((0.95..=1.0).contains(&recall.value));
            assert_eq!(lists.candidates(&vectors[..DIMENSIONS], n).len(), n);
        }
    }

    #[test]
    fn lists_that_are_not_what_is_described_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LISTS);
        let vectors = clustered(50);
        let (lists, recall) = Lists::build(&vectors, DIMENSIONS, 0.9, 1);
        let told = lists.described(recall);
        let whole = lists.bytes();
        let read = |bytes: &[u8], told: Approximate| {
            std::fs::write(&path, bytes).unwrap();
            Lists::read(&path, &told, 50, DIMENSIONS).map(|lists| lists.bytes()).map_err(|error| error.to_string())
        };
        assert_eq!(read(&whole, told).unwrap(), whole);
        let with = |change: fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            let lists = Digest::of(&bytes);
            read(&bytes, Approximate { lists, ..told }).unwrap_err()
        };
        assert!(with(|bytes| bytes.truncate(100)).contains("bytes, not"));
        assert!(with(|bytes| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes())).contains("not finite"));
        // A document twice, one that is not there, and lists longer than the index.
        assert!(
            with(|bytes| {
                let n = bytes.len();
                bytes.copy_within(n - 4.., n - 8);
            })
            .contains("every document once")
        );
        assert!(
            with(|bytes| bytes.iter_mut().rev().take(4).for_each(|byte| *byte = 255)).contains("every document once")
        );
        assert!(
            with(|bytes| {
                let lengths = bytes.len() - 4 * 50 - 4;
                bytes[lengths..lengths + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            })
            .contains("longer than the index")
        );
        let mut changed = whole.clone();
        changed[0] ^= 1;
        assert!(read(&changed, told).unwrap_err().contains("digest"));
        for (n_lists, n_probe) in [(0, 1), (usize::MAX, 1), (told.n_lists, 0), (told.n_lists, told.n_lists + 1)] {
            assert!(read(&whole, Approximate { n_lists, n_probe, ..told }).is_err());
        }
    }
}
