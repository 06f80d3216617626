//! A registry of packages: a client of the MLflow REST interface, Highroad's own server or another.
//!
//! A pushed package is a model version: its files are artifacts under `highroad/packages/<hex>/`, its verdicts under
//! `highroad/verdicts/<hex>/`, its overrides under `highroad/overrides/<hex>/`, its baselines under `highroad/baselines/<hex>/`, its signatures under
//! `highroad/signatures/<hex>/`, and tags tie them together. What comes back is verified byte by byte, so a registry is trusted with names and aliases, never with content.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use tracing::warn;

use crate::signing::Signature;
use crate::store::{MAX_BASELINE_BYTES, MAX_SIGNATURES};
use crate::{Digest, MANIFEST, Manifest, PackageError, Reference, Selector, Store, VerifiedPackage};

pub mod dependents;
mod models;
mod runs;
pub mod trail;

pub use models::{ModelVersion, RegisteredModel};
pub use runs::{Dataset, NewRun, Point, Run, RunFile, RunQuery, RunStatus};

/// Tag of a version: digest of its package.
pub const PACKAGE_TAG: &str = "highroad.package";
/// Tag of a version: what the package is for.
pub const TASK_TAG: &str = "highroad.task";
/// Tag of a version: digest of the verdict that counts.
pub const VERDICT_TAG: &str = "highroad.verdict";
/// Tag of a version: `pass`, `fail` or `inconclusive`.
pub const OUTCOME_TAG: &str = "highroad.outcome";
/// Tag of a version: digest of its newest baseline for monitoring.
pub const BASELINE_TAG: &str = "highroad.baseline";
/// Where baselines lie among the artifacts, and how many of a package are read.
const BASELINES: &str = "highroad/baselines";
const MAX_BASELINES: usize = 16;
/// Tag of a version, followed by an alias: digest of the override that lets the alias name it.
pub const OVERRIDE_TAG: &str = "highroad.override.";
/// Longest value of a tag of a registered model that the databases of MLflow keep.
pub const MAX_MODEL_TAG_BYTES: usize = 5000;
/// Largest override that is read.
pub const MAX_OVERRIDE_BYTES: usize = 64 << 10;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in a transfer; its whole length has no limit.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most that MLflow gives at once.
const MODELS_PER_PAGE: &str = "1000";
/// As many as every MLflow server gives at once.
const VERSIONS_PER_PAGE: &str = "1000";
const CHUNK_BYTES: usize = 256 << 10;
/// Largest JSON reply that is read.
const MAX_REPLY_BYTES: usize = 64 << 20;
/// Largest verdict that is read.
const MAX_VERDICT_BYTES: usize = 16 << 20;
/// Largest signature that is read.
const MAX_SIGNATURE_BYTES: usize = 1 << 20;
/// Folder of the signatures, one folder in it for each package.
const SIGNATURES: &str = "highroad/signatures";

/// Why a registry did not do what was asked. The first three name the server and the request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RegistryError {
    #[error("cannot reach the tracking server at {server} to {asked}")]
    Unreachable { server: String, asked: String, source: reqwest::Error },
    #[error("the tracking server at {server} refused to {asked}: {message}")]
    Refused { server: String, asked: String, status: u16, code: String, message: String },
    #[error("the tracking server at {server} answered in an unknown form when asked to {asked}: {reason}")]
    Reply { server: String, asked: String, reason: String },
    #[error("`{0}` is not the address of a tracking server: expected `http://HOST:PORT` or `https://HOST`")]
    Uri(String),
    #[error("`{0}` is not in the registry")]
    NotFound(String),
    #[error("`{0}` is in the registry but is not a Highroad package")]
    NotAPackage(String),
    #[error(
        "the server at {0} is an MLflow server without Highroad's gate: whoever moves an alias there has to check the verdict"
    )]
    NoGate(String),
    #[error(
        "the record of a move of `{name}@{alias}` would have {found} bytes, and MLflow keeps {limit}: shorten its reason"
    )]
    LongRecord { name: String, alias: String, found: usize, limit: usize },
    #[error("tag `{key}` of `{name}` would have {found} bytes, and MLflow keeps {limit}")]
    LongTag { name: String, key: String, found: usize, limit: usize },
    #[error(
        "the tracking server at {server} keeps the files of run {run_id} at `{uri}` and does not hand them through: \
         start it with `--serve-artifacts`"
    )]
    NotProxied { server: String, run_id: String, uri: String },
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// Who the client says it is.
#[derive(Clone)]
pub enum Credentials {
    /// `Authorization: Bearer …`
    Bearer(String),
    /// User and password.
    Basic(String, String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// A client of one tracking server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    server: String,
    http: reqwest::Client,
    /// For what takes long to send: a read timeout runs from the beginning of a request and would end it.
    uploads: reqwest::Client,
    credentials: Option<Credentials>,
}

/// A version of a registered model that holds a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResolvedVersion {
    /// Registered model.
    pub name: String,
    /// Version number.
    pub version: u64,
    /// What it holds.
    pub package: Digest,
    /// The verdict that counts.
    pub verdict: Option<Digest>,
    /// `pass`, `fail` or `inconclusive`, as tagged.
    pub outcome: Option<String>,
    /// The run that trained it.
    pub run_id: Option<String>,
    /// Digest of the override for an alias, by alias.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<String, Digest>,
}

