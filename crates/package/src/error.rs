use std::io;
use std::path::PathBuf;

use crate::Digest;

/// Why a package was not made, not accepted or not found. Every variant about a file names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PackageError {
    #[error("cannot read or write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("`{file}` is missing from the package")]
    Missing { file: String },
    #[error("`{file}` is in the package's directory but not in its manifest")]
    Extra { file: String },
    #[error("`{}` is no program: it is no zip archive, which `torch.export.save` of torch 2.9 or newer writes", .0.display())]
    NotAProgram(PathBuf),
    #[error("`{file}` is not a regular file")]
    NotRegular { file: String },
    #[error("`{file}` has {found} bytes, but the manifest says {expected}")]
    Size { file: String, expected: u64, found: u64 },
    #[error("`{file}` was changed: its digest is {found}, but the manifest says {expected}")]
    Changed { file: String, expected: Digest, found: Digest },
    #[error("`manifest.json` was changed: the package's digest is {found}, not {expected}")]
    ManifestChanged { expected: Digest, found: Digest },
    #[error("`manifest.json` is not a package manifest: {reason}")]
    Manifest { reason: String },
    #[error("`{file}` is over a limit: {what} is {found}, and at most {limit} is accepted")]
    Limit { file: String, what: &'static str, found: u64, limit: u64 },

    #[error("package {package} has no signature, and one by a trusted key is required ({trusted})")]
    Unsigned { package: Digest, trusted: String },
    #[error("package {package} is not signed by a trusted key ({trusted}): {why}")]
    Refused { package: Digest, trusted: String, why: String },
    #[error("the signature says it is by key {claimed}, which is not trusted")]
    UntrustedKey { claimed: String },
    #[error("the signature is not by key {claimed}, though it says so: it or what it signed was changed")]
    Forged { claimed: String },
    #[error("the signature is not over this package's `{file}`: {what}")]
    SignedOther { file: String, what: &'static str },
    #[error("the signature cannot be read: {reason}")]
    Signature { reason: String },
    #[error("{key} cannot be used: {reason}")]
    Key { key: String, reason: String },
    #[error("`{}` may be read by others: its mode is {mode:04o}\nhint: `chmod 600 {}`", path.display(), path.display())]
    ExposedKey { path: PathBuf, mode: u32 },

    #[error("package {0} is not in the store")]
    NotInStore(Digest),
    #[error("verdict {verdict} on package {package} is not in the store")]
    NoVerdict { package: Digest, verdict: Digest },

    #[error("`{file}`: {reason}")]
    Source { file: String, reason: String },
    #[error("`{}` exists and is not empty", .0.display())]
    OutputExists(PathBuf),
}

impl PackageError {
    /// An I/O error on `path`, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// An I/O error of a copy, for `map_err`: what has no room is what is written.
    pub(crate) fn copying(from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let (from, to) = (from.into(), to.into());
        move |source| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
            let is_written = matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem);
            Self::Io { path: if is_written { to } else { from }, source }
        }
    }
}
