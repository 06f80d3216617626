//! The immutable, content-addressed model package: manifest, digests, references, packing and stores.
//!
//! A package is a flat directory: `manifest.json` and the files it lists. The SHA-256 of the manifest's bytes is the
//! package's [`Digest`], and the manifest holds the digest of every file, so the digest names every byte.
//! Bytes come in hostile and leave verified: only [`Package::verify`] and [`Store::get`] make a [`VerifiedPackage`].

mod archive;
mod digest;
mod error;
mod files;
mod manifest;
mod pack;
mod package;
mod reference;
pub mod registry;
pub mod remote;
pub mod signing;
mod store;

pub use archive::{is_archive, write_archive};
pub use digest::{Digest, ParseDigestError};
pub use error::PackageError;
pub use manifest::{
    ANY_LABEL, Channels, Check, DataRole, FileEntry, ImageInput, Interpolation, Manifest, Orientation, PairTruncation,
    Parity, Provenance, Resize, Task, TaskKind, Truncation,
};
pub use pack::{TRAINING, pack};
pub use package::{MANIFEST, PARITY, PROGRAM, Package, TOKENIZER, VerifiedPackage};
pub use reference::{ParseReferenceError, Reference, Selector};
pub use store::{Baselines, Store, Verdicts};