impl ResolvedVersion {
    /// `name:7`
    pub fn label(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }
}

/// A verdict to be pushed. Its content is `highroad-eval`'s; here it is bytes.
#[derive(Clone, Debug)]
pub struct VerdictFile {
    /// The file.
    pub bytes: Vec<u8>,
    /// `pass`, `fail` or `inconclusive`.
    pub outcome: String,
}

/// A promotion: which version gets which alias, who wants it, why, and how the rehearsal of the way back went.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Promotion {
    pub name: String,
    pub version: u64,
    pub alias: String,
    pub by: String,
    pub why: String,
    pub rehearsal: Value,
}

/// A return to what an alias named before.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Rollback {
    pub name: String,
    pub alias: String,
    pub by: String,
    pub why: String,
}

/// One entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AliasMove {
    /// Counts up over the whole server.
    pub move_id: u64,
    /// Milliseconds since 1970, UTC.
    pub at: i64,
    /// Registered model.
    pub model: String,
    /// The alias; empty where a model got another name.
    pub alias: String,
    /// `promote`, `override`, `rollback`, `set`, `remove`, `delete-version`, `delete-model` or `rename`.
    pub action: String,
    /// Version before.
    pub from: Option<u64>,
    /// Version since; none if the alias was removed.
    pub to: Option<u64>,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// Package since.
    pub package: Option<Digest>,
    /// The verdict that admitted it.
    pub verdict: Option<Digest>,
    /// The override that let it through where no verdict did; its content is `highroad-eval`'s.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<Value>,
    /// What the rehearsal found.
    pub rehearsal: Option<Value>,
    /// What has to be told although it was admitted: the verdict compares with something else than the alias named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
    /// The name the model had before, where it got another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
}

