//! Where replays find what they need: records, packages, verdicts, runs, definitions and indexes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use highroad_eval::Verdict;
use highroad_hosted::Hosted;
use highroad_package::registry::{RegistryClient, ResolvedVersion};
use highroad_package::{Digest, PackageError, Reference, Selector, Verdicts, VerifiedPackage};
use highroad_serve::config::PortfolioConfig;
use highroad_serve::definitions::Definitions;
use highroad_serve::index::Index;
use highroad_serve::pipeline::{Definition, Pipelines, Step};
use highroad_serve::request_log::{self, FindError, PipelineRecord, Record};
use serde_json::Value;

use crate::resolve::{Home, Target};
use crate::serving::{self, PORTFOLIO};

/// A record is written a moment after its answer is sent: so long a living server's is waited for.
const WAIT_FOR_RECORD: Duration = Duration::from_secs(2);
/// An alias that means what this one named before.
const PREVIOUS: &str = "previous";
const CHAMPION: &str = "champion";
/// Holds a key for the server that answered.
const API_KEY: &str = "HIGHROAD_API_KEY";

/// Where packages, verdicts and runs are looked for.
pub struct Sources {
    home: Home,
    registries: Vec<RegistryClient>,
    server: Option<String>,
    portfolio: PathBuf,
    indexes: Vec<PathBuf>,
}

/// Where to look beside the local state and the tracking server.
#[derive(Default)]
pub struct Places {
    pub server: Option<String>,
    pub portfolio: Option<PathBuf>,
    pub indexes: Vec<PathBuf>,
}

impl Sources {
    pub fn new(client: &RegistryClient, places: Places) -> Self {
        let Places { server, portfolio, indexes } = places;
        let mut registries = vec![client.clone()];
        // A server of `highroad up` is its own registry.
        registries.extend(server.as_deref().and_then(|server| RegistryClient::new(server).ok()));
        let portfolio = portfolio.unwrap_or_else(|| PathBuf::from(PORTFOLIO));
        Self { home: Home::find(), registries, server, portfolio, indexes }
    }

    /// The package that answered, by its digest.
    pub async fn served(&self, record: &Record) -> anyhow::Result<VerifiedPackage> {
        if let Some(hosted) = &record.hosted {
            bail!(
                "`{}` of {} is hosted elsewhere (as `{}`): its answers are observed, and nobody but its host can give them again",
                record.request_id,
                record.member,
                hosted.model
            );
        }
        if record.pipeline.is_some() {
            bail!("`{0}` is a whole request to a pipeline: name one of its steps, `{0}.STEP`", record.request_id);
        }
        self.of_version(&record.version, record.package).await
    }

    /// The package of a version that served, from the local store, else from a registry.
    pub async fn of_version(&self, version: &str, package: Digest) -> anyhow::Result<VerifiedPackage> {
        let store = self.home.store()?;
        match store.get(&package) {
            Ok(package) => return Ok(package),
            Err(PackageError::NotInStore(_)) => {}
            Err(damage) => {
                return Err(damage).context("the package that answered cannot be taken from the local store");
            }
        }
        let name = model_name(version).to_owned();
        let reference = Reference { name, selector: Selector::Digest(package) };
        self.fetch(&reference).await.with_context(|| format!("cannot bring the package that answered, {package}"))
    }

    /// The steps of a pipeline, by digest: as a server kept them here, from the server that answered, or from the portfolio's file.
    pub async fn definition(&self, record: &PipelineRecord) -> anyhow::Result<Definition> {
        let kept = Definitions::at(self.home.path().join("definitions"));
        let bytes = match kept.find(&record.definition) {
            Some(bytes) => Some(bytes),
            None => self
                .ask(&["definitions", &record.definition.to_string()])
                .await?
                .map(|value| value.to_string().into_bytes()),
        };
        let named = match bytes {
            Some(bytes) => Some(
                Definition::read(&bytes).map_err(|reason| anyhow::anyhow!("the pipeline's definition: {reason}"))?,
            ),
            None => match self.portfolio()? {
                Some(config) => {
                    let searched = |step: &Step, _index: &str| {
                        record.steps.iter().find(|told| told.name == step.name).and_then(|told| told.index)
                    };
                    Pipelines::new(config.pipelines, config.indexes).definition(&record.name, searched)
                }
                None => None,
            },
        };
        named.filter(|named| Digest::of(&named.bytes()) == record.definition).with_context(|| {
            format!(
                "the pipeline `{}` as it was ({}) is not known here\nhint: `--server URL` asks the server that answered, `--portfolio FILE` reads it from its file",
                record.name,
                record.definition.short()
            )
        })
    }

