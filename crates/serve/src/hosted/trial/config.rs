//! `[members.NAME.trial]` of `portfolio.toml`.

use highroad_eval::{Pace, Plan, RolloutRules};
use highroad_package::Digest;
use serde::Deserialize;

use crate::rollout::{Limits, OnPass, Release, Rollout};

/// Another hosted member that is tried beside one, and what it may do.
#[derive(Clone, Debug, PartialEq)]
pub struct TrialConfig {
    /// The member that is tried.
    pub candidate: String,
    /// How it meets traffic.
    pub plan: Plan,
    /// What it may do there.
    pub rules: RolloutRules,
    /// Which texts count as different, and which answers as slow.
    pub limits: Limits,
    /// When a canary goes on.
    pub pace: Pace,
    /// Who says which of two texts is better.
    pub judge: Option<JudgeConfig>,
}

/// A judge.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeConfig {
    /// The hosted member that judges.
    pub member: String,
    /// Share of the compared requests that it is shown, above 0 and up to 1.
    pub share: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrialTable {
    candidate: String,
    shadow: Option<f64>,
    canary: Option<Vec<f64>>,
    alpha: Option<f64>,
    max_differ: Option<f64>,
    min_similarity: Option<f64>,
    max_errors: Option<f64>,
    latency_ms: Option<f64>,
    max_slow: Option<f64>,
    judge: Option<String>,
    judge_share: Option<f64>,
    margin: Option<f64>,
    step_requests: Option<u64>,
    step_seconds: Option<f64>,
}

/// Texts of two models are rarely the same: half of the requests may be further apart than the limit.
const MAX_DIFFER: f64 = 0.5;
const JUDGE_SHARE: f64 = 0.1;
const MARGIN: f64 = 0.1;

impl TrialTable {
    /// What it says; a problem in words.
    pub(crate) fn config(self) -> Result<TrialConfig, String> {
        let usual = RolloutRules::default();
        let plan = match (self.shadow, self.canary) {
            (Some(percent), None) => Plan::Shadow { percent },
            (None, Some(percents)) => Plan::Canary { percents },
            _ => return Err("trial: it has one of `shadow` and `canary`, in percent".to_owned()),
        };
        plan.check().map_err(|error| format!("trial: {error}"))?;
        let has_judge = self.judge.is_some();
        if !has_judge && (self.judge_share.or(self.margin)).is_some() {
            return Err("trial: `judge_share` and `margin` are about a `judge`".to_owned());
        }
        let rules = RolloutRules {
            alpha: self.alpha.unwrap_or(usual.alpha),
            max_differ: self.max_differ.unwrap_or(MAX_DIFFER),
            max_errors: self.max_errors.unwrap_or(usual.max_errors),
            max_slow: self.latency_ms.map(|_| self.max_slow.unwrap_or(0.01)),
            margin: has_judge.then(|| self.margin.unwrap_or(MARGIN)),
        };
        rules.check().map_err(|error| format!("trial: {error}"))?;
        let usual = Limits::default();
        let min_similarity = self.min_similarity.unwrap_or(usual.min_similarity);
        let limits = Limits { min_similarity, latency_ms: self.latency_ms, ..usual };
        if !limits.are_sound() {
            return Err("trial: `min_similarity` is 0 to 1, and `latency_ms` above 0".to_owned());
        }
        let share = self.judge_share.unwrap_or(JUDGE_SHARE);
        if !(share > 0.0 && share <= 1.0) {
            return Err("trial: `judge_share` is above 0 and up to 1".to_owned());
        }
        let pace = Pace { requests: self.step_requests.unwrap_or(100), seconds: self.step_seconds.unwrap_or(60.0) };
        if pace.seconds.is_nan() || pace.seconds < 0.0 {
            return Err("trial: `step_seconds` is 0 or more".to_owned());
        }
        let judge = self.judge.map(|member| JudgeConfig { member, share });
        Ok(TrialConfig { candidate: self.candidate, plan, rules, limits, pace, judge })
    }
}

impl TrialConfig {
    /// As a rollout, of version 1 (what serves) and 2. The same trial of the same two descriptions has the same id, so that what was
    /// seen counts after a restart, and that of any other has another.
    pub(crate) fn rollout(&self, stable: Digest, candidate: Digest) -> Rollout {
        let told = (&stable, &candidate, &self.plan, &self.rules, &self.limits);
        let judge = self.judge.as_ref().map(|judge| (&judge.member, judge.share));
        let id = Digest::of(&serde_json::to_vec(&(told, judge)).unwrap_or_default());
        Rollout {
            highroad_rollout: 1,
            id: id.hex()[..16].to_owned(),
            stable: Release { version: 1, package: stable },
            candidate: Release { version: 2, package: candidate },
            plan: self.plan.clone(),
            rules: self.rules,
            pace: self.pace,
            limits: self.limits,
            on_pass: OnPass::Hold,
            by: "portfolio.toml".to_owned(),
            why: format!("`{}` is tried", self.candidate),
            begun_at: crate::rollout::now(),
        }
    }
}
