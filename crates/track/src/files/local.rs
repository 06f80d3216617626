//! A folder of plain files, written whole or not at all, and no way out of it.

use std::path::{Path, PathBuf};

use axum::body::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::{ArtifactPath, Content, Entry, MAX_ENTRIES, PARTIAL, broke_off, no_artifact};
use crate::TrackError;

/// Bytes read at a time on the way out.
const CHUNK_BYTES: usize = 256 << 10;

/// The artifact folder.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
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
                let chunk = chunk.map_err(broke_off)?;
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

    /// A file's length and its bytes.
    pub async fn open_file(&self, path: &ArtifactPath) -> Result<Content, TrackError> {
        let target = self.inside(path).await?;
        let file = fs::File::open(&target).await.map_err(|source| absent(path, source))?;
        let metadata = file.metadata().await.map_err(|source| absent(path, source))?;
        if !metadata.is_file() {
            return Err(no_artifact(path));
        }
        Ok(Content { size_bytes: metadata.len(), bytes: ReaderStream::with_capacity(file, CHUNK_BYTES).boxed() })
    }

    /// A file's length.
    pub async fn size_bytes(&self, path: &ArtifactPath) -> Result<u64, TrackError> {
        let metadata = fs::metadata(self.inside(path).await?).await.map_err(|source| absent(path, source))?;
        if metadata.is_file() { Ok(metadata.len()) } else { Err(no_artifact(path)) }
    }

    /// The entries of a folder, in no order; none if it does not exist.
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
    use crate::files::{Artifacts, Files, Transfers};

    async fn folder() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let place = Artifacts::Folder(root(&dir));
        let files = Files::open(place, Transfers::default()).await.unwrap();
        (dir, files)
    }

    fn root(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("artifacts")
    }

    fn body(text: &'static str) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Unpin + Send {
        futures_util::stream::iter([Ok(Bytes::from_static(text.as_bytes()))])
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
        let (dir, files) = folder().await;
        let path = ArtifactPath::parse("a.txt").unwrap();
        files.write(&path, "u1", body("old")).await.unwrap();
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"ne")), Err("connection reset")]);
        assert!(files.write(&path, "u2", broken).await.is_err());
        assert_eq!(files.read(&path, 10).await.unwrap(), b"old");
        assert_eq!(std::fs::read_dir(root(&dir).join(PARTIAL)).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_link_does_not_lead_out() {
        let (dir, files) = folder().await;
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(dir.path(), root(&dir).join("link")).unwrap();
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