    /// The description of a hosted member, by digest, from the same places.
    pub async fn hosted(&self, digest: &Digest) -> anyhow::Result<Hosted> {
        let kept = Definitions::at(self.home.path().join("definitions")).find_hosted(digest);
        let told = match kept {
            Some(hosted) => Some(hosted),
            None => self
                .ask(&["definitions", &digest.to_string()])
                .await?
                .and_then(|told| serde_json::from_value(told).ok()),
        };
        let is_it = |hosted: &Hosted| hosted.digest() == *digest;
        if let Some(hosted) = told.filter(is_it) {
            return Ok(hosted);
        }
        let config = self.portfolio()?;
        let found =
            config.into_iter().flat_map(|config| config.hosted.into_values()).map(|member| member.hosted).find(is_it);
        found.with_context(|| {
            format!(
                "the description of the hosted model that answered ({}) is not known here\nhint: `--server URL` asks the server that answered, `--portfolio FILE` reads it from its file",
                digest.short()
            )
        })
    }

    /// The index of that digest, every byte of it checked.
    pub fn index(&self, digest: &Digest) -> anyhow::Result<Index> {
        let kept = Definitions::at(self.home.path().join("definitions")).index(digest);
        let named =
            self.portfolio()?.into_iter().flat_map(|config| config.indexes.into_values()).map(|index| index.path);
        let folders = self.indexes.iter().cloned().chain(kept).chain(named);
        for folder in folders.flat_map(with_builds) {
            let description = std::fs::read(folder.join(highroad_serve::index::DESCRIPTION));
            if description.is_ok_and(|bytes| Digest::of(&bytes) == *digest) {
                return Index::open(&folder)
                    .with_context(|| format!("the index `{}` cannot be read", folder.display()));
            }
        }
        bail!("the index that was searched, {digest}, is not here\nhint: `--index FOLDER` says where it is")
    }

