use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use highroad_eval::{Plan, Verdict};
use highroad_package::{Baselines, Digest, Package, Store, Verdicts, VerifiedPackage};
use highroad_worker::Crew;
use jiff::{SignedDuration, Timestamp};
use metrics::{counter, gauge, histogram};
use schemars::JsonSchema;
use serde::Serialize;
use tracing::{error, info, warn};

use crate::cache::AnswerCache;
use crate::config::{MemberConfig, ModelSource, Task};
use crate::definitions::Definitions;
use crate::error::{AskError, DeployError};
use crate::monitor::Monitor;
use crate::pipeline::{IndexPlaces, Missing};
use crate::registry::{Registry, Resolved};
use crate::revision::{Candidate, Facts, OverrideFacts, Revision, Unverified};
use crate::rollout::{Assigned, Key, RefusedVersion, RolloutStatus, Rollouts, Trial, now};
use crate::saved::{self, Saved, SavedRollout, SavedVersion};
use crate::telemetry::{LOAD_FAILURES, MEMBER_INFO, MEMBER_READY, OVERRIDE_EXPIRES, ROLLOUT_SWITCH, SWAPS, WAY_BACK};
use crate::way_back::{Looking, WayBack, WayBackStatus};

/// Where a server keeps what it fetched and what it attests.
#[derive(Clone, Debug)]
pub struct LocalState {
    /// Packages.
    pub store: Store,
    /// Verdicts on them.
    pub verdicts: Verdicts,
    /// Directory of the attestations.
    pub attestations: PathBuf,
    /// Directory of what members served last.
    pub serving: PathBuf,
    /// Directory of what rollouts compared.
    pub rollouts: PathBuf,
    /// Directory of what members met.
    pub monitor: PathBuf,
    /// What they are compared with.
    pub baselines: Baselines,
    /// What pipelines and hosted members were, by digest.
    pub definitions: Definitions,
    /// Directory of what was spent.
    pub budgets: PathBuf,
    /// Directory of programs that are served without a package.
    pub programs: PathBuf,
}

impl LocalState {
    /// With everything but packages and verdicts in their usual folders of `home`.
    pub fn under(home: &std::path::Path, store: Store, verdicts: Verdicts) -> Self {
        let folders =
            ["attestations", "serving", "rollouts", "monitor", "baselines", "budgets", "definitions", "programs"];
        let [attestations, serving, rollouts, monitor, baselines, budgets, definitions, programs] =
            folders.map(|name| home.join(name));
        let (baselines, definitions) = (Baselines::at(baselines), Definitions::at(definitions));
        Self { store, verdicts, attestations, serving, rollouts, monitor, baselines, definitions, budgets, programs }
    }
}

/// A member: a name, where its package comes from, and the revision that serves now.
///
/// A version that does not load never takes traffic: the one before it keeps serving and [`Deployment::status`] says why.
pub struct Deployment {
    name: String,
    config: MemberConfig,
    unverified: Unverified,
    registry: Option<Arc<dyn Registry>>,
    local: LocalState,
    indexes: IndexPlaces,
    current: ArcSwapOption<Revision>,
    cache: Option<Arc<AnswerCache>>,
    pub(crate) rollouts: Rollouts,
    monitor: Arc<Monitor>,
    way_back: Arc<WayBack>,
    status: Mutex<Memory>,
    /// A [`Stage`].
    stage: AtomicU8,
    // Two refreshes at once would load a version twice.
    refreshing: tokio::sync::Mutex<()>,
}

/// What a deployment is doing, for people and probes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "MemberStatus")]
pub struct Status {
    /// The member's name.
    pub member: String,
    /// What it is configured to serve.
    pub source: String,
    /// Where it stands.
    pub state: State,
    /// What serves now.
    pub serving: Option<Facts>,
    /// Why another version does not.
    pub failure: Option<Failure>,
    /// Where a rollback leads, once that was walked.
    pub way_back: Option<WayBackStatus>,
}

/// Where a deployment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MemberState")]
pub enum State {
    /// Not loaded yet, or its first load failed.
    Starting,
    /// A version serves.
    Ready,
    /// The registry says that no version should serve.
    Undeployed,
}

