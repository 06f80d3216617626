use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use highroad_eval::{Judgement, Move, Plan, RolloutCounts, next_move};
use highroad_package::registry::Promotion;
use highroad_package::{Reference, Selector};
use metrics::{counter, gauge};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::alerts::objectives::Objectives;
use crate::config::RolloutConfig;
use crate::deployment::{Deployment, blocking};
use crate::error::DeployError;
use crate::registry::{Registry, Resolved};
use crate::revision::{Candidate, Revision, Unverified};
use crate::rollout::standing::{RefusedVersion, Told};
use crate::rollout::trial::{Warm, of_others};
use crate::rollout::{
    Book, End, Ended, OnPass, Passed, Probation, Promised, Rollout, RolloutStatus, Seen, Step, Trial, WaysBack,
    end_tag, new_id, now, seen_tag, step_tag,
};
use crate::saved::{SavedRollout, SavedVersion};
use crate::telemetry::{
    ROLLED_BACK, ROLLOUT_ASKED, ROLLOUT_COMPARED, ROLLOUT_DIFFER, ROLLOUT_ENDED, ROLLOUT_ERRORS, ROLLOUT_RETRIED,
    ROLLOUT_SHARE,
};

/// Pause before a candidate that could not be fetched is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What `portfolio.toml` says of all rollouts, also of those that go on while it is edited.
pub(crate) struct RolloutSettings {
    config: ArcSwap<RolloutConfig>,
    /// Fewest milliseconds between two counts that are told to the registry.
    tell_every_ms: AtomicU64,
    /// What this process is to others, through all edits.
    process: String,
}

impl RolloutSettings {
    pub(crate) fn new(config: RolloutConfig, tell_every: Duration) -> Self {
        let config_now = ArcSwap::from_pointee(config);
        let settings = Self { config: config_now, tell_every_ms: AtomicU64::new(0), process: new_id() };
        settings.set(config, tell_every);
        settings
    }

