//! Members that somebody else hosts: asked within limits of time and money, retried, left alone while they do not work, and stood in for.
//!
//! A [`HostedMember`] is what a deployment is for packages: a name, what the description says, and where it stands. [`ask`] asks one;
//! [`routes`] puts all of them on HTTP.

mod again;
mod answers;
mod ask;
pub(crate) mod breaker;
pub mod config;
mod exchange;
mod grpc;
mod host;
mod routes;
mod shared;
mod standing;
mod tasks;
mod trial;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use highroad_hosted::{Client, Hosted, HostedTask, NUMERICS_ID, Tokens, inputs_of, outputs_of};
use highroad_service::access::Principal;
use highroad_task::{Answer, Glimpse, MetTensors, Written};
use jiff::Timestamp;
use metrics::{counter, gauge};
use tokio::sync::Semaphore;

pub use again::{Heard, Question, Said, text_similarity};
pub(crate) use ask::Declined;
pub use exchange::{Ended, HostedRecord};
pub(crate) use grpc::infer;
pub use routes::router;
pub(crate) use routes::{Generation, Text};
pub(crate) use standing::Standing;
pub(crate) use trial::{HostedTrial, TrialShown};
pub use trial::{JudgeConfig, Preferred, TrialConfig};

use crate::budget::keeper::Budgets;
use crate::budget::{Amount, Most};
use crate::config::{RequestLimits, RolloutConfig};
use crate::deployment::{Failure, LocalState, State, Status};
use crate::error::{AskError, DeployError};
use crate::monitor::{Monitor, MonitorConfig, Watch};
use crate::protocol::ModelTask;
use crate::protocol::openai::ModelEntry;
use crate::revision::{Facts, Unverified};
use crate::telemetry::{HOSTED_BREAKER_OPENED, HOSTED_BREAKER_STATE, HOSTED_IN_FLIGHT, MEMBER_READY};
use breaker::{Admission, Breaker, Circuit, Outcome, RetryBudget};
use config::HostedConfig;
use host::Host;

/// The hosted members of a portfolio, by name.
#[derive(Default)]
pub struct HostedMembers {
    members: BTreeMap<String, Arc<HostedMember>>,
    trials: BTreeMap<String, Arc<HostedTrial>>,
}

/// One of them.
pub struct HostedMember {
    name: String,
    config: HostedConfig,
    unverified: Unverified,
    local: LocalState,
    serving: ArcSwapOption<Serving>,
    failure: Mutex<Option<Failure>>,
    breaker: Mutex<Breaker>,
    retries: Mutex<RetryBudget>,
    places: Arc<Semaphore>,
    n_waiting: AtomicUsize,
    host: Mutex<Host>,
    watching: Watching,
    watch: OnceLock<Watch>,
    /// Requests for tensors whose tensors may be looked at at one time.
    looks: Arc<Semaphore>,
    /// Else it is prepared for a portfolio that may never be, and tells nothing.
    is_member: AtomicBool,
}

/// Requests of one member whose tensors are looked at at one time, and the most bytes of one and its answer.
const MOST_LOOKS: usize = 4;
const MOST_LOOKED_AT_BYTES: usize = 4 << 20;

/// Tensors in the Open Inference Protocol, and how many bytes of them are JSON where binary data follows.
#[derive(Clone, Copy)]
struct Passed<'a> {
    body: &'a [u8],
    json_bytes: Option<usize>,
}

/// What has members looked at, and how.
#[derive(Clone)]
pub(crate) struct Watching {
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) config: MonitorConfig,
}

/// A hosted member that may be asked.
pub(crate) struct Serving {
    client: Client,
    facts: Facts,
}

/// A request that goes out; how it ends decides about the next ones.
struct Attempt<'a> {
    member: &'a HostedMember,
    admission: Admission,
    outcome: Outcome,
}

