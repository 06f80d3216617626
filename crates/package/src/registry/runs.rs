//! Runs of a tracking server: made, ended, found, read, and the small files beside them.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{RegistryClient, RegistryError, artifact_route};

/// Most runs that MLflow gives at once.
const RUNS_PER_PAGE: usize = 1000;
/// Most points of a history that MLflow gives at once.
const POINTS_PER_PAGE: &str = "25000";
/// Largest artifact that is read whole.
const MAX_ARTIFACT_BYTES: usize = 64 << 20;
const PROXIED: &str = "mlflow-artifacts:";

/// How a run stands, in MLflow's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum RunStatus {
    Running,
    Scheduled,
    Finished,
    Failed,
    Killed,
}

impl RunStatus {
    /// `FINISHED` and so on.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Scheduled => "SCHEDULED",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// A run that shall be made. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, Default)]
pub struct NewRun {
    /// Name of the experiment; it is made if there is none.
    pub experiment: String,
    /// Name of the run; the server makes one up if it is `None`.
    pub name: Option<String>,
    /// When it began.
    pub start_ms: i64,
    /// Tags it begins with.
    pub tags: BTreeMap<String, String>,
}

/// A run as the server knows it: for each metric the last value. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Run {
    pub id: String,
    pub name: String,
    pub experiment_id: String,
    pub status: RunStatus,
    pub start_ms: Option<i64>,
    pub end_ms: Option<i64>,
    #[serde(skip)]
    pub artifact_uri: String,
    pub params: BTreeMap<String, String>,
    pub metrics: BTreeMap<String, f64>,
    pub tags: BTreeMap<String, String>,
    pub datasets: Vec<Dataset>,
}

/// A dataset that a run read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// What people call it.
    pub name: String,
    /// What its content is called.
    pub digest: String,
    /// JSON text: what it consists of, such as counts of rows and labels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub profile: String,
}

/// One point of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Point {
    pub step: i64,
    pub timestamp_ms: i64,
    pub value: f64,
}

/// Which runs are wanted.
#[derive(Clone, Debug, Default)]
pub struct RunQuery {
    /// Experiments to look in.
    pub experiment_ids: Vec<String>,
    /// MLflow's search grammar; empty for all.
    pub filter: String,
    /// Such as `metrics.loss ASC`; empty for the newest first.
    pub order_by: String,
    /// Most that are given.
    pub limit: usize,
}

/// A file or folder beside a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// Relative to the run.
    pub path: String,
    /// Whether it is a folder.
    #[serde(default)]
    pub is_dir: bool,
    /// Size, where it is a file.
    #[serde(default, rename = "file_size")]
    pub size_bytes: Option<u64>,
}

impl Run {
    /// A run as MLflow's REST interface describes it: `info`, `data`, `inputs`.
    pub fn parse(reply: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value::<WireRun>(reply).map(Self::from)
    }
}

impl RegistryClient {
    /// Makes a run and gives its id.
    pub async fn create_run(&self, new: &NewRun) -> Result<String, RegistryError> {
        let experiment_id = match self.experiment_id(&new.experiment).await? {
            Some(id) => id,
            None => self.create_experiment(&new.experiment).await?,
        };
        let tags: Vec<Value> = new.tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let mut body = json!({"experiment_id": experiment_id, "start_time": new.start_ms, "tags": tags});
        if let Some(name) = &new.name {
            body["run_name"] = name.as_str().into();
        }
        let request = self.mlflow(Method::POST, "runs/create").json(&body);
        let created: Value = self.ask(request, &format!("make a run in `{}`", new.experiment)).await?;
        self.text(&created, "/run/info/run_id", "make a run")
    }

    /// Records how a run stands now; `end_ms` where it ended.
    pub async fn update_run(&self, run_id: &str, status: RunStatus, end_ms: Option<i64>) -> Result<(), RegistryError> {
        let mut body = json!({"run_id": run_id, "status": status.name()});
        if let Some(end_ms) = end_ms {
            body["end_time"] = end_ms.into();
        }
        let request = self.mlflow(Method::POST, "runs/update").json(&body);
        self.ask::<Value>(request, &format!("update run {run_id}")).await.map(drop)
    }

    /// Sets tags of a run.
    pub async fn tag_run(&self, run_id: &str, tags: &BTreeMap<String, String>) -> Result<(), RegistryError> {
        let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let request = self.mlflow(Method::POST, "runs/log-batch").json(&json!({"run_id": run_id, "tags": tags}));
        self.ask::<Value>(request, &format!("tag run {run_id}")).await.map(drop)
    }

    /// The run `run_id`.
    pub async fn get_run(&self, run_id: &str) -> Result<Run, RegistryError> {
        let reply = self.run(run_id).await?;
        Run::parse(reply).map_err(|error| self.odd(&format!("show run {run_id}"), error.to_string()))
    }

