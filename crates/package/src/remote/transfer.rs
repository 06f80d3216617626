//! What all places have in common: which blobs travel, in parallel, continued where they broke off, verified on the way.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::bytes::Bytes;
use tokio_util::io::ReaderStream;

use super::{Progress, Pulled, RemoteError, Step};
use crate::signing::Signature;
use crate::{Digest, FileEntry, MANIFEST, Manifest, PackageError, Store, VerifiedPackage};

/// Files of a package that are on their way at once.
const FILES_AT_ONCE: usize = 4;
const CHUNK_BYTES: usize = 256 << 10;
/// How often a file is asked for again after its connection broke, each time from where it broke.
const RETRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Where bytes lie under their digests.
pub(super) trait Blobs {
    /// What errors call it.
    fn place(&self) -> String;
    /// Whether the blob is there.
    async fn has(&self, blob: &Blob) -> Result<bool, RemoteError>;
    /// Stores a blob.
    async fn send(&self, blob: &Blob, content: BoxStream<'static, std::io::Result<Bytes>>) -> Result<(), RemoteError>;
    /// The bytes of a blob from `offset` on. [`Reading::Whole`] where the place starts at the front all the same.
    async fn read(&self, blob: &Blob, offset: u64) -> Result<Reading, RemoteError>;
}

/// A file of a package as a place knows it.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub file: String,
    pub digest: Digest,
    pub size_bytes: u64,
}

