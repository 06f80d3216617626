use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::experiments::{Tag, experiment_id};
use crate::api::{Args, Edge};
use crate::filter::{Direction, Entity, Key, Order};
use crate::store::{CellValue, TableRow, TableSearch};
use crate::wire::{Float, LoggedModel, Run};
use crate::{TrackError, Tracker, View};

/// Rows of one page of a table.
const MAX_ROWS: i64 = 500;
const MAX_COLUMNS: usize = 100;
const MAX_ORDERS: usize = 4;
/// Runs compared at once.
const MAX_COMPARED: usize = 100;
/// A cell shows this many characters of a param or tag; the run's page shows all.
const MAX_CELL_CHARS: usize = 200;

/// What a table shows.
#[derive(Deserialize, ToSchema)]
pub struct TableQuery {
    experiment_ids: Vec<String>,
    /// In MLflow's search language.
    #[serde(default)]
    filter: String,
    /// Part of a run's name, id or user.
    #[serde(default)]
    text: String,
    /// `active`, `deleted` or `all`.
    #[serde(default = "active")]
    view: String,
    #[serde(default)]
    order_by: Vec<OrderBy>,
    /// `metrics.KEY`, `params.KEY` or `tags.KEY`, unquoted.
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    offset: i64,
    /// At most 500.
    limit: i64,
}

fn active() -> String {
    "active".to_owned()
}

/// One sort key.
#[derive(Deserialize, ToSchema)]
pub struct OrderBy {
    /// A column, or `attributes.KEY`.
    column: String,
    #[serde(default)]
    descending: bool,
}

#[derive(Serialize, ToSchema)]
pub struct TablePage {
    rows: Vec<Row>,
    /// Runs that match, on all pages.
    n_rows: i64,
}

/// One run in a table.
#[derive(Serialize, ToSchema)]
pub struct Row {
    id: String,
    experiment_id: String,
    name: String,
    user: String,
    /// `RUNNING`, `SCHEDULED`, `FINISHED`, `FAILED` or `KILLED`.
    status: String,
    started: i64,
    #[schema(required)]
    ended: Option<i64>,
    deleted: bool,
    /// One for each column asked for.
    cells: Vec<Option<Cell>>,
}

/// A number, or text; a metric that is not a number is the text `NaN`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Cell {
    Number(f64),
    Text(String),
}

/// A run, whole.
#[derive(Serialize, ToSchema)]
pub struct RunDetail {
    id: String,
    name: String,
    experiment_id: String,
    experiment_name: String,
    user: String,
    status: String,
    started: i64,
    #[schema(required)]
    ended: Option<i64>,
    deleted: bool,
    artifact_uri: String,
    metrics: Vec<LatestMetric>,
    params: Vec<Tag>,
    tags: Vec<Tag>,
    datasets: Vec<DatasetRead>,
    /// Logged models it read and made.
    models: Vec<ModelOfRun>,
    /// Registered versions that name this run.
    versions: Vec<VersionOfRun>,
}

/// The last value of a metric.
#[derive(Serialize, ToSchema)]
pub struct LatestMetric {
    key: String,
    value: Cell,
    step: i64,
    time: i64,
}

