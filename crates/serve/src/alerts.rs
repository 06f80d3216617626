//! Objectives, and who is told when something burns.
//!
//! Every second what is wrong is looked up as *findings*: objectives whose error budget burns, budgets that are nearly spent, versions that do not
//! load, hosts that are left alone, overrides about to end, and whatever other [`Source`]s find. The [`book`] makes alerts of findings that
//! begin and end once each, and what begins or ends is an event that [`webhook`]s are told. What burned, what is firing and what is still
//! to be told is kept on the disk.

pub mod book;
pub mod config;
mod findings;
mod keep;
pub mod objectives;
mod outbox;
mod routes;
pub(crate) mod watch;
mod webhook;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use book::{Alert, Finding, Severity};
pub use config::{AlertsConfig, WebhookConfig};
pub(crate) use objectives::ObjectivesShown;
pub(crate) use routes::{AlertsShown, alerts as route, objectives as objectives_route};

use crate::portfolio::Portfolio;
use crate::telemetry::{ALERT_EVENTS, ALERTS_FIRING};
use book::Book;
use keep::Kept;
use objectives::Objectives;
use outbox::Outbox;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest that counts of objectives wait for the disk.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// Something that finds what is wrong. A monitor of drift is one; it is asked every second, so it tells what it found last and computes elsewhere.
pub trait Source: Send + Sync + 'static {
    /// What is wrong at `now`; the same finding again and again is one alert.
    fn findings(&self, now: Timestamp) -> Vec<Finding>;
}

/// Something that happened, as webhooks are told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Equal for one event however often, and by how many replicas, it is told, where they can know that it is one.
    pub id: String,
    /// `alert.firing`, `alert.resolved`, `rollout.promoted`, `rollout.aborted`, `deployment.rolled_back`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, RFC 3339 in UTC.
    pub timestamp: String,
    /// In a sentence.
    pub text: String,
    /// Everything that is known of it.
    pub data: Value,
}

/// All kinds of events.
pub const EVENTS: [&str; 5] =
    ["alert.firing", "alert.resolved", "rollout.promoted", "rollout.aborted", "deployment.rolled_back"];

/// The objectives and alerts of a process.
pub struct Alerts {
    objectives: ArcSwap<Objectives>,
    book: Mutex<Book>,
    outbox: Outbox,
    sources: Mutex<Vec<Arc<dyn Source>>>,
    /// Last ends of rollouts and ways back that were told, by member.
    told: Mutex<BTreeMap<String, String>>,
    /// Opened where there is something to keep.
    kept: OnceLock<Kept>,
    dir: Option<PathBuf>,
}

impl Alerts {
    /// What `config` says, with what is left in `dir` of an earlier process; in memory alone without one, or where another process holds it.
    pub fn open(config: &AlertsConfig, dir: Option<PathBuf>) -> Self {
        let kept = dir.clone().filter(|_| is_wanted(config)).and_then(Kept::open);
        let objectives =
            Objectives::new(config.objectives.clone(), kept.as_ref().map(Kept::counts).unwrap_or_default());
        let state = kept.as_ref().map(Kept::state).unwrap_or_default();
        Self {
            objectives: ArcSwap::from_pointee(objectives),
            book: Mutex::new(state.book),
            outbox: Outbox::new(config.webhooks.clone(), state.waiting),
            sources: Mutex::default(),
            told: Mutex::new(state.told),
            kept: kept.map(OnceLock::from).unwrap_or_default(),
            dir,
        }
    }

    /// Asks `source` as well from now on.
    pub fn add_source(&self, source: Arc<dyn Source>) {
        lock(&self.sources).push(source);
    }

    /// What is promised, and what was seen of it.
    pub fn objectives(&self) -> Arc<Objectives> {
        self.objectives.load_full()
    }

    /// Promises what an edited file does, with what was seen of what is promised still, and tells its webhooks from now on.
    pub(crate) fn take_up(&self, config: &AlertsConfig) {
        self.outbox.take_up(&config.webhooks);
        let earlier = self.begin_to_keep(config);
        let before = self.objectives();
        if earlier.is_some() || !before.promises(&config.objectives) {
            let counts = earlier.unwrap_or_else(|| before.counts());
            self.objectives.store(Arc::new(Objectives::new(config.objectives.clone(), counts)));
        }
    }

    /// Opens what an earlier process kept, where the first thing that is kept comes with an edit; its counts.
    fn begin_to_keep(&self, config: &AlertsConfig) -> Option<Vec<objectives::Series>> {
        if self.kept.get().is_some() || !is_wanted(config) {
            return None;
        }
        let kept = self.dir.clone().and_then(Kept::open)?;
        // What fires is known better here than there.
        let keep::State { waiting, told: earlier, .. } = kept.state();
        let mut told = lock(&self.told);
        for (member, end) in earlier {
            told.entry(member).or_insert(end);
        }
        drop(told);
        self.outbox.restore(waiting);
        let counts = kept.counts();
        // Edits are taken up one after the other.
        let _first = self.kept.set(kept);
        Some(counts)
    }

    /// What fires, and what ended lately.
    pub fn all(&self) -> Vec<Alert> {
        lock(&self.book).alerts()
    }

    /// Looks, tells and keeps for as long as it is polled.
    pub(crate) async fn run(&self, portfolio: &Portfolio) {
        tokio::join!(self.outbox.run(|| self.keep_state()), self.look(portfolio));
    }

    async fn look(&self, portfolio: &Portfolio) {
        let mut kept_at = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look_once(portfolio, Timestamp::now());
            if kept_at.elapsed() >= KEEP_EVERY {
                self.keep_counts();
                kept_at = Instant::now();
            }
        }
    }

    fn look_once(&self, portfolio: &Portfolio, now: Timestamp) {
        let mut found = self.objectives().findings(now);
        found.extend(findings::of(portfolio, now));
        let sources = lock(&self.sources).clone();
        found.extend(sources.iter().flat_map(|source| source.findings(now)));
        let mut events = lock(&self.book).update(now, found);
        events.extend(findings::ended(portfolio, &mut lock(&self.told)));
        self.tell_metrics();
        if events.is_empty() {
            return;
        }
        for event in events {
            tracing::warn!(event.kind = %event.kind, "{}", event.text);
            counter!(ALERT_EVENTS, "event" => event.kind.clone()).increment(1);
            self.outbox.put(&event, now);
        }
        self.keep_state();
    }

    fn tell_metrics(&self) {
        let firing = lock(&self.book).firing();
        for ((alert, severity), n) in firing {
            gauge!(ALERTS_FIRING, "alert" => alert, "severity" => severity.name()).set(n as f64);
        }
    }

    /// Writes down what was counted.
    pub fn keep_counts(&self) {
        if let Some(kept) = self.kept.get() {
            kept.put_counts(&self.objectives().counts());
        }
    }

    fn keep_state(&self) {
        let Some(kept) = self.kept.get() else { return };
        let (book, told) = (lock(&self.book).clone(), lock(&self.told).clone());
        kept.put_state(&keep::State { highroad_alerts: keep::FORMAT, book, waiting: self.outbox.waiting(), told });
    }

    /// Writes everything down.
    pub fn flush(&self) {
        self.keep_counts();
        self.keep_state();
    }
}

/// Whether anything is to be kept.
fn is_wanted(config: &AlertsConfig) -> bool {
    !config.objectives.is_empty() || !config.webhooks.is_empty()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
