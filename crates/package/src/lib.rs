//! The immutable, content-addressed model package: manifest, digests, references and stores.

mod digest;
mod manifest;
mod reference;

pub use digest::{Digest, ParseDigestError};
pub use manifest::{Check, FileEntry, Manifest, Parity, Provenance, Task, TaskKind};
pub use reference::{ParseReferenceError, Reference, Selector};
