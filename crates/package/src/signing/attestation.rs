use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bundle::{Bundle, STATEMENT, malformed};
use super::{PublicKey, SigningKey};
use crate::{Digest, PackageError};

/// Largest bundle that is read: it holds a whole document.
const MAX_BUNDLE_BYTES: u64 = 64 << 20;

/// What somebody says about artifacts: an [in-toto statement](https://in-toto.io/Statement/v1) of any predicate.
#[derive(Clone, Debug, PartialEq)]
pub struct Attestation {
    /// The artifacts by name.
    pub subjects: BTreeMap<String, Digest>,
    /// What kind of thing is said: a URI.
    pub predicate_type: String,
    /// What is said.
    pub predicate: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Value,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

impl Attestation {
    /// The statement signed, as the bytes of a Sigstore bundle (DSSE).
    pub fn sign(self, key: &SigningKey) -> Result<Vec<u8>, PackageError> {
        let subject = |(name, digest): (String, Digest)| Subject {
            name,
            digest: [("sha256".to_owned(), digest.hex().to_string())].into(),
        };
        let statement = Statement {
            kind: STATEMENT.to_owned(),
            subject: self.subjects.into_iter().map(subject).collect(),
            predicate_type: self.predicate_type,
            predicate: self.predicate,
        };
        let payload = serde_json::to_vec(&statement).map_err(|error| malformed(error.to_string()))?;
        Bundle::seal(&payload, key)?.to_bytes()
    }

    /// What a bundle says, and the one of `keys` that signed it. Errors if none did, or if it is no such statement.
    pub fn verify<'a>(bytes: &[u8], keys: &'a [PublicKey]) -> Result<(Self, &'a PublicKey), PackageError> {
        let (payload, signer) = Bundle::parse(bytes, MAX_BUNDLE_BYTES)?.open(keys)?;
        let statement: Statement = serde_json::from_slice(&payload).map_err(|error| malformed(error.to_string()))?;
        if statement.kind != STATEMENT {
            return Err(malformed(format!("it is no `{STATEMENT}`")));
        }
        let subject = |subject: Subject| {
            let digest = subject.digest.get("sha256").and_then(|hex| format!("sha256:{hex}").parse().ok());
            let digest = digest.ok_or_else(|| malformed(format!("`{}` has no SHA-256", subject.name)))?;
            Ok((subject.name, digest))
        };
        let subjects = statement.subject.into_iter().map(subject).collect::<Result<_, PackageError>>()?;
        let Statement { predicate_type, predicate, .. } = statement;
        Ok((Self { subjects, predicate_type, predicate }, signer))
    }
}
