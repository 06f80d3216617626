use super::{PublicKey, Signature};
use crate::{Digest, Manifest, PackageError};

/// Whose signature this machine asks for before it loads a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Any package whose bytes are those its digest names.
    #[default]
    AnyPackage,
    /// Only packages that one of these keys signed.
    SignedBy(Vec<PublicKey>),
}

impl Policy {
    /// The key that lets the package through; `None` where none is asked for.
    ///
    /// Errors say why each signature does not count.
    pub fn admit(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        signatures: &[Signature],
    ) -> Result<Option<&PublicKey>, PackageError> {
        let Self::SignedBy(trusted) = self else { return Ok(None) };
        let mut refusals = Vec::new();
        for signature in signatures {
            match signature.verify(digest, manifest, trusted) {
                Ok(key) => return Ok(Some(key)),
                Err(error) => refusals.push(error.to_string()),
            }
        }
        let trusted = match trusted.as_slice() {
            [] => "no key is trusted".to_owned(),
            keys => format!("trusted: {}", keys.iter().map(PublicKey::label).collect::<Vec<_>>().join(", ")),
        };
        match refusals.is_empty() {
            true => Err(PackageError::Unsigned { package: *digest, trusted }),
            false => Err(PackageError::Refused { package: *digest, trusted, why: refusals.join("; ") }),
        }
    }
}