/// A version that should serve and does not.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Failure {
    /// The version, where it is known.
    pub version: Option<String>,
    /// Its package, where it is known.
    pub package: Option<Digest>,
    /// Why, in words.
    pub reason: String,
    /// Times it was tried.
    pub attempts: u32,
    /// The first time it failed, RFC 3339 in UTC.
    pub since: String,
}

/// What a refresh did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Refreshed {
    Unchanged,
    Switched,
    Undeployed,
}

struct Memory {
    state: State,
    serving: Option<Resolved>,
    /// As it is kept on the disk.
    saved: Option<SavedVersion>,
    failure: Option<Failure>,
    failed: Option<Resolved>,
    retry_at: Option<Instant>,
    /// What was last told about the override of what serves.
    told: Remaining,
}

/// Where a deployment stands in the life of a portfolio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It loads for a portfolio that may never be: nothing of it is told, and nothing written.
    Prepared,
    /// It is a member.
    Member,
    /// It was one: it finishes what it began and changes nothing any more.
    Left,
}

/// How much of an override is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remaining {
    Enough,
    Little,
    Nothing,
}

impl Memory {
    fn new(state: State) -> Self {
        Self { state, serving: None, saved: None, failure: None, failed: None, retry_at: None, told: Remaining::Enough }
    }
}

const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// An override that ends sooner is warned of.
const LITTLE_LEFT: SignedDuration = SignedDuration::from_hours(24);

/// What all members of a process share.
pub(crate) struct Surroundings {
    pub(crate) registry: Option<Arc<dyn Registry>>,
    pub(crate) local: LocalState,
    pub(crate) monitor: Arc<Monitor>,
}

impl Deployment {
    pub(crate) fn new(
        name: String,
        config: MemberConfig,
        unverified: Unverified,
        around: Surroundings,
        rollouts: Rollouts,
        before: Option<&Self>,
    ) -> Self {
        let Surroundings { registry, local, monitor } = around;
        let known =
            before.and_then(|before| before.cache.clone()).filter(|cache| Some(*cache.config()) == config.cache);
        let cache = known.or_else(|| config.cache.map(|cache| Arc::new(AnswerCache::new(&name, cache))));
        Self {
            cache,
            way_back: WayBack::of(&name),
            name,
            config,
            unverified,
            registry,
            local,
            indexes: IndexPlaces::default(),
            current: ArcSwapOption::empty(),
            rollouts,
            monitor,
            status: Mutex::new(Memory::new(State::Starting)),
            stage: AtomicU8::new(Stage::Prepared as u8),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    /// The same, embedding queries to `indexes`: a version of whose package there is no build does not serve.
    pub(crate) fn with_indexes(self, indexes: IndexPlaces) -> Self {
        Self { indexes, ..self }
    }

    /// Whether it embeds queries to the indexes at `places`, and what serves has them as they are there now.
    pub(crate) fn has_indexes(&self, places: &IndexPlaces) -> bool {
        let current = self.current.load();
        let are_current = |revision: &Arc<Revision>| places.are_current(&revision.facts().package, revision.indexes());
        self.indexes == *places && current.as_ref().is_none_or(are_current)
    }

    /// The member's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it runs.
    pub fn config(&self) -> &MemberConfig {
        &self.config
    }

    /// Makes it a member: from here on it tells what it does. What it has loaded already takes the place of what served before it.
    pub(crate) fn enter(&self, before: Option<&Self>) {
        let member = || self.name.clone();
        if let Some(before) = before {
            before.leave();
        }
        self.rollouts.enter(&self.name);
        if !self.config.monitor.enabled {
            self.monitor.forget(&self.name);
        }
        counter!(SWAPS, "member" => member()).increment(0);
        counter!(LOAD_FAILURES, "member" => member()).increment(0);
        gauge!(WAY_BACK, "member" => member()).set(0.0);
        self.stage.store(Stage::Member as u8, Ordering::Release);
        let served = before.and_then(|before| before.current.load_full());
        match self.current.load_full() {
            Some(revision) => self.tell_switch(served.as_deref().map(Revision::facts), revision.facts()),
            None => {
                gauge!(MEMBER_READY, "member" => member()).set(0.0);
                gauge!(OVERRIDE_EXPIRES, "member" => member()).set(0.0);
                if let Some(served) = served {
                    member_info(served.facts(), Serving::Before);
                }
            }
        }
    }

    /// Makes it a member no more; requests in flight finish, and the last one releases its memory.
    pub(crate) fn leave(&self) {
        self.stage.store(Stage::Left as u8, Ordering::Release);
        self.rollouts.drop_all();
    }

    /// [`Deployment::leave`] where nothing takes its place.
    pub(crate) fn remove(&self) {
        self.leave();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(self.withdraw()));
        }
        saved::remove(&self.local.serving, &self.name);
        self.monitor.forget(&self.name);
        gauge!(MEMBER_READY, "member" => self.name.clone()).set(0.0);
        gauge!(OVERRIDE_EXPIRES, "member" => self.name.clone()).set(0.0);
        if let Some(revision) = self.current.load_full() {
            member_info(revision.facts(), Serving::Before);
        }
        info!(member.name = %self.name, "Removed `{}`", self.name);
    }