impl AliasMove {
    /// When, RFC 3339 in UTC, whole seconds.
    pub fn at_rfc3339(&self) -> Option<String> {
        let at = jiff::Timestamp::from_millisecond(self.at).ok()?;
        Some(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

/// Told of each piece that was sent or received, in bytes.
pub type Progress<'a> = dyn Fn(u64) + Send + Sync + 'a;

impl RegistryClient {
    /// A client of the server at `tracking_uri`: `http://HOST:PORT` or `https://HOST[/PREFIX]`. Nothing is asked yet.
    pub fn new(tracking_uri: &str) -> Result<Self, RegistryError> {
        let refuse = || RegistryError::Uri(tracking_uri.to_owned());
        let url = reqwest::Url::parse(tracking_uri).map_err(|_| refuse())?;
        let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")).ok_or_else(refuse)?;
        // A proxy cannot reach this machine's loopback.
        let is_local = host == "localhost"
            || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let client = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("highroad/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT);
            if is_local { builder.no_proxy() } else { builder }
        };
        let failed = |source| RegistryError::Unreachable {
            server: tracking_uri.to_owned(),
            asked: "prepare a connection".to_owned(),
            source,
        };
        Ok(Self {
            server: tracking_uri.trim_end_matches('/').to_owned(),
            http: client().read_timeout(READ_TIMEOUT).build().map_err(failed)?,
            uploads: client().tcp_keepalive(READ_TIMEOUT).build().map_err(failed)?,
            credentials: None,
        })
    }

    /// The same client with a login.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Option<Credentials>) -> Self {
        self.credentials = credentials;
        self
    }

    /// Address of the server.
    pub fn uri(&self) -> &str {
        &self.server
    }

    /// The version a reference means now. A digest means the newest version that holds it.
    pub async fn resolve(&self, reference: &Reference) -> Result<ResolvedVersion, RegistryError> {
        let found = match &reference.selector {
            Selector::Version(number) => {
                let query = [("name", reference.name.as_str()), ("version", &number.to_string())];
                self.version("model-versions/get", &query, &reference.to_string()).await?
            }
            Selector::Alias(alias) => {
                let query = [("name", reference.name.as_str()), ("alias", alias)];
                self.version("registered-models/alias", &query, &reference.to_string()).await?
            }
            Selector::Digest(digest) => self.version_of(&reference.name, digest).await?,
        };
        let found = found.ok_or_else(|| RegistryError::NotFound(reference.to_string()))?;
        found.resolved().ok_or_else(|| RegistryError::NotAPackage(reference.to_string()))
    }

    /// Brings the package to `store` and verifies every byte; one that is there already is only verified.
    pub async fn fetch(
        &self,
        version: &ResolvedVersion,
        store: &Store,
        progress: &Progress<'_>,
    ) -> Result<VerifiedPackage, RegistryError> {
        if let Ok(package) = blocking(store, version.package, |store, digest| store.get(&digest)).await {
            return Ok(package);
        }
        let signatures = self.signatures(&version.package).await?;
        let manifest = self.manifest(&version.package).await?;
        // Before the weights travel.
        store.admit(&version.package, &manifest, &signatures)?;
        for signature in &signatures {
            store.add_signature(&version.package, signature)?;
        }
        if !blocking(store, version.package, |store, digest| Ok(store.holds(&digest))).await? {
            self.download_package(&version.package, &manifest, store, progress).await?;
        }
        Ok(blocking(store, version.package, |store, digest| store.get(&digest)).await?)
    }

    async fn download_package(
        &self,
        package: &Digest,
        manifest: &Manifest,
        store: &Store,
        progress: &Progress<'_>,
    ) -> Result<(), RegistryError> {
        let staged = tempfile::tempdir().map_err(PackageError::io(std::env::temp_dir()))?;
        let folder = format!("highroad/packages/{}", package.hex());
        let path = staged.path().join(MANIFEST);
        tokio::fs::write(&path, manifest.canonical()?).await.map_err(PackageError::io(path))?;
        for entry in &manifest.files {
            let path = staged.path().join(&entry.path);
            let found =
                self.download_to(&format!("{folder}/{}", entry.path), &path, entry.size_bytes, progress).await?;
            if found != entry.digest {
                return Err(PackageError::Changed { file: entry.path.clone(), expected: entry.digest, found }.into());
            }
        }
        let dir = staged.path().to_owned();
        Ok(blocking(store, *package, move |store, _| store.add(&dir).map(drop)).await?)
    }

    /// Puts signatures of a package beside it.
    pub async fn push_signatures(&self, package: &Digest, signatures: &[Signature]) -> Result<(), RegistryError> {
        for signature in signatures {
            let bytes = signature.bytes().to_vec();
            let size_bytes = bytes.len() as u64;
            self.upload(&signature_path(package, &signature.digest()), bytes.into(), size_bytes).await?;
        }
        Ok(())
    }

    /// The signatures of a package, whoever made them; those that cannot be read are left out, since anybody may put some.
    pub async fn signatures(&self, package: &Digest) -> Result<Vec<Signature>, RegistryError> {
        let folder = format!("{SIGNATURES}/{}", package.hex());
        let mut signatures = Vec::new();
        for file in self.list(&folder).await?.into_iter().take(MAX_SIGNATURES) {
            let bytes = self.download(&format!("{folder}/{}", file.path), MAX_SIGNATURE_BYTES).await?;
            match Signature::parse(bytes) {
                Ok(signature) => signatures.push(signature),
                Err(error) => warn!(package.digest = %package, "Passing over `{folder}/{}`: {error}", file.path),
            }
        }
        Ok(signatures)
    }

    /// The verdict of a version, compared with its digest; `None` if it has none.
    pub async fn fetch_verdict(&self, version: &ResolvedVersion) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(digest) = version.verdict else { return Ok(None) };
        let path = verdict_path(&version.package, &digest);
        let bytes = self.download(&path, MAX_VERDICT_BYTES).await?;
        match Digest::of(&bytes) {
            found if found == digest => Ok(Some(bytes)),
            found => Err(PackageError::Changed { file: path, expected: digest, found }.into()),
        }
    }

    /// Keeps a baseline for monitoring beside the package and tags the version with its digest; the newest is the one that counts.
    pub async fn push_baseline(&self, version: &ResolvedVersion, bytes: Vec<u8>) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let size_bytes = bytes.len() as u64;
        let path = format!("{BASELINES}/{}/{}.json", version.package.hex(), digest.hex());
        self.upload(&path, bytes.into(), size_bytes).await?;
        self.set_version_tag(&version.name, version.version, BASELINE_TAG, &digest.to_string()).await?;
        Ok(digest)
    }

