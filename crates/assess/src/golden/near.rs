//! Texts that say almost the same: exact copies after normalising, and near copies by MinHash.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use minhash_rs::prelude::{LshIndex, MinHash, QueryState};

/// Length of the shingles in characters: long enough that texts of one language share few by chance, short enough for texts of
/// five words.
const SHINGLE_CHARS: usize = 5;

/// Hash functions of a signature, and the bands they are cut into. Two texts whose shingles overlap by the share `s` meet in some
/// band with probability `1 - (1 - s^4)^32`: all but one in 20,000,000 pairs at 0.8, all but one in 6,600 at 0.7.
const N_HASHES: usize = 128;
const N_BANDS: usize = 32;

type Signature = MinHash<u32, N_HASHES>;

/// A text as near copies see it: in lower case, words separated by one space, nothing but letters and digits.
pub(crate) fn normalised(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.collect::<Vec<_>>().join(" ");
    // Texts of symbols only, such as emoji, are told apart by their symbols.
    if words.is_empty() { lower.split_whitespace().collect::<Vec<_>>().join(" ") } else { words }
}

/// The set of a normalised text's shingles, hashed.
struct Shingles(Vec<u64>);

impl Shingles {
    fn of(normalised: &str) -> Self {
        let starts: Vec<usize> = normalised.char_indices().map(|(at, _)| at).chain([normalised.len()]).collect();
        let width = SHINGLE_CHARS.min(starts.len() - 1);
        let mut hashes: Vec<u64> = (0..starts.len() - width)
            .map(|idx| {
                let mut hasher = DefaultHasher::new();
                normalised[starts[idx]..starts[idx + width]].hash(&mut hasher);
                hasher.finish()
            })
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        Self(hashes)
    }

    fn signature(&self) -> Signature {
        self.0.iter().copied().collect()
    }

    /// Shared shingles over all shingles (Jaccard).
    fn overlap(&self, other: &Self) -> f64 {
        let (mut left, mut right, mut n_shared) = (self.0.as_slice(), other.0.as_slice(), 0);
        while let (Some(a), Some(b)) = (left.first(), right.first()) {
            match a.cmp(b) {
                std::cmp::Ordering::Less => left = &left[1..],
                std::cmp::Ordering::Greater => right = &right[1..],
                std::cmp::Ordering::Equal => {
                    (left, right) = (&left[1..], &right[1..]);
                    n_shared += 1;
                }
            }
        }
        n_shared as f64 / (self.0.len() + other.0.len() - n_shared).max(1) as f64
    }
}

/// Texts to look for copies of.
pub(crate) struct Texts {
    exact: HashMap<String, usize>,
    shingles: Vec<Shingles>,
    index: LshIndex<Signature, N_HASHES, N_BANDS>,
}

/// A text that says almost the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Match {
    /// Its number among the texts.
    pub idx: usize,
    /// Share of shingles in common; 1 for an exact copy.
    pub overlap: f64,
}

impl Texts {
    /// Of texts that are normalised and distinct.
    pub(crate) fn new(normalised: Vec<String>) -> Self {
        let shingles: Vec<Shingles> = normalised.iter().map(|text| Shingles::of(text)).collect();
        let index = LshIndex::from_signatures(shingles.iter().map(Shingles::signature));
        let exact = normalised.into_iter().enumerate().map(|(idx, text)| (text, idx)).collect();
        Self { exact, shingles, index }
    }

    /// The text that `normalised` is, or those whose overlap with it is at least `least`, most alike first.
    pub(crate) fn like(&self, normalised: &str, least: f64) -> Vec<Match> {
        if let Some(&idx) = self.exact.get(normalised) {
            return vec![Match { idx, overlap: 1.0 }];
        }
        let shingles = Shingles::of(normalised);
        let mut found = self.near(&shingles, least);
        found.sort_by(|a, b| b.overlap.total_cmp(&a.overlap).then(a.idx.cmp(&b.idx)));
        found
    }

    /// The texts before number `idx` that are near it, in order.
    pub(crate) fn earlier(&self, idx: usize, least: f64) -> Vec<Match> {
        let mut found = self.near(&self.shingles[idx], least);
        found.retain(|found| found.idx < idx);
        found.sort_by_key(|found| found.idx);
        found
    }

    fn near(&self, shingles: &Shingles, least: f64) -> Vec<Match> {
        let mut state = QueryState::new();
        let candidates = self.index.candidates(&shingles.signature(), &mut state);
        let of = |id: u32| Match { idx: id as usize, overlap: self.shingles[id as usize].overlap(shingles) };
        candidates.iter().map(|candidate| of(candidate.id)).filter(|found| found.overlap >= least).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_punctuation_and_spacing_do_not_tell_texts_apart() {
        assert_eq!(normalised("  Hello,\n WORLD! "), normalised("hello world"));
        assert_eq!(normalised("Ünï-cödé"), "ünï cödé");
        assert_ne!(normalised("🙂 🙂"), normalised("🙃"));
    }

    #[test]
    fn the_overlap_is_the_share_of_common_shingles() {
        let of = |text: &str| Shingles::of(text);
        assert_eq!(of("abcdef").overlap(&of("abcdef")), 1.0);
        // abcde bcdef | bcdef cdefg
        assert_eq!(of("abcdef").overlap(&of("bcdefg")), 1.0 / 3.0);
        assert_eq!(of("ab").overlap(&of("ab")), 1.0);
        assert_eq!(of("").overlap(&of("ab")), 0.0);
    }

    #[test]
    fn the_index_finds_what_comparing_all_pairs_finds() {
        let words = ["ship", "model", "gate", "verdict", "golden", "case", "slice", "drift", "budget", "token"];
        let text = |seed: usize| -> String {
            (0..30).map(|n| words[(seed * 7 + n * (1 + seed % 3)) % 10]).collect::<Vec<_>>().join(" ")
        };
        let mut texts: Vec<String> = (0..40).map(text).collect();
        texts.extend((0..40).map(|seed| format!("{} {}", text(seed), words[seed % 10])));
        texts.sort();
        texts.dedup();
        let shingles: Vec<Shingles> = texts.iter().map(|text| Shingles::of(text)).collect();
        let index = Texts::new(texts.clone());
        let mut n_near = 0;
        for idx in 0..texts.len() {
            let all: Vec<usize> = (0..idx).filter(|&other| shingles[other].overlap(&shingles[idx]) >= 0.8).collect();
            let found: Vec<usize> = index.earlier(idx, 0.8).iter().map(|found| found.idx).collect();
            assert_eq!(found, all);
            n_near += all.len();
        }
        assert!(n_near > 10, "{n_near}");
    }
}
