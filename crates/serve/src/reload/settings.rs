use std::path::Path;

use highroad_package::Digest;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::{MemberConfig, ModelSource, PortfolioConfig};
use crate::hosted::config::HostedConfig;
use crate::index::lance::LanceConfig;
use crate::pipeline::IndexConfig;

/// Everything that `config` says, as data: what two of them have in common and what not can be seen without their files.
pub fn settings(config: &PortfolioConfig) -> Value {
    // How members are watched is told of each of them.
    let PortfolioConfig {
        members,
        hosted,
        budgets,
        alerts,
        limits,
        poll_interval,
        indexes,
        pipelines,
        rollouts,
        plans,
        monitor: _,
    } = config;
    let indexes = indexes.iter().map(|(name, config)| (name.clone(), index(config)));
    json!({
        "poll_interval_ms": milliseconds(poll_interval.0),
        "limits": limits,
        "rollouts": rollouts,
        "plans": plans,
        "members": members.iter().map(|(name, config)| (name.clone(), member(config))).collect::<Map<_, _>>(),
        "hosted": hosted.iter().map(|(name, config)| (name.clone(), hosted_member(config))).collect::<Map<_, _>>(),
        "indexes": indexes.collect::<Map<_, _>>(),
        "pipelines": pipelines.iter().map(|(name, config)| (name.clone(), digest(config))).collect::<Map<_, _>>(),
        "budgets": budgets.told(),
        "objectives": alerts.objectives.iter().map(|(name, config)| (name.clone(), digest(config))).collect::<Map<_, _>>(),
        "webhooks": alerts.webhooks.iter().map(|(name, config)| (name.clone(), digest(config))).collect::<Map<_, _>>(),
    })
}

fn member(config: &MemberConfig) -> Value {
    let model = match &config.source {
        ModelSource::Directory(path) => absolute(path),
        ModelSource::Registry(reference) => reference.to_string(),
    };
    json!({
        "model": model,
        "task": config.task,
        "threads": config.threads,
        "replicas": config.batching.replicas,
        "batch_tokens": config.batching.batch_tokens,
        "queue_rows": config.batching.queue_rows,
        "queue_timeout_ms": milliseconds(config.queue_timeout),
        "cache": config.cache,
        "limits": config.limits,
        "monitor": config.monitor,
    })
}

fn index(config: &IndexConfig) -> Value {
    let IndexConfig { path, embedder, lance } = config;
    let mut told = json!({ "path": absolute(path), "embedder": embedder });
    if let Some(LanceConfig { python, n_workers, memory_mb, cache_mb, timeout, start_timeout }) = lance {
        told["lance"] = json!({
            "python": python,
            "workers": n_workers,
            "memory_mb": memory_mb,
            "cache_mb": cache_mb,
            "timeout_ms": milliseconds(*timeout),
            "start_timeout_ms": milliseconds(*start_timeout),
        });
    }
    told
}

fn hosted_member(config: &HostedConfig) -> Value {
    json!({
        "file": absolute(&config.file),
        "description": config.hosted.digest(),
        "fallback": config.fallback,
        "retries": config.retries,
        "retry_wait_ms": milliseconds(config.retry_wait),
        "breaker_failures": config.breaker.failures,
        "breaker_pause_ms": milliseconds(config.breaker.pause),
        "queue_requests": config.queue,
        "trial": config.trial.as_ref().map(digest),
        "queue_timeout_ms": milliseconds(config.queue_timeout),
        "limits": config.limits,
    })
}

/// Of what is compared but not shown.
fn digest(config: &impl std::fmt::Debug) -> Value {
    json!(Digest::of(format!("{config:?}").as_bytes()))
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One thing that is not as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What, as `members.chat.threads`.
    pub path: String,
    /// What it was; `None` where it is new.
    pub before: Option<Value>,
    /// What it is; `None` where it is gone.
    pub after: Option<Value>,
}

/// What is not in both of two [`settings`], in the order of their names. A part that only one has is one change.
pub fn differences(before: &Value, after: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    compare(String::new(), before, after, &mut changes);
    changes
}

fn compare(path: String, before: &Value, after: &Value, changes: &mut Vec<Change>) {
    let (Value::Object(left), Value::Object(right)) = (before, after) else {
        if before != after {
            changes.push(Change { path, before: Some(before.clone()), after: Some(after.clone()) });
        }
        return;
    };
    let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (left.get(key), right.get(key)) {
            (Some(before), Some(after)) => compare(path, before, after, changes),
            (before, after) => changes.push(Change { path, before: before.cloned(), after: after.cloned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_by_its_path() {
        let parse = |text: &str| settings(&PortfolioConfig::parse(text, Path::new("/base")).unwrap());
        let before = parse("[members.a]\nmodel = 'a'\nthreads = 1\nreplicas = 1\n[members.b]\nmodel = './b'\n");
        let after = parse(
            "[members.a]\nmodel = 'a'\nthreads = 2\nreplicas = 1\n[members.c]\nmodel = 'c:1'\n[budgets.members.a]\ntokens_per_day = 5\n",
        );
        let paths: Vec<String> = differences(&before, &after).into_iter().map(|change| change.path).collect();
        assert_eq!(paths, ["budgets.members.a", "members.a.threads", "members.b", "members.c"]);
        assert_eq!(differences(&after, &after), []);
        assert_eq!(before["members"]["b"]["model"], "/base/b");
    }
}
