use serde::Deserialize;
use sqlx::{AnyConnection, Row as _};

use super::experiments::active_experiment;
use super::runs::metric_of;
use super::search::{Page, compare_number, compare_text, page_bounds, page_of, push_ids};
use super::{Millis, QueryBuilder, Store, required};
use crate::TrackError;
use crate::filter::{self, Clause, Entity};
use crate::limits;
use crate::wire::{ExperimentId, LoggedModel, LoggedModelData, LoggedModelInfo, Metric, Pair, Registration};

/// A logged model to be made.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct NewLoggedModel {
    pub model_id: String,
    pub experiment_id: ExperimentId,
    pub name: String,
    pub model_type: Option<String>,
    pub source_run_id: Option<String>,
    pub params: Vec<Pair>,
    pub tags: Vec<Pair>,
}

/// What `logged-models/search` asks.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct LoggedModelSearch {
    pub experiment_ids: Vec<ExperimentId>,
    pub filter: String,
    pub order_by: Vec<OrderField>,
    pub max_results: i64,
    pub page_token: String,
}

/// One order of `logged-models/search`.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct OrderField {
    pub field_name: String,
    #[serde(default = "yes")]
    pub ascending: bool,
}

fn yes() -> bool {
    true
}

impl Store {
    /// A new logged model, pending until it is finalised.
    pub async fn create_logged_model(&self, new: NewLoggedModel, now: Millis) -> Result<LoggedModel, TrackError> {
        if new.name.contains(['/', ':', '.', '%', '"', '\'']) || new.name.trim().is_empty() {
            return Err(TrackError::Invalid(format!(
                "Invalid model name ({}) provided. Model name must be a non-empty string and cannot contain the following \
                 characters: ('/', ':', '.', '%', '\"', \"'\")",
                new.name
            )));
        }
        let mut tx = self.write().await?;
        let location = active_experiment(&mut tx, new.experiment_id).await?;
        sqlx::query(
            "INSERT INTO logged_models (model_id, experiment_id, name, source_run_id, status, model_type, artifact_uri,
                                        creation_timestamp_ms, last_updated_timestamp_ms)
             VALUES ($1, $2, $3, $4, 'LOGGED_MODEL_PENDING', $5, $6, $7, $7)",
        )
        .bind(&new.model_id)
        .bind(new.experiment_id)
        .bind(&new.name)
        .bind(&new.source_run_id)
        .bind(&new.model_type)
        .bind(format!("{location}/models/{}/artifacts", new.model_id))
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        put_params(&mut tx, &new.model_id, &new.params).await?;
        put_tags(&mut tx, &new.model_id, &new.tags).await?;
        tx.commit().await?;
        self.logged_model(&new.model_id).await
    }

    /// The logged model, unless it was deleted.
    pub async fn logged_model(&self, model_id: &str) -> Result<LoggedModel, TrackError> {
        let row = sqlx::query("SELECT * FROM logged_models WHERE model_id = $1 AND lifecycle_stage = 'active'")
            .bind(model_id)
            .fetch_optional(&self.reads)
            .await?;
        self.read_logged_model(&row.ok_or_else(|| no_model(model_id))?).await
    }

    /// Logged models that match, newest first unless ordered otherwise.
    pub async fn search_logged_models(&self, search: &LoggedModelSearch) -> Result<Page<LoggedModel>, TrackError> {
        let (limit, offset) = page_bounds(search.max_results, 100, limits::MAX_RUNS_PER_PAGE, &search.page_token)?;
        if search.experiment_ids.is_empty() {
            return Ok(Page { items: Vec::new(), next_page_token: None });
        }
        let mut query = QueryBuilder::new("SELECT * FROM logged_models m WHERE m.lifecycle_stage = 'active'");
        query.push(" AND m.experiment_id IN ");
        push_ids(&mut query, &search.experiment_ids);
        for clause in filter::parse(&search.filter)? {
            query.push(" AND ");
            push_clause(&mut query, &clause)?;
        }
        query.push(" ORDER BY ");
        for order in &search.order_by {
            push_order(&mut query, order)?;
        }
        query.push("m.creation_timestamp_ms DESC, m.model_id LIMIT ").push_bind(limit + 1);
        query.push(" OFFSET ").push_bind(offset);
        let page = page_of(query.build().fetch_all(&self.reads).await?, limit, offset);
        let mut items = Vec::with_capacity(page.items.len());
        for row in &page.items {
            items.push(self.read_logged_model(row).await?);
        }
        Ok(Page { items, next_page_token: page.next_page_token })
    }

    /// Ends a logged model's making: `LOGGED_MODEL_READY` or `LOGGED_MODEL_UPLOAD_FAILED`.
    pub async fn finalize_logged_model(&self, id: &str, status: &str, now: Millis) -> Result<LoggedModel, TrackError> {
        if !matches!(status, "LOGGED_MODEL_READY" | "LOGGED_MODEL_UPLOAD_FAILED" | "LOGGED_MODEL_PENDING") {
            return Err(TrackError::Invalid(format!("Invalid value '{status}' for parameter 'status' supplied.")));
        }
        let mut tx = self.write().await?;
        touch(&mut tx, id, now).await?;
        sqlx::query("UPDATE logged_models SET status = $1 WHERE model_id = $2")
            .bind(status)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.logged_model(id).await
    }

    /// Adds params; like a run's they never change.
    pub async fn log_model_params(&self, id: &str, params: &[Pair], now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, id, now).await?;
        put_params(&mut tx, id, params).await?;
        Ok(tx.commit().await?)
    }

    /// Sets tags.
    pub async fn set_model_tags(&self, id: &str, tags: &[Pair], now: Millis) -> Result<LoggedModel, TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, id, now).await?;
        put_tags(&mut tx, id, tags).await?;
        tx.commit().await?;
        self.logged_model(id).await
    }

    /// Removes one tag.
    pub async fn delete_model_tag(&self, id: &str, key: &str, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, id, now).await?;
        let gone = sqlx::query("DELETE FROM logged_model_tags WHERE model_id = $1 AND key = $2")
            .bind(id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(TrackError::Missing(format!("No tag with key {key:?} found for model with ID {id:?}.")));
        }
        Ok(tx.commit().await?)
    }

    /// Hides a logged model; its artifacts stay.
    pub async fn delete_logged_model(&self, id: &str, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, id, now).await?;
        sqlx::query("UPDATE logged_models SET lifecycle_stage = 'deleted' WHERE model_id = $1")
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn read_logged_model(&self, row: &sqlx::any::AnyRow) -> Result<LoggedModel, TrackError> {
        let model_id: String = row.try_get("model_id")?;
        let tags = sqlx::query_as("SELECT key, value FROM logged_model_tags WHERE model_id = $1 ORDER BY key")
            .bind(&model_id)
            .fetch_all(&self.reads)
            .await?;
        let registrations =
            sqlx::query_as("SELECT name, version FROM model_versions WHERE model_id = $1 ORDER BY name, version")
                .bind(&model_id)
                .fetch_all(&self.reads)
                .await?
                .into_iter()
                .map(|(name, version): (String, i64)| Registration { name, version: version.to_string() })
                .collect();
        let data = self.logged_model_data(&model_id).await?;
        let info = LoggedModelInfo {
            experiment_id: row.try_get("experiment_id")?,
            name: row.try_get("name")?,
            creation_timestamp_ms: row.try_get("creation_timestamp_ms")?,
            last_updated_timestamp_ms: row.try_get("last_updated_timestamp_ms")?,
            artifact_uri: row.try_get("artifact_uri")?,
            status: row.try_get("status")?,
            model_type: row.try_get("model_type")?,
            source_run_id: row.try_get("source_run_id")?,
            model_id,
            tags,
            registrations,
        };
        Ok(LoggedModel { info, data })
    }

    /// Params and metrics of a logged model; empty if there is none.
    pub(super) async fn logged_model_data(&self, model_id: &str) -> Result<LoggedModelData, TrackError> {
        let params = sqlx::query_as("SELECT key, value FROM logged_model_params WHERE model_id = $1 ORDER BY key")
            .bind(model_id)
            .fetch_all(&self.reads)
            .await?;
        let rows = sqlx::query("SELECT * FROM logged_model_metrics WHERE model_id = $1 ORDER BY key, step, timestamp")
            .bind(model_id)
            .fetch_all(&self.reads)
            .await?;
        let metrics = rows.iter().map(|row| {
            Ok(Metric { run_id: row.try_get("run_id")?, model_id: Some(model_id.to_owned()), ..metric_of(row)? })
        });
        Ok(LoggedModelData { params, metrics: metrics.collect::<Result<_, sqlx::Error>>()? })
    }
}

