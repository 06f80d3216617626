//! An OCI registry: the package is an artifact whose config is its manifest, so the config's digest is the package's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{
    ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex, OciImageManifest,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio_util::bytes::Bytes;
use tracing::warn;

use super::transfer::{Blob, Blobs, Reading, causes, manifest_blob, read_small, receive_package, send_files};
use super::{Direction, Progress, Pulled, Pushed, RemoteError};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::signing::Signature;
use crate::store::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES};
use crate::{Digest, MANIFEST, Store, VerifiedPackage};

/// What the artifact is.
const PACKAGE: &str = "application/vnd.highroad.package.v1";
/// The config: `manifest.json`.
const PACKAGE_MANIFEST: &str = "application/vnd.highroad.package.manifest.v1+json";
/// Each layer: a file.
const PACKAGE_FILE: &str = "application/vnd.highroad.package.file.v1";
/// A signature, as cosign and `model-signing` call it.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
/// Where clients such as oras find a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in a download; its whole length has no limit.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const USERNAME: &str = "HIGHROAD_OCI_USERNAME";
const PASSWORD: &str = "HIGHROAD_OCI_PASSWORD";
const TOKEN: &str = "HIGHROAD_OCI_TOKEN";

/// A repository of an OCI registry, and the tag or digest that is meant.
pub(super) struct Repository {
    reference: Reference,
    client: Client,
    auth: RegistryAuth,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({})", self.reference.whole())
    }
}

impl Repository {
    /// The repository of `address`, `oci://` and `rest`.
    pub fn open(address: &str, rest: &str, direction: Direction) -> Result<Self, RemoteError> {
        let refuse = |reason: String| RemoteError::Address { address: address.to_owned(), reason };
        let host = rest.split('/').next().unwrap_or_default();
        // Without this, `oci://moderation:7` would mean a repository of Docker Hub.
        if !rest.contains('/') || !(host.contains(['.', ':']) || host == "localhost") {
            return Err(refuse("expected `oci://HOST/REPOSITORY:TAG`".to_owned()));
        }
        let reference: Reference = rest.parse().map_err(|error: oci_client::ParseError| refuse(error.to_string()))?;
        let names_one = rest.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        if !names_one {
            return Err(refuse("it has neither a tag nor a digest: `oci://HOST/REPOSITORY:TAG`".to_owned()));
        }
        let host = reference.resolve_registry().to_owned();
        let protocol = match is_loopback(&host) {
            true => ClientProtocol::HttpsExcept(vec![host.clone()]),
            false => ClientProtocol::Https,
        };
        let config = ClientConfig {
            protocol,
            // One request a blob: in chunks, each would be an upload of a few MiB that waits for the one before.
            use_monolithic_push: true,
            user_agent: concat!("highroad/", env!("CARGO_PKG_VERSION")),
            connect_timeout: Some(CONNECT_TIMEOUT),
            // It runs from the beginning of a request, so it would end every long upload.
            read_timeout: (direction == Direction::Pull).then_some(READ_TIMEOUT),
            ..ClientConfig::default()
        };
        let auth = credentials(&host).map_err(|reason| refuse(reason.to_owned()))?;
        Ok(Self { reference, client: Client::new(config), auth })
    }

    pub async fn push(
        &self,
        package: &VerifiedPackage,
        signatures: &[Signature],
        progress: &Progress,
    ) -> Result<Pushed, RemoteError> {
        self.authenticate(RegistryOperation::Push).await?;
        let sent = send_files(self, package, progress).await?;
        let manifest = artifact(package)?;
        let bytes = canonical(&manifest)?;
        let artifact = descriptor(OCI_IMAGE_MEDIA_TYPE, &bytes);
        self.put_manifest(&self.reference, bytes, OCI_IMAGE_MEDIA_TYPE).await?;
        for signature in signatures {
            self.attach(signature, &artifact).await?;
        }
        let address = format!("oci://{}", self.at(&artifact.digest).whole());
        Ok(Pushed {
            address,
            package: package.digest(),
            sent: sent.sent,
            already_there: sent.already_there,
            sent_bytes: sent.sent_bytes,
        })
    }

