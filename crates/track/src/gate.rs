//! The rule that makes the registry Highroad's: a Highroad package gets an alias only on a verdict that admits it, or on an
//! override that a named person gave it for a while.

use std::sync::Arc;

use highroad_eval::{Aliased, Override, Verdict};
use highroad_package::Digest;
use highroad_package::registry::{MAX_OVERRIDE_BYTES, override_path, override_tag};

use crate::TrackError;
use crate::files::{ArtifactPath, Files};
use crate::limits;
use crate::store::Millis;
use crate::wire::ModelVersion;

/// Tag of a version: digest of the package it holds.
pub const PACKAGE_TAG: &str = "highroad.package";
/// Tag of a version: digest of the verdict about it.
pub const VERDICT_TAG: &str = "highroad.verdict";
/// Tag of a version: `pass`, `fail` or `inconclusive`, for people and filters; the gate reads the verdict itself.
pub const OUTCOME_TAG: &str = "highroad.outcome";
/// Where a package's files are, followed by the digest's digits.
pub const PACKAGE_SOURCE: &str = "mlflow-artifacts:/highroad/packages/";

/// Reads verdicts and overrides from the artifact store and decides.
#[derive(Debug, Clone)]
pub struct Gate {
    files: Arc<Files>,
}

/// On what evidence a version may have an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Admitted {
    pub package: String,
    pub on: Admission,
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

    /// Whether `version` may have `alias`, or a stage where there is none; `None` if it holds no Highroad package and is
    /// free.
    ///
    /// Errors if it holds one and has no verdict, one that does not match its digest, or one that does not admit it, unless
    /// an override for this alias does.
    pub async fn admit(
        &self,
        version: &ModelVersion,
        alias: Option<&str>,
        at: Moments,
    ) -> Result<Option<Admitted>, TrackError> {
        let Some(package) = package_of(version)? else { return Ok(None) };
        let on = match self.judge(version, &package, at.verdict).await {
            Ok(verdict) => Admission::Verdict(verdict.to_string()),
            Err(TrackError::Refused(reason)) => self.overrule(version, &package, alias, at.now, reason).await?,
            Err(error) => return Err(error),
        };
        Ok(Some(Admitted { package: package.to_string(), on }))
    }

    /// The verdict that admits a version.
    async fn judge(&self, version: &ModelVersion, package: &Digest, at: Millis) -> Result<Digest, TrackError> {
        let Some(tagged) = version.tag(VERDICT_TAG) else {
            return Err(refused(
                version,
                "it has no verdict; run `highroad gate` on the package and push it again with its verdict",
            ));
        };
        let digest: Digest = tagged.parse().map_err(|error| refused(version, &format!("its verdict tag: {error}")))?;
        let verdict = self.verdict(version, package, &digest).await?;
        verdict
            .admits(&package.to_string(), &at.rfc3339())
            .map_err(|refusal| refused(version, &refusal.to_string()))?;
        Ok(digest)
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
pub fn package_of(version: &ModelVersion) -> Result<Option<Digest>, TrackError> {
    let text = match version.tag(PACKAGE_TAG) {
        Some(tag) => tag.to_owned(),
        None => match version.source.strip_prefix(PACKAGE_SOURCE) {
            Some(hex) => format!("sha256:{}", hex.trim_end_matches('/')),
            None => return Ok(None),
        },
    };
    text.parse().map(Some).map_err(|error| refused(version, &format!("its package: {error}")))
}

/// Errors if the tag is no digest, or contradicts a source that is a Highroad package.
pub fn check_package_tag(source: &str, tag: Option<&str>) -> Result<(), TrackError> {
    let Some(tag) = tag else { return Ok(()) };
    let digest: Digest = tag.parse().map_err(|error| TrackError::Invalid(format!("`{PACKAGE_TAG}`: {error}")))?;
    match source.strip_prefix(PACKAGE_SOURCE) {
        Some(hex) if hex.trim_end_matches('/') != digest.hex() => Err(TrackError::Invalid(format!(
            "`{PACKAGE_TAG}` names package {} but the version's source is `{source}`",
            digest.short()
        ))),
        _ => Ok(()),
    }
}

fn refused(version: &ModelVersion, reason: &str) -> TrackError {
    TrackError::Refused(format!("`{}:{}` may not go to production: {reason}", version.name, version.version))
}