    /// The baselines of a package, each compared with the digest in its name; the newest are as good as any where there are many.
    pub async fn baselines(&self, package: &Digest) -> Result<Vec<Vec<u8>>, RegistryError> {
        let folder = format!("{BASELINES}/{}", package.hex());
        let mut baselines = Vec::new();
        for file in self.list(&folder).await?.into_iter().take(MAX_BASELINES) {
            let bytes = self.download(&format!("{folder}/{}", file.path), MAX_BASELINE_BYTES as usize).await?;
            match file.path.strip_suffix(".json") {
                Some(name) if name == Digest::of(&bytes).hex().as_str() => baselines.push(bytes),
                _ => {
                    warn!(package.digest = %package, "Passing over `{folder}/{}`: its name is not its digest", file.path)
                }
            }
        }
        Ok(baselines)
    }

    /// The override that lets `alias` name a version, compared with its digest; `None` if there is none.
    pub async fn fetch_override(
        &self,
        version: &ResolvedVersion,
        alias: &str,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(digest) = version.overrides.get(alias) else { return Ok(None) };
        let path = override_path(&version.package, digest);
        let bytes = self.download(&path, MAX_OVERRIDE_BYTES).await?;
        match Digest::of(&bytes) {
            found if found == *digest => Ok(Some(bytes)),
            found => Err(PackageError::Changed { file: path, expected: *digest, found }.into()),
        }
    }

    /// Keeps an override beside the package and ties it to the version; it replaces the one for the same alias.
    pub async fn push_override(
        &self,
        version: &ResolvedVersion,
        alias: &str,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let size_bytes = bytes.len() as u64;
        self.upload(&override_path(&version.package, &digest), bytes.into(), size_bytes).await?;
        self.set_version_tag(&version.name, version.version, &override_tag(alias), &digest.to_string()).await?;
        Ok(digest)
    }

    /// Makes `package` a version of `name` and uploads its verdicts; the last of them is the one that counts.
    ///
    /// One package is one version: pushing it again to the same name uploads what is missing, updates the verdict and
    /// returns the version that is there.
    pub async fn push(
        &self,
        package: &VerifiedPackage,
        name: &str,
        verdicts: &[VerdictFile],
        progress: &Progress<'_>,
    ) -> Result<ResolvedVersion, RegistryError> {
        self.ensure_model(name).await?;
        self.upload_package(package, progress).await?;
        for verdict in verdicts {
            let path = verdict_path(&package.digest(), &Digest::of(&verdict.bytes));
            self.upload(&path, verdict.bytes.clone().into(), verdict.bytes.len() as u64).await?;
        }
        let number = match self.version_of(name, &package.digest()).await? {
            Some(version) => version.number(),
            None => self.create_version(package, name).await?,
        };
        if let Some(verdict) = verdicts.last() {
            self.set_version_tag(name, number, VERDICT_TAG, &Digest::of(&verdict.bytes).to_string()).await?;
            self.set_version_tag(name, number, OUTCOME_TAG, &verdict.outcome).await?;
        }
        self.resolve(&Reference { name: name.to_owned(), selector: Selector::Version(number) }).await
    }

