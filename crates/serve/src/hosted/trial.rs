//! A hosted member that is tried beside another one: in the shadow of its answers or as a canary, compared text by text, judged by the
//! same rules and the same sequential tests as a package's rollout.
//!
//! What is tried is written in `portfolio.toml`, and a version is a description's digest. Every process judges on what it has seen itself,
//! and keeps that over restarts. A pass moves nothing: a person writes the new description into the file.

mod config;
mod judge;
mod kept;

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highroad_eval::{Move, Outcome, RolloutCounts, judge_rollout, next_move};
use highroad_hosted::Tokens;
use highroad_package::Digest;
use highroad_service::{Kind, Problem};
use highroad_task::Input;
use metrics::{counter, gauge, histogram};
use schemars::JsonSchema;
use serde::Serialize;

pub(crate) use config::TrialTable;
pub use config::{JudgeConfig, TrialConfig};
pub use judge::Preferred;
use kept::Kept;

use super::HostedMember;
use super::ask::{Failure, Received, Wanted};
use crate::budget::keeper::Budgets;
use crate::config::RolloutConfig;
use crate::protocol::chat::{ChatRequest, Tally};
use crate::rollout::by_hand::Hand;
use crate::rollout::pairs::{Worst, Writer};
use crate::rollout::trial::{PARTS, Sums, Times, part_of};
use crate::rollout::{
    Compared, End, Ended, Key, Pair, Passed, Rollout, RolloutStatus, Side, Step, Timed, compare_texts, now,
};
use crate::telemetry::{
    ROLLOUT_ASKED, ROLLOUT_COMPARED, ROLLOUT_DIFFER, ROLLOUT_ENDED, ROLLOUT_ERRORS, ROLLOUT_SHARE, SHADOW_DROPPED,
    SHADOW_TOKENS,
};

/// Disagreements that are kept in memory.
const N_WORST: usize = 20;
/// Bytes of requests and answers that may wait for their second answer.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Longest text that is told, in characters.
const MAX_TOLD_CHARS: usize = 2000;

/// One trial in this process.
pub(crate) struct HostedTrial {
    stable: Arc<HostedMember>,
    candidate: Arc<HostedMember>,
    judge: Option<(Arc<HostedMember>, f64)>,
    rollout: Rollout,
    settings: RolloutConfig,
    local: crate::deployment::LocalState,
    /// Parts of the traffic that take part now.
    parts: AtomicU32,
    n_waiting: AtomicUsize,
    n_waiting_bytes: AtomicUsize,
    n_dropped: AtomicU64,
    state: Mutex<State>,
}

struct State {
    kept: Kept,
    sums: Sums,
    times: Times,
    worst: Worst,
    writer: Writer,
    n_seen: u64,
}

/// A request that takes part, from its answer to the other one.
pub(crate) struct Part {
    pub trial: Arc<HostedTrial>,
    pub request: ChatRequest,
    pub request_id: String,
    /// Whose answer the client is to get.
    pub answers: Side,
    pub budgets: Option<Budgets>,
}

/// A text with what it took.
#[derive(Clone, Debug, Default)]
struct Written {
    text: String,
    tokens: Option<Tokens>,
    cost: Option<f64>,
    took: Duration,
}

impl HostedTrial {
    /// What `config` says of `stable`, at the point where this process or one before it left off.
    pub(crate) fn begin(
        config: &TrialConfig,
        stable: Arc<HostedMember>,
        candidate: Arc<HostedMember>,
        judge: Option<(Arc<HostedMember>, f64)>,
        settings: RolloutConfig,
        before: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let rollout = config.rollout(stable.hosted().digest(), candidate.hosted().digest());
        let local = stable.local.clone();
        // After an edit of something else it goes on with what it has seen.
        let before = before.filter(|before| before.rollout.id == rollout.id).map(|before| before.lock().kept.clone());
        let kept = before.unwrap_or_else(|| Kept::read(&local.serving, stable.name(), &rollout));
        let writer = Writer::new(local.rollouts.join(&rollout.id));
        let state = State {
            kept,
            sums: Sums::default(),
            times: Times::default(),
            worst: Worst::new(N_WORST),
            writer,
            n_seen: 0,
        };
        let trial = Self {
            stable,
            candidate,
            judge,
            rollout,
            settings,
            local,
            parts: AtomicU32::new(0),
            n_waiting: AtomicUsize::new(0),
            n_waiting_bytes: AtomicUsize::new(0),
            n_dropped: AtomicU64::new(0),
            state: Mutex::new(state),
        };
        trial.set_parts();
        Arc::new(trial)
    }