    /// Runs that match, in the asked order.
    pub async fn search_runs(&self, query: &RunQuery) -> Result<Vec<Run>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            runs: Vec<WireRun>,
            #[serde(default)]
            next_page_token: String,
        }
        let (mut runs, mut token) = (Vec::new(), String::new());
        while runs.len() < query.limit {
            let order_by: Vec<&str> =
                Some(query.order_by.as_str()).filter(|order| !order.is_empty()).into_iter().collect();
            let body = json!({
                "experiment_ids": query.experiment_ids, "filter": query.filter, "order_by": order_by,
                "max_results": RUNS_PER_PAGE.min(query.limit - runs.len()), "page_token": token,
            });
            let request = self.mlflow(Method::POST, "runs/search").json(&body);
            let page: Page = self.ask(request, "search runs").await?;
            runs.extend(page.runs.into_iter().map(Run::from));
            if page.next_page_token.is_empty() || page.next_page_token == token {
                break;
            }
            token = page.next_page_token;
        }
        Ok(runs)
    }

    /// Id of the experiment called `name`; `None` if there is none.
    pub async fn experiment_id(&self, name: &str) -> Result<Option<String>, RegistryError> {
        let asked = format!("find experiment `{name}`");
        let request = self.mlflow(Method::GET, "experiments/get-by-name").query(&[("experiment_name", name)]);
        match self.ask::<Value>(request, &asked).await {
            Ok(reply) => self.text(&reply, "/experiment/experiment_id", &asked).map(Some),
            Err(RegistryError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ids and names of all experiments that are not deleted.
    pub async fn experiments(&self) -> Result<BTreeMap<String, String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            experiments: Vec<Experiment>,
            #[serde(default)]
            next_page_token: String,
        }
        #[derive(Deserialize)]
        struct Experiment {
            experiment_id: String,
            name: String,
        }
        let (mut names, mut token) = (BTreeMap::new(), String::new());
        loop {
            let body = json!({"max_results": RUNS_PER_PAGE, "page_token": token});
            let request = self.mlflow(Method::POST, "experiments/search").json(&body);
            let page: Page = self.ask(request, "list the experiments").await?;
            names.extend(page.experiments.into_iter().map(|found| (found.experiment_id, found.name)));
            if page.next_page_token.is_empty() || page.next_page_token == token {
                return Ok(names);
            }
            token = page.next_page_token;
        }
    }

    /// All points of a metric, by step and then by time.
    pub async fn metric_history(&self, run_id: &str, key: &str) -> Result<Vec<Point>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            metrics: Vec<WireMetric>,
            #[serde(default)]
            next_page_token: String,
        }
        let asked = format!("show metric `{key}` of run {run_id}");
        let (mut points, mut token) = (Vec::new(), String::new());
        loop {
            let mut query = vec![("run_id", run_id), ("metric_key", key), ("max_results", POINTS_PER_PAGE)];
            query.extend((!token.is_empty()).then_some(("page_token", token.as_str())));
            let request = self.mlflow(Method::GET, "metrics/get-history").query(&query);
            let page: Page = self.ask(request, &asked).await?;
            points.extend(page.metrics.iter().map(WireMetric::point));
            if page.next_page_token.is_empty() || page.next_page_token == token {
                break;
            }
            token = page.next_page_token;
        }
        points.sort_by_key(|point| (point.step, point.timestamp_ms));
        Ok(points)
    }

    /// Files of a run directly below `folder`.
    pub async fn run_files(&self, run: &Run, folder: &str) -> Result<Vec<RunFile>, RegistryError> {
        #[derive(Deserialize)]
        struct Listing {
            #[serde(default)]
            files: Vec<RunFile>,
        }
        let mut query = vec![("run_id", run.id.as_str())];
        query.extend((!folder.is_empty()).then_some(("path", folder)));
        let request = self.mlflow(Method::GET, "artifacts/list").query(&query);
        Ok(self.ask::<Listing>(request, &format!("list the files of run {}", run.id)).await?.files)
    }

    /// A file of a run; at most 64 MiB.
    pub async fn run_file(&self, run: &Run, path: &str) -> Result<Vec<u8>, RegistryError> {
        let route = self.proxied(run, path)?;
        let asked = format!("send `{path}` of run {}", run.id);
        let response = self.send(self.request(Method::GET, &route), &asked).await?;
        self.body(response, MAX_ARTIFACT_BYTES, &asked).await
    }

    /// Puts a file beside a run.
    pub async fn put_run_file(&self, run: &Run, path: &str, content: Vec<u8>) -> Result<(), RegistryError> {
        let route = self.proxied(run, path)?;
        let request = self.request(Method::PUT, &route).body(content);
        self.send(request, &format!("store `{path}` of run {}", run.id)).await.map(drop)
    }

    /// Where the server hands the files of a run through; a server may keep them where only MLflow's own client reaches them.
    fn proxied(&self, run: &Run, path: &str) -> Result<String, RegistryError> {
        let folder = run.artifact_uri.strip_prefix(PROXIED).map(|rest| rest.trim_start_matches('/'));
        let folder = folder.ok_or_else(|| RegistryError::NotProxied {
            server: self.server.clone(),
            run_id: run.id.clone(),
            uri: run.artifact_uri.clone(),
        })?;
        // `mlflow-artifacts://HOST:PORT/…` names the server again; the path begins after it.
        let folder = if run.artifact_uri.starts_with("mlflow-artifacts://") {
            folder.split_once('/').map_or("", |(_, path)| path)
        } else {
            folder
        };
        Ok(artifact_route(&format!("{folder}/{path}")))
    }

    async fn create_experiment(&self, name: &str) -> Result<String, RegistryError> {
        let asked = format!("make experiment `{name}`");
        let request = self.mlflow(Method::POST, "experiments/create").json(&json!({ "name": name }));
        let created: Value = self.ask(request, &asked).await?;
        self.text(&created, "/experiment_id", &asked)
    }

    fn text(&self, reply: &Value, pointer: &str, asked: &str) -> Result<String, RegistryError> {
        let found = reply.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        found.ok_or_else(|| self.odd(asked, format!("the reply lacks {pointer}")))
    }
}

