//! `highroad track import`: what an MLflow server holds, taken over with its ids, times and histories.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use highroad_package::registry::Credentials;
use highroad_track::wire::{DatasetInput, ExperimentId, Metric, ModelInput, ModelOutput, Pair};
use highroad_track::{
    ArtifactPath, Batch, ImportedVersion, Millis, Mover, NewLoggedModel, NewRun, RunEnd, Target, TrackError, Tracker,
    View,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::progress;
use crate::tracking;

/// Entities of one page of a search.
const PAGE: i64 = 1000;
/// Points of one page of a history, as many as MLflow gives.
const POINTS: i64 = 25_000;
/// Traces and datasets of one page, and the pages that are counted of each experiment.
const COUNTED: i64 = 500;
const MAX_COUNTED_PAGES: usize = 200;
/// Finds prompts, which searches for models leave out.
const PROMPTS: &str = "tags.`mlflow.prompt.is_prompt` = 'true'";
/// Metrics, params and tags of one batch.
const METRICS_PER_BATCH: usize = 1000;
const PAIRS_PER_BATCH: usize = 100;
/// The scheme of artifacts that the server keeps itself.
const PROXIED: &str = "mlflow-artifacts:/";

#[derive(clap::Args)]
pub struct Import {
    /// Address of the MLflow server, such as `http://127.0.0.1:5000`. A login comes from MLflow's own variables.
    #[arg(long, value_name = "URI")]
    from: String,
    /// Leave the artifacts where they are.
    #[arg(long)]
    no_artifacts: bool,
    /// Tell what was taken and what not as JSON.
    #[arg(long)]
    json: bool,
}

/// What was taken.
#[derive(Debug, Default, Serialize)]
struct Summary {
    experiments: u64,
    runs: u64,
    /// Runs that an earlier import took whole.
    runs_before: u64,
    points: u64,
    logged_models: u64,
    artifacts: u64,
    artifact_bytes: u64,
    registered_models: u64,
    /// Of a model or of a prompt.
    model_versions: u64,
    aliases: u64,
    prompts: u64,
    /// What could not be taken, and why.
    not_taken: Vec<String>,
}

impl Import {
    pub async fn run(self, tracker: Tracker) -> anyhow::Result<ExitCode> {
        let source = Source::new(&self.from)?;
        let mut importer = Importer {
            source,
            tracker: tracker.clone(),
            with_artifacts: !self.no_artifacts,
            experiments: HashMap::new(),
            summary: Summary::default(),
        };
        let taken = importer.take().await.with_context(|| {
            format!("cannot import from `{}`; what was taken stays, and the same command goes on", self.from)
        });
        tracker.close().await;
        taken?;
        importer.summary.tell(self.json)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Summary {
    fn tell(&self, as_json: bool) -> anyhow::Result<()> {
        use std::io::Write as _;
        if as_json {
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        eprintln!(
            "took {} experiments, {} runs ({} were here), {} points, {} logged models, {} artifacts of {} bytes, {} registered \
             models, {} prompts, {} versions, {} aliases",
            self.experiments,
            self.runs,
            self.runs_before,
            self.points,
            self.logged_models,
            self.artifacts,
            self.artifact_bytes,
            self.registered_models,
            self.prompts,
            self.model_versions,
            self.aliases
        );
        for what in &self.not_taken {
            eprintln!("not taken: {what}");
        }
        Ok(())
    }
}

/// The other server.
struct Source {
    http: reqwest::Client,
    base: String,
    login: Option<Credentials>,
}

impl Source {
    fn new(uri: &str) -> anyhow::Result<Self> {
        if !uri.starts_with("http://") && !uri.starts_with("https://") {
            bail!(
                "`{uri}` is not the address of a server; start one over it with `mlflow server --backend-store-uri {uri}`"
            );
        }
        let base = uri.trim_end_matches('/').to_owned();
        Ok(Self { http: reqwest::Client::new(), base, login: tracking::credentials() })
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        self.answer(path, self.http.get(self.url(path)).query(query)).await
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.answer(path, self.http.post(self.url(path)).json(body)).await
    }

    /// Every page of a search.
    async fn all<T: DeserializeOwned>(&self, path: &str, list: &str, mut body: Value) -> anyhow::Result<Vec<T>> {
        let mut found = Vec::new();
        loop {
            let page = self.post(path, &body).await?;
            found.extend(field::<Vec<T>>(&page, list)?);
            match page["next_page_token"].as_str() {
                Some(token) if !token.is_empty() => body["page_token"] = json!(token),
                _ => return Ok(found),
            }
        }
    }

    /// Every page of a search that is asked with a query.
    async fn all_of_query(&self, path: &str, list: &str, query: &[(&str, &str)]) -> anyhow::Result<Vec<Value>> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let page = self.get(path, &[query, &[("page_token", &token)]].concat()).await?;
            found.extend(field::<Vec<Value>>(&page, list)?);
            token = page["next_page_token"].as_str().unwrap_or_default().to_owned();
            if token.is_empty() {
                return Ok(found);
            }
        }
    }

    /// How many a search finds, as far as it is followed. Of traces there may be any number.
    async fn count(&self, path: &str, list: &str, mut body: Value) -> anyhow::Result<Counted> {
        let mut n_found = 0;
        for _ in 0..MAX_COUNTED_PAGES {
            let page = self.post(path, &body).await?;
            n_found += page[list].as_array().map_or(0, Vec::len);
            match page["next_page_token"].as_str() {
                Some(token) if !token.is_empty() => body["page_token"] = json!(token),
                _ => return Ok(Counted { n_found, are_all: true }),
            }
        }
        Ok(Counted { n_found, are_all: false })
    }

    /// A route of MLflow's second interface, or one whose path names the third.
    fn url(&self, path: &str) -> String {
        match path.strip_prefix("3.0/") {
            Some(path) => format!("{}/api/3.0/{path}", self.base),
            None => format!("{}/api/2.0/{path}", self.base),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<reqwest::Response> {
        let request = match &self.login {
            Some(Credentials::Bearer(token)) => request.bearer_auth(token),
            Some(Credentials::Basic(user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        request.send().await
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let reply = self.send(request).await?;
        let status = reply.status();
        let text = reply.text().await?;
        if !status.is_success() {
            bail!("`{path}` answers {status}: {}", text.chars().take(300).collect::<String>());
        }
        serde_json::from_str(&text).with_context(|| format!("`{path}` answers no JSON"))
    }
}

/// What a search was seen to find.
struct Counted {
    n_found: usize,
    are_all: bool,
}

/// A list or object of a reply, empty where it is left out.
fn field<T: DeserializeOwned>(reply: &Value, name: &str) -> anyhow::Result<T> {
    let value = match &reply[name] {
        Value::Null => json!([]),
        value => value.clone(),
    };
    serde_json::from_value(value).with_context(|| format!("`{name}` of the reply is not what MLflow sends"))
}

fn name_of(model: &Value) -> &str {
    model["name"].as_str().unwrap_or_default()
}

#[derive(Debug, Deserialize)]
struct SourceExperiment {
    experiment_id: String,
    name: String,
    artifact_location: String,
    lifecycle_stage: String,
    #[serde(default)]
    creation_time: i64,
    #[serde(default)]
    tags: Vec<Pair>,
}

#[derive(Debug, Deserialize)]
struct SourceRun {
    info: SourceInfo,
    #[serde(default)]
    data: SourceData,
    #[serde(default)]
    inputs: SourceInputs,
    #[serde(default)]
    outputs: SourceOutputs,
}

#[derive(Debug, Deserialize)]
struct SourceInfo {
    run_id: String,
    #[serde(default)]
    run_name: String,
    #[serde(default)]
    user_id: String,
    status: String,
    #[serde(default)]
    start_time: i64,
    end_time: Option<i64>,
    artifact_uri: String,
    lifecycle_stage: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SourceData {
    metrics: Vec<Metric>,
    params: Vec<Pair>,
    tags: Vec<Pair>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SourceInputs {
    dataset_inputs: Vec<DatasetInput>,
    model_inputs: Vec<ModelInput>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SourceOutputs {
    model_outputs: Vec<ModelOutput>,
}

struct Importer {
    source: Source,
    tracker: Tracker,
    with_artifacts: bool,
    /// Where the other server's experiments are here.
    experiments: HashMap<String, ExperimentId>,
    summary: Summary,
}

impl Importer {
    async fn take(&mut self) -> anyhow::Result<()> {
        let body = json!({ "view_type": "ALL", "max_results": PAGE });
        let experiments: Vec<SourceExperiment> =
            self.source.all("mlflow/experiments/search", "experiments", body).await?;
        for experiment in &experiments {
            self.take_experiment(experiment).await?;
        }
        self.take_registry().await
    }

    async fn take_experiment(&mut self, from: &SourceExperiment) -> anyhow::Result<()> {
        let store = self.tracker.store().clone();
        let id = match store.experiment_by_name(&from.name).await {
            Ok(here) => here.experiment_id,
            Err(TrackError::Missing(_)) => {
                let elsewhere = Some(from.artifact_location.as_str()).filter(|uri| !uri.starts_with(PROXIED));
                store.create_experiment(&from.name, elsewhere, &from.tags, Millis(from.creation_time)).await?
            }
            Err(error) => return Err(error.into()),
        };
        self.summary.experiments += 1;
        self.experiments.insert(from.experiment_id.clone(), id);
        self.take_logged_models(&from.experiment_id, id).await?;
        let body = json!({ "experiment_ids": [from.experiment_id], "run_view_type": "ALL", "max_results": PAGE });
        let runs: Vec<SourceRun> = self.source.all("mlflow/runs/search", "runs", body).await?;
        let bar = progress::bar(&from.name);
        bar.set_length(runs.len() as u64);
        for run in &runs {
            self.take_run(run, id).await.with_context(|| format!("run `{}`", run.info.run_id))?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.tell_what_stays(from).await;
        if from.lifecycle_stage == "deleted" && store.experiment(id).await?.lifecycle_stage != "deleted" {
            store.set_experiment_stage(id, View::Deleted, Millis(from.creation_time)).await?;
        }
        Ok(())
    }

    /// Counts what an experiment has of kinds that are not taken.
    async fn tell_what_stays(&mut self, from: &SourceExperiment) {
        let id = &from.experiment_id;
        let location = json!({ "type": "MLFLOW_EXPERIMENT", "mlflow_experiment": { "experiment_id": id } });
        let kinds = [
            ("traces", json!({ "locations": [location], "max_results": COUNTED })),
            ("datasets", json!({ "experiment_ids": [id], "max_results": COUNTED })),
        ];
        for (kind, body) in kinds {
            let what = if kind == "datasets" { "evaluation datasets" } else { kind };
            let of = format!("{what} of experiment `{}`", from.name);
            match self.source.count(&format!("3.0/mlflow/{kind}/search"), kind, body).await {
                Ok(Counted { n_found: 0, .. }) => {}
                Ok(Counted { n_found, are_all }) => {
                    let n = if are_all { n_found.to_string() } else { format!("more than {n_found}") };
                    self.summary.not_taken.push(format!("{n} {of}: this command takes none"));
                }
                // An older MLflow has neither the route nor what it would find.
                Err(error) if error.to_string().contains(" answers 404") => {}
                Err(error) => self.summary.not_taken.push(format!("{of}, if there are any: {error:#}")),
            }
        }
    }

    async fn take_run(&mut self, from: &SourceRun, experiment_id: ExperimentId) -> anyhow::Result<()> {
        let store = self.tracker.store().clone();
        let id = &from.info.run_id;
        match store.run(id).await {
            Ok(here)
                if here.info.end_time == from.info.end_time
                    && here.info.status == from.info.status
                    && here.info.status != "RUNNING" =>
            {
                self.summary.runs_before += 1;
                return Ok(());
            }
            Ok(_) => {}
            Err(TrackError::Missing(_)) => {
                let new = NewRun {
                    run_id: id.clone(),
                    experiment_id,
                    fallback_name: from.info.run_name.clone(),
                    run_name: Some(from.info.run_name.clone()),
                    user_id: from.info.user_id.clone(),
                    start_time: Millis(from.info.start_time),
                    tags: Vec::new(),
                };
                store.create_run(new).await?;
            }
            Err(error) => return Err(error.into()),
        }
        for params in from.data.params.chunks(PAIRS_PER_BATCH) {
            store.log_batch(id, &Batch { params: params.to_vec(), ..Batch::default() }).await?;
        }
        for tags in from.data.tags.chunks(PAIRS_PER_BATCH) {
            store.log_batch(id, &Batch { tags: tags.to_vec(), ..Batch::default() }).await?;
        }
        for metric in &from.data.metrics {
            self.take_history(id, &metric.key).await?;
        }
        store.log_inputs(id, &from.inputs.dataset_inputs, &from.inputs.model_inputs).await?;
        store.log_outputs(id, &from.outputs.model_outputs).await?;
        let here = store.run(id).await?.info.artifact_uri;
        let artifact_uri = self.take_artifacts(&format!("run `{id}`"), &from.info.artifact_uri, &here).await?;
        let info = &from.info;
        let (status, lifecycle_stage) = (info.status.clone(), info.lifecycle_stage.clone());
        store.end_imported_run(id, &RunEnd { status, end_time: info.end_time, lifecycle_stage, artifact_uri }).await?;
        self.summary.runs += 1;
        Ok(())
    }

    async fn take_history(&mut self, run_id: &str, key: &str) -> anyhow::Result<()> {
        let n = POINTS.to_string();
        let query = [("run_id", run_id), ("metric_key", key), ("max_results", &n)];
        let points = self.source.all_of_query("mlflow/metrics/get-history", "metrics", &query).await?;
        for points in points.chunks(METRICS_PER_BATCH) {
            let metrics: Vec<Metric> = serde_json::from_value(Value::Array(points.to_vec()))?;
            self.summary.points += metrics.len() as u64;
            self.tracker.store().log_batch(run_id, &Batch { metrics, ..Batch::default() }).await?;
        }
        Ok(())
    }

    async fn take_logged_models(&mut self, source_id: &str, experiment_id: ExperimentId) -> anyhow::Result<()> {
        let body = json!({ "experiment_ids": [source_id], "max_results": 50 });
        let models: Vec<Value> = match self.source.all("mlflow/logged-models/search", "models", body).await {
            Ok(models) => models,
            // MLflow 2 has none, and no route to ask.
            Err(error) => {
                self.summary.not_taken.push(format!("logged models of experiment {source_id}: {error:#}"));
                return Ok(());
            }
        };
        let store = self.tracker.store().clone();
        for model in models {
            let info = &model["info"];
            let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
            let id = text("model_id");
            let created = Millis(info["creation_timestamp_ms"].as_i64().unwrap_or_default());
            if matches!(store.logged_model(&id).await, Err(TrackError::Missing(_))) {
                let new = NewLoggedModel {
                    model_id: id.clone(),
                    experiment_id,
                    name: text("name"),
                    model_type: info["model_type"].as_str().map(str::to_owned),
                    source_run_id: info["source_run_id"].as_str().map(str::to_owned),
                    params: field(&model["data"], "params")?,
                    tags: field(info, "tags")?,
                };
                store.create_logged_model(new, created).await?;
                self.summary.logged_models += 1;
            }
            let here = store.logged_model(&id).await?.info;
            let status = match info["status"].as_i64() {
                Some(3) => "LOGGED_MODEL_UPLOAD_FAILED".to_owned(),
                Some(1) => "LOGGED_MODEL_PENDING".to_owned(),
                Some(_) => "LOGGED_MODEL_READY".to_owned(),
                None => text("status"),
            };
            if here.status != status {
                let what = format!("logged model `{id}`");
                if let Some(there) = self.take_artifacts(&what, &text("artifact_uri"), &here.artifact_uri).await? {
                    self.summary.not_taken.push(format!("{what}: its artifacts stay at `{there}`"));
                }
                store.finalize_logged_model(&id, &status, created).await?;
            }
        }
        Ok(())
    }

    /// Copies the files below one URI to below another. Gives the first back where they must stay there.
    async fn take_artifacts(&mut self, what: &str, from: &str, to: &str) -> anyhow::Result<Option<String>> {
        let Some(from_root) = from.strip_prefix(PROXIED) else {
            self.summary
                .not_taken
                .push(format!("artifacts of {what}: they stay at `{from}`, which that server does not hand out"));
            return Ok(Some(from.to_owned()));
        };
        let Some(to_root) = to.strip_prefix(PROXIED).filter(|_| self.with_artifacts) else { return Ok(None) };
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let path = format!("{}{folder}", from_root.trim_end_matches('/'));
            let listed = self.source.get("mlflow-artifacts/artifacts", &[("path", &path)]).await?;
            for entry in field::<Vec<Value>>(&listed, "files")? {
                let name = entry["path"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
                let below = format!("{folder}/{name}");
                if entry["is_dir"].as_bool() == Some(true) {
                    folders.push(below);
                } else {
                    self.take_file(
                        &format!("{}{below}", from_root.trim_end_matches('/')),
                        &format!("{to_root}{below}"),
                    )
                    .await?;
                }
            }
        }
        Ok(None)
    }

    async fn take_file(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        let path = match ArtifactPath::parse(to) {
            Ok(path) => path,
            Err(error) => {
                self.summary.not_taken.push(format!("artifact `{from}`: {error}"));
                return Ok(());
            }
        };
        let mut url = reqwest::Url::parse(&self.source.url("mlflow-artifacts/artifacts"))?;
        url.path_segments_mut().map_err(|()| anyhow::anyhow!("the address takes no path"))?.extend(from.split('/'));
        let reply = self.source.send(self.source.http.get(url)).await?.error_for_status()?;
        let size_bytes = reply.content_length();
        let files = self.tracker.files();
        if let (Some(size_bytes), Ok(kept)) = (size_bytes, files.size_bytes(&path).await)
            && size_bytes == kept
        {
            return Ok(());
        }
        let upload = format!("import-{}", highroad_package::Digest::of(to.as_bytes()).hex());
        files.write(&path, &upload, reply.bytes_stream().boxed()).await?;
        self.summary.artifacts += 1;
        self.summary.artifact_bytes += files.size_bytes(&path).await?;
        Ok(())
    }

    async fn take_registry(&mut self) -> anyhow::Result<()> {
        let n = PAGE.to_string();
        let models = self
            .source
            .all_of_query("mlflow/registered-models/search", "registered_models", &[("max_results", &n)])
            .await?;
        for model in models {
            let name = name_of(&model);
            let taken = self.take_registered_model(name, &model, "").await;
            let is_new = taken.with_context(|| format!("registered model `{name}`"))?;
            self.summary.registered_models += u64::from(is_new);
        }
        let query = [("filter", PROMPTS), ("max_results", &n)];
        let prompts = self.source.all_of_query("mlflow/registered-models/search", "registered_models", &query).await?;
        for prompt in prompts {
            let name = name_of(&prompt);
            let only = format!(" AND {PROMPTS}");
            let taken = self.take_registered_model(name, &prompt, &only).await;
            let is_new = taken.with_context(|| format!("prompt `{name}`"))?;
            self.summary.prompts += u64::from(is_new);
        }
        Ok(())
    }

    /// Whether it was not here yet. `only` is a further condition of the search for its versions.
    async fn take_registered_model(&mut self, name: &str, model: &Value, only: &str) -> anyhow::Result<bool> {
        let store = self.tracker.store().clone();
        let created = Millis(model["creation_timestamp"].as_i64().unwrap_or_default());
        let description = model["description"].as_str().unwrap_or_default();
        let tags = field::<Vec<Pair>>(model, "tags")?;
        let is_new = match store.create_registered_model(name, description, &tags, created).await {
            Ok(_) => true,
            Err(TrackError::Exists(_)) => false,
            Err(error) => return Err(error.into()),
        };
        let filter = format!("name='{}'{only}", name.replace('\'', "\\'"));
        let n = PAGE.to_string();
        let versions = self
            .source
            .all_of_query("mlflow/model-versions/search", "model_versions", &[("filter", &filter), ("max_results", &n)])
            .await?;
        for version in &versions {
            let version = self.version_of(name, version)?;
            self.summary.model_versions += u64::from(store.import_model_version(&version).await?);
        }
        let whole = self.source.get("mlflow/registered-models/get", &[("name", name)]).await?;
        let aliases: Vec<BTreeMap<String, String>> = field(&whole["registered_model"], "aliases")?;
        for each in aliases {
            self.take_alias(name, &each["alias"], each["version"].parse()?, created).await?;
        }
        Ok(is_new)
    }

    fn version_of(&self, name: &str, from: &Value) -> anyhow::Result<ImportedVersion> {
        let text = |field: &str| from[field].as_str().unwrap_or_default().to_owned();
        Ok(ImportedVersion {
            name: name.to_owned(),
            number: text("version").parse().with_context(|| format!("version `{}`", text("version")))?,
            creation_timestamp: from["creation_timestamp"].as_i64().unwrap_or_default(),
            description: text("description"),
            user_id: text("user_id"),
            current_stage: Some(text("current_stage"))
                .filter(|stage| !stage.is_empty())
                .unwrap_or_else(|| "None".into()),
            source: self.uri_here(&text("source")),
            run_id: text("run_id"),
            run_link: text("run_link"),
            model_id: from["model_id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned),
            tags: field(from, "tags")?,
        })
    }

    /// A proxied URI begins with its experiment's number, which may be another here.
    fn uri_here(&self, uri: &str) -> String {
        let moved = uri.strip_prefix(PROXIED).and_then(|path| {
            let (id, rest) = path.trim_start_matches('/').split_once('/')?;
            Some(format!("{PROXIED}{}/{rest}", self.experiments.get(id)?))
        });
        moved.unwrap_or_else(|| uri.to_owned())
    }

    async fn take_alias(&mut self, name: &str, alias: &str, number: i64, created: Millis) -> anyhow::Result<()> {
        let store = self.tracker.store();
        if store.version_by_alias(name, alias).await.is_ok() {
            return Ok(());
        }
        let mover = Mover { by: "import".into(), why: format!("imported from {}", self.source.base), rehearsal: None };
        match store.move_alias(name, alias, Target::Set(number), &mover, self.tracker.gate(), created).await {
            Ok(_) => self.summary.aliases += 1,
            Err(TrackError::Refused(why) | TrackError::Invalid(why)) => {
                self.summary.not_taken.push(format!("alias `{name}@{alias}`: {why}"));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
