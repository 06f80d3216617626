//! The rule that makes the registry Highroad's: a Highroad package gets an alias only on a verdict that admits it, or on an
//! override that a named person gave it for a while.

use std::sync::Arc;

use highroad_eval::{Aliased, Baseline, Override, Refusal, Verdict};
use highroad_package::Digest;
use highroad_package::registry::{MAX_OVERRIDE_BYTES, override_path, override_tag};

use crate::TrackError;
use crate::files::{ArtifactPath, Files};
use crate::limits;
use crate::source::Source;
use crate::store::Millis;
use crate::wire::ModelVersion;

/// Tag of a version: digest of the package it holds.
pub const PACKAGE_TAG: &str = "highroad.package";
/// Tag of a version: digest of the verdict about it.
pub const VERDICT_TAG: &str = "highroad.verdict";
/// Tag of a version: `pass`, `fail` or `inconclusive`, for people and filters; the gate reads the verdict itself.
pub const OUTCOME_TAG: &str = "highroad.outcome";

/// Reads verdicts and overrides from the artifact store and decides.
#[derive(Debug, Clone)]
pub struct Gate {
    files: Arc<Files>,
}

/// On what evidence a version may have an alias.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Admitted {
    pub package: String,
    pub on: Admission,
    /// What the verdict compared it with; none of an override.
    pub baseline: Option<Baseline>,
}

/// What admitted a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The verdict of this digest.
    Verdict(String),
    /// An override, as JSON.
    Override(String),
}

/// The moments a gate is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// When the verdict has to admit: now, or for a way back when its target was promoted.
    pub verdict: Millis,
    /// The present, which alone counts for an override: a server refuses to load a package once it has expired.
    pub now: Millis,
}

/// What a gate is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The version that wants to go to production.
    pub version: &'a ModelVersion,
    /// Where its source leads in the end.
    pub source: &'a str,
    /// The alias it wants, or a stage where there is none.
    pub alias: Option<&'a str>,
    /// On a way back, digest of the verdict that admitted its target before: what was judged since does not shut it.
    pub admitted_by: Option<&'a str>,
    /// When.
    pub at: Moments,
}

impl From<Millis> for Moments {
    fn from(now: Millis) -> Self {
        Self { verdict: now, now }
    }
}

impl Gate {
    /// A gate over these files.
    pub fn new(files: Arc<Files>) -> Self {
        Self { files }
    }

    /// Whether a version may have an alias or a stage; `None` if it holds no Highroad package and is free.
    ///
    /// Errors if it holds one and has no verdict, one that does not match its digest, or one that does not admit it, unless
    /// an override for this alias does.
    pub async fn admit(&self, asked: Asked<'_>) -> Result<Option<Admitted>, TrackError> {
        let Asked { version, alias, at, .. } = asked;
        let Some(package) = held(version, asked.source)? else { return Ok(None) };
        let (on, baseline) = match self.judge(&asked, &package).await {
            Ok((digest, verdict)) => (Admission::Verdict(digest.to_string()), Some(verdict.baseline)),
            Err(TrackError::Refused(reason)) => (self.overrule(version, &package, alias, at.now, reason).await?, None),
            Err(error) => return Err(error),
        };
        Ok(Some(Admitted { package: package.to_string(), on, baseline }))
    }

    /// The verdict that admits a version, and its digest.
    async fn judge(&self, asked: &Asked<'_>, package: &Digest) -> Result<(Digest, Verdict), TrackError> {
        let version = asked.version;
        let Some(named) = asked.admitted_by.or_else(|| version.tag(VERDICT_TAG)) else {
            return Err(refused(
                version,
                "it has no verdict; run `highroad gate` on the package and push it again with its verdict",
            ));
        };
        let digest: Digest = named.parse().map_err(|error| refused(version, &format!("its verdict tag: {error}")))?;
        let verdict = self.verdict(version, package, &digest).await?;
        let refuse = |refusal: Refusal| refused(version, &refusal.to_string());
        // What was admitted once stays a way back.
        if asked.admitted_by.is_none() {
            verdict.compares().map_err(refuse)?;
        }
        verdict.admits(&package.to_string(), &asked.at.verdict.rfc3339()).map_err(refuse)?;
        Ok((digest, verdict))
    }

