use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{PublicKey, SigningKey};
use crate::{Digest, MANIFEST, Manifest, PackageError, VerifiedPackage};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD: &str = "application/vnd.in-toto+json";
pub(super) const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";
/// Largest bundle that is read: it lists digests, not content.
const MAX_BUNDLE_BYTES: u64 = 1 << 20;

/// A signature over every file of a package: a Sigstore bundle as `model-signing` 1.x writes and reads it.
///
/// Having one proves nothing; [`Signature::verify`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    bytes: Vec<u8>,
    bundle: Bundle,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: KeyHint,
    // The tool's own reader wants the list, empty where there is no transparency log.
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyHint {
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EnvelopeSignature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

impl Signature {
    /// Signs a package whose every byte was just compared.
    pub fn sign(package: &VerifiedPackage, key: &SigningKey) -> Result<Self, PackageError> {
        let resources = resources(&package.digest(), package.manifest());
        let statement = Statement {
            kind: STATEMENT.to_owned(),
            subject: vec![Subject {
                name: package.manifest().name.clone(),
                digest: SubjectDigest { sha256: root_digest(&resources)? },
            }],
            predicate_type: PREDICATE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                },
                resources,
            },
        };
        let payload = serde_json::to_vec(&statement).map_err(|error| malformed(error.to_string()))?;
        let bundle = Bundle::seal(&payload, key)?;
        Ok(Self { bytes: bundle.to_bytes()?, bundle })
    }

    /// Reads a bundle; what it says is not checked yet. Errors if it is over 1 MiB or no bundle of one signature by a key.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, PackageError> {
        let bundle = Bundle::parse(&bytes, MAX_BUNDLE_BYTES)?;
        Ok(Self { bytes, bundle })
    }

    /// The signature in the file at `path`.
    pub fn read(path: &Path) -> Result<Self, PackageError> {
        let file = File::open(path).map_err(PackageError::io(path))?;
        let mut bytes = Vec::new();
        file.take(MAX_BUNDLE_BYTES + 1).read_to_end(&mut bytes).map_err(PackageError::io(path))?;
        Self::parse(bytes).map_err(|error| match error {
            PackageError::Signature { reason } => {
                PackageError::Signature { reason: format!("`{}`: {reason}", path.display()) }
            }
            other => other,
        })
    }

    /// Where the signature of the package directory `dir` lies: `dir.sig`.
    pub fn path_beside(dir: &Path) -> PathBuf {
        // `.` and `a/..` have no name of their own.
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let mut name = OsString::from(dir);
        name.push(".sig");
        name.into()
    }

    /// The signature beside the package directory `dir`; `None` if there is no such file.
    pub fn beside(dir: &Path) -> Result<Option<Self>, PackageError> {
        match Self::read(&Self::path_beside(dir)) {
            Ok(signature) => Ok(Some(signature)),
            Err(PackageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest of the file's bytes, which names it in stores.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// Id of the key it says it is by, unchecked.
    pub fn claimed_key(&self) -> &str {
        self.bundle.claimed_key()
    }

    /// The one of `keys` that signed exactly the package `digest` with this manifest.
    ///
    /// Errors if none of them made the signature, or, naming the file, if it is over other files or other content.
    pub fn verify<'a>(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        keys: &'a [PublicKey],
    ) -> Result<&'a PublicKey, PackageError> {
        let (payload, signer) = self.bundle.open(keys)?;
        let statement: Statement = serde_json::from_slice(&payload).map_err(|error| malformed(error.to_string()))?;
        covers(&statement, &resources(digest, manifest))?;
        Ok(signer)
    }
}

impl Bundle {
    /// `payload`, an in-toto statement, signed.
    pub(super) fn seal(payload: &[u8], key: &SigningKey) -> Result<Self, PackageError> {
        let signature = key.sign(&pre_authentication(payload))?;
        Ok(Self {
            media_type: BUNDLE.to_owned(),
            verification_material: Material {
                public_key: KeyHint { hint: Some(key.public().id().to_string()) },
                tlog_entries: Vec::new(),
            },
            dsse_envelope: Envelope {
                payload: BASE64.encode(payload),
                payload_type: PAYLOAD.to_owned(),
                signatures: vec![EnvelopeSignature { sig: BASE64.encode(signature), keyid: String::new() }],
            },
        })
    }