impl HostedMembers {
    /// The members of `config` and what is tried beside them: those of `before` that are as they were, and new ones, none of them ready yet.
    pub(crate) fn new(
        config: &BTreeMap<String, HostedConfig>,
        before: &Self,
        unverified: Unverified,
        local: &LocalState,
        rollouts: RolloutConfig,
        watching: &Watching,
    ) -> Self {
        let member = |(name, config): (&String, &HostedConfig)| {
            let same = before
                .members
                .get(name)
                .filter(|member| member.config == *config && member.watching.config == watching.config);
            let new = || {
                Arc::new(HostedMember::new(name.clone(), config.clone(), unverified, local.clone(), watching.clone()))
            };
            (name.clone(), same.map_or_else(new, Arc::clone))
        };
        let members: BTreeMap<String, Arc<HostedMember>> = config.iter().map(member).collect();
        let trial = |(name, stable): (&String, &Arc<HostedMember>)| {
            let trial = stable.config.trial.as_ref()?;
            let candidate = members.get(&trial.candidate)?;
            let judge = trial.judge.as_ref().and_then(|judge| Some((members.get(&judge.member)?, judge.share)));
            let same =
                before.trials.get(name).filter(|known| known.is_of([stable, candidate], judge.map(|(it, _)| it)));
            let last = before.trials.get(name);
            let begin = || {
                let judge = judge.map(|(judge, share)| (Arc::clone(judge), share));
                HostedTrial::begin(trial, Arc::clone(stable), Arc::clone(candidate), judge, rollouts, last)
            };
            Some((name.clone(), same.map_or_else(begin, Arc::clone)))
        };
        let trials = members.iter().filter_map(trial).collect();
        Self { members, trials }
    }

    /// Lets members that are new enter, and those that `before` had and that are no more leave.
    pub(crate) fn enter(&self, before: &Self) {
        self.new_to(before).for_each(|member| member.enter());
        let gone = before.members.iter().filter(|(name, _)| !self.members.contains_key(*name));
        gone.for_each(|(_, member)| member.remove());
    }

    /// Those that `before` does not have as they are.
    pub(crate) fn new_to<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Arc<HostedMember>> {
        let is_in = |member: &Arc<HostedMember>| {
            before.members.get(&member.name).is_some_and(|other| Arc::ptr_eq(other, member))
        };
        self.members.values().filter(move |member| !is_in(member))
    }

    /// All that the request's key may ask, sorted by name.
    pub fn all(&self) -> Vec<Arc<HostedMember>> {
        self.members.values().filter(|member| Principal::current_may_ask(&member.name)).cloned().collect()
    }

    /// What is tried beside the member of that name.
    pub(crate) fn trial(&self, name: &str) -> Option<&Arc<HostedTrial>> {
        self.trials.get(name)
    }

    /// The one of that name, whoever asks.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<HostedMember>> {
        self.members.get(name)
    }

    /// Whether any is for `task`.
    pub(crate) fn has(&self, task: HostedTask) -> bool {
        self.members.values().any(|member| member.hosted().task == task)
    }

    /// Names that the request's key may ask.
    pub(crate) fn names(&self) -> Vec<String> {
        self.all().iter().map(|member| member.name.clone()).collect()
    }
}

impl HostedMember {
    fn new(name: String, config: HostedConfig, unverified: Unverified, local: LocalState, watching: Watching) -> Self {
        Self {
            watching,
            watch: OnceLock::new(),
            looks: Arc::new(Semaphore::new(MOST_LOOKS)),
            serving: ArcSwapOption::empty(),
            failure: Mutex::default(),
            breaker: Mutex::new(Breaker::new(config.breaker)),
            retries: Mutex::new(RetryBudget::new()),
            places: Arc::new(Semaphore::new(config.hosted.limits.concurrency.get() as usize)),
            n_waiting: AtomicUsize::new(0),
            host: Mutex::default(),
            name,
            config,
            unverified,
            local,
            is_member: AtomicBool::new(false),
        }
    }

