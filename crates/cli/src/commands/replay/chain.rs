//! From an answer back to the data behind it.

use highroad_eval::Verdict;
use highroad_package::Manifest;
use highroad_serve::replay;
use highroad_serve::request_log::Record;
use serde_json::Value;

use super::sources::Sources;

/// From the answer back to the data.
pub struct Chain {
    verdict: Option<Verdict>,
    run: Option<Value>,
    manifest: Manifest,
}

impl Chain {
    pub async fn find(sources: &Sources, record: &Record, manifest: &Manifest) -> Self {
        let run = match &manifest.provenance.run_id {
            Some(run_id) => sources.run(run_id).await,
            None => None,
        };
        Self { verdict: sources.verdict(record).await, run, manifest: manifest.clone() }
    }

    pub fn json(&self, record: &Record) -> Value {
        let chain = replay::Chain::of(record, Some(&self.manifest), self.verdict.clone(), self.run.clone());
        serde_json::to_value(chain).unwrap_or_default()
    }

    pub fn lines(&self, record: &Record) -> Vec<(&'static str, String)> {
        let provenance = &self.manifest.provenance;
        let unknown = || "not recorded".to_owned();
        let mut lines = vec![("answer", format!("{} by `{}` at {}", record.request_id, record.member, record.time))];
        lines.push((
            "verdict",
            match (&record.verdict, &self.verdict, &record.development) {
                (_, _, Some(reason)) => format!("none, served for development: {reason}"),
                (Some(digest), Some(verdict), _) => format!(
                    "{} {} on {} cases of `{}`, by {} at {}",
                    digest.short(),
                    outcome(verdict),
                    verdict.golden_set.n_cases,
                    verdict.golden_set.name,
                    verdict.created_by,
                    verdict.created_at
                ),
                (Some(digest), None, _) => format!("{} (its file is not on this machine)", digest.short()),
                (None, ..) if record.overridden.is_some() => {
                    let digest = record.overridden.map(|digest| digest.short()).unwrap_or_default();
                    format!("none, let through by override {digest}: the audit trail says by whom and why")
                }
                (None, ..) => unknown(),
            },
        ));
        lines.push(("package", format!("{} as {}, owner {}", record.package, record.version, self.manifest.owner)));
        lines.push(("run", provenance.run_id.clone().map_or_else(unknown, |id| run_line(&id, self.run.as_ref()))));
        lines.push(("commit", provenance.git_commit.clone().unwrap_or_else(unknown)));
        if provenance.data.is_empty() {
            lines.push(("data", unknown()));
        }
        for (name, digest) in &provenance.data {
            lines.push(("data", format!("{name} {digest}")));
        }
        lines
    }
}

fn outcome(verdict: &Verdict) -> String {
    serde_json::to_value(verdict.outcome).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The run's id, state and last metrics, as far as the tracking server knows them.
fn run_line(id: &str, run: Option<&Value>) -> String {
    let Some(run) = run else { return format!("{id} (the tracking server does not know it)") };
    // How busy the machine was says nothing about the answer.
    let metric = |metric: &Value| {
        let key = metric["key"].as_str().filter(|key| !key.starts_with("system/"))?;
        Some(format!("{key} {}", metric["value"]))
    };
    let metrics =
        run["data"]["metrics"].as_array().map(|metrics| metrics.iter().filter_map(metric).collect::<Vec<_>>());
    let metrics = metrics.unwrap_or_default().join(", ");
    let status = run["info"]["status"].as_str().unwrap_or("?");
    if metrics.is_empty() { format!("{id} {status}") } else { format!("{id} {status}: {metrics}") }
}