    /// Reads a bundle of at most `max_bytes`; what it says is not checked yet.
    pub(super) fn parse(bytes: &[u8], max_bytes: u64) -> Result<Self, PackageError> {
        if bytes.len() as u64 > max_bytes {
            return Err(malformed(format!("it has more than {max_bytes} bytes")));
        }
        let bundle: Self = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let n_signatures = bundle.dsse_envelope.signatures.len();
        if bundle.media_type != BUNDLE || bundle.dsse_envelope.payload_type != PAYLOAD || n_signatures != 1 {
            return Err(malformed(format!("it is not one signature in a `{BUNDLE}` over a `{PAYLOAD}`")));
        }
        Ok(bundle)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, PackageError> {
        serde_json::to_vec(self).map_err(|error| malformed(error.to_string()))
    }

    /// The payload, and the one of `keys` that signed it. Errors if none did.
    pub(super) fn open<'a>(&self, keys: &'a [PublicKey]) -> Result<(Vec<u8>, &'a PublicKey), PackageError> {
        let payload = decode("payload", &self.dsse_envelope.payload)?;
        let signature = decode("sig", &self.dsse_envelope.signatures[0].sig)?;
        let hint = self.verification_material.public_key.hint.as_deref();
        let claimed: Vec<&PublicKey> = keys.iter().filter(|key| hint.is_none_or(|hint| key.id() == *hint)).collect();
        if claimed.is_empty() {
            return Err(PackageError::UntrustedKey { claimed: self.claimed_key().to_owned() });
        }
        let message = pre_authentication(&payload);
        let signer = claimed.into_iter().find(|key| key.signed(&message, &signature));
        let signer = signer.ok_or_else(|| PackageError::Forged { claimed: self.claimed_key().to_owned() })?;
        Ok((payload, signer))
    }

    fn claimed_key(&self) -> &str {
        self.verification_material.public_key.hint.as_deref().unwrap_or("a key it does not name")
    }
}

/// What the signature is over, by DSSE v1: type and length before the payload, so that no other reading of the bytes fits.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {PAYLOAD} {} ", PAYLOAD.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

/// Every file of the package with its digest, the manifest too, sorted by name.
fn resources(digest: &Digest, manifest: &Manifest) -> Vec<Resource> {
    let resource = |name: &str, digest: &Digest| Resource {
        name: name.to_owned(),
        algorithm: "sha256".to_owned(),
        digest: digest.hex(),
    };
    let mut resources: Vec<Resource> =
        manifest.files.iter().map(|entry| resource(&entry.path, &entry.digest)).collect();
    resources.push(resource(MANIFEST, digest));
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    resources
}

/// SHA-256 over the digests in their order, as `model-signing` names a model.
fn root_digest(resources: &[Resource]) -> Result<String, PackageError> {
    let mut hasher = Sha256::new();
    for resource in resources {
        let digest = hex::decode(&resource.digest);
        hasher.update(digest.map_err(|_| malformed(format!("the digest of `{}` is not hexadecimal", resource.name)))?);
    }
    Ok(Digest::finish(hasher).hex())
}

/// Errors unless `statement` is about exactly `expected`, naming the first file that differs.
fn covers(statement: &Statement, expected: &[Resource]) -> Result<(), PackageError> {
    let Predicate { serialization, resources } = &statement.predicate;
    if statement.kind != STATEMENT || statement.predicate_type != PREDICATE || serialization.method != "files" {
        return Err(malformed(format!("it is no statement of files as `{PREDICATE}` says")));
    }
    let [subject] = statement.subject.as_slice() else {
        return Err(malformed("it is not about one model".to_owned()));
    };
    if subject.digest.sha256 != root_digest(resources)? {
        return Err(malformed("its files do not have the digest it names".to_owned()));
    }
    let named = |list: &[Resource], name: &str| list.iter().find(|resource| resource.name == name).cloned();
    for resource in expected {
        match named(resources, &resource.name) {
            None => return Err(signed_other(&resource.name, "it leaves that file out")),
            Some(signed) if signed != *resource => {
                return Err(signed_other(&resource.name, "it is over another content"));
            }
            Some(_) => {}
        }
    }
    let extra = resources.iter().find(|resource| named(expected, &resource.name).is_none());
    match extra {
        Some(extra) => Err(signed_other(&extra.name, "the package has no such file")),
        // Two entries of one name: the first was compared, so the second must not say something else.
        None if resources.len() != expected.len() => Err(malformed("it names a file twice".to_owned())),
        None => Ok(()),
    }
}

fn signed_other(file: &str, what: &'static str) -> PackageError {
    PackageError::SignedOther { file: file.to_owned(), what }
}

fn decode(field: &str, text: &str) -> Result<Vec<u8>, PackageError> {
    BASE64.decode(text).map_err(|_| malformed(format!("`{field}` is not base64")))
}

pub(super) fn malformed(reason: String) -> PackageError {
    PackageError::Signature { reason }
}
