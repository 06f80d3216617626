//! `[members.NAME.rollout]`: how versions of a member are tried unless `highroad deploy` is told otherwise. A server begins no rollout by itself.

use highroad_eval::{Pace, Plan, RolloutRules};
use serde::{Deserialize, Serialize};

use crate::rollout::{Limits, OnPass};

/// How a version is tried; what is left out is as usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutPlan {
    /// Percent of the requests that it answers a second time, unseen by clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<f64>,
    /// Percents of the requests that it answers, one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Vec<f64>>,
    /// See [`RolloutRules::alpha`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Largest share of requests that it may answer differently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_differ: Option<f64>,
    /// Largest share of requests that it may fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_errors: Option<f64>,
    /// Milliseconds that an answer of it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Largest share of requests that may take it longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_slow: Option<f64>,
    /// By how much its share of right answers may be lower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Embeddings differ below this cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cosine: Option<f64>,
    /// Rankings differ below this overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_overlap: Option<f64>,
    /// Tensors differ above this relative difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_relative: Option<f64>,
    /// Requests that a canary is asked at each share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_requests: Option<u64>,
    /// Seconds that each share of a canary lasts at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// Whether a pass waits for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
}

pub(super) const PLAN_KEYS: &[&str] = &[
    "shadow",
    "canary",
    "alpha",
    "max_differ",
    "max_errors",
    "latency_ms",
    "max_slow",
    "margin",
    "min_cosine",
    "min_overlap",
    "max_relative",
    "step_requests",
    "step_seconds",
    "hold",
];

const MAX_SLOW: f64 = 0.01;

impl RolloutPlan {
    /// What this says and, of what it leaves out, what `declared` says.
    #[must_use]
    pub fn over(self, declared: &Self) -> Self {
        let has_plan = self.shadow.is_some() || self.canary.is_some();
        let (shadow, canary) =
            if has_plan { (self.shadow, self.canary) } else { (declared.shadow, declared.canary.clone()) };
        Self {
            shadow,
            canary,
            alpha: self.alpha.or(declared.alpha),
            max_differ: self.max_differ.or(declared.max_differ),
            max_errors: self.max_errors.or(declared.max_errors),
            latency_ms: self.latency_ms.or(declared.latency_ms),
            max_slow: self.max_slow.or(declared.max_slow),
            margin: self.margin.or(declared.margin),
            min_cosine: self.min_cosine.or(declared.min_cosine),
            min_overlap: self.min_overlap.or(declared.min_overlap),
            max_relative: self.max_relative.or(declared.max_relative),
            step_requests: self.step_requests.or(declared.step_requests),
            step_seconds: self.step_seconds.or(declared.step_seconds),
            hold: self.hold.or(declared.hold),
        }
    }

    /// How the candidate meets traffic; `None` where it is not said.
    pub fn plan(&self) -> Option<Plan> {
        let canary = || self.canary.clone().map(|percents| Plan::Canary { percents });
        self.shadow.map(|percent| Plan::Shadow { percent }).or_else(canary)
    }

    /// What it may do.
    pub fn rules(&self) -> RolloutRules {
        let usual = RolloutRules::default();
        RolloutRules {
            alpha: self.alpha.unwrap_or(usual.alpha),
            max_differ: self.max_differ.unwrap_or(usual.max_differ),
            max_errors: self.max_errors.unwrap_or(usual.max_errors),
            max_slow: self.latency_ms.map(|_| self.max_slow.unwrap_or(MAX_SLOW)),
            margin: self.margin,
        }
    }

    /// Which answers count as different, and which as slow.
    pub fn limits(&self) -> Limits {
        let usual = Limits::default();
        Limits {
            min_cosine: self.min_cosine.unwrap_or(usual.min_cosine),
            min_overlap: self.min_overlap.unwrap_or(usual.min_overlap),
            max_relative: self.max_relative.unwrap_or(usual.max_relative),
            latency_ms: self.latency_ms,
            ..usual
        }
    }

    /// How long each share lasts: 100 requests and 60 seconds.
    pub fn pace(&self) -> Pace {
        Pace { requests: self.step_requests.unwrap_or(100), seconds: self.step_seconds.unwrap_or(60.0) }
    }

    /// What follows a pass.
    pub fn on_pass(&self) -> OnPass {
        if self.hold == Some(true) { OnPass::Hold } else { OnPass::Promote }
    }

    /// Errors, in words, if it cannot be kept.
    pub fn check(&self) -> Result<(), String> {
        if self.shadow.is_some() && self.canary.is_some() {
            return Err("it has `shadow` or `canary`, not both".to_owned());
        }
        self.plan().map_or(Ok(()), |plan| plan.check()).map_err(|error| error.to_string())?;
        self.rules().check().map_err(|error| error.to_string())?;
        if self.max_slow.is_some() && self.latency_ms.is_none() {
            return Err("`max_slow` is about a latency budget: `latency_ms`, or --latency-budget".to_owned());
        }
        if !self.limits().are_sound() {
            return Err(
                "`min_cosine` is -1 to 1, `min_overlap` 0 to 1, `max_relative` 0 to 2, `latency_ms` above 0".to_owned()
            );
        }
        let seconds = self.pace().seconds;
        if seconds >= 0.0 && seconds.is_finite() { Ok(()) } else { Err("`step_seconds` is 0 or more".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_goes_before_what_a_member_declares() {
        let declared = RolloutPlan {
            canary: Some(vec![5.0, 100.0]),
            max_differ: Some(0.1),
            step_seconds: Some(600.0),
            hold: Some(true),
            ..RolloutPlan::default()
        };
        let told = RolloutPlan { shadow: Some(20.0), max_differ: Some(0.2), ..RolloutPlan::default() }.over(&declared);
        assert_eq!(told.plan(), Some(Plan::Shadow { percent: 20.0 }), "a shadow in the place of the canary");
        assert_eq!((told.rules().max_differ, told.pace().seconds, told.on_pass()), (0.2, 600.0, OnPass::Hold));
        let silent = RolloutPlan::default().over(&declared);
        assert_eq!(silent, declared);
        assert_eq!(RolloutPlan::default().plan(), None);
        let usual = RolloutPlan::default();
        assert_eq!((usual.rules(), usual.limits()), (RolloutRules::default(), Limits::default()));
    }

    #[test]
    fn a_plan_that_cannot_be_kept_is_refused() {
        let usual = RolloutPlan::default;
        for (bad, word) in [
            (RolloutPlan { shadow: Some(20.0), canary: Some(vec![5.0]), ..usual() }, "not both"),
            (RolloutPlan { canary: Some(vec![20.0, 5.0]), ..usual() }, "grow"),
            (RolloutPlan { shadow: Some(200.0), ..usual() }, "200"),
            (RolloutPlan { max_differ: Some(5.0), ..usual() }, "differently"),
            (RolloutPlan { max_slow: Some(0.1), ..usual() }, "latency budget"),
            (RolloutPlan { min_cosine: Some(2.0), ..usual() }, "min_cosine"),
            (RolloutPlan { step_seconds: Some(f64::NAN), ..usual() }, "step_seconds"),
        ] {
            let error = bad.check().expect_err("it cannot be kept");
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(usual().check(), Ok(()));
    }
}
