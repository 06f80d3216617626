use highroad_eval::drift::DriftPolicy;
use serde::{Deserialize, Serialize};

/// How a member is watched: `[monitor]` of a portfolio, and `[members.NAME.monitor]` over it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MonitorConfig {
    /// Whether it is watched at all.
    pub enabled: bool,
    /// Seconds of a pane, the finest time that is kept; 60 of them are the next coarser, 24 of those the coarsest.
    pub pane_s: u32,
    /// How many coarsest panes are kept: days, with panes of a minute.
    pub keep_days: u32,
    /// Seconds that statistics are of.
    pub window_s: u32,
    /// When a difference is worth an alarm.
    pub policy: DriftPolicy,
}

impl Default for MonitorConfig {
    /// Minutes, thirty days, statistics of the last day.
    fn default() -> Self {
        Self { enabled: true, pane_s: 60, keep_days: 30, window_s: 86_400, policy: DriftPolicy::default() }
    }
}

pub(crate) const MONITOR_KEYS: &[&str] =
    &["enabled", "pane_s", "keep_days", "window_s", "false_alarm_days", "min_effect", "min_requests"];

/// The table of a portfolio; what it leaves out is as before.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct MonitorTable {
    enabled: Option<bool>,
    pane_s: Option<u32>,
    keep_days: Option<u32>,
    window_s: Option<u32>,
    false_alarm_days: Option<f64>,
    min_effect: Option<f64>,
    min_requests: Option<u64>,
}

impl MonitorTable {
    /// `base` with what is told here; what is wrong with it goes to `problems`.
    pub(crate) fn over(&self, base: &MonitorConfig, place: &str, problems: &mut Vec<String>) -> MonitorConfig {
        let config = MonitorConfig {
            enabled: self.enabled.unwrap_or(base.enabled),
            pane_s: self.pane_s.unwrap_or(base.pane_s),
            keep_days: self.keep_days.unwrap_or(base.keep_days),
            window_s: self.window_s.unwrap_or(base.window_s),
            policy: DriftPolicy {
                false_alarm_days: self.false_alarm_days.unwrap_or(base.policy.false_alarm_days),
                min_effect: self.min_effect.unwrap_or(base.policy.min_effect),
                min_rows: self.min_requests.unwrap_or(base.policy.min_rows),
            },
        };
        let mut check = |holds: bool, what: &str| {
            if !holds {
                problems.push(format!("{place} {what}"));
            }
        };
        check((1..=3600).contains(&config.pane_s), "`pane_s` is 1 to 3600 seconds");
        check((1..=366).contains(&config.keep_days), "`keep_days` is 1 to 366");
        check((1..=31_622_400).contains(&config.window_s), "`window_s` is 1 to 31622400 seconds");
        let policy = config.policy;
        check((1e-3..=1e6).contains(&policy.false_alarm_days), "`false_alarm_days` is 0.001 to 1000000");
        check((0.0..=10.0).contains(&policy.min_effect), "`min_effect` is 0 to 10");
        check((20..=1_000_000_000).contains(&policy.min_rows), "`min_requests` is at least 20");
        config
    }
}
