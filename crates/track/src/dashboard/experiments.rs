use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Edge;
use crate::filter::Entity;
use crate::store::{ExperimentSummary, KeyInUse};
use crate::wire::ExperimentId;
use crate::{TrackError, Tracker};

/// An experiment and how much is in it.
#[derive(Serialize, ToSchema)]
pub struct Experiment {
    id: String,
    name: String,
    artifact_location: String,
    /// `active` or `deleted`.
    lifecycle_stage: String,
    /// Milliseconds since 1970, UTC, as every time here.
    created: i64,
    n_runs: i64,
    n_running: i64,
    /// When its newest run began.
    #[schema(required)]
    last_start: Option<i64>,
    /// Its tag `mlflow.note.content`.
    #[schema(required)]
    note: Option<String>,
    /// The other tags.
    tags: Vec<Tag>,
}

/// A param, or a tag of anything.
#[derive(Serialize, ToSchema)]
pub struct Tag {
    pub key: String,
    pub value: String,
}

/// What columns a table of runs may have.
#[derive(Serialize, ToSchema)]
pub struct Keys {
    metrics: Vec<UsedKey>,
    params: Vec<UsedKey>,
    tags: Vec<UsedKey>,
}

/// A key that runs logged.
#[derive(Serialize, ToSchema)]
pub struct UsedKey {
    key: String,
    n_runs: i64,
    /// Whether two runs have different values.
    varies: bool,
}

#[derive(Serialize, ToSchema)]
pub struct Experiments {
    experiments: Vec<Experiment>,
}

/// Every active experiment, the one with the newest run first.
#[utoipa::path(get, operation_id = "list_experiments", path = "/experiments", responses((status = OK, body = Experiments)))]
pub async fn list(State(tracker): State<Tracker>) -> Result<Json<Experiments>, Edge> {
    let found = tracker.store.experiment_summaries(None).await?;
    let experiments = found.into_iter().map(|summary| shown(summary, Vec::new())).collect();
    Ok(Json(Experiments { experiments }))
}

/// One experiment, deleted or not.
#[utoipa::path(get, operation_id = "get_experiment", path = "/experiments/{id}", params(("id" = String, Path)), responses((status = OK, body = Experiment)))]
pub async fn get(State(tracker): State<Tracker>, Path(id): Path<String>) -> Result<Json<Experiment>, Edge> {
    let id = experiment_id(&id)?;
    let tags = tracker.store.experiment(id).await?.tags;
    let tags = tags.into_iter().map(|pair| Tag { key: pair.key, value: pair.value }).collect();
    let summary = tracker.store.experiment_summaries(Some(id)).await?.pop();
    let summary = summary.ok_or_else(|| TrackError::Missing(format!("No Experiment with id={id} exists")))?;
    Ok(Json(shown(summary, tags)))
}

/// The metrics, params and tags that its runs have.
#[utoipa::path(get, operation_id = "experiment_keys", path = "/experiments/{id}/keys", params(("id" = String, Path)), responses((status = OK, body = Keys)))]
pub async fn keys(State(tracker): State<Tracker>, Path(id): Path<String>) -> Result<Json<Keys>, Edge> {
    let id = experiment_id(&id)?;
    let used = async |of| {
        let found = tracker.store.keys_in_use(id, of).await?;
        let used = |KeyInUse { key, n_runs, varies }| UsedKey { key, n_runs, varies };
        Ok::<_, TrackError>(found.into_iter().map(used).collect())
    };
    let keys = Keys {
        metrics: used(Entity::Metric).await?,
        params: used(Entity::Param).await?,
        tags: used(Entity::Tag).await?,
    };
    Ok(Json(keys))
}

/// An id as it stands in an address.
pub fn experiment_id(text: &str) -> Result<ExperimentId, TrackError> {
    let missing = |_| TrackError::Missing(format!("No Experiment with id={text} exists"));
    text.parse().map(ExperimentId).map_err(missing)
}

fn shown(summary: ExperimentSummary, mut tags: Vec<Tag>) -> Experiment {
    let note = tags.iter().position(|tag| tag.key == "mlflow.note.content").map(|at| tags.remove(at).value);
    Experiment {
        id: summary.experiment_id.to_string(),
        name: summary.name,
        artifact_location: summary.artifact_location,
        lifecycle_stage: summary.lifecycle_stage,
        created: summary.creation_time,
        n_runs: summary.n_runs,
        n_running: summary.n_running,
        last_start: summary.last_start,
        note,
        tags,
    }
}
