use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use sqlx::{AnyConnection, Row as _};

use super::query::QueryBuilder;
use super::search::{Page, compare_number, compare_text, page_bounds, page_of};
use super::{Millis, Store, required};
use crate::TrackError;
use crate::filter::{self, Clause, Direction, Entity, Test};
use crate::limits;
use crate::wire::ExperimentId;

/// The tag of a record or dataset that says who wrote it.
const USER_TAG: &str = "mlflow.user";
/// Characters of a digest that are shown.
const DIGEST_LENGTH: usize = 8;

/// A golden dataset without its records.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct EvaluationDataset {
    pub dataset_id: String,
    pub name: String,
    pub tags: BTreeMap<String, String>,
    /// Names and types of what records hold, as JSON.
    pub schema: Option<String>,
    /// Counts, as JSON.
    pub profile: Option<String>,
    /// Of name and records: datasets with the same records have the same digest.
    pub digest: String,
    pub created_time: i64,
    pub last_update_time: i64,
    pub created_by: Option<String>,
    pub last_updated_by: Option<String>,
}

/// What `datasets/search` asks; every dataset if no experiments are named.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct DatasetSearch {
    pub experiment_ids: Vec<ExperimentId>,
    pub filter: String,
    pub order_by: Vec<String>,
    pub max_results: i64,
    pub page_token: String,
}

/// How many records an upsert made and changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Upserted {
    pub inserted: usize,
    pub updated: usize,
}

