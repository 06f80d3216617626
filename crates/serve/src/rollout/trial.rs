use schemars::JsonSchema;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use highroad_eval::{Judgement, Outcome, RolloutCounts, judge_rollout};
use metrics::{counter, gauge, histogram};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tracing::warn;

use crate::registry::Resolved;
use crate::revision::Revision;
use crate::rollout::pairs::{Pair, Spent, Timed, Worst};
use crate::rollout::shadow::Shadow;
use crate::rollout::{Compared, Course, End, Ended, Rollout, RolloutSettings, Step, now, now_ms};
use crate::telemetry::{
    ROLLOUT_ASKED, ROLLOUT_COMPARED, ROLLOUT_DIFFER, ROLLOUT_ERRORS, ROLLOUT_SHARE, ROLLOUT_SWITCH,
};

/// Disagreements that are kept in memory.
const N_WORST: usize = 20;
/// Compared requests whose right answer can still come.
const N_AWAITING: usize = 50_000;
/// Requests whose times are kept in memory: the latest.
const N_TIMED: usize = 2000;
/// Parts of the traffic that are told apart: a millionth each.
pub(crate) const PARTS: u64 = 1_000_000;

/// A candidate that runs in this process, and what was seen of it.
pub(crate) struct Trial {
    pub(crate) rollout: Rollout,
    pub(crate) member: String,
    pub(crate) resolved: Resolved,
    pub(crate) candidate: Arc<Revision>,
    pub(crate) shadow: Shadow,
    /// Whether the candidate runs on the engine that the member serves with.
    pub(crate) runs_as_member: bool,
    /// Parts of the traffic that take part now, of [`PARTS`]; none once it was stopped.
    parts: AtomicU32,
    /// How it ended here, which the registry may not know yet.
    stopped: OnceLock<End>,
    switched_ns: AtomicU64,
    seen: Mutex<SeenHere>,
    wake: Arc<Notify>,
}

/// What this process has seen.
struct SeenHere {
    counts: RolloutCounts,
    /// What other replicas had seen when they were last asked.
    others: RolloutCounts,
    step: Step,
    worst: Worst,
    sums: Sums,
    times: Times,
    course: Course,
    awaiting: Awaiting,
}

/// What both versions took lately, oldest first, and what their answers counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Times {
    timed: VecDeque<Timed>,
    pub(crate) spent: Spent,
}

impl Times {
    /// Takes in a pair, if it was timed.
    pub(crate) fn add(&mut self, pair: &Pair) {
        let Some(timed) = pair.timed else { return };
        self.spent.add(&pair.compared);
        self.timed.push_back(timed);
        if self.timed.len() > N_TIMED {
            self.timed.pop_front();
        }
    }

    pub(crate) fn timed(&self) -> Vec<Timed> {
        self.timed.iter().copied().collect()
    }
}

impl SeenHere {
    fn all(&self) -> RolloutCounts {
        let mut sum = self.others;
        sum.add(&self.counts);
        sum
    }

    fn note(&mut self) {
        let all = self.all();
        self.course.note(now_ms(), all);
    }
}

/// How far answers are apart, over all compared requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "RolloutSums")]
pub struct Sums {
    /// Labels that flipped.
    pub n_flips: u64,
    /// Mean of the largest shift of a score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_shift: Option<f64>,
    /// Mean of the smallest cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_cosine: Option<f64>,
    /// Mean of the largest relative difference of tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_relative: Option<f64>,
    /// Mean of the overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_overlap: Option<f64>,
    /// Mean similarity of the texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_similarity: Option<f64>,
    /// Tokens that the two versions wrote, where both hosts count them; of own models those of the inputs that were timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<[u64; 2]>,
    /// What the two versions cost, where both prices are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<[f64; 2]>,
    /// Mean milliseconds that the clients' answers took.
    pub mean_live_ms: f64,
    /// Mean milliseconds that the other answers took of one processor.
    pub mean_shadow_ms: f64,
    #[serde(skip)]
    n: u64,
}

