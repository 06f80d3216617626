use std::collections::{BTreeSet, HashMap};

use axum::Json;
use axum::extract::{Request, State};
use rand::RngExt as _;
use serde::Deserialize;
use serde_json::json;

use super::checks::{self, Place};
use super::{Args, Both, Listing, Reply, done, missing, page, parse_bytes, read_body};
use crate::wire::{
    DatasetInput, ExperimentId, Int, Metric, ModelInput, ModelOutput, Pair, enum_name, filled, one_or_many, or_default,
    or_empty, present,
};
use crate::{Batch, Millis, NewRun, RunChange, RunSearch, TrackError, Tracker, View, limits};

#[derive(Deserialize)]
pub struct Create {
    experiment_id: ExperimentId,
    #[serde(default)]
    run_name: Option<String>,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    start_time: Option<Int>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn create(State(tracker): State<Tracker>, Args(args): Args<Create>) -> Reply {
    let new = NewRun {
        run_id: uuid::Uuid::new_v4().simple().to_string(),
        experiment_id: args.experiment_id,
        fallback_name: random_name(),
        run_name: args.run_name,
        user_id: args.user_id.unwrap_or_default(),
        start_time: args.start_time.map_or_else(|| tracker.now(), |time| Millis(time.0)),
        tags: args.tags,
    };
    Ok(Json(json!({ "run": tracker.store.create_run(new).await? })))
}

/// Old clients say `run_uuid`, new ones both.
#[derive(Deserialize)]
pub struct RunRef {
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    run_uuid: Option<String>,
}

impl RunRef {
    fn id(self) -> Result<String, TrackError> {
        let given = self.run_id.filter(|id| !id.is_empty()).or(self.run_uuid.filter(|id| !id.is_empty()));
        given.ok_or_else(|| missing("run_id"))
    }
}

pub async fn get(State(tracker): State<Tracker>, Args(args): Args<RunRef>) -> Reply {
    Ok(Json(json!({ "run": tracker.store.run(&args.id()?).await? })))
}

#[derive(Deserialize)]
pub struct Update {
    #[serde(default, deserialize_with = "enum_name")]
    status: Option<String>,
    #[serde(default)]
    end_time: Option<Int>,
    #[serde(default)]
    run_name: Option<String>,
}

pub async fn update(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, Update>) -> Reply {
    let end_time = args.end_time.map(|time| time.0);
    let change = RunChange { status: args.status.map(status_name), end_time, run_name: args.run_name };
    Ok(Json(json!({ "run_info": tracker.store.update_run(&run.id()?, change).await? })))
}

/// A status by its number in MLflow's protocol, which old clients send.
fn status_name(given: String) -> String {
    const NAMES: [&str; 5] = ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];
    let number = given.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
    number.and_then(|n| NAMES.get(n)).map_or(given, |name| (*name).to_owned())
}

pub async fn delete(State(tracker): State<Tracker>, Args(args): Args<RunRef>) -> Reply {
    tracker.store.set_run_stage(&args.id()?, View::Deleted).await?;
    done()
}

pub async fn restore(State(tracker): State<Tracker>, Args(args): Args<RunRef>) -> Reply {
    tracker.store.set_run_stage(&args.id()?, View::Active).await?;
    done()
}

#[derive(Deserialize)]
pub struct Search {
    #[serde(default, deserialize_with = "one_or_many")]
    experiment_ids: Vec<ExperimentId>,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default, deserialize_with = "enum_name")]
    run_view_type: Option<String>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default, deserialize_with = "one_or_many")]
    order_by: Vec<String>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let search = RunSearch {
        experiment_ids: args.experiment_ids,
        filter: args.filter.unwrap_or_default(),
        view: View::parse(args.run_view_type.as_deref().unwrap_or_default())?,
        max_results: checks::page_size(args.max_results)?,
        order_by: args.order_by,
        page_token: args.page_token.unwrap_or_default(),
    };
    page("runs", tracker.store.search_runs(&search).await?)
}

pub async fn log_metric(State(tracker): State<Tracker>, request: Request) -> Reply {
    let body = read_body(request, &()).await?;
    // One body read twice: the metric has a `run_id` field of its own.
    let run: RunRef = parse_bytes(&body)?;
    let metric: Metric = parse_bytes(&body)?;
    checks::metric(&metric, Place::Alone)?;
    tracker.store.log_batch(&run.id()?, &Batch { metrics: vec![metric], ..Batch::default() }).await?;
    done()
}

#[derive(Deserialize)]
pub struct KeyValue {
    #[serde(deserialize_with = "filled")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
}

pub async fn log_param(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, KeyValue>) -> Reply {
    let mut param = Pair { key: args.key, value: args.value };
    checks::param(&mut param, Place::Alone)?;
    let params = vec![param];
    tracker.store.log_batch(&run.id()?, &Batch { params, ..Batch::default() }).await?;
    done()
}

