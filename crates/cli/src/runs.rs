//! The few calls about runs that the CLI makes itself; the training script uses the `mlflow` client.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Runs of a tracking server, over MLflow REST.
pub struct Runs {
    api: String,
    client: reqwest::Client,
}

/// How a run ended, in MLflow's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedAs {
    /// The script succeeded.
    Finished,
    /// It failed.
    Failed,
    /// A signal ended it.
    Killed,
}

impl EndedAs {
    /// What the exit status of the script says; torchrun ends with 1 when a signal stops it, which is a failure too.
    pub fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Finished,
            Some(_) => Self::Failed,
            None => Self::Killed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

impl Runs {
    /// Runs of the server at `uri`.
    pub fn new(uri: &str) -> Self {
        Self { api: format!("{}/api/2.0/mlflow", uri.trim_end_matches('/')), client: reqwest::Client::new() }
    }

    /// A new run in `experiment`, which is made if it does not exist; gives the run's id.
    pub async fn create(
        &self,
        experiment: &str,
        name: Option<&str>,
        tags: &BTreeMap<String, String>,
    ) -> anyhow::Result<String> {
        let experiment_id = self.experiment(experiment).await?;
        let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let mut body = json!({"experiment_id": experiment_id, "start_time": now_ms(), "tags": tags});
        if let Some(name) = name {
            body["run_name"] = name.into();
        }
        let created = self.post("runs/create", &body).await?;
        text(&created, "/run/info/run_id")
    }

    /// Marks a run as running again.
    pub async fn reopen(&self, run_id: &str) -> anyhow::Result<()> {
        self.post("runs/update", &json!({"run_id": run_id, "status": "RUNNING"})).await.map(drop)
    }

    /// Records how a run ended and when.
    pub async fn end(&self, run_id: &str, ended: EndedAs) -> anyhow::Result<()> {
        let body = json!({"run_id": run_id, "status": ended.name(), "end_time": now_ms()});
        self.post("runs/update", &body).await.map(drop)
    }

    /// Sets a tag of a run.
    pub async fn tag(&self, run_id: &str, key: &str, value: &str) -> anyhow::Result<()> {
        self.post("runs/set-tag", &json!({"run_id": run_id, "key": key, "value": value})).await.map(drop)
    }

    async fn experiment(&self, name: &str) -> anyhow::Result<String> {
        let url = format!("{}/experiments/get-by-name", self.api);
        let response = self.client.get(&url).query(&[("experiment_name", name)]).send().await;
        let response = response.with_context(|| format!("the tracking server does not answer at {url}"))?;
        if response.status() != reqwest::StatusCode::NOT_FOUND {
            return text(&read(&url, response).await?, "/experiment/experiment_id");
        }
        text(&self.post("experiments/create", &json!({"name": name})).await?, "/experiment_id")
    }

    async fn post(&self, route: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}/{route}", self.api);
        let response = self.client.post(&url).json(body).send().await;
        read(&url, response.with_context(|| format!("the tracking server does not answer at {url}"))?).await
    }
}

async fn read(url: &str, response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or_default();
    if !status.is_success() {
        let message = body.get("message").and_then(Value::as_str).unwrap_or("no message");
        bail!("{url} answers {status}: {message}");
    }
    Ok(body)
}

fn text(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).with_context(|| format!("the tracking server's answer lacks {pointer}"))
}

fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_run_ends_as_its_script_does() {
        assert_eq!(EndedAs::of(ExitStatus::from_raw(0)), EndedAs::Finished);
        assert_eq!(EndedAs::of(ExitStatus::from_raw(1 << 8)), EndedAs::Failed);
        assert_eq!(EndedAs::of(ExitStatus::from_raw(9)), EndedAs::Killed);
    }
}