    /// The override that admits a version although its verdict does not, for `reason`; an error of that reason if there is
    /// none.
    async fn overrule(
        &self,
        version: &ModelVersion,
        package: &Digest,
        alias: Option<&str>,
        now: Millis,
        reason: String,
    ) -> Result<Admission, TrackError> {
        let tag = alias.and_then(|alias| Some((alias, version.tag(&override_tag(alias))?)));
        let Some((alias, tag)) = tag else { return Err(TrackError::Refused(reason)) };
        let refuse =
            |why: String| TrackError::Refused(format!("{reason}; its override does not let it through: {why}"));
        let digest: Digest = tag.parse().map_err(|error| refuse(format!("its tag: {error}")))?;
        let path = ArtifactPath::parse(&override_path(package, &digest))?;
        let bytes = self.files.read(&path, MAX_OVERRIDE_BYTES as u64).await.map_err(|error| match error {
            TrackError::Missing(_) => refuse(format!("{} was never uploaded", digest.short())),
            other => other,
        })?;
        if Digest::of(&bytes) != digest {
            return Err(refuse(format!("the stored file is not the one of digest {}", digest.short())));
        }
        let given: Override = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        let asked = Aliased { package: &package.to_string(), model: &version.name, alias };
        given.admits(asked, &now.rfc3339()).map_err(|refusal| refuse(refusal.to_string()))?;
        String::from_utf8(bytes).map(Admission::Override).map_err(|error| refuse(error.to_string()))
    }

    /// The verdict a version is tagged with, checked against its digest; `None` without a tag or a file.
    pub async fn verdict_of(&self, version: &ModelVersion) -> Option<Verdict> {
        let package = package_of(version).ok()??;
        let digest = version.tag(VERDICT_TAG)?.parse().ok()?;
        self.verdict(version, &package, &digest).await.ok()
    }

    async fn verdict(&self, version: &ModelVersion, package: &Digest, digest: &Digest) -> Result<Verdict, TrackError> {
        let path = ArtifactPath::parse(&format!("highroad/verdicts/{}/{}.json", package.hex(), digest.hex()))?;
        let bytes = self.files.read(&path, limits::MAX_VERDICT_BYTES).await.map_err(|error| match error {
            TrackError::Missing(_) => refused(version, &format!("its verdict {} was never uploaded", digest.short())),
            other => other,
        })?;
        if Digest::of(&bytes) != *digest {
            return Err(refused(version, &format!("the stored verdict is not the one of digest {}", digest.short())));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| refused(version, &format!("its verdict {} cannot be read: {error}", digest.short())))
    }
}

/// The package a version holds: by its tag, or by its source if somebody made the version without the tag.
///
/// What lies behind a source that names another version, a logged model or a run is not looked at.
pub fn package_of(version: &ModelVersion) -> Result<Option<Digest>, TrackError> {
    held(version, &version.source)
}

/// The package a version holds whose source leads to `source` in the end.
///
/// Errors if its tag and that place disagree, or if the place is a folder that packages lie in.
fn held(version: &ModelVersion, source: &str) -> Result<Option<Digest>, TrackError> {
    let refuse = |reason: String| refused(version, &reason);
    let parse = |tag: &str| tag.parse::<Digest>().map_err(|error| refuse(format!("its package: {error}")));
    let tagged = version.tag(PACKAGE_TAG).map(parse).transpose()?;
    let found =
        Source::read(source).package().map_err(|reason| refuse(format!("its source is `{source}`: {reason}")))?;
    match (tagged, found) {
        (Some(tagged), Some(found)) if tagged != found => Err(refuse(format!(
            "`{PACKAGE_TAG}` names package {} but its source leads to {}",
            tagged.short(),
            found.short()
        ))),
        (tagged, found) => Ok(tagged.or(found)),
    }
}

/// Errors if the tag is no digest, or contradicts a source that is a Highroad package.
pub fn check_package_tag(source: &str, tag: Option<&str>) -> Result<(), TrackError> {
    let Some(tag) = tag else { return Ok(()) };
    let digest: Digest = tag.parse().map_err(|error| TrackError::Invalid(format!("`{PACKAGE_TAG}`: {error}")))?;
    match Source::read(source).package() {
        Ok(found) if found.is_none_or(|found| found == digest) => Ok(()),
        _ => Err(TrackError::Invalid(format!(
            "`{PACKAGE_TAG}` names package {} but the version's source is `{source}`",
            digest.short()
        ))),
    }
}

fn refused(version: &ModelVersion, reason: &str) -> TrackError {
    TrackError::Refused(format!("`{}:{}` may not go to production: {reason}", version.name, version.version))
}