pub async fn set_tag(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, KeyValue>) -> Reply {
    let mut tag = Pair { key: args.key, value: args.value };
    checks::tag(&mut tag, Place::Alone)?;
    let tags = vec![tag];
    tracker.store.log_batch(&run.id()?, &Batch { tags, ..Batch::default() }).await?;
    done()
}

#[derive(Deserialize)]
pub struct Key {
    #[serde(deserialize_with = "filled")]
    key: String,
}

pub async fn delete_tag(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, Key>) -> Reply {
    tracker.store.delete_tag(&run.id()?, &args.key).await?;
    done()
}

#[derive(Deserialize)]
struct LogBatch {
    #[serde(deserialize_with = "filled")]
    run_id: String,
    #[serde(default, deserialize_with = "or_empty")]
    metrics: Vec<Metric>,
    #[serde(default, deserialize_with = "or_empty")]
    params: Vec<Pair>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn log_batch(State(tracker): State<Tracker>, request: Request) -> Reply {
    let body = read_body(request, &()).await?;
    let mut args: LogBatch = parse_bytes(&body)?;
    for (n, metric) in args.metrics.iter().enumerate() {
        checks::metric(metric, Place::At("metrics", n))?;
    }
    for (n, param) in args.params.iter_mut().enumerate() {
        checks::param(param, Place::At("params", n))?;
    }
    for (n, tag) in args.tags.iter_mut().enumerate() {
        checks::tag(tag, Place::At("tags", n))?;
    }
    checks::unique_params(&args.params)?;
    let batch = Batch { metrics: args.metrics, params: args.params, tags: args.tags };
    tracker.store.log_batch(&args.run_id, &batch).await?;
    done()
}

#[derive(Deserialize)]
pub struct LogInputs {
    #[serde(default, deserialize_with = "or_empty")]
    datasets: Vec<DatasetInput>,
    #[serde(default, deserialize_with = "or_empty")]
    models: Vec<ModelInput>,
}

pub async fn log_inputs(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, LogInputs>) -> Reply {
    for input in &args.datasets {
        checks::dataset_input(input)?;
    }
    tracker.store.log_inputs(&run.id()?, &args.datasets, &args.models).await?;
    done()
}

#[derive(Deserialize)]
pub struct LogOutputs {
    #[serde(deserialize_with = "present")]
    models: Vec<ModelOutput>,
}

pub async fn log_outputs(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, LogOutputs>) -> Reply {
    tracker.store.log_outputs(&run.id()?, &args.models).await?;
    done()
}

#[derive(Deserialize)]
pub struct LogModel {
    #[serde(deserialize_with = "filled")]
    model_json: String,
}

/// MLflow 2's way to note a model: a list in the tag `mlflow.log-model.history`.
pub async fn log_model(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, LogModel>) -> Reply {
    const HISTORY_TAG: &str = "mlflow.log-model.history";
    const MANDATORY: [&str; 4] = ["artifact_path", "flavors", "utc_time_created", "run_id"];
    let model: serde_json::Value = serde_json::from_str(&args.model_json)
        .map_err(|error| TrackError::Invalid(format!("Malformed model info. The model_json is no JSON: {error}")))?;
    let lacking: Vec<&str> = MANDATORY.into_iter().filter(|field| model.get(field).is_none()).collect();
    if !lacking.is_empty() {
        return Err(
            TrackError::Invalid(format!("Model json is missing mandatory fields: {}", lacking.join(", "))).into()
        );
    }
    let id = run.id()?;
    let run = tracker.store.run(&id).await?;
    let noted = run.data.tags.iter().find(|tag| tag.key == HISTORY_TAG);
    let mut models: Vec<serde_json::Value> =
        noted.and_then(|tag| serde_json::from_str(&tag.value).ok()).unwrap_or_default();
    models.push(model);
    let tags = vec![Pair { key: HISTORY_TAG.into(), value: json!(models).to_string() }];
    tracker.store.log_batch(&id, &Batch { tags, ..Batch::default() }).await?;
    done()
}

#[derive(Deserialize)]
pub struct History {
    #[serde(deserialize_with = "filled")]
    metric_key: String,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn metric_history(State(tracker): State<Tracker>, Both(run, args): Both<RunRef, History>) -> Listing {
    let token = args.page_token.unwrap_or_default();
    let n = match args.max_results {
        Some(Int(n)) if n < 1 => {
            return Err(TrackError::Invalid(format!(
                "Invalid value {n} for parameter 'max_results' supplied. It must be a positive integer."
            ))
            .into());
        }
        given => given.map_or(0, |n| n.0),
    };
    page("metrics", tracker.store.metric_history(&run.id()?, &args.metric_key, n, &token).await?)
}

#[derive(Deserialize)]
pub struct Sampled {
    #[serde(default, deserialize_with = "one_or_many")]
    run_ids: Vec<String>,
    #[serde(deserialize_with = "filled")]
    metric_key: String,
    #[serde(default)]
    start_step: Option<Int>,
    #[serde(default)]
    end_step: Option<Int>,
    #[serde(default)]
    max_results: Option<Int>,
}

/// The histories of several runs, thinned to about `max_results` steps that all runs share, for charts.
pub async fn sampled_histories(State(tracker): State<Tracker>, Args(args): Args<Sampled>) -> Listing {
    let (steps, n) = (args.steps()?, args.n_points()?);
    let mut points = Vec::new();
    for run_id in &args.run_ids {
        let history = tracker.store.metric_history(run_id, &args.metric_key, i64::from(i32::MAX), "").await?.items;
        let wanted = history.into_iter().filter(|point| steps.contains(&point.step));
        points.extend(wanted.map(|point| Metric { run_id: Some(run_id.clone()), ..point }));
    }
    let kept = sampled_steps(&points, n);
    points.retain(|point| kept.contains(&point.step));
    page("metrics", crate::Page { items: points, next_page_token: None })
}

impl Sampled {
    fn steps(&self) -> Result<std::ops::RangeInclusive<i64>, TrackError> {
        match (self.start_step, self.end_step) {
            (None, None) => Ok(i64::MIN..=i64::MAX),
            (Some(Int(start)), Some(Int(end))) if start > end => Err(TrackError::Invalid(format!(
                "end_step must be greater than start_step. Found start_step={start} and end_step={end}."
            ))),
            (Some(Int(start)), Some(Int(end))) => Ok(start..=end),
            _ => Err(TrackError::Invalid(
                "If either start step or end step are specified, both must be specified.".into(),
            )),
        }
    }