    /// How it is asked.
    pub fn config(&self) -> &HostedConfig {
        &self.config
    }

    /// What a request may ask of it, where one of any member may ask `of_all`.
    pub(crate) fn limits(&self, of_all: &RequestLimits) -> RequestLimits {
        self.config.limits.over(of_all)
    }

    /// Makes it a member: from here on it tells what it does.
    pub(crate) fn enter(&self) {
        let member = || self.name.clone();
        self.is_member.store(true, Ordering::Release);
        // What one of this name has under way goes on being counted.
        gauge!(HOSTED_IN_FLIGHT, "member" => member()).increment(0.0);
        counter!(HOSTED_BREAKER_OPENED, "member" => member()).increment(0);
        self.tell_circuit(Circuit::Closed);
        match self.serving.load_full() {
            Some(serving) => self.tell_serving(&serving),
            None => gauge!(MEMBER_READY, "member" => member()).set(0.0),
        }
    }

    /// Makes it a member no more; requests in flight finish.
    pub(crate) fn remove(&self) {
        self.watching.monitor.forget(&self.name);
        gauge!(MEMBER_READY, "member" => self.name.clone()).set(0.0);
        gauge!(HOSTED_BREAKER_STATE, "member" => self.name.clone()).set(0.0);
        tracing::info!(member.name = %self.name, "Removed `{}`", self.name);
    }

    /// Has what it answers looked at from now on.
    fn begin_watch(&self, serving: &Serving) {
        let Facts { version, package, .. } = &serving.facts;
        let Watching { monitor, config } = &self.watching;
        if let Some(watch) = monitor.watch(&self.name, config, version, *package, None) {
            monitor.serves(&self.name, version, package);
            // Set once: it is opened once.
            let _ = self.watch.set(watch);
        }
    }

    /// Has one of `answers` looked at, and with `glimpse` the input of that number. Which tokens it has is the host's business.
    fn seen(&self, answers: &[Answer], glimpse: impl FnOnce(usize) -> Option<Glimpse>) {
        let Some(watch) = self.watch.get() else { return };
        let drawn = watch.draw_of(answers.len(), |at| glimpse(at).map(Glimpse::by_words));
        if let Some(seen) = drawn.and_then(|drawn| watch.answered(drawn, answers)) {
            watch.put(seen);
        }
    }

