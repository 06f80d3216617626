//! Artifacts: files under one folder, written whole or not at all, and no way out of it.

use std::path::{Path, PathBuf};

use axum::body::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::fs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::TrackError;

/// Longest path, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Longest part of a path; most file systems' own limit.
const MAX_PART_BYTES: usize = 255;
/// Most entries one listing returns.
const MAX_ENTRIES: usize = 100_000;
/// Uploads under way; never listed, and the name no artifact may have.
const PARTIAL: &str = ".highroad-partial";

/// The artifact folder.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
}

/// A relative path of plain parts. Only [`ArtifactPath::parse`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactPath(String);

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    /// Its name in the folder that was listed.
    pub name: String,
    /// Length of a file; none for a folder.
    pub size_bytes: Option<u64>,
}

impl ArtifactPath {
    /// Errors if the path is empty, absolute, or has a part that is empty, `.`, `..`, too long, or holds `\`, NUL or
    /// another control character. The text must be percent-decoded already; what still looks encoded is refused, so that
    /// no later decoding can turn it into something else.
    pub fn parse(text: &str) -> Result<Self, TrackError> {
        let invalid = || TrackError::Invalid(format!("Invalid path: {:?}", text.chars().take(80).collect::<String>()));
        let decoded_twice = percent_encoding::percent_decode_str(text).decode_utf8().map_err(|_| invalid())?;
        for reading in [text, &decoded_twice] {
            let plain = |part: &str| {
                !matches!(part, "" | "." | ".." | PARTIAL)
                    && part.len() <= MAX_PART_BYTES
                    && !part.contains(|c: char| c == '\\' || c.is_control())
            };
            if reading.len() > MAX_PATH_BYTES || !reading.split('/').all(plain) {
                return Err(invalid());
            }
            // A drive letter or a scheme (`C:`, `file:`) is a path of its own elsewhere.
            if reading.split('/').next().is_some_and(|first| first.len() >= 2 && first.ends_with(':')) {
                return Err(invalid());
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The path with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Files {
    /// The folder at `root`, made where it does not exist.
    pub async fn open(root: PathBuf) -> Result<Self, TrackError> {
        let fail = |source| TrackError::Io { path: root.clone(), source };
        fs::create_dir_all(root.join(PARTIAL)).await.map_err(fail)?;
        let root = fs::canonicalize(&root).await.map_err(fail)?;
        Ok(Self { root })
    }

    /// Writes `body` to `path`, replacing what is there only when every byte has arrived. `upload` names the upload.
    pub async fn write<E: std::fmt::Display>(
        &self,
        path: &ArtifactPath,
        upload: &str,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(), TrackError> {
        let target = self.inside(path).await?;
        let partial = self.root.join(PARTIAL).join(upload);
        let fail = |source| TrackError::Io { path: partial.clone(), source };
        let mut file = fs::File::create(&partial).await.map_err(fail)?;
        let written = async {
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| TrackError::Invalid(format!("the upload broke off: {error}")))?;
                file.write_all(&chunk).await.map_err(fail)?;
            }
            file.flush().await.map_err(fail)?;
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).await.map_err(|source| taken(path, source))?;
            }
            fs::rename(&partial, &target).await.map_err(|source| taken(path, source))
        }
        .await;
        if written.is_err() {
            // The first error is the one to tell; a leftover partial file is only space.
            drop(fs::remove_file(&partial).await);
        }
        written
    }

    /// Opens a file and tells its length.
    pub async fn open_file(&self, path: &ArtifactPath) -> Result<(fs::File, u64), TrackError> {
        let target = self.inside(path).await?;
        let file = fs::File::open(&target).await.map_err(|source| absent(path, source))?;
        let metadata = file.metadata().await.map_err(|source| absent(path, source))?;
        if !metadata.is_file() {
            return Err(no_artifact(path));
        }
        Ok((file, metadata.len()))
    }

    /// The whole content, if it has at most `most` bytes.
    pub async fn read(&self, path: &ArtifactPath, most: u64) -> Result<Vec<u8>, TrackError> {
        let (file, size_bytes) = self.open_file(path).await?;
        if size_bytes > most {
            return Err(TrackError::TooLarge(format!("`{}` has {size_bytes} bytes, over {most}", path.as_str())));
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes).await.map_err(|source| absent(path, source))?;
        Ok(bytes)
    }

    /// The entries of a folder by name; none if it does not exist, since object stores have no empty folders either.
    pub async fn list(&self, folder: Option<&ArtifactPath>) -> Result<Vec<Entry>, TrackError> {
        let target = match folder {
            Some(path) => self.inside(path).await?,
            None => self.root.clone(),
        };
        let mut entries = Vec::new();
        let Ok(mut reader) = fs::read_dir(&target).await else { return Ok(entries) };
        let fail = |source| TrackError::Io { path: target.clone(), source };
        while let Some(entry) = reader.next_entry().await.map_err(fail)? {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Not followed: a link is neither a file nor a folder of ours.
            let metadata = entry.metadata().await.map_err(fail)?;
            if name == PARTIAL || metadata.is_symlink() || entries.len() == MAX_ENTRIES {
                continue;
            }
            entries.push(Entry { name, size_bytes: metadata.is_file().then_some(metadata.len()) });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Removes a file or a folder with all it holds.
    pub async fn delete(&self, path: &ArtifactPath) -> Result<(), TrackError> {
        let target = self.inside(path).await?;
        let metadata = fs::symlink_metadata(&target).await.map_err(|source| absent(path, source))?;
        let gone = if metadata.is_dir() { fs::remove_dir_all(&target).await } else { fs::remove_file(&target).await };
        gone.map_err(|source| absent(path, source))
    }

    /// Where `path` is, provided no link on the way leads out of the folder.
    async fn inside(&self, path: &ArtifactPath) -> Result<PathBuf, TrackError> {
        let target = self.root.join(path.as_str());
        let mut there: &Path = &target;
        let real = loop {
            match fs::canonicalize(there).await {
                Ok(real) => break real,
                Err(_) => match there.parent() {
                    Some(parent) => there = parent,
                    None => return Err(no_artifact(path)),
                },
            }
        };
        if real.starts_with(&self.root) { Ok(target) } else { Err(no_artifact(path)) }
    }
}

fn no_artifact(path: &ArtifactPath) -> TrackError {
    TrackError::Missing(format!("No such artifact: '{}'", path.as_str()))
}

fn absent(path: &ArtifactPath, source: std::io::Error) -> TrackError {
    match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => no_artifact(path),
        _ => TrackError::Io { path: path.as_str().into(), source },
    }
}

/// A file where a folder must be, or a folder where the file must be.
fn taken(path: &ArtifactPath, source: std::io::Error) -> TrackError {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    match source.kind() {
        AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory => {
            TrackError::Invalid(format!("'{}' collides with an artifact that is there", path.as_str()))
        }
        _ => TrackError::Io { path: path.as_str().into(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn folder() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("artifacts")).await.unwrap();
        (dir, files)
    }

    fn body(text: &'static str) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
        futures_util::stream::iter([Ok(Bytes::from_static(text.as_bytes()))])
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = "a".repeat(256);
        for hostile in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\0b",
            "a\\..\\b",
            "a\nb",
            "%2e%2e/x",
            "a/%2e%2e/b",
            "a%2f..%2fb",
            "a%00b",
            "C:/x",
            "file:/etc",
            "a/.highroad-partial/b",
            &long,
        ] {
            assert!(ArtifactPath::parse(hostile).is_err(), "{hostile:?}");
        }
        for fine in ["a", "0/abc/artifacts/model.pkl", "a b/ü.txt", "a..b/...", ".hidden", "100%/x"] {
            assert!(ArtifactPath::parse(fine).is_ok(), "{fine:?}");
        }
    }

    #[tokio::test]
    async fn what_is_written_is_listed_and_read_and_deleted() {
        let (_dir, files) = folder().await;
        let path = ArtifactPath::parse("1/run/a.txt").unwrap();
        files.write(&path, "u1", body("hello")).await.unwrap();
        assert_eq!(files.read(&path, 5).await.unwrap(), b"hello");
        assert!(matches!(files.read(&path, 4).await, Err(TrackError::TooLarge(_))));
        let listed = files.list(Some(&ArtifactPath::parse("1/run").unwrap())).await.unwrap();
        assert_eq!(listed, [Entry { name: "a.txt".into(), size_bytes: Some(5) }]);
        assert_eq!(files.list(None).await.unwrap(), [Entry { name: "1".into(), size_bytes: None }]);
        files.delete(&path).await.unwrap();
        assert!(matches!(files.read(&path, 5).await, Err(TrackError::Missing(_))));
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_leaves_the_old_file() {
        let (_dir, files) = folder().await;
        let path = ArtifactPath::parse("a.txt").unwrap();
        files.write(&path, "u1", body("old")).await.unwrap();
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"ne")), Err("connection reset")]);
        assert!(files.write(&path, "u2", broken).await.is_err());
        assert_eq!(files.read(&path, 10).await.unwrap(), b"old");
        assert_eq!(std::fs::read_dir(files.root.join(PARTIAL)).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_link_does_not_lead_out() {
        let (dir, files) = folder().await;
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(dir.path(), files.root.join("link")).unwrap();
        let path = ArtifactPath::parse("link/secret").unwrap();
        assert!(matches!(files.read(&path, 10).await, Err(TrackError::Missing(_))));
        assert!(matches!(files.write(&path, "u", body("x")).await, Err(TrackError::Missing(_))));
        assert_eq!(files.list(None).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_file_where_a_folder_must_be_is_a_clear_error() {
        let (_dir, files) = folder().await;
        files.write(&ArtifactPath::parse("a").unwrap(), "u1", body("x")).await.unwrap();
        let error = files.write(&ArtifactPath::parse("a/b").unwrap(), "u2", body("x")).await.unwrap_err();
        assert!(matches!(error, TrackError::Invalid(_) | TrackError::Missing(_)), "{error:?}");
    }
}