    fn is(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) == stage as u8
    }

    /// What it follows.
    pub fn source(&self) -> &ModelSource {
        &self.config.source
    }

    pub(crate) fn registry(&self) -> Option<&Arc<dyn Registry>> {
        self.registry.as_ref()
    }

    /// What is loaded here of the package `package`.
    pub(crate) fn loaded(&self, package: &Digest) -> Option<Arc<Revision>> {
        let candidate = || Some(Arc::clone(&self.rollouts.trial.load_full()?.candidate));
        let both = [self.current.load_full(), candidate()];
        both.into_iter().flatten().find(|revision| revision.facts().package == *package)
    }

    /// The revision that serves now. Errors if there is none.
    pub fn revision(&self) -> Result<Arc<Revision>, AskError> {
        self.current.load_full().ok_or_else(|| self.why_none())
    }

    /// Who answers a request, and its part in a rollout where there is one. Errors if nothing serves.
    pub fn assign(&self, key: &Key) -> Result<Assigned, AskError> {
        self.go_back();
        let stable = self.revision()?;
        Ok(match (self.rollouts.trial.load_full(), self.rollouts.probation.load_full()) {
            (Some(trial), _) => Assigned::of(trial, stable, key),
            (None, Some(probation)) if !probation.is_over() => Assigned::watched(probation, stable, key),
            (None, _) => Assigned::plain(stable, key),
        })
    }

    /// The version that is tried beside what serves, if a rollout lets it answer clients.
    pub fn candidate(&self) -> Option<Arc<Revision>> {
        let trial = self.rollouts.trial.load_full()?;
        let answers = matches!(trial.rollout.plan, Plan::Canary { .. }) && trial.ended().is_none();
        answers.then(|| Arc::clone(&trial.candidate))
    }

    /// The rollout that goes on here, else the last one since this process began.
    pub fn rollout(&self) -> Option<RolloutStatus> {
        self.rollouts.status()
    }

    /// Takes in the right answer to a request that the rollout compared here; whether it counts.
    pub fn label(&self, request_id: &str, right: &str) -> bool {
        self.rollouts.trial.load_full().is_some_and(|trial| trial.label(request_id, right))
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        let memory = self.memory();
        let current = self.current.load();
        let crews = current.as_ref().map(|revision| revision.crews()).unwrap_or_default();
        // Where no PyTorch process lives it answers nothing, until one does again; where none of an index does, nothing is found there.
        let is_down = crews.iter().any(|crew| crew.n_live == 0);
        let serving = current.as_ref().map(|revision| revision.facts().clone());
        Status {
            member: self.name.clone(),
            source: self.config.source.to_string(),
            state: if is_down { State::Starting } else { memory.state },
            failure: memory
                .failure
                .clone()
                .or_else(|| crews.into_iter().find_map(|crew| short_of_workers(crew, serving.as_ref()))),
            serving,
            way_back: self.way_back.status(),
        }
    }

    /// Looks where the source points now and, if that is another version, loads it, warms it up and switches to it.
    ///
    /// Errors if the version it should serve does not; what served before goes on. A version that failed is tried again
    /// only after a growing pause.
    pub async fn refresh(&self) -> Result<Refreshed, DeployError> {
        let _one_at_a_time = self.refreshing.lock().await;
        if self.is(Stage::Left) {
            return Ok(Refreshed::Unchanged);
        }
        self.go_back();
        self.watch_override();
        match &self.config.source {
            ModelSource::Directory(dir) => self.refresh_from_directory(dir.clone()).await,
            ModelSource::Registry(reference) => match &self.registry {
                Some(registry) => {
                    let refreshed = self.refresh_from_registry(reference, registry.as_ref()).await;
                    if self.is(Stage::Member) {
                        self.follow_rollout(reference, registry.as_ref()).await;
                        self.tell_standing(reference, registry.as_ref()).await;
                        self.walk_way_back(reference, registry);
                    }
                    refreshed
                }
                None => Err(self.fail(None, DeployError::NoRegistry(reference.clone()))),
            },
        }
    }

    /// Has the version attested that a rollback leads to.
    fn walk_way_back(&self, reference: &highroad_package::Reference, registry: &Arc<dyn Registry>) {
        let Some(serving) = self.serving() else { return };
        let looking = Looking {
            registry: Arc::clone(registry),
            reference,
            config: &self.config,
            unverified: self.unverified,
            attestations: &self.local.attestations,
        };
        self.way_back.look(serving, &looking);
    }

    async fn refresh_from_directory(&self, dir: PathBuf) -> Result<Refreshed, DeployError> {
        if self.current.load().is_some() {
            return Ok(Refreshed::Unchanged);
        }
        let local = self.local.clone();
        let found = blocking(move || local.candidate_in(&dir)).await;
        let result = match found {
            Ok(candidate) => self.load(candidate, None).await,
            Err(error) => Err(error),
        };
        result.map_err(|error| self.fail(None, error))
    }

    async fn refresh_from_registry(
        &self,
        reference: &highroad_package::Reference,
        registry: &dyn Registry,
    ) -> Result<Refreshed, DeployError> {
        let resolved = match registry.resolve(reference).await {
            Ok(resolved) => resolved,
            Err(DeployError::NotFound(_)) if self.memory().state != State::Starting => return Ok(self.undeploy()),
            Err(error @ DeployError::Registry(_)) if self.memory().state == State::Starting => {
                return self.load_last_good(error).await;
            }
            Err(error) => return Err(self.fail(None, error)),
        };
        if self.rollouts.ways_back.waits_for_registry(&resolved) {
            self.tell_way_back(reference, registry).await;
            return Ok(Refreshed::Unchanged);
        }
        if self.memory().serving.as_ref() == Some(&resolved) {
            self.forget_failure();
            return Ok(Refreshed::Unchanged);
        }
        if self.is_pausing(&resolved) {
            return Ok(Refreshed::Unchanged);
        }
        if self.switch_to_loaded(&resolved) {
            return Ok(Refreshed::Switched);
        }
        let result = match registry.fetch(reference, &resolved).await {
            Ok(candidate) => self.load(candidate, Some(resolved.clone())).await,
            Err(error) => Err(error),
        };
        result.map_err(|error| self.fail(Some(resolved), error))
    }

    /// Switches to a version that is in memory already: the candidate of a rollout, or what served before one took its place.
    fn switch_to_loaded(&self, resolved: &Resolved) -> bool {
        let begun = Instant::now();
        let trial = self.rollouts.trial.load_full();
        let may_serve = |trial: &Arc<Trial>| trial.may_serve() && self.indexes.are_all_in(trial.candidate.indexes());
        let candidate = trial.filter(|trial| trial.resolved == *resolved && may_serve(trial));
        let served = self.current.load_full().zip(self.serving());
        if let Some(trial) = candidate {
            let saved = SavedVersion { resolved: resolved.clone(), overridden: None, admitted_at: Some(now()) };
            let switched = self.switch_to(Arc::clone(&trial.candidate), Some(saved));
            trial.switched(switched.duration_since(begun));
            self.keep_before(&trial.candidate, resolved, served);
            return true;
        }
        let Some(revision) = self.rollouts.take_warm(resolved) else { return false };
        let saved = SavedVersion { resolved: resolved.clone(), overridden: None, admitted_at: Some(now()) };
        let switched = self.switch_to(Arc::clone(&revision), Some(saved));
        let took = switched.duration_since(begun);
        histogram!(ROLLOUT_SWITCH, "member" => self.name.clone()).record(took.as_secs_f64());
        self.keep_before(&revision, resolved, served);
        true
    }

    /// Keeps what served before a version loaded, and watches the version that took its place.
    fn keep_before(&self, new: &Revision, resolved: &Resolved, served: Option<(Arc<Revision>, Resolved)>) {
        self.rollouts.keep_warm(served.clone());
        if let Some(before) = served {
            self.begin_probation(new, resolved, before);
        }
    }

    /// What served last here, where nobody can say what should serve now.
    async fn load_last_good(&self, unanswered: DeployError) -> Result<Refreshed, DeployError> {
        let Some(saved) = saved::read(&self.local.serving, &self.name, &self.config.source.to_string()) else {
            return Err(self.fail(None, unanswered));
        };
        let (version, local) = (saved.serving.clone(), self.local.clone());
        let result = match blocking(move || version.candidate(&local)).await {
            Ok(candidate) => self.load(candidate, Some(saved.serving.resolved.clone())).await,
            Err(error) => Err(error),
        };
        let refreshed = result.map_err(|error| self.fail(Some(saved.serving.resolved.clone()), error))?;
        warn!(member.name = %self.name, "`{}` serves what it served last: {unanswered}", self.name);
        if self.is(Stage::Member) {
            self.resume(saved.rollout).await;
        }
        Ok(refreshed)
    }

    /// What is served, as the registry has it.
    pub(crate) fn serving(&self) -> Option<Resolved> {
        self.memory().serving.clone()
    }

    /// The version that should serve and does not, where the registry names one.
    pub(crate) fn refused(&self) -> Option<RefusedVersion> {
        let memory = self.memory();
        let (failed, failure) = (memory.failed.as_ref()?, memory.failure.as_ref()?);
        Some(RefusedVersion::new(failed.version, &failure.reason))
    }

    /// Keeps what serves, and how far its rollout has come, on the disk. A disk that is full takes nothing down.
    pub(crate) fn save(&self, rollout: Option<SavedRollout>) {
        if !self.is(Stage::Member) {
            return;
        }
        let Some(serving) = self.memory().saved.clone() else { return };
        let saved = Saved { highroad_serving: 1, source: self.config.source.to_string(), serving, rollout };
        if let Err(error) = saved::write(&self.local.serving, &self.name, &saved) {
            warn!(member.name = %self.name, "Cannot keep what `{}` serves: {error}", self.name);
        }
    }

    /// What is on the disk about the member's rollout.
    pub(crate) fn saved_rollout(&self) -> Option<SavedRollout> {
        saved::read(&self.local.serving, &self.name, &self.config.source.to_string())?.rollout
    }

    /// Loads a version beside what serves. A shadow answers nobody, so it needs no verdict.
    pub(crate) async fn load_beside(
        &self,
        candidate: Candidate,
        unverified: Unverified,
        missing: Missing,
    ) -> Result<Arc<Revision>, DeployError> {
        self.load_with(self.config.clone(), candidate, unverified, missing).await
    }

    /// Loads the candidate of a rollout, on the engine that candidates are tried on.
    pub(crate) async fn load_candidate(
        &self,
        candidate: Candidate,
        unverified: Unverified,
    ) -> Result<Arc<Revision>, DeployError> {
        self.load_with(self.config.of_candidates(), candidate, unverified, Missing::Passed).await
    }

    /// Whether candidates are tried on the engine that the member serves with.
    pub(crate) fn candidates_run_as_member(&self) -> bool {
        self.config.of_candidates().engine == self.config.engine
    }

    async fn load_with(
        &self,
        config: MemberConfig,
        candidate: Candidate,
        unverified: Unverified,
        missing: Missing,
    ) -> Result<Arc<Revision>, DeployError> {
        let found = Task::of(&candidate.package.manifest().task.kind);
        if let Some(wanted) = config.task.filter(|wanted| found != Some(*wanted)) {
            let found = found.map_or("unknown".to_owned(), |found| found.to_string());
            return Err(DeployError::Task { version: candidate.version, found, wanted });
        }
        let (name, places) = (self.name.clone(), self.indexes.clone());
        let (attestations, cache) = (self.local.attestations.clone(), self.cache.clone());
        let kept = self.local.definitions.clone();
        let load = move || {
            // A missing index is told before anything takes long.
            let indexes = places.open(&candidate.package, &candidate.version, missing, &kept)?;
            let revision = Revision::load(&name, &candidate, &config, unverified, &attestations, cache)?;
            Ok(revision.with_indexes(indexes))
        };
        let revision = blocking(load).await?;
        revision.watch_with(&self.monitor, &self.config.monitor);
        Ok(Arc::new(revision))
    }

    pub(crate) fn unverified(&self) -> Unverified {
        self.unverified
    }

    pub(crate) fn local(&self) -> &LocalState {
        &self.local
    }

    /// Serves nothing until the registry says otherwise; requests in flight finish.
    pub(crate) fn undeploy(&self) -> Refreshed {
        let before = self.current.swap(None);
        let mut memory = self.memory();
        let was_undeployed = memory.state == State::Undeployed;
        *memory = Memory::new(State::Undeployed);
        drop(memory);
        if !self.is(Stage::Member) {
            return Refreshed::Undeployed;
        }
        self.rollouts.drop_all();
        saved::remove(&self.local.serving, &self.name);
        gauge!(MEMBER_READY, "member" => self.name.clone()).set(0.0);
        gauge!(OVERRIDE_EXPIRES, "member" => self.name.clone()).set(0.0);
        if let Some(before) = &before {
            member_info(before.facts(), Serving::Before);
        }
        if was_undeployed {
            return Refreshed::Unchanged;
        }
        info!(member.name = %self.name, "Undeployed `{}`: `{}` means no version", self.name, self.config.source);
        Refreshed::Undeployed
    }

    async fn load(&self, candidate: Candidate, resolved: Option<Resolved>) -> Result<Refreshed, DeployError> {
        let saved = resolved.as_ref().map(|resolved| SavedVersion::of(&candidate, resolved));
        let revision = self.load_beside(candidate, self.unverified, Missing::Refused).await?;
        let served = self.current.load_full().zip(self.serving());
        self.switch_to(Arc::clone(&revision), saved);
        if let Some(resolved) = resolved {
            self.keep_before(&revision, &resolved, served);
        }
        Ok(Refreshed::Switched)
    }

    /// Lets a loaded version serve: the moment from which on it takes the requests.
    pub(crate) fn switch_to(&self, revision: Arc<Revision>, saved: Option<SavedVersion>) -> Instant {
        let facts = revision.facts().clone();
        self.monitor.serves(&self.name, &facts.version, &facts.package);
        self.way_back.served(&facts);
        let before = self.current.swap(Some(revision));
        let switched = Instant::now();
        // What was watched serves no more, or has proved itself enough.
        self.rollouts.probation.store(None);
        let serving = saved.as_ref().map(|saved| saved.resolved.clone());
        *self.memory() = Memory { serving, saved, ..Memory::new(State::Ready) };
        if self.is(Stage::Member) {
            self.tell_switch(before.as_deref().map(Revision::facts), &facts);
        }
        switched
    }

    fn tell_switch(&self, before: Option<&Facts>, facts: &Facts) {
        self.save(self.saved_rollout());
        gauge!(MEMBER_READY, "member" => self.name.clone()).set(1.0);
        let expires_at = facts.overridden.as_ref().and_then(|overridden| overridden.expires_at.parse().ok());
        let expires_s = expires_at.map_or(0, Timestamp::as_second);
        gauge!(OVERRIDE_EXPIRES, "member" => self.name.clone()).set(expires_s as f64);
        if let Some(before) = before {
            counter!(SWAPS, "member" => self.name.clone()).increment(1);
            member_info(before, Serving::Before);
        }
        member_info(facts, Serving::Now);
        if let Some(reason) = &facts.development {
            warn!(member.name = %self.name, "`{}` serves {} for development only: {reason}", self.name, facts.version);
        }
        if let Some(OverrideFacts { by, expires_at, .. }) = &facts.overridden {
            warn!(
                member.name = %self.name,
                "`{}` serves {} without a verdict: {by} overrode the gate until {expires_at}", self.name, facts.version
            );
        }
        info!(
            member.name = %self.name, package.digest = %facts.package, package.version = %facts.version,
            "`{}` serves {} ({}), evidence {}", self.name, facts.version, facts.package, facts.evidence
        );
    }

    /// Says once that the override of what serves is near its end, and once that it is past it. What runs goes on, as it
    /// does where a waiver expires: stopping it would be an outage that nobody decided. The next load is refused.
    fn watch_override(&self) {
        let current = self.current.load();
        let Some(facts) = current.as_ref().map(|revision| revision.facts()) else { return };
        let Some(OverrideFacts { by, expires_at, .. }) = &facts.overridden else { return };
        let remaining = Remaining::of(expires_at, Timestamp::now());
        if std::mem::replace(&mut self.memory().told, remaining) >= remaining {
            return;
        }
        let (name, version) = (&self.name, &facts.version);
        match remaining {
            Remaining::Enough => {}
            Remaining::Little => warn!(
                member.name = %name,
                "The override that `{name}` serves {version} by ends at {expires_at}; after that it is not loaded again"
            ),
            Remaining::Nothing => error!(
                member.name = %name,
                "The override by {by} that `{name}` serves {version} by ended at {expires_at}: it goes on serving until the \
                 next restart, which will refuse it"
            ),
        }
    }

    fn fail(&self, resolved: Option<Resolved>, failure: DeployError) -> DeployError {
        let reason = failure.with_causes();
        let mut memory = self.memory();
        let known = memory.failure.take().filter(|known| memory.failed == resolved && known.reason == reason);
        let attempts = known.as_ref().map_or(1, |known| known.attempts.saturating_add(1));
        let since = known.map_or_else(|| Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), |k| k.since);
        memory.retry_at = Instant::now().checked_add(pause_after(attempts));
        memory.failure = Some(Failure {
            version: resolved.as_ref().map(Resolved::label),
            package: resolved.as_ref().map(|resolved| resolved.package),
            reason: reason.clone(),
            attempts,
            since,
        });
        memory.failed = resolved;
        let package = memory.failed.as_ref().map(|failed| failed.package);
        drop(memory);
        // A registry that is away says nothing of what it holds.
        if let Some(package) = package.filter(|_| !matches!(failure, DeployError::Registry(_))) {
            self.way_back.failed(&package, &reason);
        }
        if !self.is(Stage::Member) {
            return failure;
        }
        counter!(LOAD_FAILURES, "member" => self.name.clone()).increment(1);
        // The same failure again and again is one event.
        if attempts == 1 {
            let goes_on = self.current.load().as_ref().map(|now| format!("; {} goes on serving", now.facts().version));
            error!(
                member.name = %self.name, "`{}` cannot serve `{}`: {reason}{}",
                self.name, self.config.source, goes_on.unwrap_or_default()
            );
        }
        failure
    }

    fn is_pausing(&self, resolved: &Resolved) -> bool {
        let memory = self.memory();
        memory.failed.as_ref() == Some(resolved) && memory.retry_at.is_some_and(|at| Instant::now() < at)
    }

    fn forget_failure(&self) {
        let mut memory = self.memory();
        (memory.failure, memory.failed, memory.retry_at) = (None, None, None);
    }

    fn why_none(&self) -> AskError {
        let memory = self.memory();
        match (&memory.state, &memory.failure) {
            (State::Undeployed, _) => AskError::NotDeployed(self.name.clone()),
            (_, Some(failure)) => AskError::NotReady { member: self.name.clone(), reason: failure.reason.clone() },
            _ => AskError::NotReady { member: self.name.clone(), reason: "it is loading".to_owned() },
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remaining {
    fn of(expires_at: &str, now: Timestamp) -> Self {
        let left = expires_at.parse::<Timestamp>().map_or(SignedDuration::ZERO, |end| end.duration_since(now));
        match left {
            left if left <= SignedDuration::ZERO => Self::Nothing,
            left if left < LITTLE_LEFT => Self::Little,
            _ => Self::Enough,
        }
    }
}

impl LocalState {
    /// Takes the package in `dir` into the store, with the newest of its verdicts that admits it (else the newest).
    fn candidate_in(&self, dir: &std::path::Path) -> Result<Candidate, DeployError> {
        if is_bare_program(dir) {
            let package = VerifiedPackage::of_program(dir, &self.programs)?;
            let version = format!("{}@{}", package.manifest().name, package.digest());
            return Ok(Candidate { version, package, verdict: None, overridden: None, admitted_at: None });
        }
        // Opening it first tells a damaged package by its own path.
        let name = Package::open(dir)?.manifest().name.clone();
        let digest = self.store.add(dir)?;
        let package = self.store.get(&digest)?;
        let version = format!("{name}@{digest}");
        Ok(Candidate { version, package, verdict: self.best_verdict(&digest)?, overridden: None, admitted_at: None })
    }

    pub(crate) fn best_verdict(&self, package: &Digest) -> Result<Option<(Digest, Verdict)>, DeployError> {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut verdicts = Vec::new();
        for digest in self.verdicts.list(package)? {
            verdicts.push((digest, read_verdict(&self.verdicts, package, &digest)?));
        }
        let rank =
            |(_, verdict): &(Digest, Verdict)| (verdict.admits(&package.to_string(), &now).is_ok(), verdict.recency());
        Ok(verdicts.into_iter().max_by_key(rank))
    }
}

/// Whether a member's path is a program without a package.
pub fn is_bare_program(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pt2") && path.is_file()
}

/// The verdict `digest` on `package`. Errors if it is absent, changed or not a verdict.
pub fn read_verdict(verdicts: &Verdicts, package: &Digest, digest: &Digest) -> Result<Verdict, DeployError> {
    let bytes = verdicts.get(package, digest)?;
    serde_json::from_slice(&bytes).map_err(|error| DeployError::Verdict { verdict: *digest, reason: error.to_string() })
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeployError> + Send + 'static,
) -> Result<T, DeployError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(DeployError::Panicked))
}

