use highroad_eval::{CheckResult, PairedLatency, RolloutCounts, paired_latency};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rollout::trial::{Sums, Times, Trial};
use crate::rollout::{Course, CourseShown, End, Pair, Rollout, Spent, Step, Timed, now_ms};

/// Where a rollout stands in this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutStatus {
    /// The member.
    pub member: String,
    /// What is tried.
    pub rollout: Rollout,
    /// How far it has come.
    pub step: Step,
    /// The share of the traffic that takes part here, in percent; 0 once it has ended.
    pub percent: f64,
    /// How it ended, as far as this process knows.
    pub end: Option<End>,
    /// What all replicas have seen, as far as this one knows.
    pub counts: RolloutCounts,
    /// What this process has seen.
    pub here: RolloutCounts,
    /// Each rule and how it stands.
    pub checks: Vec<CheckResult>,
    /// How far answers were apart here.
    pub apart: Sums,
    /// Requests that wait here for their second answer.
    pub n_waiting: usize,
    /// Requests that there was no room for here.
    pub n_dropped: u64,
    /// Milliseconds from the decision until the traffic of this process went elsewhere.
    pub switch_ms: Option<f64>,
    /// The requests whose answers were furthest apart here, worst first.
    pub worst: Vec<Pair>,
    /// What both versions took lately for the same requests; of one member alone, not in the list of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
    /// Tokens and cost of the requests that were timed.
    #[serde(default)]
    pub spent: Spent,
    #[serde(skip)]
    pub(crate) times: Times,
    /// What was seen in the course of it, since this process began to try it.
    #[serde(skip)]
    pub(crate) course: Course,
    #[serde(skip)]
    pub(crate) as_of_ms: i64,
}

/// What two versions took for the same requests, measured in one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latencies {
    /// Whether it is the time of one processor, with each request alone; else it is the time from the question to the whole answer.
    pub of_processor: bool,
    /// Percentiles and their ratios.
    #[serde(flatten)]
    pub latency: PairedLatency,
}

impl Latencies {
    /// Most requests that count: the latest.
    const MOST: usize = 5000;

    /// Of `timed`, oldest first; those that were measured as the last one was. `None` if there are none. Takes some tens of milliseconds.
    pub fn of(timed: &[Timed]) -> Option<Self> {
        let of_processor = timed.last()?.of_processor;
        let alike = timed.iter().filter(|timed| timed.of_processor == of_processor);
        let pairs: Vec<[f64; 2]> = alike.map(|timed| [timed.stable_ms, timed.candidate_ms]).collect();
        let latency = paired_latency(&pairs[pairs.len().saturating_sub(Self::MOST)..])?;
        Some(Self { of_processor, latency })
    }
}

impl RolloutStatus {
    pub(crate) fn of(trial: &Trial) -> Self {
        let times = trial.times();
        Self {
            latency: None,
            spent: times.spent,
            times,
            member: trial.member.clone(),
            rollout: trial.rollout.clone(),
            step: trial.step(),
            percent: trial.percent(),
            end: trial.ended().cloned(),
            counts: trial.all_counts(),
            here: trial.counts(),
            checks: trial.judge().checks,
            apart: trial.sums(),
            n_waiting: trial.shadow.n_waiting(),
            n_dropped: trial.shadow.n_dropped(),
            switch_ms: trial.switch_ms(),
            worst: trial.worst(),
            course: trial.course(),
            as_of_ms: now_ms(),
        }
    }

    /// The same with what both versions took. Takes some tens of milliseconds.
    pub(crate) fn with_latency(self) -> Self {
        Self { latency: Latencies::of(&self.times.timed()), ..self }
    }

    /// What each rule said in the course of it, and what both versions took. Takes some tens of milliseconds.
    pub fn course(&self) -> CourseShown {
        let course = self.course.shown(&self.rollout.rules, (self.as_of_ms, self.counts));
        CourseShown { latency: Latencies::of(&self.times.timed()), ..course }
    }
}