    /// Whether it is that of these very members; another edit of one of them makes another trial.
    pub(crate) fn is_of(
        &self,
        [stable, candidate]: [&Arc<HostedMember>; 2],
        judge: Option<&Arc<HostedMember>>,
    ) -> bool {
        let judges = match (&self.judge, judge) {
            (Some((own, _)), Some(judge)) => Arc::ptr_eq(own, judge),
            (own, judge) => own.is_none() && judge.is_none(),
        };
        judges && Arc::ptr_eq(&self.stable, stable) && Arc::ptr_eq(&self.candidate, candidate)
    }

    /// The part that a request with this key has, if any.
    pub(crate) fn part(self: &Arc<Self>, key: &Key, request: &ChatRequest, request_id: &str) -> Option<Part> {
        let parts = u64::from(self.parts.load(Ordering::Relaxed));
        if parts == 0 || part_of(&self.rollout.id, key.as_str()) >= parts {
            return None;
        }
        let answers = match self.rollout.plan {
            highroad_eval::Plan::Shadow { .. } => Side::Stable,
            // One that is not ready answers nobody.
            highroad_eval::Plan::Canary { .. } if self.candidate.serving().is_err() => return None,
            highroad_eval::Plan::Canary { .. } => Side::Candidate,
        };
        let (request, request_id) = (request.clone(), request_id.to_owned());
        Some(Part { trial: Arc::clone(self), request, request_id, answers, budgets: None })
    }

    /// Who answers the client.
    pub(crate) fn member(&self, side: Side) -> &Arc<HostedMember> {
        match side {
            Side::Stable => &self.stable,
            Side::Candidate => &self.candidate,
        }
    }

    /// Its id, for the client of a canary.
    pub(crate) fn id(&self) -> &str {
        &self.rollout.id
    }

    /// Where it stands.
    pub(crate) fn status(&self) -> RolloutStatus {
        let state = self.lock();
        let Kept { counts, step, end, .. } = &state.kept;
        let checks = match end {
            Some(end) => end.checks.clone(),
            None => judge_rollout(&self.rollout.rules, counts).map(|judgement| judgement.checks).unwrap_or_default(),
        };
        RolloutStatus {
            member: self.stable.name().to_owned(),
            rollout: self.rollout.clone(),
            step: step.clone(),
            percent: f64::from(self.parts.load(Ordering::Relaxed)) * 100.0 / PARTS as f64,
            end: end.clone(),
            counts: *counts,
            here: *counts,
            checks,
            apart: state.sums,
            n_waiting: self.n_waiting.load(Ordering::Relaxed),
            n_dropped: self.n_dropped.load(Ordering::Relaxed),
            switch_ms: None,
            worst: state.worst.clone().into_vec(),
            latency: None,
            spent: state.times.spent,
            times: state.times.clone(),
            course: Default::default(),
            as_of_ms: jiff::Timestamp::now().as_millisecond(),
        }
    }

    fn set_parts(&self) {
        let state = self.lock();
        let kept = &state.kept;
        let percent = if kept.end.is_some() { 0.0 } else { self.rollout.percent(kept.step.idx) };
        self.parts.store((percent / 100.0 * PARTS as f64).round() as u32, Ordering::Relaxed);
        gauge!(ROLLOUT_SHARE, "member" => self.stable.name().to_owned()).set(percent / 100.0);
    }

    /// The candidate was asked; it failed, or took so long.
    fn asked(&self, took: Option<Duration>) {
        let slow = took.zip(self.rollout.limits.latency_ms).is_some_and(|(took, most)| took.as_secs_f64() * 1e3 > most);
        let name = || self.stable.name().to_owned();
        counter!(ROLLOUT_ASKED, "member" => name()).increment(1);
        counter!(ROLLOUT_ERRORS, "member" => name()).increment(u64::from(took.is_none()));
        let more = RolloutCounts {
            n_asked: 1,
            n_errors: u64::from(took.is_none()),
            n_slow: u64::from(slow),
            ..RolloutCounts::default()
        };
        self.count(more);
    }