    pub(crate) fn set(&self, config: RolloutConfig, tell_every: Duration) {
        self.config.store(Arc::new(config));
        self.tell_every_ms.store(u64::try_from(tell_every.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn config(&self) -> RolloutConfig {
        **self.config.load()
    }

    fn tell_every(&self) -> Duration {
        Duration::from_millis(self.tell_every_ms.load(Ordering::Relaxed))
    }
}

/// The rollouts of one member in this process.
pub(crate) struct Rollouts {
    /// The candidate that runs now.
    pub(crate) trial: ArcSwapOption<Trial>,
    /// The version that took another's place lately.
    pub(crate) probation: ArcSwapOption<Probation>,
    pub(crate) ways_back: WaysBack,
    objectives: Arc<ArcSwapOption<Objectives>>,
    settings: Arc<RolloutSettings>,
    /// What this process is to others.
    replica: String,
    wake: Arc<Notify>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    warm: Option<Warm>,
    /// The rollout before.
    last: Option<RolloutStatus>,
    /// What the registry was told, when, and about which rollout.
    told: Option<(String, RolloutCounts, Instant)>,
    retry_at: Option<Instant>,
    /// Since when a rollout is known to have ended with a promotion that this process has not followed.
    promoted: Option<(String, Instant)>,
    /// Where the registry was told that the member stands.
    standing: Option<Told>,
    /// Whether the registry was seen to take no tag.
    is_untold: bool,
}

/// What a look at the registry works with.
pub(super) struct Look<'a> {
    pub(super) registry: &'a dyn Registry,
    pub(super) model: &'a str,
    pub(super) alias: &'a str,
}

impl Rollouts {
    pub(crate) fn new(
        settings: Arc<RolloutSettings>,
        wake: Arc<Notify>,
        objectives: Arc<ArcSwapOption<Objectives>>,
    ) -> Self {
        let (trial, probation, ways_back) = (ArcSwapOption::empty(), ArcSwapOption::empty(), WaysBack::default());
        let (replica, memory) = (new_id(), Mutex::default());
        Self { trial, probation, ways_back, objectives, settings, replica, wake, memory }
    }

    /// Lets the metrics of a new member begin.
    pub(crate) fn enter(&self, member: &str) {
        gauge!(ROLLOUT_SHARE, "member" => member.to_owned()).set(0.0);
        for name in [ROLLOUT_ASKED, ROLLOUT_ERRORS, ROLLOUT_RETRIED, ROLLOUT_COMPARED, ROLLOUT_DIFFER] {
            counter!(name, "member" => member.to_owned()).increment(0);
        }
        counter!(ROLLED_BACK, "member" => member.to_owned()).increment(0);
    }

    pub(crate) fn config(&self) -> RolloutConfig {
        self.settings.config()
    }

    pub(crate) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// What is promised of the member's latency, where anything is, and what was seen of it lately.
    pub(crate) fn promised(&self, member: &str) -> Option<Promised> {
        self.objectives.load().as_ref()?.latency_of(member)
    }

    pub(crate) fn status(&self) -> Option<RolloutStatus> {
        match self.trial.load_full() {
            Some(trial) => Some(RolloutStatus::of(&trial)),
            None => self.memory().last.clone(),
        }
    }

    /// Keeps a version loaded that a candidate took the place of.
    pub(crate) fn keep_warm(&self, served: Option<(Arc<Revision>, Resolved)>) {
        let until = Instant::now() + Duration::from_secs(self.settings.config().warm_s);
        self.memory().warm = served.map(|(revision, resolved)| Warm { revision, resolved, until });
    }

    /// The version that is kept, if it is this one.
    pub(crate) fn take_warm(&self, resolved: &Resolved) -> Option<Arc<Revision>> {
        self.memory().warm.take_if(|warm| warm.resolved == *resolved).map(|warm| warm.revision)
    }

    /// Lets everything go that is loaded beside what serves.
    pub(crate) fn drop_all(&self) {
        if let Some(trial) = self.trial.swap(None) {
            gauge!(ROLLOUT_SHARE, "member" => trial.member.clone()).set(0.0);
        }
        self.drop_warm();
    }

    pub(crate) fn drop_warm(&self) {
        self.probation.store(None);
        self.memory().warm = None;
    }

    /// Whether the switch to a promoted candidate may still be this process's next look at the alias; later somebody has moved
    /// the alias elsewhere.
    fn may_follow(&self, end: &End) -> bool {
        let mut memory = self.memory();
        if memory.promoted.as_ref().is_none_or(|(id, _)| *id != end.rollout) {
            memory.promoted = Some((end.rollout.clone(), Instant::now()));
        }
        let since = memory.promoted.as_ref().map(|(_, since)| since.elapsed());
        since.is_some_and(|since| since < 3 * self.settings.tell_every())
    }

    pub(super) fn tell_every(&self) -> Duration {
        self.settings.tell_every()
    }

    pub(super) fn process(&self) -> &str {
        &self.settings.process
    }

    /// Whether the registry is to be told where the member stands, which is taken as done.
    pub(super) fn standing_is_due(
        &self,
        serving: Option<u64>,
        refused: Option<&RefusedVersion>,
        every: Duration,
    ) -> bool {
        let mut memory = self.memory();
        if memory.standing.as_ref().is_some_and(|told| told.is_current(serving, refused, every)) {
            return false;
        }
        memory.standing = Some(Told::new(serving, refused));
        true
    }

    pub(super) fn was_told(&self) -> bool {
        self.memory().standing.is_some()
    }

    /// Whether this is the first time that the registry takes no tag: one warning says it.
    pub(super) fn is_first_untold(&self) -> bool {
        !std::mem::replace(&mut self.memory().is_untold, true)
    }

    /// Wakes who follows the registry.
    pub(super) fn look_now(&self) {
        self.wake.notify_one();
    }

    fn drop_cold(&self) {
        let cold = self.memory().warm.take_if(|warm| warm.until <= Instant::now());
        if cold.is_some() {
            self.probation.store(None);
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trial {
    /// Whether its candidate may take the place of what serves: a shadow may have been loaded without a verdict, and a candidate on another
    /// engine than the member's is loaded anew.
    pub(crate) fn may_serve(&self) -> bool {
        self.candidate.facts().development.is_none() && self.runs_as_member
    }
}

impl Deployment {
    /// Looks at the rollout of the alias this member follows and does what is next. Where the registry does not answer,
    /// everything stays as it is, but for what this process decides to stop.
    pub(crate) async fn follow_rollout(&self, reference: &Reference, registry: &dyn Registry) {
        self.rollouts.drop_cold();
        let Selector::Alias(alias) = &reference.selector else { return };
        let Some(serving) = self.serving() else { return };
        self.save_own_end();
        // An outage is told where the alias is looked at.
        let Ok(tags) = registry.tags(&reference.name).await else { return };
        self.rollouts.ways_back.learn(&tags, alias);
        let look = Look { registry, model: &reference.name, alias };
        let book = Book::read(&tags, alias);
        if let Err(error) = self.pursue(&look, book, &serving).await {
            warn!(member.name = %self.name(), "The rollout of `{}` does not go on: {error}", self.name());
        }
    }

    async fn pursue(&self, look: &Look<'_>, book: Book, serving: &Resolved) -> Result<(), DeployError> {
        let Some(rollout) = book.rollout.clone() else {
            self.rollouts.drop_trial(None);
            return Ok(());
        };
        if let Some(end) = self.end_of(look, &rollout, &book, serving).await? {
            return self.finish(look, end).await;
        }
        let Some(trial) = self.trial_of(look, &rollout, &book.step).await? else { return Ok(()) };
        trial.set_others(of_others(&book.seen, &self.rollouts.replica));
        if trial.step() != book.step {
            self.go_to(&trial, book.step.clone());
        }
        self.tell_seen(look, &trial).await?;
        self.decide(look, &trial, &book.step).await
    }

    /// How the rollout has ended, if it has: as the registry says, or as this process knows and tells the registry now.
    async fn end_of(
        &self,
        look: &Look<'_>,
        rollout: &Rollout,
        book: &Book,
        serving: &Resolved,
    ) -> Result<Option<End>, DeployError> {
        if let Some(end) = &book.end {
            return Ok(Some(end.clone()));
        }
        let found = |outcome, reason: String| self.end(rollout, outcome, reason);
        let end = if let Some(own) = self.own_end(&rollout.id) {
            own
        } else if serving.version == rollout.candidate.version {
            match &book.step.passed {
                Some(Passed { checks, .. }) => {
                    End { checks: checks.clone(), ..found(Ended::Promoted, "it kept every rule".to_owned()) }
                }
                None => found(Ended::Promoted, format!("`{}@{}` was moved to it by hand", look.model, look.alias)),
            }
        } else if serving.version != rollout.stable.version {
            let reason = format!("`{}@{}` was moved to {}", look.model, look.alias, serving.label());
            found(Ended::Aborted, reason)
        } else {
            return Ok(None);
        };
        look.set(&end_tag(&rollout.id, look.alias), &end).await?;
        Ok(Some(end))
    }

    /// Ends a rollout here: the candidate takes no more traffic and, unless it serves now, is let go.
    async fn finish(&self, look: &Look<'_>, end: End) -> Result<(), DeployError> {
        let Some(trial) = self.rollouts.trial.load_full().filter(|trial| trial.rollout.id == end.rollout) else {
            return Ok(());
        };
        let serves = self.serving().is_some_and(|serving| serving.version == end.candidate);
        if end.outcome == Ended::Promoted && !serves && self.rollouts.may_follow(&end) {
            return Ok(());
        }
        trial.end(end.clone(), Instant::now());
        self.save(None);
        self.rollouts.drop_trial(Some(RolloutStatus::of(&trial)));
        let outcome = if end.outcome == Ended::Promoted { "promoted" } else { "aborted" };
        counter!(ROLLOUT_ENDED, "member" => self.name().to_owned(), "outcome" => outcome).increment(1);
        info!(
            member.name = %self.name(), rollout.id = %end.rollout,
            "The rollout of {} ended: {outcome} by {}: {}", trial.resolved.label(), end.by, end.reason
        );
        look.registry.set_tag(look.model, &seen_tag(&self.rollouts.replica, look.alias), None).await
    }

    /// The candidate, loaded if it is not yet. One that cannot be loaded ends its rollout.
    async fn trial_of(
        &self,
        look: &Look<'_>,
        rollout: &Rollout,
        step: &Step,
    ) -> Result<Option<Arc<Trial>>, DeployError> {
        if let Some(trial) = self.rollouts.trial.load_full().filter(|trial| trial.rollout.id == rollout.id) {
            return Ok(Some(trial));
        }
        self.rollouts.drop_trial(None);
        if self.rollouts.memory().retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(None);
        }
        let loaded = match self.fetch_candidate(look, rollout).await {
            Ok((candidate, resolved)) => self.try_out(rollout, step, candidate, resolved).await,
            Err(error) => Err(error),
        };
        match loaded {
            Ok(trial) => {
                self.save(Some(trial.saved(None)));
                Ok(Some(trial))
            }
            // Nobody's fault that a person could judge: try again.
            Err(error @ (DeployError::Registry(_) | DeployError::Io { .. })) => {
                self.rollouts.memory().retry_at = Some(Instant::now() + RETRY_AFTER);
                Err(error)
            }
            Err(error) => {
                let end = self.end(rollout, Ended::Aborted, format!("it does not load: {error}"));
                look.set(&end_tag(&rollout.id, look.alias), &end).await?;
                Err(error)
            }
        }
    }

    async fn fetch_candidate(&self, look: &Look<'_>, rollout: &Rollout) -> Result<(Candidate, Resolved), DeployError> {
        let selector = Selector::Version(rollout.candidate.version);
        let reference = Reference { name: look.model.to_owned(), selector };
        let resolved = look.registry.resolve(&reference).await?;
        if resolved.package != rollout.candidate.package {
            return Err(DeployError::OtherPackage { version: resolved.label(), found: resolved.package });
        }
        Ok((look.registry.fetch(&reference, &resolved).await?, resolved))
    }

    /// Loads a candidate and begins to try it at `step`.
    async fn try_out(
        &self,
        rollout: &Rollout,
        step: &Step,
        candidate: Candidate,
        resolved: Resolved,
    ) -> Result<Arc<Trial>, DeployError> {
        let unverified = match rollout.plan {
            Plan::Shadow { .. } => Unverified::ServeAsDevelopment,
            Plan::Canary { .. } => self.unverified(),
        };
        let revision = self.load_candidate(candidate, unverified).await?;
        let stable = self.revision().map_err(|error| DeployError::Registry(error.to_string()))?;
        if stable.manifest().task.kind != revision.manifest().task.kind {
            return Err(DeployError::OtherTask(resolved.label()));
        }
        let as_member = self.candidates_run_as_member();
        let (settings, dir) = (Arc::clone(&self.rollouts.settings), self.local().rollouts.clone());
        let wake = Arc::clone(&self.rollouts.wake);
        let trial = Trial::begin(
            self.name(),
            rollout.clone(),
            step.clone(),
            (revision, resolved),
            (settings, dir),
            wake,
            as_member,
        )
        .map_err(|source| DeployError::Io { path: "a thread for the shadow".to_owned(), source })?;
        self.rollouts.trial.store(Some(Arc::clone(&trial)));
        info!(
            member.name = %self.name(), rollout.id = %rollout.id,
            "Trying {} beside {} for {} % of the traffic of `{}`",
            trial.resolved.label(), stable.facts().version, trial.percent(), self.name()
        );
        Ok(trial)
    }

    /// Goes on with a rollout from the disk, while the registry is away.
    pub(crate) async fn resume(&self, saved: Option<SavedRollout>) {
        let Some(SavedRollout { rollout, step, candidate: resolved, end: None }) = saved else { return };
        let version = SavedVersion { resolved: resolved.clone(), overridden: None, admitted_at: None };
        let local = self.local().clone();
        let resumed = match blocking(move || version.candidate(&local)).await {
            Ok(candidate) => self.try_out(&rollout, &step, candidate, resolved).await,
            Err(error) => Err(error),
        };
        if let Err(error) = resumed {
            warn!(member.name = %self.name(), "The rollout of `{}` does not go on for now: {error}", self.name());
        }
    }

    /// Tells the registry what was seen here, not more often than it is looked at.
    async fn tell_seen(&self, look: &Look<'_>, trial: &Trial) -> Result<(), DeployError> {
        let (id, counts) = (trial.rollout.id.as_str(), trial.counts());
        let told = self.rollouts.memory().told.clone().filter(|(rollout, ..)| rollout == id);
        let is_due = match told {
            Some((_, known, at)) => known != counts && at.elapsed() >= self.rollouts.settings.tell_every(),
            None => counts != RolloutCounts::default(),
        };
        if !is_due {
            return Ok(());
        }
        let seen = Seen { rollout: id.to_owned(), counts };
        look.set(&seen_tag(&self.rollouts.replica, look.alias), &seen).await?;
        self.rollouts.memory().told = Some((seen.rollout, counts, Instant::now()));
        Ok(())
    }

    async fn decide(&self, look: &Look<'_>, trial: &Arc<Trial>, step: &Step) -> Result<(), DeployError> {
        let (judgement, counts) = (trial.judge(), trial.all_counts());
        let rollout = &trial.rollout;
        let since_ms = if step.since_ms > 0 { step.since_ms } else { begun_ms(rollout) };
        let seconds = (jiff::Timestamp::now().as_millisecond() - since_ms) as f64 / 1e3;
        let n_asked = counts.n_asked.saturating_sub(step.n_asked);
        match next_move(&rollout.plan, &rollout.pace, [step.idx, n_asked], seconds, &judgement) {
            Move::Abort(reason) => {
                let begun = Instant::now();
                let Judgement { checks, .. } = judgement;
                trial.end(End { counts, checks, ..self.end(rollout, Ended::Aborted, reason) }, begun);
                self.save_own_end();
                // The next look, which this woke, tells the registry.
                Ok(())
            }
            Move::Step => {
                let next = Step {
                    rollout: rollout.id.clone(),
                    idx: step.idx + 1,
                    since_ms: jiff::Timestamp::now().as_millisecond(),
                    n_asked: counts.n_asked,
                    passed: None,
                };
                look.set(&step_tag(look.alias), &next).await?;
                self.go_to(trial, next);
                Ok(())
            }
            Move::Pass if step.passed.is_none() => {
                let passed = Passed { at: now(), checks: judgement.checks };
                let next = Step { passed: Some(passed), ..step.clone() };
                look.set(&step_tag(look.alias), &next).await?;
                info!(
                    member.name = %self.name(), rollout.id = %rollout.id,
                    "{} kept every rule of its rollout on {} requests", trial.resolved.label(), counts.n_compared
                );
                self.go_to(trial, next);
                self.rollouts.wake.notify_one();
                Ok(())
            }
            Move::Pass | Move::Stay if step.passed.is_some() && rollout.on_pass == OnPass::Promote => {
                self.promote(look, trial).await
            }
            Move::Pass | Move::Stay => Ok(()),
        }
    }

    fn go_to(&self, trial: &Trial, step: Step) {
        trial.set_step(step);
        self.save(Some(trial.saved(None)));
    }

    /// Moves the alias to a candidate that passed, once the way back was walked in this process.
    async fn promote(&self, look: &Look<'_>, trial: &Arc<Trial>) -> Result<(), DeployError> {
        let rollout = &trial.rollout;
        let refuse = async |reason: String| {
            let end = self.end(rollout, Ended::Aborted, format!("it kept every rule, but {reason}"));
            let end = End { counts: trial.all_counts(), checks: trial.judge().checks, ..end };
            look.set(&end_tag(&rollout.id, look.alias), &end).await
        };
        let why = format!("rollout {}: {}", rollout.id, rollout.why);
        match self.walk_and_promote(look, trial, rollout.by.clone(), why).await? {
            None => Ok(()),
            Some(Ok(())) => {
                let end = self.end(rollout, Ended::Promoted, "it kept every rule".to_owned());
                let end = End { counts: trial.all_counts(), checks: trial.judge().checks, ..end };
                look.set(&end_tag(&rollout.id, look.alias), &end).await?;
                self.rollouts.wake.notify_one();
                Ok(())
            }
            Some(Err(refusal)) => refuse(refusal).await,
        }
    }

    /// Walks the way back and moves the alias to the candidate: why it was refused, if it was; `None` where somebody ended the rollout
    /// in the meantime.
    pub(super) async fn walk_and_promote(
        &self,
        look: &Look<'_>,
        trial: &Trial,
        by: String,
        why: String,
    ) -> Result<Option<Result<(), String>>, DeployError> {
        let rollout = &trial.rollout;
        let rehearsal = match self.rehearse(rollout).await {
            Ok(rehearsal) => rehearsal,
            Err(reason) => return Ok(Some(Err(format!("the way back was rehearsed and failed: {reason}")))),
        };
        // Somebody may have stopped it while the way back was walked.
        let tags = look.registry.tags(look.model).await?;
        if Book::read(&tags, look.alias).running().is_none_or(|running| running.id != rollout.id) {
            return Ok(None);
        }
        let (name, alias) = (look.model.to_owned(), look.alias.to_owned());
        let promotion = Promotion { name, version: rollout.candidate.version, alias, by, why, rehearsal };
        look.registry.promote(&promotion).await.map(Some)
    }

    /// The way back: what serves now is loaded here, and answers its parity cases here and now.
    async fn rehearse(&self, rollout: &Rollout) -> Result<Value, String> {
        let stable = self.revision().map_err(|error| error.to_string())?;
        if stable.facts().package != rollout.stable.package {
            return Err(format!("{} serves instead", stable.facts().version));
        }
        let begun = Instant::now();
        let revision = Arc::clone(&stable);
        let parity = tokio::task::spawn_blocking(move || revision.model().check_parity()).await;
        let parity = parity.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(json!({
            "kind": "previous",
            "version": rollout.stable.version,
            "package": rollout.stable.package,
            "parity": {
                "n_cases": stable.manifest().parity.n_cases,
                "worst_relative_rms": parity.worst().relative_rms,
                "numerics_id": parity.numerics_id,
            },
            "passed": true,
            "took_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        }))
    }

    fn end(&self, rollout: &Rollout, outcome: Ended, reason: String) -> End {
        End {
            rollout: rollout.id.clone(),
            outcome,
            candidate: rollout.candidate.version,
            reason,
            by: "rollout".to_owned(),
            at: now(),
            counts: RolloutCounts::default(),
            checks: Vec::new(),
        }
    }

    /// How this process ended a rollout, in memory or, from before it was started anew, on the disk.
    fn own_end(&self, id: &str) -> Option<End> {
        let trial = self.rollouts.trial.load_full();
        let here = trial.as_ref().and_then(|trial| trial.ended());
        let own = here.cloned().or_else(|| if trial.is_none() { self.saved_rollout()?.end } else { None });
        own.filter(|end| end.rollout == id)
    }

    /// Puts onto the disk that this process stopped a rollout, so that no crash can undo it.
    pub(super) fn save_own_end(&self) {
        let Some(trial) = self.rollouts.trial.load_full() else { return };
        if let Some(end) = trial.ended() {
            self.save(Some(trial.saved(Some(end.clone()))));
        }
    }
}

impl Rollouts {
    fn drop_trial(&self, last: Option<RolloutStatus>) {
        if let Some(trial) = self.trial.swap(None) {
            gauge!(ROLLOUT_SHARE, "member" => trial.member.clone()).set(0.0);
            self.memory().last = Some(last.unwrap_or_else(|| RolloutStatus::of(&trial)));
        }
    }
}

impl Trial {
    fn saved(&self, end: Option<End>) -> SavedRollout {
        SavedRollout { rollout: self.rollout.clone(), step: self.step(), candidate: self.resolved.clone(), end }
    }
}

impl Look<'_> {
    pub(super) async fn set(&self, key: &str, value: &impl Serialize) -> Result<(), DeployError> {
        let text = serde_json::to_string(value).map_err(|error| DeployError::Registry(error.to_string()))?;
        self.registry.set_tag(self.model, key, Some(&text)).await
    }
}

fn begun_ms(rollout: &Rollout) -> i64 {
    rollout.begun_at.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond)
}