#[derive(Deserialize)]
struct WireRun {
    info: WireInfo,
    #[serde(default)]
    data: WireData,
    #[serde(default)]
    inputs: WireInputs,
}

#[derive(Deserialize)]
struct WireInfo {
    run_id: String,
    #[serde(default)]
    run_name: String,
    #[serde(default)]
    experiment_id: String,
    status: RunStatus,
    #[serde(default)]
    start_time: Option<i64>,
    #[serde(default)]
    end_time: Option<i64>,
    #[serde(default)]
    artifact_uri: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireData {
    params: Vec<WirePair>,
    tags: Vec<WirePair>,
    metrics: Vec<WireMetric>,
}

#[derive(Deserialize)]
struct WirePair {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct WireMetric {
    key: String,
    /// A number, or MLflow's text for one that JSON has no number for.
    value: Value,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    step: i64,
}

impl WireMetric {
    fn value(&self) -> f64 {
        match &self.value {
            Value::String(text) => text.parse().unwrap_or(f64::NAN),
            number => number.as_f64().unwrap_or(f64::NAN),
        }
    }

    fn point(&self) -> Point {
        Point { step: self.step, timestamp_ms: self.timestamp, value: self.value() }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireInputs {
    dataset_inputs: Vec<WireDatasetInput>,
}

#[derive(Deserialize)]
struct WireDatasetInput {
    dataset: Dataset,
}

impl From<WireRun> for Run {
    fn from(WireRun { info, data, inputs }: WireRun) -> Self {
        let pairs = |pairs: Vec<WirePair>| pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
        Self {
            id: info.run_id,
            name: info.run_name,
            experiment_id: info.experiment_id,
            status: info.status,
            start_ms: info.start_time,
            end_ms: info.end_time.filter(|&end| end > 0),
            artifact_uri: info.artifact_uri,
            params: pairs(data.params),
            tags: pairs(data.tags),
            metrics: data.metrics.iter().map(|metric| (metric.key.clone(), metric.value())).collect(),
            datasets: inputs.dataset_inputs.into_iter().map(|input| input.dataset).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(artifact_uri: &str) -> Run {
        let info = json!({"run_id": "7f", "status": "RUNNING", "artifact_uri": artifact_uri});
        Run::parse(json!({"info": info})).unwrap()
    }

    #[test]
    fn a_value_that_json_lacks_is_read_from_its_text() {
        let data = json!({"metrics": [{"key": "a", "value": "NaN"}, {"key": "b", "value": 0.5, "step": 3}]});
        let run = Run::parse(json!({"info": {"run_id": "7f", "status": "FINISHED"}, "data": data})).unwrap();
        assert!(run.metrics["a"].is_nan());
        assert_eq!((run.metrics["b"], run.end_ms), (0.5, None));
    }

    #[test]
    fn files_are_asked_of_the_server_that_hands_them_through() {
        let client = RegistryClient::new("http://127.0.0.1:5000").unwrap();
        let route = |uri: &str| client.proxied(&run(uri), "code.diff").ok();
        let expected = Some("api/2.0/mlflow-artifacts/artifacts/1/7f/artifacts/code.diff".to_owned());
        assert_eq!(route("mlflow-artifacts:/1/7f/artifacts"), expected);
        assert_eq!(route("mlflow-artifacts://host:5000/1/7f/artifacts"), expected);
        assert_eq!(route("s3://bucket/1/7f/artifacts"), None);
    }
}