    pub async fn pull(&self, store: &Store, progress: &Progress) -> Result<Pulled, RemoteError> {
        self.authenticate(RegistryOperation::Pull).await?;
        let accepted = [OCI_IMAGE_MEDIA_TYPE];
        let pulled = self.client.pull_manifest_raw(&self.reference, &self.auth, &accepted).await;
        let (bytes, artifact_digest) = pulled.map_err(|error| self.failed("send", "the package", error))?;
        let artifact: OciImageManifest = serde_json::from_slice(&bytes).map_err(|error| self.odd(error.to_string()))?;
        if artifact.artifact_type.as_deref() != Some(PACKAGE) {
            let found = artifact.artifact_type.unwrap_or(artifact.config.media_type);
            return Err(self.odd(format!("it is a `{found}`, not a `{PACKAGE}`")));
        }
        let digest: Digest = artifact.config.digest.parse().map_err(|error| self.odd(format!("{error}")))?;
        let size_bytes = u64::try_from(artifact.config.size).unwrap_or_default();
        let blob = Blob { file: MANIFEST.to_owned(), digest, size_bytes };
        let manifest = read_small(self, &blob, MAX_MANIFEST_BYTES).await?;
        let signatures = self.signatures(&artifact_digest).await?;
        receive_package(self, &digest, &manifest, &signatures, store, progress).await
    }