    /// The portfolio's file, where there is one.
    fn portfolio(&self) -> anyhow::Result<Option<PortfolioConfig>> {
        if !self.portfolio.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&self.portfolio)?;
        let base = self.portfolio.parent().unwrap_or(Path::new(""));
        let config = PortfolioConfig::parse(&text, base);
        config.map(Some).with_context(|| format!("`{}` is not a portfolio", self.portfolio.display()))
    }

    /// What a server's request log, or else this machine's, says about a request; `None` where it does not know it.
    pub async fn find_record(&self, id: &str) -> anyhow::Result<Option<Record>> {
        if self.server.is_some() {
            return Ok(self.ask(&["requests", id]).await?.map(serde_json::from_value).transpose()?);
        }
        let dir = serving::requests_dir(&self.home);
        request_log::find_written(&dir, id, WAIT_FOR_RECORD).map_err(|error| match error {
            FindError::Unreadable(error) => {
                anyhow::Error::new(error).context(format!("cannot read `{}`", dir.display()))
            }
            several => several.into(),
        })
    }

    /// [`Sources::find_record`] of a request that must be known.
    pub async fn record(&self, id: &str) -> anyhow::Result<Record> {
        let found = self.find_record(id).await?;
        found.with_context(|| match &self.server {
            Some(server) => format!("the request log of {server} has no `{id}`"),
            None => {
                let dir = serving::requests_dir(&self.home);
                format!("no request `{id}` in `{}`\nhint: `--server URL` asks the server that answered", dir.display())
            }
        })
    }

    /// What the server says under `/v1/highroad/…`; `None` where there is no server, or it does not know it.
    async fn ask(&self, path: &[&str]) -> anyhow::Result<Option<Value>> {
        let Some(server) = &self.server else { return Ok(None) };
        let mut url = reqwest::Url::parse(server).with_context(|| format!("`{server}` is no URL"))?;
        let mut segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("`{server}` is no URL of a server"))?;
        segments.pop_if_empty().extend(["v1", "highroad"]).extend(path);
        drop(segments);
        let request = reqwest::Client::new().get(url);
        let request = match std::env::var(API_KEY) {
            Ok(key) if !key.is_empty() => request.bearer_auth(key),
            _ => request,
        };
        let response = request.send().await.with_context(|| format!("`{server}` does not answer"))?;
        match response.status().as_u16() {
            404 => return Ok(None),
            409 => bail!("{}", response.json::<Value>().await?["error"]["message"].as_str().unwrap_or("a conflict")),
            _ => {}
        }
        Ok(Some(response.error_for_status()?.json().await?))
    }

    /// A package as a person names it.
    pub async fn package(&self, named: &str) -> anyhow::Result<VerifiedPackage> {
        let is_dir = std::path::Path::new(named).is_dir();
        match named.parse::<Reference>() {
            Ok(reference) if !is_dir => {
                let before = self.before(&reference).await;
                self.fetch(before.as_ref().unwrap_or(&reference)).await
            }
            _ => Ok(named.parse::<Target>()?.resolve(&self.home)?.package),
        }
    }

    /// The version that `name@previous` means, which is no alias of the registry: what `champion` named before, as the audit trail has it.
    async fn before(&self, reference: &Reference) -> Option<Reference> {
        if reference.selector != Selector::Alias(PREVIOUS.to_owned()) {
            return None;
        }
        for registry in &self.registries {
            let moves = registry.audit(&reference.name).await.unwrap_or_default();
            let moved =
                moves.iter().find(|moved| moved.alias == CHAMPION && moved.from != moved.to && moved.to.is_some());
            if let Some(version) = moved.and_then(|moved| moved.from) {
                return Some(Reference { name: reference.name.clone(), selector: Selector::Version(version) });
            }
        }
        None
    }

    async fn fetch(&self, reference: &Reference) -> anyhow::Result<VerifiedPackage> {
        let store = self.home.store()?;
        let mut reason = None;
        for registry in &self.registries {
            let found = match registry.resolve(reference).await {
                Ok(version) => registry.fetch(&version, &store, &|_bytes| {}).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(package) => return Ok(package),
                Err(error) => reason = Some(error),
            }
        }
        Err(reason.context("no registry is configured")?.into())
    }

    pub async fn verdict(&self, record: &Record) -> Option<Verdict> {
        let digest = record.verdict?;
        let kept = Verdicts::open(self.home.verdicts()).and_then(|verdicts| verdicts.get(&record.package, &digest));
        let bytes = match kept {
            Ok(bytes) => bytes,
            Err(_) => self.fetch_verdict(record, digest).await?,
        };
        serde_json::from_slice(&bytes).ok()
    }

    async fn fetch_verdict(&self, record: &Record, verdict: Digest) -> Option<Vec<u8>> {
        let name = model_name(&record.version).to_owned();
        let version = ResolvedVersion {
            name,
            version: 0,
            package: record.package,
            verdict: Some(verdict),
            outcome: None,
            run_id: None,
            overrides: BTreeMap::new(),
        };
        for registry in &self.registries {
            if let Ok(Some(bytes)) = registry.fetch_verdict(&version).await {
                return Some(bytes);
            }
        }
        None
    }

    pub async fn run(&self, run_id: &str) -> Option<Value> {
        for registry in &self.registries {
            if let Ok(run) = registry.run(run_id).await {
                return Some(run);
            }
        }
        None
    }
}

/// `moderation` of `moderation:7` and of `moderation@sha256:…`.
pub fn model_name(version: &str) -> &str {
    version.split(['@', ':']).next().unwrap_or(version)
}

/// A folder of an index, and the folders in it where other packages' builds lie.
fn with_builds(folder: PathBuf) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let inside: Vec<PathBuf> = inside.filter(|path| path.is_dir()).collect();
    [folder].into_iter().chain(inside).collect()
}
