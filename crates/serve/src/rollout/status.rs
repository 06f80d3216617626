use highroad_eval::{CheckResult, RolloutCounts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rollout::trial::{Sums, Trial};
use crate::rollout::{Course, CourseShown, End, Pair, Rollout, Step, now_ms};

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
    /// What was seen in the course of it, since this process began to try it.
    #[serde(skip)]
    pub(crate) course: Course,
    #[serde(skip)]
    pub(crate) as_of_ms: i64,
}

impl RolloutStatus {
    pub(crate) fn of(trial: &Trial) -> Self {
        Self {
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

    /// What each rule said in the course of it. Takes some tens of milliseconds.
    pub fn course(&self) -> CourseShown {
        self.course.shown(&self.rollout.rules, (self.as_of_ms, self.counts))
    }
}