    fn compared(&self, pair: Pair) {
        let differs = pair.compared.differs;
        let name = || self.stable.name().to_owned();
        counter!(ROLLOUT_COMPARED, "member" => name()).increment(1);
        counter!(ROLLOUT_DIFFER, "member" => name()).increment(u64::from(differs));
        let preferred = pair.compared.preferred;
        self.keep_pair(pair);
        let judged = |side: Preferred| u64::from(preferred == Some(side));
        self.count(RolloutCounts {
            n_compared: 1,
            n_differ: u64::from(differs),
            n_labelled: u64::from(preferred.is_some()),
            n_regressions: judged(Preferred::Stable),
            n_improvements: judged(Preferred::Candidate),
            ..RolloutCounts::default()
        });
    }

    fn keep_pair(&self, pair: Pair) {
        let mut state = self.lock();
        state.sums.add(&pair.compared, pair.live_ms, pair.shadow_ms);
        state.times.add(&pair);
        state.n_seen += 1;
        let (n, keep) = (state.n_seen as f64, self.settings.keep);
        let is_due = (n * keep).floor() > ((n - 1.0) * keep).floor();
        if pair.compared.differs || is_due {
            // Times of those alone that differ would tell of these.
            let line = Pair { timed: pair.timed.filter(|_| is_due), ..pair.clone() };
            let written = state.writer.write(&line).and_then(|()| state.writer.flush());
            if let Err(error) = written {
                tracing::warn!("Cannot write what a rollout compared: {error}");
            }
        }
        if pair.compared.severity > 0.0 {
            state.worst.offer(pair);
        }
    }

    /// Adds to what was seen and acts on it: a rule that is broken stops the trial before the next request.
    fn count(&self, more: RolloutCounts) {
        let mut state = self.lock();
        if state.kept.end.is_some() {
            return;
        }
        state.kept.counts.add(&more);
        let Kept { counts, step, .. } = state.kept.clone();
        let Ok(judgement) = judge_rollout(&self.rollout.rules, &counts) else { return };
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let seconds = (now_ms - step.since_ms) as f64 / 1e3;
        let n_asked = counts.n_asked.saturating_sub(step.n_asked);
        let moved = next_move(&self.rollout.plan, &self.rollout.pace, [step.idx, n_asked], seconds, &judgement);
        let decides = match moved {
            Move::Abort(reason) => {
                self.parts.store(0, Ordering::Relaxed);
                tracing::warn!(member.name = %self.stable.name(), rollout.id = %self.rollout.id, "Stopped the trial of `{}`: {reason}", self.candidate.name());
                counter!(ROLLOUT_ENDED, "member" => self.stable.name().to_owned(), "outcome" => "aborted").increment(1);
                state.kept.end = Some(self.end("rollout".to_owned(), reason, counts, judgement.checks));
                true
            }
            Move::Step => {
                state.kept.step = Step { idx: step.idx + 1, since_ms: now_ms, n_asked: counts.n_asked, ..step };
                true
            }
            Move::Pass if step.passed.is_none() && judgement.outcome == Outcome::Pass => {
                tracing::info!(member.name = %self.stable.name(), rollout.id = %self.rollout.id, "`{}` kept every rule beside `{}`", self.candidate.name(), self.stable.name());
                state.kept.step.passed = Some(Passed { at: now(), checks: judgement.checks });
                true
            }
            _ => false,
        };
        let kept = state.kept.clone();
        drop(state);
        kept.write(&self.local.serving, self.stable.name(), decides);
        if decides {
            self.set_parts();
        }
    }

    /// Ends the trial `id`: the next request is not tried. Errors if that trial does not go on here.
    pub(crate) fn abort_by_hand(&self, id: &str, hand: Hand) -> Result<End, Problem> {
        let mut state = self.lock();
        if self.rollout.id != id || state.kept.end.is_some() {
            let message = format!("trial `{id}` of `{}` does not go on here", self.stable.name());
            return Err(Problem::new(Kind::Conflict, message));
        }
        self.parts.store(0, Ordering::Relaxed);
        let counts = state.kept.counts;
        let checks = judge_rollout(&self.rollout.rules, &counts).map(|judgement| judgement.checks).unwrap_or_default();
        let end = self.end(hand.by, hand.why, counts, checks);
        state.kept.end = Some(end.clone());
        let kept = state.kept.clone();
        drop(state);
        tracing::info!(member.name = %self.stable.name(), rollout.id = %id, "{} stopped the trial of `{}`: {}", end.by, self.candidate.name(), end.reason);
        counter!(ROLLOUT_ENDED, "member" => self.stable.name().to_owned(), "outcome" => "aborted").increment(1);
        kept.write(&self.local.serving, self.stable.name(), true);
        self.set_parts();
        Ok(end)
    }