/// A version that served before, still loaded.
pub(crate) struct Warm {
    pub(crate) revision: Arc<Revision>,
    pub(crate) resolved: Resolved,
    pub(crate) until: Instant,
}

/// Labels of compared requests, until their right answers come.
#[derive(Default)]
struct Awaiting {
    labels: HashMap<String, [String; 2]>,
    order: VecDeque<String>,
}

impl Trial {
    /// A candidate at `step`, with its own queue and thread. Errors if the system refuses the thread.
    pub(crate) fn begin(
        member: &str,
        rollout: Rollout,
        step: Step,
        (candidate, resolved): (Arc<Revision>, Resolved),
        (settings, dir): (Arc<RolloutSettings>, PathBuf),
        wake: Arc<Notify>,
        runs_as_member: bool,
    ) -> std::io::Result<Arc<Self>> {
        let shadow = Shadow::start(member, settings, dir.join(&rollout.id))?;
        let trial = Self {
            member: member.to_owned(),
            resolved,
            candidate,
            shadow,
            runs_as_member,
            parts: AtomicU32::new(0),
            stopped: OnceLock::new(),
            switched_ns: AtomicU64::new(0),
            seen: Mutex::new(SeenHere {
                counts: RolloutCounts::default(),
                others: RolloutCounts::default(),
                step: Step::default(),
                worst: Worst::new(N_WORST),
                sums: Sums::default(),
                times: Times::default(),
                course: Course::default(),
                awaiting: Awaiting::default(),
            }),
            wake,
            rollout,
        };
        trial.set_step(step);
        Ok(Arc::new(trial))
    }

    /// Whether the request with this key takes part. The same key always does or does not at one share, and goes on to at a
    /// larger one.
    pub(crate) fn takes_part(&self, key: &str) -> bool {
        let parts = u64::from(self.parts.load(Ordering::Relaxed));
        parts > 0 && part_of(&self.rollout.id, key) < parts
    }

    /// The share that takes part now, in percent.
    pub(crate) fn percent(&self) -> f64 {
        f64::from(self.parts.load(Ordering::Relaxed)) * 100.0 / PARTS as f64
    }

