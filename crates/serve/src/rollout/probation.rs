//! The first minutes of a version after it took another's place, by a rollout or by hand: the version before stays loaded, answers what the new
//! one fails, and takes over again where a test says that the new one fails what it answers, or is slow where it was not.
//!
//! Once: a version that was sent back and is promoted again is watched no more. Who decided tells the registry, so that every replica goes back
//! and the audit has the reason; until the registry has it, this process goes on with the version before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use highroad_eval::{ProbationCounts, ProbationRules, Regression, regression};
use highroad_package::registry::Rollback;
use highroad_package::{Reference, Selector};
use metrics::{counter, histogram};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;

use crate::alerts::Event;
use crate::deployment::Deployment;
use crate::error::AskError;
use crate::registry::{Registry, Resolved};
use crate::revision::Revision;
use crate::rollout::{new_id, now};
use crate::saved::SavedVersion;
use crate::telemetry::{ROLLED_BACK, ROLLOUT_RETRIED, ROLLOUT_SWITCH};

/// The chance of ever sending back a version that is within its limits.
const ALPHA: f64 = 0.01;
/// Share of requests that a version may fail though the one before answers them, on average.
const MAX_ERRORS: f64 = 0.01;
/// A latency objective burns fast where its budget goes this many times as fast as it may, as urgent alerts have it.
const FAST_BURN: f64 = 14.4;
/// Share of slow requests that no version may have, however little is promised.
const MOST_SLOW: f64 = 0.5;
/// Tag of what was sent back last, and by whom, followed by the alias: replicas that decide together must not go back twice, and none
/// watches that version again.
const CLAIM_TAG: &str = "highroad.way-back.";
/// After which a claim that came to nothing is made again.
const CLAIM_FOR: Duration = Duration::from_secs(10);

/// A version that has just taken another's place.
pub(crate) struct Probation {
    member: String,
    pub(crate) resolved: Resolved,
    pub(crate) before: Arc<Revision>,
    before_resolved: Resolved,
    /// Longest time that an answer may take, where that is promised.
    limit: Option<Duration>,
    rules: ProbationRules,
    until: Instant,
    counts: Mutex<ProbationCounts>,
    decided: OnceLock<Decided>,
    wake: Arc<Notify>,
}

#[derive(Clone, Copy)]
struct Decided {
    regression: Regression,
    counts: ProbationCounts,
    at: Instant,
}

/// A version that was sent back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct WayBack {
    pub(crate) id: String,
    from: Resolved,
    to: Resolved,
    reason: String,
    at: String,
    regression: Regression,
    counts: ProbationCounts,
    switch_ms: f64,
    /// Whether the registry has named another version since.
    #[serde(skip)]
    is_known: bool,
    #[serde(skip)]
    claimed: Option<Instant>,
    /// Why the registry does not go back.
    #[serde(skip)]
    held: Option<String>,
}

/// What is promised of a member's answers: the longest time, the share that may take longer, and what was seen of it lately.
pub(crate) type Promised = (Duration, f64, highroad_eval::Counts);

