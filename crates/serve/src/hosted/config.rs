//! `[members.NAME]` with `hosted = "FILE.toml"`: a member that somebody else hosts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use highroad_hosted::{Hosted, HostedTask};
use serde::Deserialize;

use super::breaker::BreakerConfig;
use super::trial::{TrialConfig, TrialTable};
use crate::budget::BudgetsConfig;
use crate::config::MemberLimits;

/// A hosted member and how it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct HostedConfig {
    /// What it is.
    pub hosted: Hosted,
    /// The file that says so.
    pub file: PathBuf,
    /// Members that answer in its place where it cannot, the first first.
    pub fallback: Vec<String>,
    /// Tries after the first.
    pub retries: u32,
    /// Waiting between the tries of one request, all together.
    pub retry_wait: Duration,
    /// When it is left alone.
    pub breaker: BreakerConfig,
    /// Requests that may wait for one of the description's `limits.concurrency` places.
    pub queue: usize,
    /// How long they may.
    pub queue_timeout: Duration,
    /// Another member that is tried beside it.
    pub trial: Option<TrialConfig>,
    /// What a request may ask of it.
    pub limits: MemberLimits,
}

/// Keys of a hosted member's table.
pub(crate) const KEYS: &[&str] = &[
    "hosted",
    "fallback",
    "retries",
    "retry_wait_ms",
    "breaker_failures",
    "breaker_pause_ms",
    "queue_requests",
    "queue_timeout_ms",
    "trial",
    "limits",
];

#[derive(Deserialize)]
pub(crate) struct HostedTable {
    hosted: PathBuf,
    #[serde(default)]
    fallback: Vec<String>,
    retries: Option<u32>,
    retry_wait_ms: Option<u64>,
    breaker_failures: Option<u32>,
    breaker_pause_ms: Option<u64>,
    queue_requests: Option<u32>,
    queue_timeout_ms: Option<u64>,
    trial: Option<TrialTable>,
    #[serde(default)]
    limits: MemberLimits,
}

const MAX_RETRIES: u32 = 20;
const MAX_MS: u64 = 3_600_000;

impl HostedTable {
    /// The member, with the description from its file beside `base`.
    pub(crate) fn config(self, base: &Path) -> Result<HostedConfig, String> {
        let file = base.join(&self.hosted);
        let hosted = Hosted::read(&file).map_err(|error| error.to_string())?;
        let ranges = [
            ("retries", self.retries.map(u64::from), 0, u64::from(MAX_RETRIES)),
            ("retry_wait_ms", self.retry_wait_ms, 0, MAX_MS),
            ("breaker_failures", self.breaker_failures.map(u64::from), 1, 1_000_000),
            ("breaker_pause_ms", self.breaker_pause_ms, 1, MAX_MS),
            ("queue_timeout_ms", self.queue_timeout_ms, 0, MAX_MS),
        ];
        for (key, value, least, most) in ranges {
            if value.is_some_and(|value| value < least || value > most) {
                return Err(format!("`{key}` is from {least} to {most}"));
            }
        }
        if self.trial.is_some() && hosted.task != HostedTask::Generate {
            return Err("trial: only texts are compared".to_owned());
        }
        if self.limits.tokens.is_some() {
            return Err("limits: `tokens` are counted by its host; `input_bytes` limits what it is sent".to_owned());
        }
        let limits = self.limits.check()?;
        let trial = self.trial.map(TrialTable::config).transpose()?;
        let ms = |value: Option<u64>, usual| Duration::from_millis(value.unwrap_or(usual));
        Ok(HostedConfig {
            hosted,
            file,
            fallback: self.fallback,
            retries: self.retries.unwrap_or(2),
            retry_wait: ms(self.retry_wait_ms, 5_000),
            breaker: BreakerConfig {
                failures: self.breaker_failures.unwrap_or(5),
                pause: ms(self.breaker_pause_ms, 10_000),
            },
            queue: self.queue_requests.unwrap_or(256) as usize,
            queue_timeout: ms(self.queue_timeout_ms, 30_000),
            trial,
            limits,
        })
    }
}

/// What does not fit between hosted members, the others (by name) and the budgets.
pub(crate) fn check(
    hosted: &BTreeMap<String, HostedConfig>,
    is_member: impl Fn(&str) -> bool,
    budgets: &BudgetsConfig,
    problems: &mut Vec<String>,
) {
    for (name, config) in hosted {
        for other in &config.fallback {
            if let Some(reason) = unfit(name, config, other, hosted, &is_member) {
                problems.push(format!("[members.{name}] fallback `{other}`: {reason}"));
            }
        }
        let others = config.trial.iter().flat_map(|trial| {
            [("candidate", Some(&trial.candidate)), ("judge", trial.judge.as_ref().map(|judge| &judge.member))]
        });
        for (role, other) in others.filter_map(|(role, other)| Some((role, other?))) {
            let is_fit = hosted.get(other).is_some_and(|other| other.hosted.task == HostedTask::Generate);
            if !is_fit || other == name {
                problems.push(format!("[members.{name}.trial] {role} `{other}`: another hosted member that generates"));
            }
        }
        let costs =
            budgets.members().any(|(member, limits)| member == name && limits.set().any(|(meter, _)| meter.is_cost()));
        match &config.hosted.price {
            None if costs => problems
                .push(format!("[budgets.members.{name}] limits cost, and `{}` has no [price]", config.file.display())),
            Some(price) if budgets.limits_cost() && budgets.currency.as_ref() != Some(&price.currency) => problems
                .push(format!(
                    "[members.{name}] its price is in {}, the budgets in {}",
                    price.currency,
                    budgets.currency.as_deref().unwrap_or("none")
                )),
            _ => {}
        }
    }
    for (name, _) in budgets.members() {
        if !hosted.contains_key(name) && !is_member(name) {
            problems.push(format!("[budgets.members.{name}] there is no such member"));
        }
    }
}

fn unfit(
    name: &str,
    config: &HostedConfig,
    other: &str,
    hosted: &BTreeMap<String, HostedConfig>,
    is_member: impl Fn(&str) -> bool,
) -> Option<&'static str> {
    let Some(fallback) = hosted.get(other) else {
        return match config.hosted.task {
            _ if !is_member(other) => Some("there is no such member"),
            HostedTask::Infer => Some("tensors of another model cannot stand for this one's"),
            // Vectors of two models cannot be compared.
            HostedTask::Embed => Some("vectors of another model cannot stand for this one's"),
            HostedTask::Generate => Some("no package generates text"),
            _ => None,
        };
    };
    match (config.hosted.task, fallback.hosted.task) {
        _ if other == name => Some("it is the member itself"),
        (own, others) if own != others => Some("it is for another task"),
        (HostedTask::Classify, _) if config.hosted.labels != fallback.hosted.labels => Some("it has other labels"),
        (HostedTask::Embed, _) if config.hosted.model != fallback.hosted.model => {
            Some("vectors of another model cannot stand for this one's")
        }
        _ => None,
    }
}
