//! Who made a package: signatures beside it, and which of them a machine asks for.
//!
//! A signature is a file of its own in the form of the OpenSSF's `model-signing` (a Sigstore bundle over an in-toto statement
//! that lists every file), never part of the package: signing changes no digest.

mod attestation;
mod bundle;
mod key;
mod policy;

pub use attestation::Attestation;
pub use bundle::Signature;
pub use key::{Algorithm, KeyId, PublicKey, SigningKey};
pub use policy::Policy;