    /// Moves an alias to a version, if the gate lets it.
    pub async fn promote(&self, promotion: &Promotion) -> Result<AliasMove, RegistryError> {
        let asked = format!("promote `{}:{}` to `{}`", promotion.name, promotion.version, promotion.alias);
        self.move_alias("promote", &asked, json!(promotion)).await
    }

    /// Moves an alias back to what it named before; away, if it named nothing before.
    pub async fn rollback(&self, rollback: &Rollback) -> Result<AliasMove, RegistryError> {
        let asked = format!("roll back `{}@{}`", rollback.name, rollback.alias);
        self.move_alias("rollback", &asked, json!(rollback)).await
    }

    /// Asks for parts of budgets that servers share: `pool`, `replica` and `leases` as `highroad track` reads them; gives its `leases`.
    pub async fn lease_budgets(&self, wanted: &Value) -> Result<Value, RegistryError> {
        let request = self.request(Method::POST, "api/2.0/highroad/budgets/lease").json(wanted);
        let mut reply: Value = self.ask(request, "lease budgets").await?;
        Ok(reply["leases"].take())
    }

    /// Tells what a server spent of budgets that servers share: `pool`, `replica`, `from` and `spent` as `highroad track` reads them; gives what
    /// all of them spent.
    pub async fn budgets_spent(&self, told: &Value) -> Result<Value, RegistryError> {
        let request = self.request(Method::POST, "api/2.0/highroad/budgets/spent").json(told);
        let mut reply: Value = self.ask(request, "tell what was spent").await?;
        Ok(reply["spent"].take())
    }