#[derive(Serialize, ToSchema)]
pub struct DatasetRead {
    name: String,
    digest: String,
    source_type: String,
    source: String,
    /// What it was used for.
    #[schema(required)]
    context: Option<String>,
    /// JSON, as the client sent it.
    #[schema(required)]
    schema: Option<String>,
    /// JSON, as the client sent it.
    #[schema(required)]
    profile: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct ModelOfRun {
    id: String,
    /// `input` or `output`.
    direction: String,
    name: String,
    status: String,
    #[schema(required)]
    model_type: Option<String>,
    created: i64,
    params: Vec<Tag>,
    metrics: Vec<LatestMetric>,
    /// Registered models and versions made of it.
    versions: Vec<VersionOfRun>,
}

#[derive(Serialize, ToSchema)]
pub struct VersionOfRun {
    name: String,
    version: String,
}

/// Which runs.
#[derive(Deserialize, ToSchema)]
pub struct RunsQuery {
    /// At most 100.
    run_ids: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub struct Runs {
    /// In the order asked for; unknown ids are left out.
    runs: Vec<ComparedRun>,
}

/// A run and what it logged.
#[derive(Serialize, ToSchema)]
pub struct ComparedRun {
    id: String,
    name: String,
    experiment_id: String,
    user: String,
    status: String,
    started: i64,
    #[schema(required)]
    ended: Option<i64>,
    metrics: Vec<LatestMetric>,
    params: Vec<Tag>,
    tags: Vec<Tag>,
    datasets: Vec<String>,
}

/// A page of the table of runs: sorted, filtered and cut here, with no more than the columns shown.
#[utoipa::path(post, operation_id = "run_table", path = "/runs/table", request_body = TableQuery, responses((status = OK, body = TablePage)))]
pub async fn table(State(tracker): State<Tracker>, Args(query): Args<TableQuery>) -> Result<Json<TablePage>, Edge> {
    let table = tracker.store.run_table(&search_of(query)?).await?;
    Ok(Json(TablePage { rows: table.rows.into_iter().map(shown_row).collect(), n_rows: table.n_rows }))
}

/// One run, deleted or not.
#[utoipa::path(get, operation_id = "get_run", path = "/runs/{id}", params(("id" = String, Path)), responses((status = OK, body = RunDetail)))]
pub async fn get(State(tracker): State<Tracker>, Path(id): Path<String>) -> Result<Json<RunDetail>, Edge> {
    let run = tracker.store.run(&id).await?;
    let experiment = tracker.store.experiment(run.info.experiment_id).await?;
    let filter = format!("run_id = '{}'", id.replace('\'', "''"));
    let versions = tracker.store.search_model_versions(&filter, &[], MAX_ROWS, "").await?.items;
    let versions = versions.into_iter().map(|v| VersionOfRun { name: v.name, version: v.version }).collect();
    let models = models_of(&tracker, &run).await?;
    let datasets = run.inputs.dataset_inputs.iter().map(|input| {
        let dataset = input.dataset.clone();
        let context = input.tags.iter().find(|tag| tag.key == "mlflow.data.context").map(|tag| tag.value.clone());
        DatasetRead {
            name: dataset.name,
            digest: dataset.digest,
            source_type: dataset.source_type,
            source: dataset.source,
            context,
            schema: dataset.schema,
            profile: dataset.profile,
        }
    });
    let datasets = datasets.collect();
    let info = run.info;
    Ok(Json(RunDetail {
        id: info.run_id,
        name: info.run_name,
        experiment_id: info.experiment_id.to_string(),
        experiment_name: experiment.name,
        user: info.user_id,
        status: info.status,
        started: info.start_time,
        ended: info.end_time,
        deleted: info.lifecycle_stage == "deleted",
        artifact_uri: info.artifact_uri,
        metrics: metrics(run.data.metrics),
        params: pairs(run.data.params),
        tags: pairs(run.data.tags),
        datasets,
        models,
        versions,
    }))
}

/// Several runs with all they logged, for a comparison.
#[utoipa::path(post, operation_id = "get_runs", path = "/runs", request_body = RunsQuery, responses((status = OK, body = Runs)))]
pub async fn several(State(tracker): State<Tracker>, Args(query): Args<RunsQuery>) -> Result<Json<Runs>, Edge> {
    at_most("run_ids", query.run_ids.len(), MAX_COMPARED)?;
    let found = tracker.store.runs(&query.run_ids).await?;
    let compared = |run: Run| ComparedRun {
        id: run.info.run_id,
        name: run.info.run_name,
        experiment_id: run.info.experiment_id.to_string(),
        user: run.info.user_id,
        status: run.info.status,
        started: run.info.start_time,
        ended: run.info.end_time,
        metrics: metrics(run.data.metrics),
        params: pairs(run.data.params),
        tags: pairs(run.data.tags),
        datasets: run
            .inputs
            .dataset_inputs
            .into_iter()
            .map(|i| format!("{} ({})", i.dataset.name, i.dataset.digest))
            .collect(),
    };
    Ok(Json(Runs { runs: found.into_iter().map(compared).collect() }))
}

/// Errors if a request names more than `max` of something.
pub fn at_most(what: &str, given: usize, max: usize) -> Result<(), TrackError> {
    if given <= max {
        return Ok(());
    }
    Err(TrackError::Invalid(format!("`{what}` has {given} entries; at most {max} are answered at once")))
}

fn search_of(query: TableQuery) -> Result<TableSearch, TrackError> {
    at_most("columns", query.columns.len(), MAX_COLUMNS)?;
    at_most("order_by", query.order_by.len(), MAX_ORDERS)?;
    if !(0..=MAX_ROWS).contains(&query.limit) || query.offset < 0 {
        return Err(TrackError::Invalid(format!("`limit` must be 0 to {MAX_ROWS} and `offset` not negative")));
    }
    let view = match query.view.as_str() {
        "active" => View::Active,
        "deleted" => View::Deleted,
        "all" => View::All,
        other => return Err(TrackError::Invalid(format!("`view` must be active, deleted or all, not `{other}`"))),
    };
    let order = |order: OrderBy| {
        let direction = if order.descending { Direction::Descending } else { Direction::Ascending };
        Ok(Order { key: key(&order.column)?, direction })
    };
    Ok(TableSearch {
        experiment_ids: query.experiment_ids.iter().map(|id| experiment_id(id)).collect::<Result<_, _>>()?,
        filter: query.filter,
        text: query.text,
        view,
        orders: query.order_by.into_iter().map(order).collect::<Result<_, TrackError>>()?,
        columns: query.columns.iter().map(|column| key(column)).collect::<Result<_, _>>()?,
        offset: query.offset,
        limit: query.limit,
    })
}

/// `metrics.a b.c` names the metric `a b.c`: only the first dot counts, and nothing is quoted.
fn key(column: &str) -> Result<Key, TrackError> {
    let unknown = || TrackError::Invalid(format!("`{column}` is no column: metrics.KEY, params.KEY or tags.KEY"));
    let (table, name) = column.split_once('.').ok_or_else(unknown)?;
    let entity = match table {
        "metrics" => Entity::Metric,
        "params" => Entity::Param,
        "tags" => Entity::Tag,
        "attributes" => Entity::Attribute,
        _ => return Err(unknown()),
    };
    Ok(Key { entity, name: name.to_owned() })
}

fn shown_row(row: TableRow) -> Row {
    let cell = |value| match value {
        CellValue::Number(number) => number_cell(number),
        CellValue::Text(text) => Cell::Text(text.chars().take(MAX_CELL_CHARS).collect()),
    };
    Row {
        id: row.run_id,
        experiment_id: row.experiment_id.to_string(),
        name: row.run_name,
        user: row.user_id,
        status: row.status,
        started: row.start_time,
        ended: row.end_time,
        deleted: row.lifecycle_stage == "deleted",
        cells: row.cells.into_iter().map(|value| value.map(cell)).collect(),
    }
}

fn number_cell(Float(number): Float) -> Cell {
    if number.is_nan() { Cell::Text("NaN".to_owned()) } else { Cell::Number(number) }
}

fn metrics(found: Vec<crate::wire::Metric>) -> Vec<LatestMetric> {
    let latest = |metric: crate::wire::Metric| LatestMetric {
        key: metric.key,
        value: number_cell(metric.value),
        step: metric.step,
        time: metric.timestamp,
    };
    found.into_iter().map(latest).collect()
}

fn pairs(found: Vec<crate::wire::Pair>) -> Vec<Tag> {
    found.into_iter().map(|pair| Tag { key: pair.key, value: pair.value }).collect()
}

/// A model that was deleted since is left out.
async fn models_of(tracker: &Tracker, run: &Run) -> Result<Vec<ModelOfRun>, TrackError> {
    let read = run.inputs.model_inputs.iter().map(|model| ("input", &model.model_id));
    let made = run.outputs.model_outputs.iter().map(|model| ("output", &model.model_id));
    let mut models = Vec::new();
    for (direction, id) in read.chain(made).take(MAX_COMPARED) {
        match tracker.store.logged_model(id).await {
            Ok(model) => models.push(model_of_run(direction, model)),
            Err(TrackError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(models)
}

fn model_of_run(direction: &str, LoggedModel { info, data }: LoggedModel) -> ModelOfRun {
    let versions = info.registrations.into_iter().map(|made| VersionOfRun { name: made.name, version: made.version });
    ModelOfRun {
        id: info.model_id,
        direction: direction.to_owned(),
        name: info.name,
        status: info.status,
        model_type: info.model_type,
        created: info.creation_timestamp_ms,
        params: pairs(data.params),
        metrics: metrics(data.metrics),
        versions: versions.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_a_table_and_a_key() {
        let read = |column| key(column).map(|key| (key.entity, key.name));
        assert_eq!(read("metrics.val.loss").unwrap(), (Entity::Metric, "val.loss".to_owned()));
        assert_eq!(read("tags.a `b` '").unwrap(), (Entity::Tag, "a `b` '".to_owned()));
        assert!(read("loss").is_err() && read("datasets.name").is_err());
    }
}
