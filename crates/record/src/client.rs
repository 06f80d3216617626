//! The few calls of MLflow's REST API that a run needs.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use reqwest::blocking::{Body, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::{Entry, Metric};

/// Longest wait for an answer. Artifacts may take longer.
const TIMEOUT: Duration = Duration::from_secs(30);
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// Prefix of the artifacts that the tracking server stores itself.
const PROXIED: &str = "mlflow-artifacts:";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ClientError {
    #[error("the tracking server {server} does not answer: {reason}")]
    Unreachable { server: String, reason: String },
    #[error("the tracking server answers {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("artifacts of this run lie at `{0}`, which only an MLflow client with access to that store can write")]
    NotProxied(String),
    #[error("cannot read `{path}`: {source}")]
    File { path: String, source: std::io::Error },
}

impl ClientError {
    /// Whether the same call may succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // Credentials are mended by a person, and then the entry is still good.
            Self::Refused { status, .. } => *status >= 500 || matches!(status, 401 | 403 | 408 | 429),
            _ => false,
        }
    }
}

/// A tracking server. Credentials are those of the environment, as MLflow names them.
pub struct Client {
    http: reqwest::blocking::Client,
    server: String,
}

impl Client {
    /// A client of `server`; connects when it is used.
    pub fn new(server: &str) -> Result<Self, ClientError> {
        let insecure = std::env::var("MLFLOW_TRACKING_INSECURE_TLS").is_ok_and(|value| value == "true");
        let http =
            reqwest::blocking::Client::builder().timeout(TIMEOUT).tls_danger_accept_invalid_certs(insecure).build();
        let server = server.trim_end_matches('/').to_owned();
        let unusable =
            |error: reqwest::Error| ClientError::Unreachable { server: server.clone(), reason: text(&error) };
        Ok(Self { http: http.map_err(unusable)?, server })
    }

    /// The id of the experiment called `name`, made if there is none.
    pub fn experiment(&self, name: &str) -> Result<String, ClientError> {
        let found = self.http.get(self.url("experiments/get-by-name")).query(&[("experiment_name", name)]);
        match self.call(found) {
            Ok(found) => Ok(string(&found["experiment"]["experiment_id"])),
            Err(ClientError::Refused { status: 404, .. }) => {
                let made = self.post("experiments/create", &json!({"name": name}))?;
                Ok(string(&made["experiment_id"]))
            }
            Err(error) => Err(error),
        }
    }

    /// Starts a run; gives its id.
    pub fn create_run(
        &self,
        experiment_id: &str,
        name: Option<&str>,
        tags: &[(String, String)],
        start_time: i64,
    ) -> Result<String, ClientError> {
        let mut run = json!({"experiment_id": experiment_id, "start_time": start_time, "tags": pairs(tags)});
        if let Some(name) = name {
            run["run_name"] = json!(name);
        }
        Ok(string(&self.post("runs/create", &run)?["run"]["info"]["run_id"]))
    }

    /// Metrics, parameters and tags of a run in one call, within MLflow's limits.
    pub(crate) fn log_batch(&self, run_id: &str, batch: &Batch) -> Result<(), ClientError> {
        let body = json!({
            "run_id": run_id, "metrics": points(&batch.metrics), "params": pairs(&batch.params), "tags": pairs(&batch.tags),
        });
        self.post("runs/log-batch", &body).map(drop)
    }

    /// Delivers an entry that does not fit into a batch.
    pub(crate) fn deliver(
        &self,
        run_id: &str,
        entry: &Entry,
        dir: impl Fn(&str) -> std::path::PathBuf,
    ) -> Result<(), ClientError> {
        match entry {
            Entry::Inputs(datasets) => {
                self.post("runs/log-inputs", &json!({"run_id": run_id, "datasets": datasets})).map(drop)
            }
            Entry::Artifact { copy, path } => self.upload(run_id, &dir(copy), path),
            Entry::End { status, end_time } => {
                self.post("runs/update", &json!({"run_id": run_id, "status": status, "end_time": end_time})).map(drop)
            }
            Entry::Metrics(_) | Entry::Params(_) | Entry::Tags(_) => unreachable!("these are batched"),
        }
    }

    fn upload(&self, run_id: &str, file: &Path, path: &str) -> Result<(), ClientError> {
        let run = self.call(self.http.get(self.url("runs/get")).query(&[("run_id", run_id)]))?;
        let uri = string(&run["run"]["info"]["artifact_uri"]);
        let Some(root) = uri.strip_prefix(PROXIED) else { return Err(ClientError::NotProxied(uri)) };
        let root = root.trim_start_matches('/');
        let source =
            File::open(file).map_err(|source| ClientError::File { path: file.display().to_string(), source })?;
        let url = format!("{}/api/2.0/mlflow-artifacts/artifacts", self.server);
        let mut url = reqwest::Url::parse(&url).map_err(|error| self.unreachable(&error))?;
        // Each name is escaped by itself, so that `#` or `?` in it stay part of it.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(root.split('/').chain(path.split('/')));
        }
        self.call(self.http.put(url).timeout(UPLOAD_TIMEOUT).body(Body::from(source))).map(drop)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/2.0/mlflow/{path}", self.server)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.call(self.http.post(self.url(path)).json(body))
    }

    fn call(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let response = authorised(request).send().map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(ClientError::Refused { status: status.as_u16(), message: message(response) });
        }
        let body = response.bytes().map_err(|error| self.unreachable(&error))?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), reason: text(error) }
    }
}

/// What one `log-batch` call carries.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) metrics: Vec<Metric>,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) tags: Vec<(String, String)>,
}

fn authorised(request: RequestBuilder) -> RequestBuilder {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    match (variable("MLFLOW_TRACKING_USERNAME"), variable("MLFLOW_TRACKING_TOKEN")) {
        (Some(user), _) => request.basic_auth(user, variable("MLFLOW_TRACKING_PASSWORD")),
        (None, Some(token)) => request.bearer_auth(token),
        (None, None) => request,
    }
}

fn pairs(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// JSON has no NaN; MLflow's clients write it, and the infinities, as text.
fn points(metrics: &[Metric]) -> Value {
    let value = |value: f64| match value {
        value if value.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        value => json!(value),
    };
    let point = |m: &Metric| json!({"key": m.key, "value": value(m.value), "timestamp": m.timestamp, "step": m.step});
    metrics.iter().map(point).collect()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// MLflow's message, or the start of whatever else was answered.
fn message(response: Response) -> String {
    let body = response.text().unwrap_or_default();
    let told = serde_json::from_str::<Value>(&body).ok().and_then(|json| Some(json["message"].as_str()?.to_owned()));
    told.unwrap_or_else(|| body.chars().take(200).collect())
}

/// An error with everything that caused it.
fn text(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
