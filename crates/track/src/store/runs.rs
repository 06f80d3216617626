use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::experiments::active_experiment;
use super::ingest::Prepared;
use super::inputs::{self, DatasetRow, ModelRow};
use super::search::{Page, View, page_bounds, page_of};
use super::{Database, Millis, PARALLEL_READS, QueryBuilder, Store, required};
use crate::TrackError;
use crate::limits;
use crate::wire::{ExperimentId, Float, Metric, Pair, Run, RunData, RunInfo, or_empty};

/// The tag that carries a run's name for old clients.
const NAME_TAG: &str = "mlflow.runName";
/// Bound values in one statement; SQLite takes 32 766, older ones 999.
pub(super) const IDS_PER_QUERY: usize = 500;
/// Runs that one statement gives as one text, which SQLite limits to 1 GB.
const RUNS_PER_QUERY: usize = 50;

/// A run to be made.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct NewRun {
    pub run_id: String,
    pub experiment_id: ExperimentId,
    /// Used if neither `run_name` nor the tag `mlflow.runName` is given.
    pub fallback_name: String,
    pub run_name: Option<String>,
    pub user_id: String,
    pub start_time: Millis,
    pub tags: Vec<Pair>,
}

/// What `runs/update` changes.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct RunChange {
    pub status: Option<String>,
    pub end_time: Option<i64>,
    pub run_name: Option<String>,
}

/// What `runs/log-batch` brings.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Batch {
    pub metrics: Vec<Metric>,
    pub params: Vec<Pair>,
    pub tags: Vec<Pair>,
}

impl Store {
    /// Starts a run.
    pub async fn create_run(&self, new: NewRun) -> Result<Run, TrackError> {
        let mut tags = new.tags;
        let tagged = tags.iter().find(|tag| tag.key == NAME_TAG).map(|tag| tag.value.clone());
        let named = new.run_name.filter(|name| !name.is_empty());
        if let (Some(name), Some(tag)) = (&named, &tagged)
            && name != tag
        {
            return Err(TrackError::Invalid(format!(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values \
                 (run_name='{name}', mlflow.runName='{tag}')."
            )));
        }
        let name = named.or(tagged.clone().filter(|name| !name.is_empty())).unwrap_or(new.fallback_name);
        if tagged.is_none() {
            tags.push(Pair { key: NAME_TAG.into(), value: name.clone() });
        }
        let mut tx = self.write().await?;
        let location = active_experiment(&mut tx, new.experiment_id).await?;
        sqlx::query(
            "INSERT INTO runs (run_id, experiment_id, run_name, user_id, status, start_time, artifact_uri)
             VALUES ($1, $2, $3, $4, 'RUNNING', $5, $6)",
        )
        .bind(&new.run_id)
        .bind(new.experiment_id)
        .bind(name)
        .bind(new.user_id)
        .bind(new.start_time.0)
        .bind(format!("{location}/{}/artifacts", new.run_id))
        .execute(&mut *tx)
        .await?;
        for tag in &tags {
            put_tag(&mut tx, &new.run_id, tag).await?;
        }
        tx.commit().await?;
        self.run(&new.run_id).await
    }

    /// The run, deleted or not.
    pub async fn run(&self, run_id: &str) -> Result<Run, TrackError> {
        let found = self.runs(&[run_id.to_owned()]).await?.pop();
        found.ok_or_else(|| no_run(run_id))
    }