impl Store {
    /// A new golden dataset without records.
    pub async fn create_dataset(
        &self,
        dataset_id: &str,
        name: &str,
        tags: &BTreeMap<String, String>,
        experiment_ids: &[ExperimentId],
        now: Millis,
    ) -> Result<EvaluationDataset, TrackError> {
        required("name", name)?;
        limits::length("name", name, limits::MAX_DATASET_NAME)?;
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO evaluation_datasets (dataset_id, name, digest, created_time, last_update_time, created_by,
                                              last_updated_by) VALUES ($1, $2, $3, $4, $4, $5, $5)",
        )
        .bind(dataset_id)
        .bind(name)
        .bind(digest(name, &[]))
        .bind(now.0)
        .bind(tags.get(USER_TAG))
        .execute(&mut *tx)
        .await?;
        for (key, value) in tags {
            put_tag(&mut tx, dataset_id, key, value).await?;
        }
        for id in experiment_ids {
            associate(&mut tx, dataset_id, *id).await?;
        }
        tx.commit().await?;
        self.dataset(dataset_id).await
    }

    /// One dataset.
    pub async fn dataset(&self, dataset_id: &str) -> Result<EvaluationDataset, TrackError> {
        let row = sqlx::query("SELECT * FROM evaluation_datasets WHERE dataset_id = $1")
            .bind(dataset_id)
            .fetch_optional(&self.reads)
            .await?;
        self.read_dataset(&row.ok_or_else(|| no_dataset(dataset_id))?).await
    }

    /// Datasets that match, newest first unless ordered otherwise.
    pub async fn search_evaluation_datasets(
        &self,
        search: &DatasetSearch,
    ) -> Result<Page<EvaluationDataset>, TrackError> {
        let (limit, offset) = page_bounds(search.max_results, 1000, limits::MAX_DATASETS_PER_PAGE, &search.page_token)?;
        let mut query = QueryBuilder::new("SELECT * FROM evaluation_datasets d WHERE 1 = 1");
        if !search.experiment_ids.is_empty() {
            query.push(" AND EXISTS (SELECT 1 FROM evaluation_dataset_experiments e WHERE e.dataset_id = d.dataset_id");
            query.push(" AND e.experiment_id IN (").push_binds(search.experiment_ids.iter().map(|id| id.0)).push("))");
        }
        for clause in filter::parse(&search.filter)? {
            query.push(" AND ");
            push_clause(&mut query, &clause)?;
        }
        query.push(" ORDER BY ");
        for text in &search.order_by {
            let order = filter::parse_order(text)?;
            let column = column(&order.key.name).filter(|_| order.key.entity == Entity::Attribute);
            let (column, _) = column.ok_or_else(|| invalid_key(&order.key.name))?;
            let direction = if order.direction == Direction::Ascending { "ASC" } else { "DESC" };
            query.push(format_args!("CASE WHEN {column} IS NULL THEN 1 ELSE 0 END, {column} {direction}, "));
        }
        query.push("d.created_time DESC, d.dataset_id LIMIT ").push_bind(limit + 1).push(" OFFSET ").push_bind(offset);
        let page = page_of(query.build().fetch_all(&self.reads).await?, limit, offset);
        let mut items = Vec::with_capacity(page.items.len());
        for row in &page.items {
            items.push(self.read_dataset(row).await?);
        }
        Ok(Page { items, next_page_token: page.next_page_token })
    }

    /// Removes a dataset and its records.
    pub async fn delete_dataset(&self, dataset_id: &str) -> Result<(), TrackError> {
        sqlx::query("DELETE FROM evaluation_datasets WHERE dataset_id = $1")
            .bind(dataset_id)
            .execute(&self.writes)
            .await?;
        Ok(())
    }

    /// Sets tags of a dataset.
    pub async fn set_dataset_tags(
        &self,
        dataset_id: &str,
        tags: &BTreeMap<String, String>,
        now: Millis,
    ) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, dataset_id, now).await?;
        for (key, value) in tags {
            put_tag(&mut tx, dataset_id, key, value).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Removes a tag of a dataset; one that is not there is fine.
    pub async fn delete_dataset_tag(&self, dataset_id: &str, key: &str, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, dataset_id, now).await?;
        sqlx::query("DELETE FROM evaluation_dataset_tags WHERE dataset_id = $1 AND key = $2")
            .bind(dataset_id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Adds a dataset to experiments.
    pub async fn add_dataset_to(
        &self,
        dataset_id: &str,
        experiments: &[ExperimentId],
        now: Millis,
    ) -> Result<EvaluationDataset, TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, dataset_id, now).await?;
        for id in experiments {
            associate(&mut tx, dataset_id, *id).await?;
        }
        tx.commit().await?;
        self.dataset(dataset_id).await
    }

    /// Takes a dataset out of experiments.
    pub async fn remove_dataset_from(
        &self,
        dataset_id: &str,
        experiments: &[ExperimentId],
        now: Millis,
    ) -> Result<EvaluationDataset, TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, dataset_id, now).await?;
        for id in experiments {
            sqlx::query("DELETE FROM evaluation_dataset_experiments WHERE dataset_id = $1 AND experiment_id = $2")
                .bind(dataset_id)
                .bind(id.0)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        self.dataset(dataset_id).await
    }

    /// The experiments a dataset was added to.
    pub async fn dataset_experiments(&self, dataset_id: &str) -> Result<Vec<ExperimentId>, TrackError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT experiment_id FROM evaluation_dataset_experiments WHERE dataset_id = $1 ORDER BY experiment_id",
        )
        .bind(dataset_id)
        .fetch_all(&self.reads)
        .await?;
        Ok(ids.into_iter().map(ExperimentId).collect())
    }

    /// Adds records. One with inputs that are there already is merged: expectations and tags are added, outputs replaced.
    pub async fn upsert_records(
        &self,
        dataset_id: &str,
        records: Vec<(String, Map<String, Json>)>,
        now: Millis,
    ) -> Result<Upserted, TrackError> {
        let mut tx = self.write().await?;
        let (name,): (String,) = sqlx::query_as("SELECT name FROM evaluation_datasets WHERE dataset_id = $1")
            .bind(dataset_id)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| no_dataset(dataset_id))?;
        let mut done = Upserted::default();
        for (record_id, record) in records {
            put_record(&mut tx, dataset_id, &record_id, record, now, &mut done).await?;
        }
        retell(&mut tx, dataset_id, &name, now).await?;
        tx.commit().await?;
        Ok(done)
    }

    /// A page of records, in the order in which they came.
    pub async fn records(&self, dataset_id: &str, max_results: i64, token: &str) -> Result<Page<Json>, TrackError> {
        let (limit, offset) = page_bounds(max_results, 1000, limits::MAX_RUNS_PER_PAGE, token)?;
        self.dataset(dataset_id).await?;
        let texts: Vec<String> = sqlx::query_scalar(
            "SELECT content FROM evaluation_dataset_records WHERE dataset_id = $1 ORDER BY position LIMIT $2 OFFSET $3",
        )
        .bind(dataset_id)
        .bind(limit + 1)
        .bind(offset)
        .fetch_all(&self.reads)
        .await?;
        let records = texts.iter().map(|text| stored_json(text)).collect::<Result<_, _>>()?;
        Ok(page_of(records, limit, offset))
    }

    /// Removes records; says how many were there.
    pub async fn delete_records(&self, dataset_id: &str, ids: &[String], now: Millis) -> Result<u64, TrackError> {
        let mut tx = self.write().await?;
        let name: Option<(String,)> = sqlx::query_as("SELECT name FROM evaluation_datasets WHERE dataset_id = $1")
            .bind(dataset_id)
            .fetch_optional(&mut *tx)
            .await?;
        let (name,) = name.ok_or_else(|| no_dataset(dataset_id))?;
        let mut n = 0;
        for id in ids {
            n += sqlx::query("DELETE FROM evaluation_dataset_records WHERE dataset_id = $1 AND record_id = $2")
                .bind(dataset_id)
                .bind(id)
                .execute(&mut *tx)
                .await?
                .rows_affected();
        }
        retell(&mut tx, dataset_id, &name, now).await?;
        tx.commit().await?;
        Ok(n)
    }

    async fn read_dataset(&self, row: &sqlx::any::AnyRow) -> Result<EvaluationDataset, TrackError> {
        let dataset_id: String = row.try_get("dataset_id")?;
        let tags: Vec<(String, String)> =
            sqlx::query_as("SELECT key, value FROM evaluation_dataset_tags WHERE dataset_id = $1")
                .bind(&dataset_id)
                .fetch_all(&self.reads)
                .await?;
        Ok(EvaluationDataset {
            dataset_id,
            name: row.try_get("name")?,
            tags: tags.into_iter().collect(),
            schema: row.try_get("schema")?,
            profile: row.try_get("profile")?,
            digest: row.try_get("digest")?,
            created_time: row.try_get("created_time")?,
            last_update_time: row.try_get("last_update_time")?,
            created_by: row.try_get("created_by")?,
            last_updated_by: row.try_get("last_updated_by")?,
        })
    }
}