/// A run's metric that was measured on a logged model.
pub(super) async fn put_metric(
    tx: &mut AnyConnection,
    run_id: &str,
    experiment_id: ExperimentId,
    metric: &Metric,
) -> Result<(), TrackError> {
    let model_id = metric.model_id.as_deref().unwrap_or_default();
    let known: Option<(i64,)> =
        sqlx::query_as("SELECT 1 FROM logged_models WHERE model_id = $1 AND experiment_id IS NOT NULL")
            .bind(model_id)
            .fetch_optional(&mut *tx)
            .await?;
    if known.is_none() {
        return Err(TrackError::Missing(format!(
            "Logged model with ID '{model_id}' not found (metric '{}' of experiment {experiment_id})",
            metric.key
        )));
    }
    let (value, is_nan) = if metric.value.0.is_nan() { (0.0, 1) } else { (metric.value.0, 0) };
    sqlx::query(
        "INSERT INTO logged_model_metrics
             (model_id, run_id, key, step, timestamp, value, is_nan, dataset_name, dataset_digest)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
    )
    .bind(model_id)
    .bind(run_id)
    .bind(&metric.key)
    .bind(metric.step)
    .bind(metric.timestamp)
    .bind(value)
    .bind(is_nan)
    .bind(&metric.dataset_name)
    .bind(&metric.dataset_digest)
    .execute(tx)
    .await?;
    Ok(())
}