pub(super) enum Reading {
    Whole(BoxStream<'static, std::io::Result<Bytes>>),
    Rest(BoxStream<'static, std::io::Result<Bytes>>),
}

/// Which blobs a push sent.
#[derive(Default)]
pub(super) struct Sent {
    pub sent: Vec<String>,
    pub already_there: Vec<String>,
    pub sent_bytes: u64,
}

impl From<&FileEntry> for Blob {
    fn from(entry: &FileEntry) -> Self {
        Self { file: entry.path.clone(), digest: entry.digest, size_bytes: entry.size_bytes }
    }
}

/// The manifest's own blob, whose digest is the package's.
pub(super) fn manifest_blob(package: &Digest, manifest_bytes: &[u8]) -> Blob {
    Blob { file: MANIFEST.to_owned(), digest: *package, size_bytes: manifest_bytes.len() as u64 }
}

/// Sends the files that `place` lacks, the manifest among them.
pub(super) async fn send_files(
    place: &impl Blobs,
    package: &VerifiedPackage,
    progress: &Progress,
) -> Result<Sent, RemoteError> {
    let manifest = package.manifest().canonical()?;
    let mut blobs: Vec<Blob> = package.manifest().files.iter().map(Blob::from).collect();
    blobs.push(manifest_blob(&package.digest(), &manifest));
    progress(Step::Total(blobs.iter().map(|blob| blob.size_bytes).sum()));
    let mut sent = Sent::default();
    let mut results = futures_util::stream::iter(blobs)
        .map(|blob| async move {
            let was_there = place.has(&blob).await?;
            if was_there {
                progress(Step::Bytes(blob.size_bytes));
            } else {
                place.send(&blob, content(&package.dir().join(&blob.file), progress).await?).await?;
            }
            Ok::<_, RemoteError>((blob, was_there))
        })
        .buffer_unordered(FILES_AT_ONCE);
    while let Some((blob, was_there)) = results.try_next().await? {
        if was_there {
            sent.already_there.push(blob.file);
        } else {
            sent.sent_bytes += blob.size_bytes;
            sent.sent.push(blob.file);
        }
    }
    sent.sent.sort_unstable();
    sent.already_there.sort_unstable();
    Ok(sent)
}

async fn content(path: &Path, progress: &Progress) -> Result<BoxStream<'static, std::io::Result<Bytes>>, PackageError> {
    let file = tokio::fs::File::open(path).await.map_err(PackageError::io(path))?;
    let progress = progress.clone();
    let stream = ReaderStream::with_capacity(file, CHUNK_BYTES);
    Ok(stream.inspect_ok(move |chunk| progress(Step::Bytes(chunk.len() as u64))).boxed())
}

/// Brings the package `digest` into the store, once its manifest and its signatures are known.
pub(super) async fn receive_package(
    place: &impl Blobs,
    digest: &Digest,
    manifest_bytes: &[u8],
    signatures: &[Signature],
    store: &Store,
    progress: &Progress,
) -> Result<Pulled, RemoteError> {
    let manifest = Manifest::parse(manifest_bytes)?;
    // Before the weights travel.
    store.admit(digest, &manifest, signatures)?;
    for signature in signatures {
        store.add_signature(digest, signature)?;
    }
    let mut pulled = Pulled { package: *digest, name: manifest.name.clone(), received_bytes: 0, reused_bytes: 0 };
    let n_bytes = manifest.files.iter().map(|entry| entry.size_bytes).sum();
    progress(Step::Total(n_bytes));
    let folder = match PartialFolder::lock(store, digest).await? {
        Some(folder) => folder,
        None => {
            progress(Step::Bytes(n_bytes));
            return Ok(Pulled { reused_bytes: n_bytes, ..pulled });
        }
    };
    let mut files = futures_util::stream::iter(manifest.files.iter().map(Blob::from))
        .map(|blob| {
            let path = folder.path.join(&blob.file);
            async move { receive_file(place, &blob, &path, store, progress).await }
        })
        .buffer_unordered(FILES_AT_ONCE);
    while let Some(file) = files.try_next().await? {
        pulled.received_bytes += file.received;
        pulled.reused_bytes += file.reused;
    }
    drop(files);
    let path = folder.path.join(MANIFEST);
    tokio::fs::write(&path, manifest_bytes).await.map_err(PackageError::io(&path))?;
    let (store, digest) = (store.clone(), *digest);
    blocking(move || store.adopt(folder.path.as_path(), &digest)).await?;
    Ok(pulled)
}

struct Received {
    received: u64,
    reused: u64,
}

/// Brings one file to `path`: from another package that has it, or from `place`, continuing what lies at `path`.
async fn receive_file(
    place: &impl Blobs,
    blob: &Blob,
    path: &Path,
    store: &Store,
    progress: &Progress,
) -> Result<Received, RemoteError> {
    let (local, entry, to) = (store.clone(), blob.clone(), path.to_owned());
    if blocking(move || Ok(local.copy_blob(&entry.digest, entry.size_bytes, &to))).await? {
        progress(Step::Bytes(blob.size_bytes));
        return Ok(Received { received: 0, reused: blob.size_bytes });
    }
    let mut part = PartialFile::open(path, blob).await?;
    progress(Step::Bytes(part.size_bytes));
    let mut received = 0;
    let mut pause = FIRST_PAUSE;
    for attempt in 0..=RETRIES {
        match part.fill(place, blob, progress).await {
            Ok(n_bytes) => {
                received += n_bytes;
                break;
            }
            Err(Broken::Connection { n_bytes, .. }) if attempt < RETRIES => {
                received += n_bytes;
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(Broken::Connection { reason, .. }) => {
                let asked = format!("send the whole of `{}`", blob.file);
                return Err(RemoteError::Transfer { place: place.place(), asked, reason });
            }
            Err(Broken::Other(error)) => return Err(error),
        }
    }
    match part.finish(blob).await {
        // Where the place began at the front again, nothing was of use.
        Ok(()) => Ok(Received { received, reused: blob.size_bytes.saturating_sub(received) }),
        Err(error) => {
            // What was wrong is not kept: the next pull starts at the front.
            drop(tokio::fs::remove_file(path).await);
            Err(RemoteError::Content { place: place.place(), file: blob.file.clone(), source: error })
        }
    }
}

enum Broken {
    Connection { n_bytes: u64, reason: String },
    Other(RemoteError),
}

/// A file that is being received.
struct PartialFile {
    path: PathBuf,
    file: tokio::fs::File,
    hasher: Sha256,
    size_bytes: u64,
}

impl PartialFile {
    /// Opens what is there of `blob`, hashing it; a file longer than the blob begins anew.
    async fn open(path: &Path, blob: &Blob) -> Result<Self, PackageError> {
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path).await;
        let file = file.map_err(PackageError::io(path))?;
        let mut part = Self { path: path.to_owned(), file, hasher: Sha256::new(), size_bytes: 0 };
        let mut block = vec![0; CHUNK_BYTES];
        loop {
            let n = part.file.read(&mut block).await.map_err(PackageError::io(path))?;
            if n == 0 {
                return Ok(part);
            }
            part.size_bytes += n as u64;
            part.hasher.update(&block[..n]);
            if part.size_bytes > blob.size_bytes {
                part.restart().await?;
                return Ok(part);
            }
        }
    }

    async fn restart(&mut self) -> Result<(), PackageError> {
        self.file.set_len(0).await.map_err(PackageError::io(&self.path))?;
        self.file.rewind().await.map_err(PackageError::io(&self.path))?;
        (self.hasher, self.size_bytes) = (Sha256::new(), 0);
        Ok(())
    }

    /// Asks for the rest and writes it as it comes; gives the number of bytes that came.
    async fn fill(&mut self, place: &impl Blobs, blob: &Blob, progress: &Progress) -> Result<u64, Broken> {
        let other = |error: PackageError| Broken::Other(error.into());
        if self.size_bytes == blob.size_bytes {
            return Ok(0);
        }
        let mut chunks = match place.read(blob, self.size_bytes).await.map_err(Broken::Other)? {
            Reading::Rest(chunks) => chunks,
            Reading::Whole(chunks) => {
                self.restart().await.map_err(other)?;
                chunks
            }
        };
        let mut n_bytes = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    self.file.flush().await.map_err(PackageError::io(&self.path)).map_err(other)?;
                    return Err(Broken::Connection { n_bytes, reason: error.to_string() });
                }
            };
            let found = self.size_bytes + chunk.len() as u64;
            if found > blob.size_bytes {
                let source = PackageError::Size { file: blob.file.clone(), expected: blob.size_bytes, found };
                let (place, file) = (place.place(), blob.file.clone());
                return Err(Broken::Other(RemoteError::Content { place, file, source }));
            }
            self.hasher.update(&chunk);
            self.file.write_all(&chunk).await.map_err(PackageError::io(&self.path)).map_err(other)?;
            self.size_bytes = found;
            n_bytes += chunk.len() as u64;
            progress(Step::Bytes(chunk.len() as u64));
        }
        Ok(n_bytes)
    }

    /// Errors unless all of the blob is there and nothing else; on disk on return.
    async fn finish(mut self, blob: &Blob) -> Result<(), PackageError> {
        self.file.flush().await.map_err(PackageError::io(&self.path))?;
        self.file.sync_all().await.map_err(PackageError::io(&self.path))?;
        if self.size_bytes != blob.size_bytes {
            let (expected, found) = (blob.size_bytes, self.size_bytes);
            return Err(PackageError::Size { file: blob.file.clone(), expected, found });
        }
        match Digest::finish(self.hasher) {
            found if found == blob.digest => Ok(()),
            found => Err(PackageError::Changed { file: blob.file.clone(), expected: blob.digest, found }),
        }
    }
}