fn no_dataset(dataset_id: &str) -> TrackError {
    TrackError::Missing(format!("Evaluation dataset with id '{dataset_id}' not found"))
}

fn invalid_key(name: &str) -> TrackError {
    TrackError::Invalid(format!(
        "Invalid key '{name}' for a search of datasets; they have name, dataset_id, digest, created_by, last_updated_by, \
         created_time, last_update_time and tags"
    ))
}

fn stored_json(text: &str) -> Result<Json, TrackError> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(Box::new(error)).into())
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of a name and the digests of its records.
fn digest(name: &str, records: &[String]) -> String {
    sha256(&format!("{name}\n{}", records.join("\n"))).chars().take(DIGEST_LENGTH).collect()
}

async fn touch(tx: &mut AnyConnection, dataset_id: &str, now: Millis) -> Result<(), TrackError> {
    let changed = sqlx::query("UPDATE evaluation_datasets SET last_update_time = $1 WHERE dataset_id = $2")
        .bind(now.0)
        .bind(dataset_id)
        .execute(tx)
        .await?;
    if changed.rows_affected() == 0 { Err(no_dataset(dataset_id)) } else { Ok(()) }
}

async fn put_tag(tx: &mut AnyConnection, dataset_id: &str, key: &str, value: &str) -> Result<(), TrackError> {
    limits::key("key", key)?;
    limits::length("value", value, limits::MAX_TAG_VALUE)?;
    sqlx::query(
        "INSERT INTO evaluation_dataset_tags (dataset_id, key, value) VALUES ($1, $2, $3)
         ON CONFLICT (dataset_id, key) DO UPDATE SET value = excluded.value",
    )
    .bind(dataset_id)
    .bind(key)
    .bind(value)
    .execute(tx)
    .await?;
    Ok(())
}