impl Probation {
    /// Of the version `resolved`, for `warm` after it took the place of `before`.
    pub(crate) fn begin(
        member: &str,
        resolved: Resolved,
        before: (Arc<Revision>, Resolved),
        promised: Option<Promised>,
        warm: Duration,
        wake: Arc<Notify>,
    ) -> Self {
        let (before, before_resolved) = before;
        let max_slow = promised.map(|(_, allowed, _)| (FAST_BURN * allowed).min(MOST_SLOW));
        let before_counts = promised.map(|(.., counts)| counts).unwrap_or_default();
        Self {
            member: member.to_owned(),
            resolved,
            before,
            before_resolved,
            limit: promised.map(|(limit, ..)| limit),
            rules: ProbationRules { alpha: ALPHA, max_errors: MAX_ERRORS, max_slow },
            until: Instant::now() + warm,
            counts: Mutex::new(ProbationCounts { before: before_counts, ..ProbationCounts::default() }),
            decided: OnceLock::new(),
            wake,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(crate) fn is_decided(&self) -> bool {
        self.decided.get().is_some()
    }

    /// Whether a failure is the version's own: it may be another's that a queue is full or a wait too long.
    pub(crate) fn is_own(error: &AskError) -> bool {
        matches!(error, AskError::Failed { .. } | AskError::Lost(_))
    }

    /// Takes in a request that it answered, or that was given up in its queue.
    pub(crate) fn answered(&self, took: Duration) {
        self.saw(false, self.limit.is_some_and(|limit| took > limit));
    }

    /// Takes in a request that it failed and the version before answered.
    pub(crate) fn failed(&self, error: &AskError) {
        tracing::warn!(
            member.name = %self.member,
            "{} failed a request that {} answered: {error}", self.resolved.label(), self.before_resolved.label()
        );
        counter!(ROLLOUT_RETRIED, "member" => self.member.clone()).increment(1);
        self.saw(true, false);
    }

    fn saw(&self, failed: bool, slow: bool) {
        if self.is_decided() {
            return;
        }
        let counts = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.n_asked += 1;
            counts.n_failed += u64::from(failed);
            counts.n_slow += u64::from(slow);
            *counts
        };
        // What is good never decides, so most requests cost an addition.
        if !(failed || slow) {
            return;
        }
        if let Ok(Some(regression)) = regression(&self.rules, &counts) {
            let _first = self.decided.set(Decided { regression, counts, at: Instant::now() });
            self.wake.notify_one();
        }
    }

    fn reason(&self, decided: &Decided) -> String {
        let ProbationCounts { n_asked, n_failed, n_slow, .. } = decided.counts;
        let (new, before) = (self.resolved.label(), self.before_resolved.label());
        match decided.regression {
            Regression::Errors => {
                format!("{new} failed {n_failed} of its first {n_asked} requests, all of which {before} answered")
            }
            Regression::Slow => {
                let limit_ms = self.limit.unwrap_or_default().as_secs_f64() * 1e3;
                format!(
                    "{n_slow} of the first {n_asked} answers of {new} took longer than {limit_ms} ms; those of {before} did not"
                )
            }
        }
    }

    fn way_back(&self, decided: &Decided, switched: Instant) -> WayBack {
        let (from, to) = (self.resolved.clone(), self.before_resolved.clone());
        let switch_ms = switched.duration_since(decided.at).as_secs_f64() * 1e3;
        let (regression, counts, reason) = (decided.regression, decided.counts, self.reason(decided));
        WayBack {
            id: new_id(),
            from,
            to,
            reason,
            at: now(),
            regression,
            counts,
            switch_ms,
            is_known: false,
            claimed: None,
            held: None,
        }
    }
}

impl WayBack {
    pub(crate) fn event(&self, member: &str) -> Event {
        Event {
            id: format!("evt_{}_back", self.id),
            kind: "deployment.rolled_back".to_owned(),
            timestamp: self.at.clone(),
            text: format!(
                "`{member}` went back from {} to {} by itself: {}",
                self.from.label(),
                self.to.label(),
                self.reason
            ),
            data: json!({ "member": member, "rollback": self }),
        }
    }

    fn is_from(&self, resolved: &Resolved) -> bool {
        (self.from.version, self.from.package) == (resolved.version, resolved.package)
    }
}

/// What a member remembers of its ways back.
#[derive(Default)]
pub(crate) struct WaysBack {
    last: Mutex<Option<WayBack>>,
    /// The version that any replica sent back last, as the registry has it.
    told: AtomicU64,
}

impl WaysBack {
    fn lock(&self) -> MutexGuard<'_, Option<WayBack>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a version was sent back before, here or by another replica: it is watched no more, so that nothing goes back and forth.
    pub(crate) fn was_sent(&self, resolved: &Resolved) -> bool {
        let here = self.lock().as_ref().is_some_and(|back| back.is_from(resolved));
        here || self.told.load(Ordering::Relaxed) == resolved.version
    }

    /// Learns from the tags of the model what another replica sent back.
    pub(crate) fn learn(&self, tags: &BTreeMap<String, String>, alias: &str) {
        let claim = tags.get(&format!("{CLAIM_TAG}{alias}")).and_then(|claim| claim.split(':').next()?.parse().ok());
        if let Some(version) = claim {
            self.told.store(version, Ordering::Relaxed);
        }
    }