    /// Goes to a step, unless it was stopped here.
    pub(crate) fn set_step(&self, step: Step) {
        let percent = self.rollout.percent(step.idx);
        self.lock().step = step;
        if self.stopped.get().is_none() {
            self.parts.store((percent / 100.0 * PARTS as f64).round() as u32, Ordering::Relaxed);
            gauge!(ROLLOUT_SHARE, "member" => self.member.clone()).set(percent / 100.0);
            // Stopped in between: no request may slip through for longer than this.
            if self.stopped.get().is_some() {
                self.parts.store(0, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn step(&self) -> Step {
        self.lock().step.clone()
    }

    /// What this process has seen.
    pub(crate) fn counts(&self) -> RolloutCounts {
        self.lock().counts
    }

    /// What all replicas have seen, as far as this one knows.
    pub(crate) fn all_counts(&self) -> RolloutCounts {
        self.lock().all()
    }

    pub(crate) fn set_others(&self, counts: RolloutCounts) {
        let mut seen = self.lock();
        seen.others = counts;
        seen.note();
    }

    pub(crate) fn course(&self) -> Course {
        self.lock().course.clone()
    }

    pub(crate) fn worst(&self) -> Vec<Pair> {
        self.lock().worst.clone().into_vec()
    }

    pub(crate) fn times(&self) -> Times {
        self.lock().times.clone()
    }

    pub(crate) fn sums(&self) -> Sums {
        self.lock().sums
    }

    /// The candidate was asked; it failed, or took so long.
    pub(crate) fn asked(&self, took: Option<Duration>) {
        let budget = self.rollout.limits.latency_ms;
        let slow = took.zip(budget).is_some_and(|(took, budget)| took.as_secs_f64() * 1e3 > budget);
        let failed = took.is_none();
        counter!(ROLLOUT_ASKED, "member" => self.member.clone()).increment(1);
        if failed {
            counter!(ROLLOUT_ERRORS, "member" => self.member.clone()).increment(1);
        }
        let more = RolloutCounts {
            n_asked: 1,
            n_errors: u64::from(failed),
            n_slow: u64::from(slow),
            ..RolloutCounts::default()
        };
        self.count(more, failed || slow);
    }

    /// Both versions answered.
    pub(crate) fn compared(&self, pair: Pair, labels: Option<[String; 2]>) {
        let differs = pair.compared.differs;
        counter!(ROLLOUT_COMPARED, "member" => self.member.clone()).increment(1);
        if differs {
            counter!(ROLLOUT_DIFFER, "member" => self.member.clone()).increment(1);
        }
        let mut seen = self.lock();
        seen.sums.add(&pair.compared, pair.live_ms, pair.shadow_ms);
        seen.times.add(&pair);
        if let Some(labels) = labels {
            seen.awaiting.put(pair.request_id.clone(), labels);
        }
        if pair.compared.severity > 0.0 {
            seen.worst.offer(pair);
        }
        drop(seen);
        let more = RolloutCounts { n_compared: 1, n_differ: u64::from(differs), ..RolloutCounts::default() };
        self.count(more, differs);
    }

    /// The right answer to a compared request; whether that request is known here. Each counts once.
    pub(crate) fn label(&self, request_id: &str, right: &str) -> bool {
        let Some([stable, candidate]) = self.lock().awaiting.take(request_id) else { return false };
        let more = RolloutCounts {
            n_labelled: 1,
            n_regressions: u64::from(stable == right && candidate != right),
            n_improvements: u64::from(stable != right && candidate == right),
            ..RolloutCounts::default()
        };
        self.count(more, more.n_regressions > 0);
        true
    }

    /// Adds to what was seen and, where that speaks against the candidate, judges at once: the next request must not wait for
    /// the next look at the registry.
    fn count(&self, more: RolloutCounts, speaks_against: bool) {
        {
            let mut seen = self.lock();
            seen.counts.add(&more);
            seen.note();
        }
        if !speaks_against || self.stopped.get().is_some() {
            return;
        }
        let begun = Instant::now();
        let judgement = self.judge();
        if judgement.outcome == Outcome::Fail {
            self.stop(&judgement, begun);
        }
    }

    /// Judges what all replicas have seen.
    pub(crate) fn judge(&self) -> Judgement {
        judge_rollout(&self.rollout.rules, &self.all_counts())
            .expect("the rules of a rollout are checked when its tag is read")
    }

    /// Takes no more part in the traffic, at once, because of what `judgement` says.
    fn stop(&self, judgement: &Judgement, begun: Instant) {
        let broken = judgement.checks.iter().find(|check| check.outcome == Outcome::Fail);
        let reason = broken.map(|check| check.reason.clone()).unwrap_or_default();
        let end = End {
            rollout: self.rollout.id.clone(),
            outcome: Ended::Aborted,
            candidate: self.rollout.candidate.version,
            reason,
            by: "rollout".to_owned(),
            at: now(),
            counts: self.all_counts(),
            checks: judgement.checks.clone(),
        };
        self.end(end, begun);
    }

    /// Ends the trial here, as somebody decided at `begun`.
    pub(crate) fn end(&self, end: End, begun: Instant) {
        if self.stopped.set(end).is_err() {
            return;
        }
        self.parts.store(0, Ordering::Relaxed);
        let took = begun.elapsed();
        gauge!(ROLLOUT_SHARE, "member" => self.member.clone()).set(0.0);
        if let Some(End { outcome: Ended::Aborted, reason, by, .. }) = self.stopped.get() {
            self.switched(took);
            warn!(
                member.name = %self.member, rollout.id = %self.rollout.id,
                "Stopped the rollout of {} ({by}): {reason}", self.resolved.label()
            );
        }
        self.wake.notify_one();
    }

    /// How it ended here.
    pub(crate) fn ended(&self) -> Option<&End> {
        self.stopped.get()
    }

    pub(crate) fn switched(&self, took: Duration) {
        self.switched_ns.store(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        histogram!(ROLLOUT_SWITCH, "member" => self.member.clone()).record(took.as_secs_f64());
    }

    /// Milliseconds from the decision until the traffic went elsewhere; `None` before there was one.
    pub(crate) fn switch_ms(&self) -> Option<f64> {
        let ns = self.switched_ns.load(Ordering::Relaxed);
        (ns > 0).then_some(ns as f64 / 1e6)
    }

    fn lock(&self) -> MutexGuard<'_, SeenHere> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a key falls, below [`PARTS`]. Another rollout has another order, so that it is not always the same who go first.
pub(crate) fn part_of(rollout: &str, key: &str) -> u64 {
    let digest = Sha256::new().chain_update(rollout).chain_update([0]).chain_update(key).finalize();
    let first = digest.iter().take(8).fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    first % PARTS
}

impl Sums {
    pub(crate) fn add(&mut self, compared: &Compared, live_ms: f64, shadow_ms: f64) {
        self.n += 1;
        self.n_flips += compared.n_flips as u64;
        let n = self.n as f64;
        let into = |mean: &mut f64, value: f64| *mean += (value - *mean) / n;
        into(&mut self.mean_live_ms, live_ms);
        into(&mut self.mean_shadow_ms, shadow_ms);
        for (mean, value) in [
            (&mut self.mean_shift, compared.shift),
            (&mut self.mean_cosine, compared.cosine),
            (&mut self.mean_relative, compared.relative),
            (&mut self.mean_overlap, compared.overlap),
            (&mut self.mean_similarity, compared.similarity),
        ] {
            if let Some(value) = value {
                into(mean.get_or_insert(0.0), value);
            }
        }
        if let Some([stable, candidate]) = compared.tokens {
            let [before, after] = self.tokens.unwrap_or_default();
            self.tokens = Some([before + stable, after + candidate]);
        }
        if let Some([stable, candidate]) = compared.cost {
            let [before, after] = self.cost.unwrap_or_default();
            self.cost = Some([before + stable, after + candidate]);
        }
    }
}

impl Awaiting {
    fn put(&mut self, request_id: String, labels: [String; 2]) {
        if self.labels.insert(request_id.clone(), labels).is_none() {
            self.order.push_back(request_id);
        }
        while self.labels.len() > N_AWAITING
            && let Some(oldest) = self.order.pop_front()
        {
            self.labels.remove(&oldest);
        }
        // Those whose answers came stay in the order until they are the oldest.
        if self.order.len() > 2 * N_AWAITING {
            self.order.retain(|id| self.labels.contains_key(id));
        }
    }

    fn take(&mut self, request_id: &str) -> Option<[String; 2]> {
        self.labels.remove(request_id)
    }
}

/// What replicas other than `own` have seen.
pub(crate) fn of_others(seen: &BTreeMap<String, RolloutCounts>, own: &str) -> RolloutCounts {
    let mut sum = RolloutCounts::default();
    seen.iter().filter(|(replica, _)| *replica != own).for_each(|(_, counts)| sum.add(counts));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_place_and_shares_are_met() {
        let place = |idx: u32| part_of("aa", &format!("user-{idx}"));
        assert_eq!(place(7), place(7));
        let n_in = (0..20_000).filter(|&idx| place(idx) < PARTS / 20).count();
        assert!((900..1100).contains(&n_in), "{n_in} of 20000 are in 5 %");
        let elsewhere = (0..20_000).filter(|idx| part_of("ab", &format!("user-{idx}")) < PARTS / 20);
        let n_twice = elsewhere.filter(|&idx| place(idx) < PARTS / 20).count();
        assert!(n_twice < 100, "another rollout begins with others: {n_twice}");
    }

    #[test]
    fn labels_wait_for_their_right_answers_within_a_limit() {
        let mut awaiting = Awaiting::default();
        for idx in 0..=N_AWAITING {
            awaiting.put(idx.to_string(), ["a".to_owned(), "b".to_owned()]);
        }
        assert_eq!(awaiting.take("0"), None);
        assert!(awaiting.take("1").is_some() && awaiting.take("1").is_none());
    }
}