fn no_model(model_id: &str) -> TrackError {
    TrackError::Missing(format!("Logged model with ID '{model_id}' not found."))
}

async fn touch(tx: &mut AnyConnection, model_id: &str, now: Millis) -> Result<(), TrackError> {
    let changed = sqlx::query(
        "UPDATE logged_models SET last_updated_timestamp_ms = $1 WHERE model_id = $2 AND lifecycle_stage = 'active'",
    )
    .bind(now.0)
    .bind(model_id)
    .execute(tx)
    .await?;
    if changed.rows_affected() == 0 { Err(no_model(model_id)) } else { Ok(()) }
}

async fn put_params(tx: &mut AnyConnection, model_id: &str, params: &[Pair]) -> Result<(), TrackError> {
    for param in params {
        limits::key("params.key", &param.key)?;
        limits::length("params.value", &param.value, limits::MAX_PARAM_VALUE)?;
        sqlx::query(
            "INSERT INTO logged_model_params (model_id, key, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(model_id)
        .bind(&param.key)
        .bind(&param.value)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

async fn put_tags(tx: &mut AnyConnection, model_id: &str, tags: &[Pair]) -> Result<(), TrackError> {
    for tag in tags {
        required("tags.key", &tag.key)?;
        limits::length("tags.value", &tag.value, limits::MAX_TAG_VALUE)?;
        sqlx::query(
            "INSERT INTO logged_model_tags (model_id, key, value) VALUES ($1, $2, $3)
             ON CONFLICT (model_id, key) DO UPDATE SET value = excluded.value",
        )
        .bind(model_id)
        .bind(&tag.key)
        .bind(&tag.value)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

fn column(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "name" => ("m.name", true),
        "model_id" => ("m.model_id", true),
        "model_type" => ("m.model_type", true),
        "status" => ("m.status", true),
        "source_run_id" => ("m.source_run_id", true),
        "creation_timestamp" | "creation_time" => ("m.creation_timestamp_ms", false),
        "last_updated_timestamp" | "last_updated_time" => ("m.last_updated_timestamp_ms", false),
        _ => return None,
    })
}

fn push_clause(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    let name = &clause.key.name;
    let table = match clause.key.entity {
        Entity::Attribute => {
            let (column, is_text) = column(name).ok_or_else(|| invalid_key(name))?;
            return if is_text { compare_text(query, column, clause) } else { compare_number(query, column, clause) };
        }
        Entity::Metric => "logged_model_metrics",
        Entity::Param => "logged_model_params",
        Entity::Tag => "logged_model_tags",
        _ => return Err(invalid_key(name)),
    };
    query.push(format!("EXISTS (SELECT 1 FROM {table} x WHERE x.model_id = m.model_id AND x.key = "));
    query.push_bind(name.clone()).push(" AND ");
    match clause.key.entity {
        Entity::Metric => compare_number(query, "x.value", clause)?,
        _ => compare_text(query, "x.value", clause)?,
    }
    query.push(")");
    Ok(())
}

fn push_order(query: &mut QueryBuilder, order: &OrderField) -> Result<(), TrackError> {
    let key = filter::parse_order(&order.field_name)?.key;
    let direction = if order.ascending { " ASC, " } else { " DESC, " };
    match key.entity {
        Entity::Attribute => {
            query.push(column(&key.name).ok_or_else(|| invalid_key(&key.name))?.0).push(direction);
        }
        Entity::Metric => {
            // Models without the metric last, in either direction.
            let value = "(SELECT MAX(x.value) FROM logged_model_metrics x WHERE x.model_id = m.model_id AND x.key = ";
            query.push("CASE WHEN ").push(value).push_bind(key.name.clone()).push(") IS NULL THEN 1 ELSE 0 END, ");
            query.push(value).push_bind(key.name).push(")").push(direction);
        }
        _ => return Err(invalid_key(&key.name)),
    }
    Ok(())
}

fn invalid_key(name: &str) -> TrackError {
    TrackError::Invalid(format!("Invalid key '{name}' for a search of logged models"))
}
