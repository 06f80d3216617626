//! Pages for people: rendered here, nothing loaded from elsewhere, no script.
//!
//! Every text is escaped by the template engine (all templates are `.html`); the only markup that goes in unescaped is the
//! charts', which hold no text from outside.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use minijinja::Environment;
use serde::Serialize;
use serde_json::{Value, json};

use crate::wire::{AliasMove, Metric, ModelVersion, RegisteredModel, Run};
use crate::{ArtifactPath, ExperimentSearch, RunSearch, TrackError, Tracker, View};

mod chart;

const MAX_RUNS: i64 = 200;
/// Runs drawn into the charts of an experiment; more lines than this tell nothing.
const MAX_LINES: usize = 8;
const MAX_CHARTS: usize = 24;
/// Points of one metric that are read; a chart has fewer pixels than that.
const MAX_POINTS: i64 = 20_000;
const MAX_ARTIFACTS: usize = 500;

/// Everything under `/ui`.
pub fn routes(tracker: Tracker) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/experiments/{id}", get(experiment))
        .route("/runs/{id}", get(run))
        .route("/models", get(models))
        .route("/models/{name}", get(model))
        .fallback(async || PageError(TrackError::Missing("There is no such page.".into())))
        .with_state(tracker)
}

/// A [`TrackError`] as a page.
struct PageError(TrackError);

type Page = Result<Response, PageError>;

impl<E: Into<TrackError>> From<E> for PageError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let problem = self.0.problem();
        let page = render("error.html", json!({ "title": "Not found", "message": problem.message }));
        let response = page.unwrap_or_else(|_| problem.message.into_response());
        (problem.kind.status(), response).into_response()
    }
}

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut templates = Environment::new();
    for (name, source) in [
        ("base.html", include_str!("../templates/base.html")),
        ("home.html", include_str!("../templates/home.html")),
        ("experiment.html", include_str!("../templates/experiment.html")),
        ("run.html", include_str!("../templates/run.html")),
        ("models.html", include_str!("../templates/models.html")),
        ("model.html", include_str!("../templates/model.html")),
        ("error.html", include_str!("../templates/error.html")),
    ] {
        templates.add_template(name, source).expect("the templates are part of the program and a test renders each");
    }
    templates.add_filter("when", when);
    templates.add_filter("number", number);
    templates.add_filter("size", size);
    templates
        .add_filter("short", |text: String| text.trim_start_matches("sha256:").chars().take(12).collect::<String>());
    templates
});

