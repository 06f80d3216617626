use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use rand::RngExt as _;
use serde::Deserialize;
use serde_json::json;

use super::{Args, Reply, done, page, parse_bytes};
use crate::wire::{DatasetInput, ExperimentId, Int, Metric, ModelInput, ModelOutput, Pair, one_or_many, or_empty};
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
        given.ok_or_else(|| TrackError::Invalid("Missing value for required parameter 'run_id'.".into()))
    }
}

pub async fn get(State(tracker): State<Tracker>, Args(args): Args<RunRef>) -> Reply {
    Ok(Json(json!({ "run": tracker.store.run(&args.id()?).await? })))
}

#[derive(Deserialize)]
pub struct Update {
    #[serde(flatten)]
    run: RunRef,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    end_time: Option<Int>,
    #[serde(default)]
    run_name: Option<String>,
}

pub async fn update(State(tracker): State<Tracker>, Args(args): Args<Update>) -> Reply {
    let end_time = args.end_time.map(|time| time.0);
    let change = RunChange { status: args.status, end_time, run_name: args.run_name };
    Ok(Json(json!({ "run_info": tracker.store.update_run(&args.run.id()?, change).await? })))
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
    #[serde(default)]
    run_view_type: Option<String>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default, deserialize_with = "one_or_many")]
    order_by: Vec<String>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Reply {
    let search = RunSearch {
        experiment_ids: args.experiment_ids,
        filter: args.filter.unwrap_or_default(),
        view: View::parse(args.run_view_type.as_deref().unwrap_or_default())?,
        max_results: args.max_results.map_or(0, |n| n.0),
        order_by: args.order_by,
        page_token: args.page_token.unwrap_or_default(),
    };
    page("runs", tracker.store.search_runs(&search).await?)
}

pub async fn log_metric(State(tracker): State<Tracker>, body: Bytes) -> Reply {
    // One body read twice: the metric has a `run_id` field of its own.
    let run: RunRef = parse_bytes(&body)?;
    let metric: Metric = parse_bytes(&body)?;
    tracker.store.log_batch(&run.id()?, &Batch { metrics: vec![metric], ..Batch::default() }).await?;
    done()
}

#[derive(Deserialize)]
pub struct KeyValue {
    #[serde(flatten)]
    run: RunRef,
    key: String,
    #[serde(default)]
    value: String,
}

pub async fn log_param(State(tracker): State<Tracker>, Args(args): Args<KeyValue>) -> Reply {
    let params = vec![Pair { key: args.key, value: args.value }];
    tracker.store.log_batch(&args.run.id()?, &Batch { params, ..Batch::default() }).await?;
    done()
}

pub async fn set_tag(State(tracker): State<Tracker>, Args(args): Args<KeyValue>) -> Reply {
    let tags = vec![Pair { key: args.key, value: args.value }];
    tracker.store.log_batch(&args.run.id()?, &Batch { tags, ..Batch::default() }).await?;
    done()
}

pub async fn delete_tag(State(tracker): State<Tracker>, Args(args): Args<KeyValue>) -> Reply {
    tracker.store.delete_tag(&args.run.id()?, &args.key).await?;
    done()
}

#[derive(Deserialize)]
struct LogBatch {
    #[serde(default)]
    run_id: String,
    #[serde(default, deserialize_with = "or_empty")]
    metrics: Vec<Metric>,
    #[serde(default, deserialize_with = "or_empty")]
    params: Vec<Pair>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn log_batch(State(tracker): State<Tracker>, body: Bytes) -> Reply {
    if body.len() > limits::MAX_BATCH_BYTES {
        let message = format!(
            "Batched logging API requests must be at most {} bytes, got a request of size {}.",
            limits::MAX_BATCH_BYTES,
            body.len()
        );
        return Err(TrackError::Invalid(message).into());
    }
    let args: LogBatch = parse_bytes(&body)?;
    let batch = Batch { metrics: args.metrics, params: args.params, tags: args.tags };
    tracker.store.log_batch(&args.run_id, &batch).await?;
    done()
}

#[derive(Deserialize)]
pub struct LogInputs {
    #[serde(flatten)]
    run: RunRef,
    #[serde(default, deserialize_with = "or_empty")]
    datasets: Vec<DatasetInput>,
    #[serde(default, deserialize_with = "or_empty")]
    models: Vec<ModelInput>,
}

pub async fn log_inputs(State(tracker): State<Tracker>, Args(args): Args<LogInputs>) -> Reply {
    tracker.store.log_inputs(&args.run.id()?, &args.datasets, &args.models).await?;
    done()
}

#[derive(Deserialize)]
pub struct LogOutputs {
    #[serde(flatten)]
    run: RunRef,
    #[serde(default, deserialize_with = "or_empty")]
    models: Vec<ModelOutput>,
}

pub async fn log_outputs(State(tracker): State<Tracker>, Args(args): Args<LogOutputs>) -> Reply {
    tracker.store.log_outputs(&args.run.id()?, &args.models).await?;
    done()
}

#[derive(Deserialize)]
pub struct LogModel {
    #[serde(flatten)]
    run: RunRef,
    model_json: String,
}

/// MLflow 2's way to note a model: a list in the tag `mlflow.log-model.history`.
pub async fn log_model(State(tracker): State<Tracker>, Args(args): Args<LogModel>) -> Reply {
    const HISTORY_TAG: &str = "mlflow.log-model.history";
    let model: serde_json::Value = serde_json::from_str(&args.model_json)
        .map_err(|error| TrackError::Invalid(format!("Malformed model info. The model_json is no JSON: {error}")))?;
    let id = args.run.id()?;
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
    #[serde(flatten)]
    run: RunRef,
    metric_key: String,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn metric_history(State(tracker): State<Tracker>, Args(args): Args<History>) -> Reply {
    let token = args.page_token.unwrap_or_default();
    let n = args.max_results.map_or(0, |n| n.0);
    page("metrics", tracker.store.metric_history(&args.run.id()?, &args.metric_key, n, &token).await?)
}

/// `calm-river-417`: easier to say than an id.
fn random_name() -> String {
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