    /// What is tried, for a page.
    pub(crate) fn shown(&self) -> TrialShown {
        let status = self.status();
        TrialShown {
            id: self.rollout.id.clone(),
            candidate: self.candidate.name().to_owned(),
            percent: status.percent,
            passed: status.step.passed.is_some(),
            ended: status.end.map(|End { by, reason, .. }| TrialEnd { by, reason }),
        }
    }

    fn end(&self, by: String, reason: String, counts: RolloutCounts, checks: Vec<highroad_eval::CheckResult>) -> End {
        End {
            rollout: self.rollout.id.clone(),
            outcome: Ended::Aborted,
            candidate: self.rollout.candidate.version,
            reason,
            by,
            at: now(),
            counts,
            checks,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A trial of a hosted member, in short.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Trial")]
pub(crate) struct TrialShown {
    id: String,
    /// The member that is tried.
    candidate: String,
    /// The share of the traffic that takes part here.
    percent: f64,
    /// Whether it has kept every rule.
    passed: bool,
    ended: Option<TrialEnd>,
}

#[derive(Serialize, JsonSchema)]
struct TrialEnd {
    /// Who decided: a person, or `rollout` for the rules.
    by: String,
    reason: String,
}

impl Part {
    /// The client has its answer, by `member`; the other one is asked now, beside what clients wait for.
    pub(crate) fn answered(self, member: &str, tally: &Tally, cost: Option<f64>, took: Duration) {
        if self.trial.member(self.answers).name() != member {
            // Another one stood in for it: of a canary that is a failure.
            if self.answers == Side::Candidate {
                self.trial.asked(None);
            }
            return;
        }
        if self.answers == Side::Candidate {
            self.trial.asked(Some(took));
        }
        let written = Written { text: tally.text().to_owned(), tokens: tally.usage, cost, took };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let trial = Arc::clone(&self.trial);
        let n_bytes = self.request.n_bytes() + written.text.len();
        let n_rows = trial.n_waiting.fetch_add(1, Ordering::Relaxed);
        let n_before = trial.n_waiting_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        if n_rows >= trial.settings.queue.get() || n_before.saturating_add(n_bytes) > MAX_WAITING_BYTES {
            trial.leave(n_bytes);
            return trial.drop_one();
        }
        // Whoever asked pays for the answer they got, and for no other: this task is nobody's request.
        drop(runtime.spawn(async move {
            self.compare(written).await;
            trial.leave(n_bytes);
        }));
    }

    async fn compare(self, first: Written) {
        let trial = &self.trial;
        let second = match self.second().await {
            Ok(second) => second,
            Err(Failure::Ask(_) | Failure::Full) => return trial.drop_one(),
            Err(_) if self.answers == Side::Stable => return trial.asked(None),
            Err(_) => return,
        };
        if self.answers == Side::Stable {
            trial.asked(Some(second.took));
        }
        let [live_ms, shadow_ms] = [&first, &second].map(|written| written.took.as_secs_f64() * 1e3);
        let (stable, candidate) = match self.answers {
            Side::Stable => (first, second),
            Side::Candidate => (second, first),
        };
        let compared = compare_texts(&trial.rollout.limits, &stable.text, &candidate.text);
        let preferred = self.preferred(&stable, &candidate).await;
        let compared = Compared {
            tokens: stable.tokens.zip(candidate.tokens).map(|(a, b)| [a.output, b.output]),
            cost: stable.cost.zip(candidate.cost).map(|(a, b)| [a, b]),
            preferred,
            ..compared
        };
        let [stable_ms, candidate_ms] = [&stable, &candidate].map(|written| written.took.as_secs_f64() * 1e3);
        let timed = Timed { stable_ms, candidate_ms, of_processor: false };
        let conversation = self.request.conversation();
        let keeps = trial.settings.keep_inputs;
        trial.compared(Pair {
            request_id: self.request_id.clone(),
            time: now(),
            rollout: trial.rollout.id.clone(),
            member: trial.stable.name().to_owned(),
            answered: self.answers,
            compared,
            stable: vec![told(&stable, keeps)],
            candidate: vec![told(&candidate, keeps)],
            inputs: vec![Digest::of(conversation.as_bytes())],
            kept: keeps.then(|| vec![Input::Text(conversation)]),
            live_ms,
            shadow_ms,
            timed: Some(timed),
        });
    }

    /// The answer of the member that did not answer the client.
    async fn second(&self) -> Result<Written, Failure> {
        let other = self.trial.member(match self.answers {
            Side::Stable => Side::Candidate,
            Side::Candidate => Side::Stable,
        });
        let whole = self.request.whole();
        let asked = |refused: crate::protocol::openai::Refused| {
            Failure::Ask(crate::error::AskError::Tensors { kind: "tensors", reason: refused.problem.message })
        };
        let (body, most) = whole.upstream(other.hosted()).map_err(asked)?;
        let wanted = Wanted { path: whole.path().to_owned(), body, json_bytes: None, most, events: false };
        ask(other, &wanted, self.budgets.as_ref(), &self.trial).await
    }

    /// Which text the judge prefers, where there is one and this request is among those it sees.
    async fn preferred(&self, stable: &Written, candidate: &Written) -> Option<Preferred> {
        let (judge, share) = self.trial.judge.as_ref()?;
        let most = (share * PARTS as f64) as u64;
        if part_of("judge", &self.request_id) >= most {
            return None;
        }
        if stable.text == candidate.text {
            return Some(Preferred::Neither);
        }
        let asked = judge::Asked {
            conversation: &self.request.conversation(),
            stable: &stable.text,
            candidate: &candidate.text,
        };
        let hear = |prompt: String| async move {
            let wanted = judge::wanted(judge, &prompt)?;
            Some(ask(judge, &wanted, self.budgets.as_ref(), &self.trial).await.ok()?.text)
        };
        judge::prefer(&asked, hear).await
    }
}

impl HostedTrial {
    fn leave(&self, n_bytes: usize) {
        self.n_waiting.fetch_sub(1, Ordering::Relaxed);
        self.n_waiting_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
    }

    fn drop_one(&self) {
        self.n_dropped.fetch_add(1, Ordering::Relaxed);
        counter!(SHADOW_DROPPED, "member" => self.stable.name().to_owned()).increment(1);
    }
}

/// One answer of `member`, which its own budget pays for.
async fn ask(
    member: &Arc<HostedMember>,
    wanted: &Wanted,
    budgets: Option<&Budgets>,
    trial: &HostedTrial,
) -> Result<Written, Failure> {
    let begun = Instant::now();
    let read = |received: Received| match received {
        Received::Whole(body) | Received::Tensors(body, _) => {
            let mut tally = Tally::default();
            tally.whole(&body).map(|()| tally)
        }
        Received::Events(..) => Err("it answered in events".to_owned()),
    };
    let began = member.ask(wanted, budgets, read).await?;
    let tally = began.value;
    if let Some((hold, usage)) = began.hold.zip(tally.usage) {
        let amount = member.amount(hold.budgets(), usage).amount();
        hold.settle(amount);
    }
    let tokens = tally.usage.map_or(0, |usage| usage.input + usage.output);
    counter!(SHADOW_TOKENS, "member" => trial.stable.name().to_owned()).increment(tokens);
    let took = begun.elapsed();
    histogram!(crate::telemetry::SHADOW_SECONDS, "member" => trial.stable.name().to_owned()).record(took.as_secs_f64());
    let cost = member.hosted().price.as_ref().zip(tally.usage).map(|(price, usage)| price.of(usage));
    Ok(Written { text: tally.text().to_owned(), tokens: tally.usage, cost, took })
}

/// A text as it may be written down: itself where inputs may be kept, else how long it is and its digest.
fn told(written: &Written, keeps: bool) -> String {
    let n_chars = written.text.chars().count();
    if keeps {
        let text: String = written.text.chars().take(MAX_TOLD_CHARS).collect();
        return if n_chars > MAX_TOLD_CHARS { format!("{text}…") } else { text };
    }
    let tokens = written.tokens.map_or(String::new(), |tokens| format!(", {} tokens", tokens.output));
    format!("{n_chars} characters{tokens}, {}", Digest::of(written.text.as_bytes()).short())
}
