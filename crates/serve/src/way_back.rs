//! The version that a rollback would lead to, brought, verified and attested on this machine before anybody needs it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highroad_package::{Digest, Reference, Selector};
use metrics::gauge;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::{info, warn};

use crate::config::MemberConfig;
use crate::deployment::{blocking, pause_after};
use crate::engine::EngineConfig;
use crate::error::DeployError;
use crate::registry::{Promoted, Registry, Resolved};
use crate::revision::{Candidate, Facts, Revision, Unverified};
use crate::telemetry::WAY_BACK;

/// Pause before the bytes of a way back that was there are verified again.
const LOOK_AGAIN: Duration = Duration::from_secs(1800);

/// Where the way back stands.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct WayBackStatus {
    /// The version that `highroad rollback` leads to.
    pub version: String,
    /// Its package.
    pub package: Digest,
    /// What its answers would be worth here, as `x-highroad-evidence` says it; nothing where it was not loaded.
    pub evidence: Option<&'static str>,
    /// Why it would not serve.
    pub failure: Option<String>,
}

/// What a member knows of its way back.
#[derive(Default)]
pub(crate) struct WayBack {
    member: String,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// What served as it was looked for last.
    from: Option<Resolved>,
    is_looking: bool,
    failures: u32,
    retry_at: Option<Instant>,
    found: Option<WayBackStatus>,
    /// What was loaded in this process.
    evidence: BTreeMap<Digest, &'static str>,
}

/// What it takes to look.
pub(crate) struct Looking<'a> {
    pub registry: Arc<dyn Registry>,
    pub reference: &'a Reference,
    pub config: &'a MemberConfig,
    pub unverified: Unverified,
    pub attestations: &'a Path,
}

impl WayBack {
    pub(crate) fn of(member: &str) -> Arc<Self> {
        Arc::new(Self { member: member.to_owned(), ..Self::default() })
    }

    /// Where it stands; nothing before it was looked for, and where there is none.
    pub(crate) fn status(&self) -> Option<WayBackStatus> {
        self.memory().found.clone()
    }

    /// Remembers a version that serves or served: it has shown that it can.
    pub(crate) fn served(&self, facts: &Facts) {
        if facts.development.is_none() {
            self.memory().evidence.insert(facts.package, facts.evidence);
        }
    }

    /// A version did not load: whatever it has shown before, no way leads back to it now.
    pub(crate) fn failed(&self, package: &Digest, reason: &str) {
        let mut memory = self.memory();
        memory.evidence.remove(package);
        let Some(found) = memory.found.as_mut().filter(|found| found.package == *package) else { return };
        (found.evidence, found.failure) = (None, Some(reason.to_owned()));
        memory.failures += 1;
        memory.retry_at = Instant::now().checked_add(pause_after(memory.failures));
        gauge!(WAY_BACK, "member" => self.member.clone()).set(0.0);
    }

    /// Looks for the way back from `serving` and walks it, once for each version that serves, again after a growing pause where that
    /// failed, and now and then where it did not: bytes on a disk change. Returns at once: what loads does so aside.
    pub(crate) fn look(self: &Arc<Self>, serving: Resolved, looking: &Looking<'_>) {
        if !matches!(looking.reference.selector, Selector::Alias(_)) || !self.begins(&serving) {
            return;
        }
        let (registry, reference) = (Arc::clone(&looking.registry), looking.reference.clone());
        let (config, unverified) = (looking.config.clone(), looking.unverified);
        let (attestations, this) = (looking.attestations.to_owned(), Arc::clone(self));
        drop(tokio::spawn(async move {
            let found = match registry.way_back(&reference).await {
                Ok(Some(promoted)) => {
                    let brought = registry.fetch(&reference, &promoted.resolved).await;
                    this.walk(promoted, brought, config, unverified, attestations).await.map(Some)
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            this.ends(&serving, found);
        }));
    }

    /// Whether what was brought would serve. Errors where the registry does not answer, which says nothing of it.
    async fn walk(
        &self,
        promoted: Promoted,
        brought: Result<Candidate, DeployError>,
        config: MemberConfig,
        unverified: Unverified,
        attestations: std::path::PathBuf,
    ) -> Result<WayBackStatus, DeployError> {
        let Promoted { resolved, at } = promoted;
        let (version, package) = (resolved.label(), resolved.package);
        let status = |evidence, failure| WayBackStatus { version, package, evidence, failure };
        let candidate = match brought {
            // It was admitted when it was promoted, and a rollback asks about that moment.
            Ok(candidate) => Candidate { admitted_at: at.or(candidate.admitted_at.clone()), ..candidate },
            Err(error @ DeployError::Registry(_)) => return Err(error),
            Err(error) => {
                self.memory().evidence.remove(&package);
                return Ok(status(None, Some(error.with_causes())));
            }
        };
        if let Some(evidence) = self.memory().evidence.get(&package) {
            return Ok(status(Some(*evidence), None));
        }
        // Processes of PyTorch may not fit a second time beside those that serve.
        if config.engine != EngineConfig::Native {
            return Ok(status(None, None));
        }
        let member = self.member.clone();
        let rehearsed =
            blocking(move || Revision::rehearse(&member, &candidate, &config, unverified, &attestations)).await;
        match rehearsed {
            Ok(evidence) => {
                self.memory().evidence.insert(package, evidence);
                Ok(status(Some(evidence), None))
            }
            Err(error) => Ok(status(None, Some(error.with_causes()))),
        }
    }

    fn begins(&self, serving: &Resolved) -> bool {
        let mut memory = self.memory();
        let is_new = memory.from.as_ref() != Some(serving);
        let is_due = memory.retry_at.is_some_and(|at| Instant::now() >= at);
        if memory.is_looking || !(is_new || is_due) {
            return false;
        }
        if is_new {
            (memory.found, memory.failures) = (None, 0);
        }
        (memory.from, memory.is_looking, memory.retry_at) = (Some(serving.clone()), true, None);
        true
    }

    fn ends(&self, serving: &Resolved, found: Result<Option<WayBackStatus>, DeployError>) {
        let mut memory = self.memory();
        memory.is_looking = false;
        let failure = match &found {
            Err(error) => Some(error.with_causes()),
            Ok(found) => found.as_ref().and_then(|found| found.failure.clone()),
        };
        memory.retry_at = Instant::now().checked_add(LOOK_AGAIN);
        if failure.is_none() {
            memory.failures = 0;
        }
        if let Some(reason) = &failure {
            memory.failures += 1;
            memory.retry_at = Instant::now().checked_add(pause_after(memory.failures));
            if memory.failures == 1 {
                let (member, from) = (&self.member, serving.label());
                warn!(member.name = %member, "The way back of `{member}` from {from} is not there now: {reason}");
            }
        }
        let is_there =
            matches!(&found, Ok(Some(WayBackStatus { evidence: Some(evidence), .. })) if *evidence != "development");
        gauge!(WAY_BACK, "member" => self.member.clone()).set(f64::from(u8::from(is_there)));
        if let Ok(found) = found {
            if let Some(WayBackStatus { version, evidence: Some(evidence), .. }) = &found
                && memory.found != found
            {
                info!(member.name = %self.member, "The way back of `{}` is {version}, {evidence} here", self.member);
            }
            memory.found = found;
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