    /// The runs with these ids, in this order; unknown ids are left out.
    pub async fn runs(&self, run_ids: &[String]) -> Result<Vec<Run>, TrackError> {
        let parts: Vec<_> = run_ids.chunks(RUNS_PER_QUERY).map(|ids| self.some_runs(ids)).collect();
        let parts: Vec<_> = stream::iter(parts).buffered(PARALLEL_READS).try_collect().await?;
        let mut found: HashMap<String, Run> = parts.into_iter().flatten().collect();
        Ok(run_ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    async fn some_runs(&self, ids: &[String]) -> Result<HashMap<String, Run>, TrackError> {
        let mut query = QueryBuilder::default();
        query.push(select_runs(&self.database)).push(" WHERE r.run_id IN (");
        query.push_binds(ids.iter().map(String::as_str)).push(")");
        let (mut found, mut inexact) = (HashMap::with_capacity(ids.len()), Vec::new());
        for row in listed(query.build_query_scalar().fetch_one(&self.reads).await?)? {
            let (mut run, metrics) = run_of(row);
            match metrics {
                Some(metrics) => run.data.metrics = metrics,
                None => inexact.push(run.info.run_id.clone()),
            }
            found.insert(run.info.run_id.clone(), run);
        }
        if !inexact.is_empty() {
            self.read_metrics(&inexact, &mut found).await?;
        }
        Ok(found)
    }

    /// The newest values of these runs, number by number.
    async fn read_metrics(&self, ids: &[String], runs: &mut HashMap<String, Run>) -> Result<(), TrackError> {
        let query = among(
            "SELECT run_id, key, value, is_nan, timestamp, step FROM latest_metrics WHERE run_id IN (",
            ids,
            ") ORDER BY run_id, key",
        );
        for row in query.build_query_as::<MetricRow>().fetch_all(&self.reads).await? {
            if let Some(run) = runs.get_mut(&row.0) {
                run.data.metrics.push(metric_of_row(row));
            }
        }
        Ok(())
    }

    /// Changes status, end or name of an active run.
    pub async fn update_run(&self, run_id: &str, change: RunChange) -> Result<RunInfo, TrackError> {
        let mut tx = self.write().await?;
        active_run(&mut tx, run_id).await?;
        if let Some(status) = change.status {
            if !matches!(status.as_str(), "RUNNING" | "SCHEDULED" | "FINISHED" | "FAILED" | "KILLED") {
                return Err(TrackError::Invalid(format!("Invalid value '{status}' for parameter 'status' supplied.")));
            }
            sqlx::query("UPDATE runs SET status = $1 WHERE run_id = $2")
                .bind(status)
                .bind(run_id)
                .execute(&mut *tx)
                .await?;
        }
        if let Some(end_time) = change.end_time {
            sqlx::query("UPDATE runs SET end_time = $1 WHERE run_id = $2")
                .bind(end_time)
                .bind(run_id)
                .execute(&mut *tx)
                .await?;
        }
        if let Some(name) = change.run_name.filter(|name| !name.is_empty()) {
            put_tag(&mut tx, run_id, &Pair { key: NAME_TAG.into(), value: name }).await?;
        }
        tx.commit().await?;
        Ok(self.run(run_id).await?.info)
    }

    /// Moves a run between `active` and `deleted`.
    pub async fn set_run_stage(&self, run_id: &str, to: View) -> Result<(), TrackError> {
        let changed = sqlx::query("UPDATE runs SET lifecycle_stage = $1 WHERE run_id = $2")
            .bind(to.stage())
            .bind(run_id)
            .execute(&self.writes)
            .await?;
        if changed.rows_affected() == 0 { Err(no_run(run_id)) } else { Ok(()) }
    }

    /// Metrics, params and tags of an active run, all of them or none; when this returns they are on the disk.
    ///
    /// Batches that wait at the same time share a transaction, unless one of them is refused.
    /// A param that exists keeps its value: the same value again is fine, another is an error.
    pub async fn log_batch(&self, run_id: &str, batch: &Batch) -> Result<(), TrackError> {
        check(batch)?;
        self.ingest.commit(Prepared::new(run_id, batch)).await
    }

    /// Removes one tag of an active run.
    pub async fn delete_tag(&self, run_id: &str, key: &str) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        active_run(&mut tx, run_id).await?;
        let gone = sqlx::query("DELETE FROM tags WHERE run_id = $1 AND key = $2")
            .bind(run_id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(TrackError::Missing(format!("No tag with name: {key} in run with id {run_id}")));
        }
        Ok(tx.commit().await?)
    }

    /// Every value of one metric by step, then time.
    pub async fn metric_history(
        &self,
        run_id: &str,
        key: &str,
        max_results: i64,
        page_token: &str,
    ) -> Result<Page<Metric>, TrackError> {
        required("metric_key", key)?;
        let (limit, offset) = page_bounds(max_results, 25_000, i64::from(i32::MAX), page_token)?;
        let known: Option<(i64,)> =
            sqlx::query_as("SELECT 1 FROM runs WHERE run_id = $1").bind(run_id).fetch_optional(&self.reads).await?;
        known.ok_or_else(|| no_run(run_id))?;
        let rows: Vec<MetricRow> = sqlx::query_as(
            "SELECT run_id, key, value, is_nan, timestamp, step FROM metrics WHERE run_id = $1 AND key = $2
             ORDER BY step, timestamp, is_nan, value LIMIT $3 OFFSET $4",
        )
        .bind(run_id)
        .bind(key)
        .bind(limit + 1)
        .bind(offset)
        .fetch_all(&self.reads)
        .await?;
        Ok(page_of(rows.into_iter().map(metric_of_row).collect(), limit, offset))
    }
}

/// The experiment of a run that can be written to.
pub(super) async fn active_run(tx: &mut AnyConnection, run_id: &str) -> Result<ExperimentId, TrackError> {
    required("run_id", run_id)?;
    let row: Option<(ExperimentId, String)> =
        sqlx::query_as("SELECT experiment_id, lifecycle_stage FROM runs WHERE run_id = $1")
            .bind(run_id)
            .fetch_optional(tx)
            .await?;
    match row {
        Some((experiment_id, stage)) if stage == "active" => Ok(experiment_id),
        Some((_, stage)) => Err(TrackError::Invalid(format!(
            "The run {run_id} must be in the 'active' state. Current state is {stage}."
        ))),
        None => Err(no_run(run_id)),
    }
}

pub(super) fn no_run(run_id: &str) -> TrackError {
    TrackError::Missing(format!("Run with id={run_id} not found"))
}

/// A statement over a list of ids.
pub(super) fn among(head: &'static str, ids: &[String], tail: &'static str) -> QueryBuilder {
    let mut query = QueryBuilder::new(head);
    query.push_binds(ids.iter().map(String::as_str)).push(tail);
    query
}

/// `run_id, key, value, is_nan, timestamp, step`: read by place, which is several times as fast as by name.
type MetricRow = (String, String, f64, i64, i64, i64);

fn metric_of_row((_, key, value, is_nan, timestamp, step): MetricRow) -> Metric {
    Metric {
        key,
        value: Float(if is_nan == 1 { f64::NAN } else { value }),
        timestamp,
        step,
        dataset_name: None,
        dataset_digest: None,
        model_id: None,
        // Only rows that mix runs name theirs, as MLflow's do.
        run_id: None,
    }
}

pub(super) fn metric_of(row: &AnyRow) -> Result<Metric, sqlx::Error> {
    let is_nan: i64 = row.try_get("is_nan")?;
    Ok(Metric {
        key: row.try_get("key")?,
        value: Float(if is_nan == 1 { f64::NAN } else { row.try_get("value")? }),
        timestamp: row.try_get("timestamp")?,
        step: row.try_get("step")?,
        dataset_name: row.try_get("dataset_name").ok(),
        dataset_digest: row.try_get("dataset_digest").ok(),
        model_id: row.try_get("model_id").ok(),
        run_id: None,
    })
}

/// Runs and all that hangs on them, for [`listed`] and [`run_of`].
fn select_runs(database: &Database) -> String {
    let list = |columns, from| database.list(columns, from);
    let metrics = format!("key, {}, is_nan, timestamp, step", database.exact_text("value"));
    let columns = format!(
        "r.run_id, r.run_name, r.experiment_id, r.user_id, r.status, r.start_time, r.end_time, r.artifact_uri,
         r.lifecycle_stage, {}, {}, {}, {}, {}",
        list(&metrics, "latest_metrics x WHERE x.run_id = r.run_id"),
        list("key, value", "params x WHERE x.run_id = r.run_id"),
        list("key, value", "tags x WHERE x.run_id = r.run_id"),
        list(inputs::DATASET_COLUMNS, inputs::DATASETS_OF_RUN),
        list("model_id, direction, step", "run_models x WHERE x.run_id = r.run_id"),
    );
    format!("{} FROM runs r", database.select_list(&columns))
}

/// The columns of [`select_runs`].
#[derive(Deserialize)]
struct RunRow {
    run_id: String,
    run_name: String,
    experiment_id: i64,
    user_id: String,
    status: String,
    start_time: i64,
    end_time: Option<i64>,
    artifact_uri: String,
    lifecycle_stage: String,
    #[serde(deserialize_with = "or_empty")]
    metrics: Vec<MetricTexts>,
    #[serde(deserialize_with = "or_empty")]
    params: Vec<(String, String)>,
    #[serde(deserialize_with = "or_empty")]
    tags: Vec<(String, String)>,
    #[serde(deserialize_with = "or_empty")]
    datasets: Vec<DatasetRow>,
    #[serde(deserialize_with = "or_empty")]
    models: Vec<ModelRow>,
}

/// The run; no metrics if one of them has no exact text.
fn run_of(row: RunRow) -> (Run, Option<Vec<Metric>>) {
    let (inputs, outputs) = inputs::of_run(row.datasets, row.models);
    let info = RunInfo {
        run_uuid: row.run_id.clone(),
        run_id: row.run_id,
        run_name: row.run_name,
        experiment_id: ExperimentId(row.experiment_id),
        user_id: row.user_id,
        status: row.status,
        start_time: row.start_time,
        end_time: row.end_time,
        artifact_uri: row.artifact_uri,
        lifecycle_stage: row.lifecycle_stage,
    };
    let data = RunData { metrics: Vec::new(), params: pairs(row.params), tags: pairs(row.tags) };
    let mut metrics: Option<Vec<Metric>> = row.metrics.into_iter().map(metric_of_texts).collect();
    if let Some(metrics) = &mut metrics {
        metrics.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }
    (Run { info, data, inputs, outputs }, metrics)
}

/// What [`Database::select_list`] gives.
pub(super) fn listed<T: DeserializeOwned>(text: Option<String>) -> Result<Vec<T>, sqlx::Error> {
    let list = text.as_deref().map(serde_json::from_str).transpose();
    Ok(list.map_err(|error| sqlx::Error::Decode(error.into()))?.unwrap_or_default())
}

fn pairs(mut pairs: Vec<(String, String)>) -> Vec<Pair> {
    pairs.sort_unstable();
    pairs.into_iter().map(|(key, value)| Pair { key, value }).collect()
}

/// `key, value, is_nan, timestamp, step`.
type MetricTexts = (String, Option<String>, i64, i64, i64);

/// Nothing if the value has no exact text.
fn metric_of_texts((key, value, is_nan, timestamp, step): MetricTexts) -> Option<Metric> {
    let value = value?.parse().ok()?;
    Some(metric_of_row((String::new(), key, value, is_nan, timestamp, step)))
}

fn check(batch: &Batch) -> Result<(), TrackError> {
    limits::count("metrics", batch.metrics.len(), limits::MAX_METRICS_PER_BATCH)?;
    limits::count("params", batch.params.len(), limits::MAX_PARAMS_PER_BATCH)?;
    limits::count("tags", batch.tags.len(), limits::MAX_PARAMS_PER_BATCH)?;
    let total = batch.metrics.len() + batch.params.len() + batch.tags.len();
    limits::count("metrics, params, and tags", total, limits::MAX_ENTITIES_PER_BATCH)?;
    let mut seen = HashMap::new();
    for (n, param) in batch.params.iter().enumerate() {
        limits::key(format_args!("params[{n}].key"), &param.key)?;
        limits::length(format_args!("params[{n}].value"), &param.value, limits::MAX_PARAM_VALUE)?;
        if seen.insert(&param.key, &param.value).is_some_and(|other| *other != param.value) {
            return Err(TrackError::Invalid(format!(
                "Duplicate parameter keys have been submitted: {}. Please ensure the request contains only one param \
                 value per param key.",
                param.key
            )));
        }
    }
    for (n, metric) in batch.metrics.iter().enumerate() {
        limits::key(format_args!("metrics[{n}].key"), &metric.key)?;
    }
    for (n, tag) in batch.tags.iter().enumerate() {
        limits::key(format_args!("tags[{n}].key"), &tag.key)?;
        limits::length(format_args!("tags[{n}].value"), &tag.value, limits::MAX_TAG_VALUE)?;
    }
    Ok(())
}

pub(super) async fn put_param(tx: &mut AnyConnection, run_id: &str, param: &Pair) -> Result<(), TrackError> {
    let kept: (String,) = sqlx::query_as(
        "INSERT INTO params (run_id, key, value) VALUES ($1, $2, $3)
         ON CONFLICT (run_id, key) DO UPDATE SET value = params.value RETURNING value",
    )
    .bind(run_id)
    .bind(&param.key)
    .bind(&param.value)
    .fetch_one(tx)
    .await?;
    if kept.0 == param.value {
        return Ok(());
    }
    Err(TrackError::Invalid(format!(
        "Changing param values is not allowed. Params were already logged='[{{'key': '{}', 'old_value': '{}', 'new_value': \
         '{}'}}]' for run ID='{run_id}'.",
        param.key, kept.0, param.value
    )))
}

pub(super) async fn put_tag(tx: &mut AnyConnection, run_id: &str, tag: &Pair) -> Result<(), TrackError> {
    limits::key("key", &tag.key)?;
    limits::length("value", &tag.value, limits::MAX_TAG_VALUE)?;
    sqlx::query(
        "INSERT INTO tags (run_id, key, value) VALUES ($1, $2, $3)
         ON CONFLICT (run_id, key) DO UPDATE SET value = excluded.value",
    )
    .bind(run_id)
    .bind(&tag.key)
    .bind(&tag.value)
    .execute(&mut *tx)
    .await?;
    if tag.key == NAME_TAG {
        sqlx::query("UPDATE runs SET run_name = $1 WHERE run_id = $2")
            .bind(&tag.value)
            .bind(run_id)
            .execute(tx)
            .await?;
    }
    Ok(())
}