    /// Moves of the aliases of `name`, newest first; of every model if it is empty. Where the server keeps no trail, those that
    /// clients recorded as tags.
    pub async fn audit(&self, name: &str) -> Result<Vec<AliasMove>, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(default)]
            moves: Vec<AliasMove>,
        }
        let asked = format!("show the audit trail of `{name}`");
        let request = self.request(Method::GET, "api/2.0/highroad/audit").query(&[("name", name)]);
        match self.ask::<Reply>(request, &asked).await {
            Ok(reply) => Ok(reply.moves),
            Err(RegistryError::Refused { status: 404 | 405, .. }) => self.kept_moves(name).await,
            Err(error) => Err(error),
        }
    }

    /// The move that promoted `version` to `alias`; neither a rollback to it nor another name of the model counts. `None` if it
    /// never was, or if the newest recorded move led elsewhere, so that somebody moved the alias by hand since.
    pub async fn promoted(&self, version: &ResolvedVersion, alias: &str) -> Result<Option<AliasMove>, RegistryError> {
        let moves = match self.audit(&version.name).await {
            Ok(moves) => moves,
            Err(RegistryError::NotFound(_) | RegistryError::Refused { status: 404 | 405, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let leads_here = |entry: &AliasMove| {
            entry.to == Some(version.version) && entry.package.is_none_or(|package| package == version.package)
        };
        let mut moves = moves.into_iter().filter(|entry| entry.alias == alias).peekable();
        if !moves.peek().is_some_and(leads_here) {
            return Ok(None);
        }
        Ok(moves.find(|entry| leads_here(entry) && !matches!(entry.action.as_str(), "rollback" | "rename")))
    }

    /// A run as MLflow describes it: `info`, `data` with params, metrics and tags, `inputs`.
    pub async fn run(&self, run_id: &str) -> Result<Value, RegistryError> {
        let request = self.mlflow(Method::GET, "runs/get").query(&[("run_id", run_id)]);
        let mut reply: Value = self.ask(request, &format!("show run {run_id}")).await?;
        Ok(reply["run"].take())
    }

    async fn move_alias(&self, route: &str, asked: &str, body: Value) -> Result<AliasMove, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            r#move: AliasMove,
        }
        let request = self.request(Method::POST, &format!("api/2.0/highroad/{route}")).json(&body);
        match self.ask::<Reply>(request, asked).await {
            Ok(reply) => Ok(reply.r#move),
            Err(RegistryError::Refused { status: 404 | 405, code, .. }) if code != "RESOURCE_DOES_NOT_EXIST" => {
                Err(RegistryError::NoGate(self.server.clone()))
            }
            Err(error) => Err(error),
        }
    }

    async fn ensure_model(&self, name: &str) -> Result<(), RegistryError> {
        let request = self.mlflow(Method::POST, "registered-models/create").json(&json!({ "name": name }));
        match self.ask::<Value>(request, &format!("register `{name}`")).await {
            Err(RegistryError::Refused { code, .. }) if code == "RESOURCE_ALREADY_EXISTS" => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Uploads what is missing, the manifest last: where it is, the rest is.
    async fn upload_package(&self, package: &VerifiedPackage, progress: &Progress<'_>) -> Result<(), RegistryError> {
        let folder = format!("highroad/packages/{}", package.digest().hex());
        let there = self.list(&folder).await?;
        let files = package.manifest().files.iter().map(|entry| entry.path.as_str()).chain([MANIFEST]);
        for file in files {
            let path = package.dir().join(file);
            let size_bytes = tokio::fs::metadata(&path).await.map_err(PackageError::io(&path))?.len();
            if there.iter().any(|found| found.path == file && found.file_size == Some(size_bytes)) {
                progress(size_bytes);
                continue;
            }
            let content = tokio::fs::File::open(&path).await.map_err(PackageError::io(&path))?;
            let size = size_bytes;
            // The body must own what it reports to, so it reports through a channel that is read here.
            let (sent, mut sending) = tokio::sync::mpsc::unbounded_channel();
            let stream = ReaderStream::with_capacity(content, CHUNK_BYTES)
                .inspect_ok(move |chunk| _ = sent.send(chunk.len() as u64));
            let target = format!("{folder}/{file}");
            let upload = self.upload(&target, reqwest::Body::wrap_stream(stream), size);
            let report = async {
                while let Some(n) = sending.recv().await {
                    progress(n);
                }
            };
            let (result, ()) = tokio::join!(upload, report);
            result?;
        }
        Ok(())
    }

    async fn create_version(&self, package: &VerifiedPackage, name: &str) -> Result<u64, RegistryError> {
        let hex = package.digest().hex().to_owned();
        match self.create_version_of(package, name, &format!("mlflow-artifacts:/highroad/packages/{hex}")).await {
            // Recent MLflow takes artifacts of its own as a source only from within those of the version's run.
            Err(RegistryError::Refused { status: 400, message, .. }) if message.contains("model version source") => {
                self.create_version_of(package, name, &format!("highroad:/packages/{hex}")).await
            }
            made => made,
        }
    }

    async fn create_version_of(
        &self,
        package: &VerifiedPackage,
        name: &str,
        source: &str,
    ) -> Result<u64, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            model_version: Version,
        }
        let digest = package.digest();
        let manifest = package.manifest();
        let task = serde_json::to_value(&manifest.task).ok();
        let task = task.as_ref().and_then(|task| task["task"].as_str()).unwrap_or("unknown");
        let body = json!({
            "name": name,
            "source": source,
            "run_id": manifest.provenance.run_id.clone().unwrap_or_default(),
            "tags": [
                { "key": PACKAGE_TAG, "value": digest.to_string() },
                { "key": TASK_TAG, "value": task },
            ],
        });
        let request = self.mlflow(Method::POST, "model-versions/create").json(&body);
        Ok(self.ask::<Reply>(request, &format!("make a version of `{name}`")).await?.model_version.number())
    }

    async fn set_version_tag(&self, name: &str, number: u64, key: &str, value: &str) -> Result<(), RegistryError> {
        let body = json!({ "name": name, "version": number.to_string(), "key": key, "value": value });
        let request = self.mlflow(Method::POST, "model-versions/set-tag").json(&body);
        self.ask::<Value>(request, &format!("tag `{name}:{number}`")).await.map(|_| ())
    }

    async fn version(
        &self,
        route: &str,
        query: &[(&str, &str)],
        asked: &str,
    ) -> Result<Option<Version>, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            model_version: Version,
        }
        let request = self.mlflow(Method::GET, route).query(query);
        match self.ask::<Reply>(request, &format!("find `{asked}`")).await {
            Ok(reply) => Ok(Some(reply.model_version)),
            // MLflow says INVALID_PARAMETER_VALUE (400) for an alias that is not there.
            Err(RegistryError::Refused { status: 404, .. }) => Ok(None),
            Err(RegistryError::Refused { status: 400, message, .. }) if message.contains("not found") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn version_of(&self, name: &str, digest: &Digest) -> Result<Option<Version>, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(default)]
            model_versions: Vec<Version>,
        }
        let filter = format!("name = '{}' AND tags.`{PACKAGE_TAG}` = '{digest}'", name.replace('\'', "''"));
        let query = [("filter", filter.as_str()), ("order_by", "version_number DESC"), ("max_results", "1")];
        let request = self.mlflow(Method::GET, "model-versions/search").query(&query);
        let reply: Reply = self.ask(request, &format!("find package {} in `{name}`", digest.short())).await?;
        Ok(reply.model_versions.into_iter().next())
    }

    async fn list(&self, folder: &str) -> Result<Vec<FileInfo>, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(default)]
            files: Vec<FileInfo>,
        }
        let request = self.request(Method::GET, "api/2.0/mlflow-artifacts/artifacts").query(&[("path", folder)]);
        Ok(self.ask::<Reply>(request, &format!("list `{folder}`")).await?.files)
    }

    async fn upload(&self, path: &str, body: reqwest::Body, size_bytes: u64) -> Result<(), RegistryError> {
        let request = self
            .authorised(self.uploads.put(format!("{}/{}", self.server, artifact_route(path))))
            .header(header::CONTENT_LENGTH, size_bytes)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body);
        self.send(request, &format!("store `{path}`")).await.map(|_| ())
    }

    async fn download(&self, path: &str, limit: usize) -> Result<Vec<u8>, RegistryError> {
        let asked = format!("send `{path}`");
        let response = self.send(self.request(Method::GET, &artifact_route(path)), &asked).await?;
        self.body(response, limit, &asked).await
    }

    /// Streams an artifact into a new file and gives its digest; stops as soon as it is longer than it may be.
    async fn download_to(
        &self,
        path: &str,
        to: &Path,
        size_bytes: u64,
        progress: &Progress<'_>,
    ) -> Result<Digest, RegistryError> {
        let asked = format!("send `{path}`");
        let response = self.send(self.request(Method::GET, &artifact_route(path)), &asked).await?;
        let mut file = tokio::fs::File::create_new(to).await.map_err(PackageError::io(to))?;
        let mut hasher = Sha256::new();
        let mut n_bytes = 0;
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|source| self.unreachable(&asked, source))?;
            n_bytes += chunk.len() as u64;
            if n_bytes > size_bytes {
                let error = PackageError::Size { file: path.to_owned(), expected: size_bytes, found: n_bytes };
                return Err(error.into());
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(PackageError::io(to))?;
            progress(chunk.len() as u64);
        }
        file.flush().await.map_err(PackageError::io(to))?;
        Ok(Digest::finish(hasher))
    }

    fn mlflow(&self, method: Method, route: &str) -> RequestBuilder {
        self.request(method, &format!("api/2.0/mlflow/{route}"))
    }

    fn request(&self, method: Method, route: &str) -> RequestBuilder {
        self.authorised(self.http.request(method, format!("{}/{route}", self.server)))
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.credentials {
            Some(Credentials::Bearer(token)) => request.bearer_auth(token),
            Some(Credentials::Basic(user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder, asked: &str) -> Result<T, RegistryError> {
        let response = self.send(request, asked).await?;
        let bytes = self.body(response, MAX_REPLY_BYTES, asked).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.odd(asked, error.to_string()))
    }

    /// Sends a request; a status that is no success becomes [`RegistryError::Refused`] with MLflow's words.
    async fn send(&self, request: RequestBuilder, asked: &str) -> Result<reqwest::Response, RegistryError> {
        #[derive(Deserialize, Default)]
        struct Refusal {
            #[serde(default)]
            error_code: String,
            #[serde(default)]
            message: String,
        }
        let response = request.send().await.map_err(|source| self.unreachable(asked, source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response, MAX_REPLY_BYTES, asked).await.unwrap_or_default();
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let message = if refusal.message.is_empty() { plain(status) } else { refusal.message };
        let (server, asked) = (self.server.clone(), asked.to_owned());
        Err(RegistryError::Refused { server, asked, status: status.as_u16(), code: refusal.error_code, message })
    }

    async fn body(&self, response: reqwest::Response, limit: usize, asked: &str) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(|source| self.unreachable(asked, source))?);
            if bytes.len() > limit {
                return Err(self.odd(asked, format!("the reply has more than {limit} bytes")));
            }
        }
        Ok(bytes)
    }

    fn unreachable(&self, asked: &str, source: reqwest::Error) -> RegistryError {
        RegistryError::Unreachable {
            server: self.server.clone(),
            asked: asked.to_owned(),
            source: source.without_url(),
        }
    }

    fn odd(&self, asked: &str, reason: String) -> RegistryError {
        RegistryError::Reply { server: self.server.clone(), asked: asked.to_owned(), reason }
    }
}