    fn n_points(&self) -> Result<usize, TrackError> {
        if self.run_ids.is_empty() {
            return Err(missing("run_ids"));
        }
        if self.run_ids.len() > limits::MAX_RUNS_OF_HISTORY {
            return Err(TrackError::Invalid(format!(
                "GetMetricHistoryBulkInterval request must specify at most {} run_ids. Received {} run_ids. {}",
                limits::MAX_RUNS_OF_HISTORY,
                self.run_ids.len(),
                limits::SEE_DOCS
            )));
        }
        let n = self.max_results.map_or(limits::MAX_POINTS_PER_RUN, |n| n.0);
        if !(1..=limits::MAX_POINTS_PER_RUN).contains(&n) {
            return Err(TrackError::Invalid(format!(
                "max_results must be between 1 and {}. {}",
                limits::MAX_POINTS_PER_RUN,
                limits::SEE_DOCS
            )));
        }
        Ok(usize::try_from(n).unwrap_or(usize::MAX))
    }
}

/// Every k-th of the distinct steps, the first and the last of each run among them.
fn sampled_steps(points: &[Metric], n: usize) -> BTreeSet<i64> {
    let mut ends: HashMap<Option<&str>, (i64, i64)> = HashMap::new();
    let mut steps = BTreeSet::new();
    for point in points {
        steps.insert(point.step);
        let end = ends.entry(point.run_id.as_deref()).or_insert((point.step, point.step));
        *end = (end.0.min(point.step), end.1.max(point.step));
    }
    if steps.len() <= n {
        return steps;
    }
    let stride = steps.len().div_ceil(n);
    let thinned = steps.iter().step_by(stride).copied();
    thinned.chain(ends.into_values().flat_map(|(first, last)| [first, last])).collect()
}

/// `calm-river-417`: easier to say than an id.
pub fn random_name() -> String {
    const KINDS: [&str; 24] = [
        "bold", "brave", "bright", "calm", "clear", "clever", "crisp", "eager", "fair", "gentle", "glad", "honest",
        "keen", "kind", "lively", "merry", "mild", "patient", "quick", "quiet", "steady", "swift", "warm", "wise",
    ];
    const THINGS: [&str; 24] = [
        "birch", "bridge", "brook", "canyon", "cedar", "cliff", "cove", "dune", "field", "fjord", "forest", "glacier",
        "harbor", "heath", "hill", "island", "lake", "meadow", "pass", "path", "river", "road", "shore", "valley",
    ];
    let mut rng = rand::rng();
    let pick = |words: &[&'static str; 24], n: usize| words[n];
    let (kind, thing) = (rng.random_range(0..24), rng.random_range(0..24));
    format!("{}-{}-{}", pick(&KINDS, kind), pick(&THINGS, thing), rng.random_range(0..1000))
}