async fn associate(tx: &mut AnyConnection, dataset_id: &str, experiment: ExperimentId) -> Result<(), TrackError> {
    super::experiments::active_experiment(tx, experiment).await?;
    sqlx::query(
        "INSERT INTO evaluation_dataset_experiments (dataset_id, experiment_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(dataset_id)
    .bind(experiment.0)
    .execute(tx)
    .await?;
    Ok(())
}

async fn put_record(
    tx: &mut AnyConnection,
    dataset_id: &str,
    record_id: &str,
    new: Map<String, Json>,
    now: Millis,
    done: &mut Upserted,
) -> Result<(), TrackError> {
    // serde_json keeps the keys of objects sorted, so equal inputs have equal text.
    let inputs = new.get("inputs").cloned().unwrap_or_else(|| json!({}));
    let input_digest = sha256(&inputs.to_string());
    let before: Option<(String, String)> = sqlx::query_as(
        "SELECT record_id, content FROM evaluation_dataset_records WHERE dataset_id = $1 AND input_digest = $2",
    )
    .bind(dataset_id)
    .bind(&input_digest)
    .fetch_optional(&mut *tx)
    .await?;
    let (record_id, record) = match before {
        Some((id, text)) => {
            done.updated += 1;
            (id, merged(stored_json(&text)?, &new, now))
        }
        None => {
            done.inserted += 1;
            (record_id.to_owned(), first(dataset_id, record_id, inputs, new, now))
        }
    };
    sqlx::query(
        "INSERT INTO evaluation_dataset_records (record_id, dataset_id, position, input_digest, content)
         VALUES ($1, $2, (SELECT COALESCE(MAX(position), 0) + 1 FROM evaluation_dataset_records WHERE dataset_id = $2),
                 $3, $4)
         ON CONFLICT (record_id) DO UPDATE SET content = excluded.content",
    )
    .bind(record_id)
    .bind(dataset_id)
    .bind(input_digest)
    .bind(record.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

fn first(dataset_id: &str, record_id: &str, inputs: Json, mut new: Map<String, Json>, now: Millis) -> Json {
    let user = user_of(&new);
    let mut record = Map::new();
    record.insert("dataset_record_id".into(), record_id.into());
    record.insert("dataset_id".into(), dataset_id.into());
    record.insert("inputs".into(), inputs);
    record.insert("outputs".into(), new.remove("outputs").unwrap_or_else(|| json!({})));
    for field in ["expectations", "tags", "source"] {
        if let Some(value) = new.remove(field).filter(|value| !value.is_null()) {
            record.insert(field.into(), value);
        }
    }
    if let Some(source) = record.get("source").cloned() {
        record.insert("source_type".into(), source["source_type"].clone());
        if let Some(id) = source["source_data"].get("trace_id") {
            record.insert("source_id".into(), id.clone());
        }
    }
    record.insert("created_time".into(), now.0.into());
    record.insert("last_update_time".into(), now.0.into());
    record.insert("created_by".into(), user.clone());
    record.insert("last_updated_by".into(), user);
    Json::Object(record)
}

fn merged(mut record: Json, new: &Map<String, Json>, now: Millis) -> Json {
    for field in ["expectations", "tags"] {
        let Some(Json::Object(added)) = new.get(field) else { continue };
        match record.get_mut(field) {
            Some(Json::Object(kept)) => kept.extend(added.clone()),
            _ => record[field] = Json::Object(added.clone()),
        }
    }
    if let Some(outputs) = new.get("outputs") {
        record["outputs"] = outputs.clone();
    }
    record["last_update_time"] = now.0.into();
    let user = user_of(new);
    if !user.is_null() {
        record["last_updated_by"] = user;
    }
    record
}

fn user_of(record: &Map<String, Json>) -> Json {
    record.get("tags").and_then(|tags| tags.get(USER_TAG)).cloned().unwrap_or(Json::Null)
}

/// Schema, profile and digest of a dataset from its records.
async fn retell(tx: &mut AnyConnection, dataset_id: &str, name: &str, now: Millis) -> Result<(), TrackError> {
    let texts: Vec<String> =
        sqlx::query_scalar("SELECT content FROM evaluation_dataset_records WHERE dataset_id = $1 ORDER BY position")
            .bind(dataset_id)
            .fetch_all(&mut *tx)
            .await?;
    let records = texts.iter().map(|text| stored_json(text)).collect::<Result<Vec<_>, _>>()?;
    let mut digests: Vec<String> = records.iter().map(record_digest).collect();
    digests.sort();
    let last = records.iter().max_by_key(|record| record["last_update_time"].as_i64());
    let user = last.and_then(|record| record["last_updated_by"].as_str());
    sqlx::query(
        "UPDATE evaluation_datasets SET schema = $1, profile = $2, digest = $3, last_update_time = $4,
                last_updated_by = COALESCE($5, last_updated_by) WHERE dataset_id = $6",
    )
    .bind((!records.is_empty()).then(|| schema(&records).to_string()))
    .bind((!records.is_empty()).then(|| json!({ "num_records": records.len() }).to_string()))
    .bind(digest(name, &digests))
    .bind(now.0)
    .bind(user)
    .bind(dataset_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Of what a record says, not of who said it when.
fn record_digest(record: &Json) -> String {
    sha256(&json!([record["inputs"], record["outputs"], record["expectations"]]).to_string())
}

fn schema(records: &[Json]) -> Json {
    let of = |field: &str| {
        let mut types = Map::new();
        for record in records {
            match record.get(field) {
                Some(Json::Object(values)) => {
                    types.extend(values.iter().map(|(key, value)| (key.clone(), type_of(value).into())));
                }
                None | Some(Json::Null) => {}
                Some(value) => return Json::from(type_of(value)),
            }
        }
        Json::Object(types)
    };
    json!({ "inputs": of("inputs"), "outputs": of("outputs"), "expectations": of("expectations"), "version": "1.0" })
}

fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(number) if number.is_f64() => "float",
        Json::Number(_) => "integer",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

/// Column and whether it is text.
fn column(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "name" => ("d.name", true),
        "dataset_id" => ("d.dataset_id", true),
        "digest" => ("d.digest", true),
        "created_by" => ("d.created_by", true),
        "last_updated_by" => ("d.last_updated_by", true),
        "created_time" => ("d.created_time", false),
        "last_update_time" => ("d.last_update_time", false),
        _ => return None,
    })
}

fn push_clause(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    let name = &clause.key.name;
    match clause.key.entity {
        Entity::Attribute => {
            let (column, is_text) = column(name).ok_or_else(|| invalid_key(name))?;
            if is_text { compare_text(query, column, clause) } else { compare_number(query, column, clause) }
        }
        Entity::Tag => {
            query.push(if matches!(clause.test, Test::IsNull) { "NOT EXISTS (" } else { "EXISTS (" });
            query.push("SELECT 1 FROM evaluation_dataset_tags x WHERE x.dataset_id = d.dataset_id AND x.key = ");
            query.push_bind(name.clone());
            if !matches!(clause.test, Test::IsNull | Test::IsNotNull) {
                query.push(" AND ");
                compare_text(query, "x.value", clause)?;
            }
            query.push(")");
            Ok(())
        }
        _ => Err(invalid_key(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_merged_by_what_is_new() {
        let record = json!({"expectations": {"a": 1}, "outputs": {}, "tags": {"t": "u"}});
        let new = json!({"expectations": {"b": 2}, "outputs": "x"});
        let merged = merged(record, new.as_object().unwrap(), Millis(5));
        let expected =
            json!({"expectations": {"a": 1, "b": 2}, "outputs": "x", "tags": {"t": "u"}, "last_update_time": 5});
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_digest_is_of_what_records_say() {
        let one = json!({"inputs": {"q": 1}, "expectations": {"a": "x"}, "created_time": 1});
        let later = json!({"inputs": {"q": 1}, "expectations": {"a": "x"}, "created_time": 2});
        let other = json!({"inputs": {"q": 2}, "expectations": {"a": "x"}, "created_time": 1});
        assert_eq!(record_digest(&one), record_digest(&later));
        assert_ne!(record_digest(&one), record_digest(&other));
        assert_eq!(digest("d", &[]).len(), DIGEST_LENGTH);
    }
}