#[derive(Deserialize)]
struct FileInfo {
    path: String,
    #[serde(default)]
    file_size: Option<u64>,
}

#[derive(Deserialize)]
struct Version {
    name: String,
    version: String,
    #[serde(default)]
    run_id: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

impl Version {
    fn number(&self) -> u64 {
        self.version.parse().unwrap_or(0)
    }

    fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find(|tag| tag.key == key).map(|tag| tag.value.as_str())
    }

    fn overrides(&self) -> BTreeMap<String, Digest> {
        let of = |tag: &Tag| Some((tag.key.strip_prefix(OVERRIDE_TAG)?.to_owned(), tag.value.parse().ok()?));
        self.tags.iter().filter_map(of).collect()
    }

    fn resolved(self) -> Option<ResolvedVersion> {
        Some(ResolvedVersion {
            package: self.tag(PACKAGE_TAG)?.parse().ok()?,
            verdict: self.tag(VERDICT_TAG).and_then(|text| text.parse().ok()),
            outcome: self.tag(OUTCOME_TAG).map(str::to_owned),
            run_id: Some(self.run_id.clone()).filter(|id| !id.is_empty()),
            overrides: self.overrides(),
            version: self.number(),
            name: self.name,
        })
    }
}

fn verdict_path(package: &Digest, verdict: &Digest) -> String {
    format!("highroad/verdicts/{}/{}.json", package.hex(), verdict.hex())
}

