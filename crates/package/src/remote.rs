//! Packages in other places: OCI registries, buckets of S3-compatible stores and shared folders.
//!
//! A place keeps blobs under their digests, each of them once, and what ties a package's blobs together. It is trusted with
//! nothing: what comes back is compared with its digest while it arrives, and once more before it counts.

use std::sync::Arc;

use crate::signing::Signature;
use crate::{Digest, PackageError, Store, VerifiedPackage};

mod bucket;
mod oci;
mod transfer;

use bucket::Bucket;
use oci::Repository;

/// Why a package did not get to a place or back. Every variant names the place or the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RemoteError {
    #[error("`{address}` cannot be used: {reason}")]
    Address { address: String, reason: String },
    #[error("{place} did not {asked}: {reason}")]
    Transfer { place: String, asked: String, reason: String },
    #[error("{what} is not in {place}")]
    NotFound { place: String, what: String },
    #[error("{place} holds no Highroad package: {reason}")]
    NotAPackage { place: String, reason: String },
    #[error("{place} sent something else as `{file}`")]
    Content { place: String, file: String, source: PackageError },
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// Told of each piece that was sent or received, in bytes.
pub type Progress = Arc<dyn Fn(Step) + Send + Sync>;

/// A step of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes in all; told once it is known.
    Total(u64),
    /// So many bytes more are where they belong.
    Bytes(u64),
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pushed {
    /// What names exactly this package there.
    pub address: String,
    /// Its digest.
    pub package: Digest,
    /// Files that were sent.
    pub sent: Vec<String>,
    /// Files that were there already.
    pub already_there: Vec<String>,
    /// Bytes that were sent.
    pub sent_bytes: u64,
}

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pulled {
    /// Digest of the package that is now in the store.
    pub package: Digest,
    /// The model's name by its manifest.
    pub name: String,
    /// Bytes that were received now.
    pub received_bytes: u64,
    /// Bytes that an interrupted pull had left, or that other packages of the store have.
    pub reused_bytes: u64,
}

/// A place for packages, and which of them is meant: `oci://HOST/REPOSITORY:TAG`, `s3://BUCKET/PREFIX[@sha256:…]` or
/// `file:///FOLDER[@sha256:…]`.
#[derive(Debug)]
pub struct Remote(Place);

/// Which way packages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Push,
    Pull,
}

#[derive(Debug)]
enum Place {
    Oci(Repository),
    Bucket(Bucket),
}

impl Remote {
    /// Whether `text` looks like the address of a place.
    pub fn is_address(text: &str) -> bool {
        text.contains("://")
    }

    /// The place that `address` names, to send packages to. Nothing is asked yet; a folder is made. Credentials come from the
    /// environment and from files that the neighbours use; see `docs/reference/package.md`.
    pub fn destination(address: &str) -> Result<Self, RemoteError> {
        Self::open(address, Direction::Push)
    }

    /// The place that `address` names, to bring a package from. Nothing is asked yet.
    pub fn source(address: &str) -> Result<Self, RemoteError> {
        Self::open(address, Direction::Pull)
    }

    fn open(address: &str, direction: Direction) -> Result<Self, RemoteError> {
        let refuse = |reason: &str| RemoteError::Address { address: address.to_owned(), reason: reason.to_owned() };
        match address.split_once("://") {
            Some(("oci", rest)) => Ok(Self(Place::Oci(Repository::open(address, rest, direction)?))),
            Some(("s3" | "file", _)) => Ok(Self(Place::Bucket(Bucket::open(address, direction)?))),
            _ => Err(refuse("expected `oci://HOST/REPOSITORY:TAG`, `s3://BUCKET/PREFIX` or `file:///FOLDER`")),
        }
    }

    /// Sends the files that are not there yet, four at once, then what ties them together, then the signatures.
    pub async fn push(
        &self,
        package: &VerifiedPackage,
        signatures: &[Signature],
        progress: &Progress,
    ) -> Result<Pushed, RemoteError> {
        match &self.0 {
            Place::Oci(repository) => repository.push(package, signatures, progress).await,
            Place::Bucket(bucket) => bucket.push(package, signatures, progress).await,
        }
    }

    /// Brings the package into `store`, four files at once, each verified while it arrives. What an interrupted pull left is
    /// kept and continued. A package that the store's policy does not admit is refused before its files travel.
    pub async fn pull(&self, store: &Store, progress: &Progress) -> Result<Pulled, RemoteError> {
        match &self.0 {
            Place::Oci(repository) => repository.pull(store, progress).await,
            Place::Bucket(bucket) => bucket.pull(store, progress).await,
        }
    }
}