/// The folder in which a package is put together, this process's alone while it is open.
struct PartialFolder {
    path: PathBuf,
    _lock: std::fs::File,
}

impl PartialFolder {
    /// Waits for other processes that bring the same package; `None` if one of them has brought it.
    async fn lock(store: &Store, digest: &Digest) -> Result<Option<Self>, PackageError> {
        let (store, digest) = (store.clone(), *digest);
        blocking(move || {
            let path = store.partial_dir(&digest);
            loop {
                if store.holds(&digest) {
                    return Ok(None);
                }
                std::fs::create_dir_all(&path).map_err(PackageError::io(&path))?;
                let lock = std::fs::File::open(&path).map_err(PackageError::io(&path))?;
                let exclusive = rustix::fs::FlockOperation::LockExclusive;
                rustix::fs::flock(lock.as_fd(), exclusive).map_err(|e| PackageError::io(&path)(e.into()))?;
                // The folder may have become the package, or been cleared away, while this waited for it.
                let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
                let locked = lock.metadata().map(id).ok();
                if std::fs::metadata(&path).map(id).ok() == locked {
                    return Ok(Some(Self { path, _lock: lock }));
                }
            }
        })
        .await
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackageError> + Send + 'static,
) -> Result<T, PackageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// All of a small blob: at most `limit` bytes, compared with its digest.
pub(super) async fn read_small(place: &impl Blobs, blob: &Blob, limit: u64) -> Result<Vec<u8>, RemoteError> {
    let (Reading::Whole(mut chunks) | Reading::Rest(mut chunks)) = place.read(blob, 0).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let asked = format!("send the whole of `{}`", blob.file);
        let failed =
            |error: std::io::Error| RemoteError::Transfer { place: place.place(), asked, reason: error.to_string() };
        bytes.extend_from_slice(&chunk.map_err(failed)?);
        if bytes.len() as u64 > limit {
            let found = bytes.len() as u64;
            return Err(PackageError::Limit { file: blob.file.clone(), what: "size in bytes", found, limit }.into());
        }
    }
    match Digest::of(&bytes) {
        found if found == blob.digest => Ok(bytes),
        found => {
            let source = PackageError::Changed { file: blob.file.clone(), expected: blob.digest, found };
            Err(RemoteError::Content { place: place.place(), file: blob.file.clone(), source })
        }
    }
}

/// The error and its causes on one line, each told once.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        source = cause.source();
    }
    told.lines().next().unwrap_or_default().to_owned()
}
