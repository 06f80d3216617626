//! What decided answers beside packages, kept by its digest: the steps of pipelines and the descriptions of hosted members.
//!
//! The request log names them by digest as it names packages, so that an answer can be replayed after the file that held them has
//! changed. They hold what a portfolio's files hold: steps, system messages and prompts, where a key is, and never a key.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use highroad_hosted::Hosted;
use highroad_package::Digest;

/// Largest definition that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// Longest path that is read, in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// A folder of definitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definitions(PathBuf);

impl Definitions {
    /// Those in `folder`, which need not exist yet.
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Keeps `bytes` by their digest.
    pub fn keep(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        self.write(&self.file(&digest), bytes)?;
        Ok(digest)
    }

    /// The bytes of a digest; `None` where they are not kept, or are not what the digest says.
    pub fn find(&self, digest: &Digest) -> Option<Vec<u8>> {
        read(&self.file(digest)).filter(|bytes| Digest::of(bytes) == *digest)
    }

    /// Keeps a description by [`Hosted::digest`], which leaves out what decides no answer.
    pub fn keep_hosted(&self, hosted: &Hosted) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(hosted)?;
        self.write(&self.hosted_file(&hosted.digest()), &bytes)
    }

    /// The description of a digest.
    pub fn find_hosted(&self, digest: &Digest) -> Option<Hosted> {
        let hosted: Hosted = serde_json::from_slice(&read(&self.hosted_file(digest))?).ok()?;
        (hosted.digest() == *digest).then_some(hosted)
    }

    /// Notes where the index of a digest lies.
    pub fn note_index(&self, digest: &Digest, folder: &Path) -> io::Result<()> {
        let folder = fs::canonicalize(folder)?;
        self.write(&self.index_file(digest), folder.as_os_str().as_encoded_bytes())
    }

    /// Where the index of a digest lay when it was last served.
    pub fn index(&self, digest: &Digest) -> Option<PathBuf> {
        let path = read(&self.index_file(digest)).filter(|bytes| bytes.len() <= MAX_PATH_BYTES)?;
        String::from_utf8(path).ok().map(PathBuf::from)
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.0.join(format!("{}.json", digest.hex()))
    }

    fn hosted_file(&self, digest: &Digest) -> PathBuf {
        self.0.join(format!("{}.hosted.json", digest.hex()))
    }

    fn index_file(&self, digest: &Digest) -> PathBuf {
        self.0.join(format!("{}.index", digest.hex()))
    }

    /// Written whole or not at all; what is there already in these bytes stays.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if fs::read(path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        fs::create_dir_all(&self.0)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let size = fs::metadata(path).ok()?.len();
    if size <= MAX_BYTES { fs::read(path).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_what_its_digest_says_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Definitions::at(dir.path().join("definitions"));
        let digest = kept.keep(b"{}").unwrap();
        assert_eq!(kept.find(&digest), Some(b"{}".to_vec()));
        assert_eq!(kept.find(&Digest::of(b"other")), None);
        fs::write(kept.file(&digest), "[]").unwrap();
        assert_eq!(kept.find(&digest), None);
    }

    #[test]
    fn a_description_is_found_by_what_decides_its_answers() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Definitions::at(dir.path().to_owned());
        let text = "highroad_hosted = 1\ntask = \"generate\"\nbase_url = \"http://localhost/v1\"\nmodel = \"m\"";
        let hosted = Hosted::parse(text).unwrap();
        kept.keep_hosted(&hosted).unwrap();
        assert_eq!(kept.find_hosted(&hosted.digest()), Some(hosted.clone()));
        let other = Hosted { model: "other".to_owned(), ..hosted.clone() };
        fs::write(kept.hosted_file(&hosted.digest()), serde_json::to_vec(&other).unwrap()).unwrap();
        assert_eq!(kept.find_hosted(&hosted.digest()), None);
    }
}