    /// Has the tensors looked at that it was asked and that it answered, on another thread: they have to be read once more. What is large,
    /// or comes while as many are looked at as may be, is not looked at.
    fn passed_on(self: &Arc<Self>, asked: Passed<'_>, answered: Passed<'_>) {
        let Some(watch) = self.watch.get().filter(|_| self.hosted().task == HostedTask::Infer) else { return };
        let is_small = asked.body.len() + answered.body.len() <= MOST_LOOKED_AT_BYTES;
        let Some(place) = Arc::clone(&self.looks).try_acquire_owned().ok().filter(|_| is_small) else {
            return watch.dropped();
        };
        let member = Arc::clone(self);
        let [asked, answered] = [asked, answered].map(|passed| (passed.body.to_vec(), passed.json_bytes));
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let Some(watch) = member.watch.get() else { return };
            let read = || Ok::<_, String>((inputs_of(&asked.0, asked.1)?, outputs_of(&answered.0, answered.1)?));
            let met = read().ok().map(|(inputs, outputs)| MetTensors::of(inputs, outputs));
            match met.and_then(|met| watch.passed_on(&met)) {
                Some(seen) => watch.put(seen),
                None => watch.dropped(),
            }
        });
    }

    /// Has a text looked at that it wrote.
    fn wrote(&self, glimpse: Glimpse, written: Written) {
        if let Some(watch) = self.watch.get() {
            watch.put(watch.wrote(glimpse, written));
        }
    }

    fn is_watched(&self) -> bool {
        self.watch.get().is_some()
    }

    fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Acquire)
    }

    fn tell_serving(&self, serving: &Serving) {
        gauge!(MEMBER_READY, "member" => self.name.clone()).set(1.0);
        tracing::info!(
            member.name = %self.name, package.digest = %serving.facts.package,
            "`{}` is hosted as {}, evidence {}", self.name, serving.facts.version, serving.facts.evidence
        );
        if let Some(reason) = &serving.facts.development {
            tracing::warn!(member.name = %self.name, "`{}` serves for development only: {reason}", self.name);
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn hosted(&self) -> &Hosted {
        &self.config.hosted
    }

    /// Makes it ready where it is not: it has its key, and a verdict that admits its description.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), DeployError> {
        if self.serving.load().is_some() {
            self.look_at_host().await;
            return Ok(());
        }
        let (hosted, local, unverified) = (self.config.hosted.clone(), self.local.clone(), self.unverified);
        let name = self.name.clone();
        let opening = tokio::task::spawn_blocking(move || Serving::open(name, hosted, &local, unverified)).await;
        match opening.unwrap_or(Err(DeployError::Panicked)) {
            Ok(serving) => {
                if self.is_member() {
                    self.tell_serving(&serving);
                }
                if let Err(error) = self.local.definitions.keep_hosted(&self.config.hosted) {
                    tracing::warn!(member.name = %self.name, "Cannot keep the description of `{}` for replays: {error}", self.name);
                }
                *lock(&self.failure) = None;
                self.begin_watch(&serving);
                self.serving.store(Some(Arc::new(serving)));
                self.look_at_host().await;
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    fn fail(&self, error: DeployError) -> DeployError {
        let reason = error.to_string();
        let mut failure = lock(&self.failure);
        let known = failure.take().filter(|known| known.reason == reason);
        if known.is_none() && self.is_member() {
            tracing::error!(member.name = %self.name, "`{}` cannot serve: {reason}", self.name);
        }
        let attempts = known.as_ref().map_or(1, |known| known.attempts.saturating_add(1));
        let since = known.map_or_else(now, |known| known.since);
        let package = Some(self.config.hosted.digest());
        *failure = Some(Failure { version: None, package, reason, attempts, since });
        error
    }

    /// Where it stands; a circuit that is open is told as the reason of a failure.
    pub fn status(&self) -> Status {
        let serving = self.serving.load();
        let open = || {
            let reason = match lock(&self.breaker).circuit() {
                Circuit::Closed => return None,
                circuit => format!("its circuit is {}: the host failed again and again", circuit.name()),
            };
            Some(Failure { version: None, package: None, reason, attempts: 1, since: now() })
        };
        let unready = || {
            let reason = lock(&self.host).failure.clone()?;
            Some(Failure { version: None, package: None, reason, attempts: 1, since: now() })
        };
        Status {
            member: self.name.clone(),
            source: self.config.file.display().to_string(),
            state: if serving.is_some() { State::Ready } else { State::Starting },
            serving: serving.as_ref().map(|serving| serving.facts.clone()),
            failure: lock(&self.failure).clone().or_else(open).or_else(unready),
            way_back: None,
        }
    }

    /// `open` or `half_open` while its host is left alone.
    pub(crate) fn circuit_open(&self) -> Option<&'static str> {
        match lock(&self.breaker).circuit() {
            Circuit::Closed => None,
            Circuit::HalfOpen => Some("half_open"),
            Circuit::Open => Some("open"),
        }
    }

    /// Its entry in `GET /v1/models`, where it is ready.
    pub(crate) fn entry(&self) -> Option<ModelEntry> {
        let serving = self.serving.load_full()?;
        Some(ModelEntry::of(&self.name, &serving.facts, ModelTask::Hosted(self.hosted().task)))
    }

    pub(crate) fn serving(&self) -> Result<Arc<Serving>, AskError> {
        self.serving.load_full().ok_or_else(|| {
            let reason = lock(&self.failure).as_ref().map(|failure| failure.reason.clone());
            AskError::NotReady {
                member: self.name.clone(),
                reason: reason.unwrap_or_else(|| "it is starting".to_owned()),
            }
        })
    }

    fn admit(&self) -> Result<Attempt<'_>, std::time::Duration> {
        let mut breaker = lock(&self.breaker);
        let admission = breaker.admit(Instant::now());
        self.tell_circuit(breaker.circuit());
        match admission {
            Admission::No(wait) => Err(wait),
            admission => Ok(Attempt { member: self, admission, outcome: Outcome::Unknown }),
        }
    }

    fn tell_circuit(&self, circuit: Circuit) {
        let value = match circuit {
            Circuit::Closed => 0.0,
            Circuit::HalfOpen => 1.0,
            Circuit::Open => 2.0,
        };
        gauge!(HOSTED_BREAKER_STATE, "member" => self.name.clone()).set(value);
    }

    /// What `tokens` cost, as the budgets count it; `None` where nobody knows.
    fn amount(&self, budgets: &Budgets, tokens: Tokens) -> Most {
        let nanos = self.hosted().price.as_ref().map(|price| {
            let counts = budgets.currency().as_deref() == Some(price.currency.as_str());
            if counts { (price.of(tokens) * 1e9).ceil() as u64 } else { 0 }
        });
        Most { nanos, tokens: tokens.input.saturating_add(tokens.output) }
    }

    fn n_waiting(&self) -> usize {
        self.n_waiting.load(Ordering::Relaxed)
    }
}

impl Most {
    fn amount(self) -> Amount {
        Amount { nanos: self.nanos.unwrap_or(0), tokens: self.tokens }
    }
}

impl Serving {
    fn open(member: String, hosted: Hosted, local: &LocalState, unverified: Unverified) -> Result<Self, DeployError> {
        let (package, version) = (hosted.digest(), format!("{}@{}", hosted.model, hosted.digest()));
        let loaded_at = now();
        let refusal = match local.best_verdict(&package)? {
            None => DeployError::NoVerdict(package),
            Some((digest, verdict)) => match verdict.admits(&package.to_string(), &loaded_at) {
                Ok(()) => {
                    let facts = facts(member, version, package, loaded_at);
                    let facts = Facts { verdict: Some(digest), ..facts };
                    return Ok(Self { client: Client::new(hosted).map_err(DeployError::Hosted)?, facts });
                }
                Err(refusal) => DeployError::Refused { package, refusal },
            },
        };
        if unverified == Unverified::Refuse {
            return Err(refusal);
        }
        let reason = match refusal {
            DeployError::Refused { refusal, .. } => refusal.to_string(),
            _ => "no verdict".to_owned(),
        };
        let facts = Facts { development: Some(reason), ..facts(member, version, package, loaded_at) };
        Ok(Self { client: Client::new(hosted).map_err(DeployError::Hosted)?, facts })
    }
}

/// What is said of its answers: however it was admitted, a host's are observed and never promised.
fn facts(member: String, version: String, package: highroad_package::Digest, loaded_at: String) -> Facts {
    let numerics_id = NUMERICS_ID.to_owned();
    let (verdict, overridden, development) = (None, None, None);
    Facts { member, version, package, verdict, evidence: "observed", overridden, development, numerics_id, loaded_at }
}

impl Attempt<'_> {
    fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut breaker = lock(&self.member.breaker);
        if breaker.record(self.admission, self.outcome, Instant::now()) {
            counter!(HOSTED_BREAKER_OPENED, "member" => self.member.name.clone()).increment(1);
            tracing::warn!(member.name = %self.member.name, "`{}` is left alone: its host failed again and again", self.member.name);
        }
        self.member.tell_circuit(breaker.circuit());
    }
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