/// What is told of a member whose processes do not all run.
fn short_of_workers(crew: Crew, serving: Option<&Facts>) -> Option<Failure> {
    let Crew { what, n_live, n_wanted, reason } = crew;
    let reason = format!("{n_live} of {n_wanted} {what} processes run: {}", reason?);
    let (version, package) = (serving.map(|facts| facts.version.clone()), serving.map(|facts| facts.package));
    Some(Failure { version, package, reason, attempts: 1, since: now() })
}

pub(crate) fn pause_after(attempts: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1))).min(LONGEST_RETRY)
}

#[derive(Clone, Copy)]
enum Serving {
    Now,
    Before,
}

fn member_info(facts: &Facts, serving: Serving) {
    gauge!(
        MEMBER_INFO, "member" => facts.member.clone(), "version" => facts.version.clone(),
        "package" => facts.package.to_string(), "numerics_id" => facts.numerics_id.clone(), "evidence" => facts.evidence,
        "engine" => facts.engine()
    )
    .set(match serving {
        Serving::Now => 1.0,
        Serving::Before => 0.0,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        assert_eq!(pause_after(1), Duration::from_secs(2));
        assert_eq!(pause_after(3), Duration::from_secs(8));
        assert_eq!(pause_after(100), LONGEST_RETRY);
    }

    #[test]
    fn the_last_day_of_an_override_and_its_end_are_noticed() {
        let end = "2026-12-01T12:00:00Z";
        let remaining = |now: &str| Remaining::of(end, now.parse().unwrap());
        assert_eq!(remaining("2026-11-30T12:00:00Z"), Remaining::Enough);
        assert_eq!(remaining("2026-11-30T12:00:01Z"), Remaining::Little);
        assert_eq!(remaining(end), Remaining::Nothing);
        assert!(Remaining::Enough < Remaining::Little && Remaining::Little < Remaining::Nothing);
    }
}