/// `2026-11-23 09:07:45 UTC`
fn when(millis: Option<i64>) -> String {
    let at = millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    at.map_or_else(|| "–".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// Four significant digits, no noise.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "NaN".to_owned(),
        _ if value.fract() == 0.0 && value.abs() < 1e9 => format!("{value}"),
        size if (1e-3..1e6).contains(&size) => {
            let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
        _ => format!("{value:.3e}"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

fn render(template: &str, context: Value) -> Result<Response, TrackError> {
    let html = TEMPLATES.get_template(template)?.render(minijinja::value::Serde(context))?;
    let mut response = (StatusCode::OK, Html(html)).into_response();
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// A run as the tables show it.
#[derive(Serialize)]
struct RunRow {
    id: String,
    name: String,
    status: String,
    started: i64,
    seconds: Option<f64>,
    user: String,
    cells: Vec<Option<String>>,
    /// Which line of the charts it is, from 1; 0 if none.
    line: usize,
}

async fn home(State(tracker): State<Tracker>) -> Page {
    let search = ExperimentSearch { max_results: 200, ..ExperimentSearch::default() };
    let found = tracker.store.search_experiments(&search).await?.items;
    let mut experiments = Vec::new();
    for experiment in found {
        let search =
            RunSearch { experiment_ids: vec![experiment.experiment_id], max_results: MAX_RUNS, ..RunSearch::default() };
        let runs = tracker.store.search_runs(&search).await?;
        let last = runs.items.first().map(|run| run.info.start_time);
        let n_runs = match &runs.next_page_token {
            Some(_) => format!("{}+", runs.items.len()),
            None => runs.items.len().to_string(),
        };
        experiments.push(json!({ "experiment": experiment, "n_runs": n_runs, "last": last }));
    }
    let models = tracker.store.search_registered_models("", &[], 200, "").await?.items;
    let moves = tracker.store.audit("", 10, "").await?.items;
    Ok(render(
        "home.html",
        json!({ "title": "Highroad", "experiments": experiments, "models": model_rows(&tracker, models).await?, "moves": moves }),
    )?)
}

async fn experiment(State(tracker): State<Tracker>, Path(id): Path<i64>) -> Page {
    let id = crate::wire::ExperimentId(id);
    let experiment = tracker.store.experiment(id).await?;
    let search =
        RunSearch { experiment_ids: vec![id], view: View::Active, max_results: MAX_RUNS, ..RunSearch::default() };
    let runs = tracker.store.search_runs(&search).await?;
    let (columns, rows) = comparison(&runs.items);
    let charts = experiment_charts(&tracker, &runs.items).await?;
    let more = runs.next_page_token.is_some();
    let title = experiment.name.clone();
    Ok(render(
        "experiment.html",
        json!({ "title": title, "experiment": experiment, "columns": columns, "rows": rows, "charts": charts, "more": more }),
    )?)
}

/// Columns and cells of the comparison table: every metric, then the params in which the runs differ.
fn comparison(runs: &[Run]) -> (Vec<String>, Vec<RunRow>) {
    let mut metrics: Vec<&str> = runs.iter().flat_map(|run| run.data.metrics.iter().map(|m| m.key.as_str())).collect();
    metrics.sort_unstable();
    metrics.dedup();
    metrics.truncate(40);
    let param = |run: &Run, key: &str| run.data.params.iter().find(|p| p.key == key).map(|p| p.value.clone());
    let mut params: Vec<&str> = runs.iter().flat_map(|run| run.data.params.iter().map(|p| p.key.as_str())).collect();
    params.sort_unstable();
    params.dedup();
    params.retain(|key| runs.len() == 1 || runs.iter().any(|run| param(run, key) != param(&runs[0], key)));
    params.truncate(20);
    let row = |(n, run): (usize, &Run)| {
        let of_metrics = metrics
            .iter()
            .map(|key| run.data.metrics.iter().find(|metric| metric.key == *key).map(|metric| number(metric.value.0)));
        let cells = of_metrics.chain(params.iter().map(|key| param(run, key))).collect();
        RunRow { line: if n < MAX_LINES { n + 1 } else { 0 }, cells, ..run_row(run) }
    };
    let rows = runs.iter().enumerate().map(row).collect();
    (metrics.iter().chain(&params).map(|key| (*key).to_owned()).collect(), rows)
}

fn run_row(run: &Run) -> RunRow {
    let info = &run.info;
    RunRow {
        id: info.run_id.clone(),
        name: info.run_name.clone(),
        status: info.status.clone(),
        started: info.start_time,
        seconds: info.end_time.map(|end| (end - info.start_time) as f64 / 1e3),
        user: info.user_id.clone(),
        cells: Vec::new(),
        line: 0,
    }
}

/// One chart for each metric with more than one step, with a line for each of the newest runs.
async fn experiment_charts(tracker: &Tracker, runs: &[Run]) -> Result<Vec<Value>, TrackError> {
    let drawn = &runs[..runs.len().min(MAX_LINES)];
    let mut keys: Vec<&str> = drawn.iter().flat_map(|run| run.data.metrics.iter().map(|m| m.key.as_str())).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut charts = Vec::new();
    for key in keys {
        let mut lines = Vec::with_capacity(drawn.len());
        for run in drawn {
            let found = tracker.store.metric_history(&run.info.run_id, key, MAX_POINTS, "").await?;
            lines.push(points(&found.items));
        }
        if lines.iter().any(|line| line.len() > 1) && charts.len() < MAX_CHARTS {
            charts.push(json!({ "key": key, "svg": chart::lines(&lines) }));
        }
    }
    Ok(charts)
}

fn points(metrics: &[Metric]) -> Vec<(f64, f64)> {
    // Where steps are not used, time is the only order there is; the position stands for it.
    let stepless = metrics.iter().all(|metric| metric.step == 0);
    let x = |n: usize, metric: &Metric| if stepless { n as f64 } else { metric.step as f64 };
    metrics.iter().enumerate().map(|(n, metric)| (x(n, metric), metric.value.0)).collect()
}

async fn run(State(tracker): State<Tracker>, Path(id): Path<String>) -> Page {
    let run = tracker.store.run(&id).await?;
    let experiment = tracker.store.experiment(run.info.experiment_id).await?;
    let mut metrics = Vec::new();
    for metric in &run.data.metrics {
        let history = tracker.store.metric_history(&id, &metric.key, MAX_POINTS, "").await?.items;
        let line = points(&history);
        let svg = (line.len() > 1 && metrics.len() < MAX_CHARTS).then(|| chart::lines(&[line]));
        let last = number(metric.value.0);
        metrics.push(json!({ "key": metric.key, "last": last, "step": metric.step, "n": history.len(), "svg": svg }));
    }
    let filter = format!("run_id = '{}'", id.replace('\'', "''"));
    let versions = tracker.store.search_model_versions(&filter, &[], 50, "").await?.items;
    let (artifacts, more_artifacts) = artifacts(&tracker, &run.info.artifact_uri).await?;
    let (shown_tags, system_tags): (Vec<_>, Vec<_>) =
        run.data.tags.iter().partition(|tag| !tag.key.starts_with("mlflow."));
    let page = json!({ "title": run.info.run_name, "row": run_row(&run), "run": run, "experiment": experiment, "metrics": metrics, "versions": versions, "artifacts": artifacts, "more_artifacts": more_artifacts, "shown_tags": shown_tags, "system_tags": system_tags });
    Ok(render("run.html", page)?)
}

/// Every file below `root`, depth first, with where to download it.
async fn artifacts(tracker: &Tracker, root_uri: &str) -> Result<(Vec<Value>, bool), TrackError> {
    let Some(root) = root_uri.strip_prefix("mlflow-artifacts:/") else { return Ok((Vec::new(), false)) };
    let mut files: Vec<(String, u64, String)> = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in tracker.files.list(Some(&ArtifactPath::parse(&folder)?)).await? {
            let path = format!("{folder}/{}", entry.name);
            let Some(size_bytes) = entry.size_bytes else {
                folders.push(path);
                continue;
            };
            if files.len() == MAX_ARTIFACTS {
                return Ok((shown(files), true));
            }
            let name = path.strip_prefix(root).unwrap_or(&path).trim_start_matches('/').to_owned();
            let href = format!("/api/2.0/mlflow-artifacts/artifacts/{}", percent_path(&path));
            files.push((name, size_bytes, href));
        }
    }
    Ok((shown(files), false))
}

fn shown(mut files: Vec<(String, u64, String)>) -> Vec<Value> {
    files.sort();
    let entry = |(name, size_bytes, href)| json!({ "name": name, "size_bytes": size_bytes, "href": href });
    files.into_iter().map(entry).collect()
}

fn percent_path(path: &str) -> String {
    let encode = |part| percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string();
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

async fn models(State(tracker): State<Tracker>) -> Page {
    let models = tracker.store.search_registered_models("", &[], 1000, "").await?.items;
    Ok(render("models.html", json!({ "title": "Models", "models": model_rows(&tracker, models).await? }))?)
}

/// A model with its newest version and what each alias names.
async fn model_rows(tracker: &Tracker, models: Vec<RegisteredModel>) -> Result<Vec<Value>, TrackError> {
    let mut rows = Vec::with_capacity(models.len());
    for model in models {
        let newest = model.latest_versions.iter().max_by_key(|version| version.creation_timestamp);
        let outcome = match newest {
            Some(version) => outcome(tracker, version).await,
            None => None,
        };
        let newest = newest.map(|version| version.version.clone());
        rows.push(json!({ "name": model.name, "description": model.description, "newest": newest, "outcome": outcome, "aliases": model.aliases, "updated": model.last_updated_timestamp }));
    }
    Ok(rows)
}

/// What the verdict of a version says, read from the verdict and not from its tag; `missing` for a Highroad package
/// without one, `None` for any other model.
async fn outcome(tracker: &Tracker, version: &ModelVersion) -> Option<String> {
    crate::package_of(version).ok()??;
    let verdict = tracker.gate.verdict_of(version).await;
    Some(match verdict {
        Some(verdict) => format!("{:?}", verdict.outcome).to_lowercase(),
        None => "missing".to_owned(),
    })
}

async fn model(State(tracker): State<Tracker>, Path(name): Path<String>) -> Page {
    let model = tracker.store.registered_model(&name).await?;
    let filter = format!("name = '{}'", name.replace('\'', "''"));
    let order = ["version_number DESC".to_owned()];
    let found = tracker.store.search_model_versions(&filter, &order, 200, "").await?.items;
    let mut versions = Vec::with_capacity(found.len());
    for version in found {
        let verdict = tracker.gate.verdict_of(&version).await;
        let outcome = outcome(&tracker, &version).await;
        let package = version.tag(crate::PACKAGE_TAG).map(str::to_owned);
        versions.push(json!({ "version": version, "verdict": verdict, "outcome": outcome, "package": package }));
    }
    let moves: Vec<AliasMove> = tracker.store.audit(&name, 200, "").await?.items;
    Ok(render("model.html", json!({ "title": name, "model": model, "versions": versions, "moves": moves }))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_honest() {
        for (value, text) in [
            (0.0, "0"),
            (3.0, "3"),
            (0.96, "0.96"),
            (0.123456, "0.1235"),
            (1234.567, "1235"),
            (1e-9, "1.000e-9"),
            (f64::NAN, "NaN"),
            (f64::MAX, "1.798e308"),
            (-0.5, "-0.5"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
        assert_eq!(size(1_234_567), "1.2 MB");
    }

    #[test]
    fn hostile_names_are_escaped() {
        let page = TEMPLATES.get_template("error.html").unwrap();
        let html =
            page.render(minijinja::value::Serde(json!({ "title": "<script>", "message": "<img onerror=x>" }))).unwrap();
        assert!(!html.contains("<script>") && !html.contains("<img"), "{html}");
    }
}