    /// Whether the registry still names a version that was sent back; what it names otherwise is a person's decision.
    pub(crate) fn waits_for_registry(&self, resolved: &Resolved) -> bool {
        let mut back = self.lock();
        let Some(back) = back.as_mut() else { return false };
        if !back.is_from(resolved) {
            (back.is_known, back.held) = (true, None);
        }
        !back.is_known
    }
}

impl Deployment {
    /// Begins to watch a version that takes the place of `before`, where that is asked for and makes sense: not on a way back, not one that
    /// was sent back already, and not where the two are for different things.
    pub(crate) fn begin_probation(&self, new: &Revision, resolved: &Resolved, before: (Arc<Revision>, Resolved)) {
        let config = self.rollouts.config();
        let is_newer = before.1.name == resolved.name && before.1.version < resolved.version;
        let is_alike =
            before.0.manifest().task.kind == new.manifest().task.kind && before.1.package != resolved.package;
        self.rollouts.probation.store(None);
        if !config.auto_rollback || !is_newer || !is_alike || self.rollouts.ways_back.was_sent(resolved) {
            return;
        }
        let (promised, wake) = (self.rollouts.promised(self.name()), self.rollouts.wake());
        let warm = Duration::from_secs(config.warm_s);
        let probation = Probation::begin(self.name(), resolved.clone(), before, promised, warm, wake);
        self.rollouts.probation.store(Some(Arc::new(probation)));
    }

    /// Lets the version before serve again where a probation has decided so. Every request asks this first, so that the next one after a
    /// decision is answered by the version before.
    pub(crate) fn go_back(&self) {
        let Some(probation) = self.rollouts.probation.load_full() else { return };
        let Some(decided) = probation.decided.get().copied() else { return };
        let ended = self.rollouts.probation.compare_and_swap(&probation, None);
        let is_mine = ended.as_ref().is_some_and(|ended| Arc::ptr_eq(ended, &probation));
        if !is_mine || self.serving().is_none_or(|serving| serving != probation.resolved) {
            return;
        }
        let before = probation.before_resolved.clone();
        let saved = SavedVersion { resolved: before, overridden: None, admitted_at: Some(now()) };
        let switched = self.switch_to(Arc::clone(&probation.before), Some(saved));
        self.rollouts.drop_warm();
        let back = probation.way_back(&decided, switched);
        histogram!(ROLLOUT_SWITCH, "member" => self.name().to_owned()).record(back.switch_ms / 1e3);
        counter!(ROLLED_BACK, "member" => self.name().to_owned()).increment(1);
        tracing::error!(
            member.name = %self.name(), switch.ms = back.switch_ms,
            "`{}` went back from {} to {}: {}", self.name(), back.from.label(), back.to.label(), back.reason
        );
        *self.rollouts.ways_back.lock() = Some(back);
        self.rollouts.wake().notify_one();
    }

    /// The last version that was sent back here.
    pub(crate) fn last_way_back(&self) -> Option<WayBack> {
        self.rollouts.ways_back.lock().clone()
    }

    /// Why the registry does not go where this process has gone.
    pub(crate) fn held_probation(&self) -> Option<String> {
        self.rollouts.ways_back.lock().as_ref()?.held.clone()
    }

    /// Tells the registry that a version was sent back, once among all replicas.
    pub(crate) async fn tell_way_back(&self, reference: &Reference, registry: &dyn Registry) {
        let Selector::Alias(alias) = &reference.selector else { return };
        let held = self.try_way_back(&reference.name, alias, registry).await.err();
        let mut back = self.rollouts.ways_back.lock();
        if let Some(back) = back.as_mut().filter(|back| !back.is_known) {
            if let Some(reason) = held.as_ref().filter(|_| back.held != held) {
                let (name, reference) = (self.name(), reference);
                tracing::error!(member.name = %name, "`{name}` went back, and `{reference}` does not: {reason}");
            }
            back.held = held;
        }
    }

    async fn try_way_back(&self, model: &str, alias: &str, registry: &dyn Registry) -> Result<(), String> {
        let Some(back) = self.last_way_back() else { return Ok(()) };
        let (tag, claim) = (format!("{CLAIM_TAG}{alias}"), format!("{}:{}", back.from.version, back.id));
        let is_fresh = |at: &Instant| at.elapsed() < CLAIM_FOR;
        if !back.claimed.as_ref().is_some_and(is_fresh) {
            registry.set_tag(model, &tag, Some(&claim)).await.map_err(|error| error.to_string())?;
            if let Some(back) = self.rollouts.ways_back.lock().as_mut() {
                back.claimed = Some(Instant::now());
            }
            return Ok(());
        }
        // The last who claimed it does it; by the next look all have.
        let tags = registry.tags(model).await.map_err(|error| error.to_string())?;
        if tags.get(&tag) != Some(&claim) {
            return Ok(());
        }
        let by = "highroad serve".to_owned();
        let rollback = Rollback { name: model.to_owned(), alias: alias.to_owned(), by, why: back.reason.clone() };
        registry.roll_back(&rollback).await.map_err(|error| error.to_string())??;
        self.rollouts.wake().notify_one();
        Ok(())
    }
}