    /// Puts a signature into the repository as a referrer of the artifact, unless it is one already.
    async fn attach(&self, signature: &Signature, artifact: &OciDescriptor) -> Result<(), RemoteError> {
        for (file, bytes) in [("config", EMPTY), ("signature", signature.bytes())] {
            let blob = Blob { file: file.to_owned(), digest: Digest::of(bytes), size_bytes: bytes.len() as u64 };
            if !self.has(&blob).await? {
                let bytes = Bytes::copy_from_slice(bytes);
                self.send(&blob, futures_util::stream::once(async { Ok(bytes) }).boxed()).await?;
            }
        }
        let manifest = OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            artifact_type: Some(BUNDLE.to_owned()),
            config: descriptor(EMPTY_CONFIG, EMPTY),
            layers: vec![descriptor(BUNDLE, signature.bytes())],
            subject: Some(artifact.clone()),
            ..OciImageManifest::default()
        };
        let bytes = canonical(&manifest)?;
        let entry = ImageIndexEntry {
            media_type: OCI_IMAGE_MEDIA_TYPE.to_owned(),
            digest: Digest::of(&bytes).to_string(),
            size: length(&bytes),
            platform: None,
            annotations: None,
            artifact_type: Some(BUNDLE.to_owned()),
        };
        self.put_manifest(&self.at(&entry.digest), bytes, OCI_IMAGE_MEDIA_TYPE).await?;
        let listed = self.referrers(&artifact.digest, None).await?;
        if listed.iter().any(|known| known.digest == entry.digest) {
            return Ok(());
        }
        self.list_by_tag(&artifact.digest, entry).await
    }

    /// Adds to the list of referrers that clients keep under a tag where the registry keeps none (distribution-spec 1.1).
    async fn list_by_tag(&self, artifact: &str, entry: ImageIndexEntry) -> Result<(), RemoteError> {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        let tag = artifact.replace(':', "-");
        let list = Reference::with_tag(registry.to_owned(), repository.to_owned(), tag);
        let pulled = self.client.pull_manifest_raw(&list, &self.auth, &[OCI_IMAGE_INDEX_MEDIA_TYPE]).await;
        // Only where there is none may a new list begin: after any other failure it would drop what others put there.
        let mut index = match pulled.map_err(|error| self.failed("send", "the list of signatures", error)) {
            Ok((bytes, _)) => serde_json::from_slice(&bytes).map_err(|error| self.odd(error.to_string()))?,
            Err(RemoteError::NotFound { .. }) => OciImageIndex {
                schema_version: 2,
                media_type: Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned()),
                manifests: Vec::new(),
                artifact_type: None,
                annotations: None,
            },
            Err(error) => return Err(error),
        };
        if index.manifests.iter().any(|known| known.digest == entry.digest) {
            return Ok(());
        }
        index.manifests.push(entry);
        self.put_manifest(&list, canonical(&index)?, OCI_IMAGE_INDEX_MEDIA_TYPE).await
    }

    /// The signatures that refer to the artifact; those that cannot be read are left out, since anybody who may push may put
    /// some.
    async fn signatures(&self, artifact: &str) -> Result<Vec<Signature>, RemoteError> {
        let mut signatures = Vec::new();
        for entry in self.referrers(artifact, Some(BUNDLE)).await?.into_iter().take(MAX_SIGNATURES) {
            match self.signature(&entry.digest).await {
                Ok(signature) => signatures.push(signature),
                Err(error) => warn!("Passing over signature {} of {artifact}: {error}", entry.digest),
            }
        }
        Ok(signatures)
    }

    async fn signature(&self, manifest: &str) -> Result<Signature, RemoteError> {
        let pulled = self.client.pull_manifest_raw(&self.at(manifest), &self.auth, &[OCI_IMAGE_MEDIA_TYPE]).await;
        let (bytes, _) = pulled.map_err(|error| self.failed("send", "a signature", error))?;
        let manifest: OciImageManifest = serde_json::from_slice(&bytes).map_err(|error| self.odd(error.to_string()))?;
        let [layer] = manifest.layers.as_slice() else {
            return Err(self.odd("a signature has not one layer".to_owned()));
        };
        let digest: Digest = layer.digest.parse().map_err(|error| self.odd(format!("{error}")))?;
        let size_bytes = u64::try_from(layer.size).unwrap_or_default();
        let blob = Blob { file: "signature".to_owned(), digest, size_bytes };
        Ok(Signature::parse(read_small(self, &blob, MAX_SIGNATURE_BYTES).await?)?)
    }

    async fn referrers(&self, artifact: &str, kind: Option<&str>) -> Result<Vec<ImageIndexEntry>, RemoteError> {
        let index = self.client.pull_referrers(&self.at(artifact), kind).await;
        Ok(index.map_err(|error| self.failed("list", "what refers to the package", error))?.manifests)
    }

    async fn authenticate(&self, operation: RegistryOperation) -> Result<(), RemoteError> {
        let done = self.client.auth(&self.reference, &self.auth, operation).await;
        // The token that is given back stays in the client.
        done.map(drop).map_err(|error| self.failed("accept", "the login", error))?;
        if operation == RegistryOperation::Push {
            let pull = self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await;
            pull.map(drop).map_err(|error| self.failed("accept", "the login", error))?;
        }
        Ok(())
    }

    async fn put_manifest(&self, to: &Reference, bytes: Vec<u8>, media_type: &'static str) -> Result<(), RemoteError> {
        let media_type = reqwest::header::HeaderValue::from_static(media_type);
        let put = self.client.push_manifest_raw(to, bytes, media_type).await;
        put.map(drop).map_err(|error| self.failed("store", "a manifest", error))
    }

    fn at(&self, digest: &str) -> Reference {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        Reference::with_digest(registry.to_owned(), repository.to_owned(), digest.to_owned())
    }

    /// What went wrong when the registry was asked to do `asked` with `what`.
    fn failed(&self, asked: &str, what: &str, error: OciDistributionError) -> RemoteError {
        let absent = || RemoteError::NotFound { place: self.place(), what: what.to_owned() };
        let reason = match error {
            OciDistributionError::ImageManifestNotFoundError(_) => return absent(),
            OciDistributionError::RegistryError { envelope, .. } => {
                if envelope.errors.iter().any(|error| is_absence(&error.code)) {
                    return absent();
                }
                envelope.errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join("; ")
            }
            OciDistributionError::RequestError(error) => match error.status().map(|status| status.as_u16()) {
                Some(401 | 403) => other_credentials(),
                _ => causes(&error.without_url()),
            },
            OciDistributionError::UnauthorizedError { .. } => other_credentials(),
            other => causes(&other),
        };
        RemoteError::Transfer { place: self.place(), asked: format!("{asked} {what}"), reason }
    }

    fn odd(&self, reason: String) -> RemoteError {
        RemoteError::NotAPackage { place: self.place(), reason }
    }
}

impl Blobs for Repository {
    fn place(&self) -> String {
        format!("oci://{}", self.reference.whole())
    }

    async fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        let there = self.client.blob_exists(&self.reference, &blob.digest.to_string()).await;
        there.map_err(|error| self.failed("say whether it has", &format!("`{}`", blob.file), error))
    }

    async fn send(&self, blob: &Blob, content: BoxStream<'static, std::io::Result<Bytes>>) -> Result<(), RemoteError> {
        let content = content.map_err(OciDistributionError::from);
        let digest = blob.digest.to_string();
        let sent = self.client.push_blob_stream(&self.reference, content, &digest, Some(blob.size_bytes)).await;
        sent.map(drop).map_err(|error| self.failed("store", &format!("`{}`", blob.file), error))
    }

    async fn read(&self, blob: &Blob, offset: u64) -> Result<Reading, RemoteError> {
        let digest = blob.digest.to_string();
        let layer = OciDescriptor { digest, ..OciDescriptor::default() };
        let answer = self.client.pull_blob_stream_partial(&self.reference, &layer, offset, None).await;
        match answer.map_err(|error| self.failed("send", &format!("`{}`", blob.file), error))? {
            BlobResponse::Full(stream) => Ok(Reading::Whole(stream.stream)),
            BlobResponse::Partial(stream) => Ok(Reading::Rest(stream.stream)),
        }
    }
}