/// Where an override of a package lies among the artifacts.
pub fn override_path(package: &Digest, digest: &Digest) -> String {
    format!("highroad/overrides/{}/{}.json", package.hex(), digest.hex())
}

/// The tag of a version that names the override for `alias`.
pub fn override_tag(alias: &str) -> String {
    format!("{OVERRIDE_TAG}{alias}")
}

fn signature_path(package: &Digest, signature: &Digest) -> String {
    format!("{SIGNATURES}/{}/{}.json", package.hex(), signature.hex())
}

fn artifact_route(path: &str) -> String {
    format!("api/2.0/mlflow-artifacts/artifacts/{path}")
}

fn plain(status: StatusCode) -> String {
    format!("status {status}")
}

/// Runs store work, which reads and hashes whole packages, off the async threads.
async fn blocking<T: Send + 'static>(
    store: &Store,
    digest: Digest,
    work: impl FnOnce(Store, Digest) -> Result<T, PackageError> + Send + 'static,
) -> Result<T, PackageError> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(store, digest))
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_addresses_are_tracking_servers() {
        for bad in ["", "sqlite:///x.db", "127.0.0.1:5000", "file:///tmp", "databricks"] {
            assert!(matches!(RegistryClient::new(bad), Err(RegistryError::Uri(_))), "{bad}");
        }
        assert_eq!(RegistryClient::new("http://localhost:5000/").unwrap().uri(), "http://localhost:5000");
    }

    #[tokio::test]
    async fn an_unreachable_server_is_named_with_what_was_asked() {
        // Port 9 is the discard service; nothing listens there on a loopback address.
        let client = RegistryClient::new("http://127.0.0.1:9").unwrap();
        let error = client.resolve(&"moderation@champion".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:9") && error.contains("`moderation@champion`"), "{error}");
    }

    #[test]
    fn credentials_are_never_printed() {
        assert_eq!(format!("{:?}", Credentials::Bearer("secret".into())), "Credentials(…)");
    }
}
