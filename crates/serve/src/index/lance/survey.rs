//! A corpus gone through before anything is embedded: how many documents, which, and that no two have one name.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};

use highroad_package::Digest;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::MAX_DOCUMENTS;
use crate::index::{Document, IndexError, io, line_of};

/// Names lie in so many files by their hash, and one file at a time is in memory: 128 MB for two thousand million documents.
const N_FILES: usize = 256;
/// Of the hash of a name: two of 10^9 names have one by a chance below 10^-20.
const HASH_BYTES: usize = 16;

/// Documents that are counted.
pub struct Survey {
    files: Vec<BufWriter<File>>,
    folder: TempDir,
    sha256: Sha256,
    n_documents: usize,
    n_bytes: usize,
    n_bytes_longest: usize,
}

/// What a corpus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Number of documents.
    pub n_documents: usize,
    /// SHA-256 of all of them, a line of JSON each.
    pub documents: Digest,
    /// Of all those lines.
    pub n_bytes: usize,
    /// Of the longest.
    pub n_bytes_longest: usize,
}

impl Survey {
    /// Of nothing yet.
    pub fn new() -> Result<Self, IndexError> {
        let folder = tempfile::tempdir().map_err(io(&std::env::temp_dir()))?;
        let create = |idx: usize| {
            let path = folder.path().join(idx.to_string());
            // Small buffers: there are many.
            Ok(BufWriter::with_capacity(4096, File::create(&path).map_err(io(&path))?))
        };
        let files = (0..N_FILES).map(create).collect::<Result<_, IndexError>>()?;
        Ok(Self { files, folder, sha256: Sha256::new(), n_documents: 0, n_bytes: 0, n_bytes_longest: 0 })
    }

    /// Counts a document.
    pub fn add(&mut self, document: &Document) -> Result<(), IndexError> {
        if self.n_documents == MAX_DOCUMENTS {
            let reason = format!("an index holds at most {MAX_DOCUMENTS} documents");
            return Err(IndexError::Document { line: self.n_documents + 1, reason });
        }
        self.n_documents += 1;
        let line = line_of(document);
        self.sha256.update(&line);
        self.n_bytes += line.len();
        self.n_bytes_longest = self.n_bytes_longest.max(line.len());
        let hash = Sha256::digest(document.id.as_bytes());
        let file = &mut self.files[usize::from(hash[0])];
        file.write_all(&hash[..HASH_BYTES]).map_err(io(self.folder.path()))
    }

    /// Whether `hash`, of names that are there twice, is of `id`.
    pub fn is_hash(hash: &[u8], id: &str) -> bool {
        Sha256::digest(id.as_bytes()).starts_with(hash)
    }

    /// What they are. Errors if two have one name.
    pub fn finish(mut self) -> Result<Surveyed, IndexError> {
        for (idx, file) in std::mem::take(&mut self.files).into_iter().enumerate() {
            let path = self.folder.path().join(idx.to_string());
            file.into_inner().map_err(|error| io(&path)(error.into_error()))?;
            let mut bytes = Vec::new();
            let file = File::open(&path).map_err(io(&path))?;
            BufReader::new(file).read_to_end(&mut bytes).map_err(io(&path))?;
            let mut hashes: Vec<[u8; HASH_BYTES]> = bytes.as_chunks::<HASH_BYTES>().0.to_vec();
            hashes.sort_unstable();
            if let Some(twice) = hashes.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(IndexError::Twice { hash: twice[0].to_vec() });
            }
        }
        let Self { n_documents, n_bytes, n_bytes_longest, .. } = self;
        Ok(Surveyed { n_documents, documents: Digest::finish(self.sha256), n_bytes, n_bytes_longest })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_comes_twice_is_found_however_far_apart() {
        let survey = |ids: &[usize]| {
            let mut survey = Survey::new().unwrap();
            for id in ids {
                let line = format!("{{\"id\": \"d{id}\", \"text\": \"a\", \"n\": 1.5}}");
                survey.add(&Document::parse(&line, 1).unwrap()).unwrap();
            }
            survey.finish()
        };
        let ids: Vec<usize> = (0..3000).collect();
        let found = survey(&ids).unwrap();
        assert_eq!(found.n_documents, 3000);
        assert_ne!(found.documents, survey(&ids[1..]).unwrap().documents);
        let Err(IndexError::Twice { hash }) = survey(&[&ids[..], &[7]].concat()) else { panic!("it was not found") };
        assert!(Survey::is_hash(&hash, "d7") && !Survey::is_hash(&hash, "d8"));
    }
}