/// The artifact of a package. It holds no time, so one package has one artifact digest.
fn artifact(package: &VerifiedPackage) -> Result<OciImageManifest, RemoteError> {
    let manifest = package.manifest();
    let manifest_bytes = manifest.canonical()?;
    let blob = manifest_blob(&package.digest(), &manifest_bytes);
    let layers = manifest.files.iter().map(Blob::from).chain([blob]);
    Ok(OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        artifact_type: Some(PACKAGE.to_owned()),
        config: descriptor(PACKAGE_MANIFEST, &manifest_bytes),
        layers: layers.map(|blob| layer(&blob)).collect(),
        annotations: Some(BTreeMap::from([
            (TITLE.to_owned(), manifest.name.clone()),
            ("org.opencontainers.image.licenses".to_owned(), manifest.licence.clone()),
            ("org.opencontainers.image.authors".to_owned(), manifest.owner.clone()),
        ])),
        ..OciImageManifest::default()
    })
}

fn layer(blob: &Blob) -> OciDescriptor {
    OciDescriptor {
        media_type: PACKAGE_FILE.to_owned(),
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size_bytes).unwrap_or(i64::MAX),
        annotations: Some(BTreeMap::from([(TITLE.to_owned(), blob.file.clone())])),
        ..OciDescriptor::default()
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    let (media_type, digest) = (media_type.to_owned(), Digest::of(bytes).to_string());
    OciDescriptor { media_type, digest, size: length(bytes), ..OciDescriptor::default() }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

fn canonical(value: &impl serde::Serialize) -> Result<Vec<u8>, RemoteError> {
    serde_json_canonicalizer::to_vec(value)
        .map_err(|error| crate::PackageError::Manifest { reason: error.to_string() }.into())
}

fn other_credentials() -> String {
    format!("it wants other credentials: set {USERNAME} and {PASSWORD}, or log in with `docker login`")
}

fn is_absence(code: &OciErrorCode) -> bool {
    matches!(code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::BlobUnknown)
}

/// Whether a registry is on this machine, where it may speak without TLS, as for Docker.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// The login for `host`: variables first, then what `docker login` left.
fn credentials(host: &str) -> Result<RegistryAuth, &'static str> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (env(TOKEN), env(USERNAME)) {
        (Some(token), _) => return Ok(RegistryAuth::Bearer(token)),
        (None, Some(user)) => return Ok(RegistryAuth::Basic(user, env(PASSWORD).unwrap_or_default())),
        (None, None) => {}
    }
    let Some(config) = docker_config() else { return Ok(RegistryAuth::Anonymous) };
    // Docker's own name for its hub.
    let server = if host == "index.docker.io" { "https://index.docker.io/v1/" } else { host };
    match docker_credential::get_credential_from_reader(BufReader::new(config), server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => {
            Err("Docker's configuration has an identity token for it, which is not supported: use a user and password")
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(RegistryAuth::Anonymous),
        // What every helper says by docker-credential-helpers where it has nothing.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            Ok(RegistryAuth::Anonymous)
        }
        // What a helper prints may hold secrets.
        Err(_) => Err("its credentials cannot be read from Docker's configuration"),
    }
}

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`, where there is one.
fn docker_config() -> Option<File> {
    let named = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = named.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".docker")))?;
    File::open(dir.join("config.json")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Repository, RemoteError> {
        Repository::open(&format!("oci://{rest}"), rest, Direction::Pull)
    }

    #[test]
    fn a_repository_has_a_host_and_a_tag_or_a_digest() {
        for good in ["127.0.0.1:5000/models/router:7", "registry.example.com/router:champion"] {
            assert_eq!(parse(good).unwrap().reference.whole(), good);
        }
        for bad in ["router:7", "models/router:7", "127.0.0.1:5000/router", "127.0.0.1:5000", "", "h.example/Router:7"]
        {
            assert!(matches!(parse(bad), Err(RemoteError::Address { .. })), "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["registry.example.com", "10.0.0.1:5000", "localhost.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
