//! Golden datasets, which `mlflow.genai.datasets` writes. Tags and records are JSON inside JSON here.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{Args, Listing, Reply, checks, done, page};
use crate::wire::{ExperimentId, Int, filled, one_or_many, or_empty};
use crate::{DatasetSearch, EvaluationDataset, TrackError, Tracker, limits};

#[derive(Deserialize)]
pub struct Create {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(default, deserialize_with = "or_empty")]
    experiment_ids: Vec<ExperimentId>,
    #[serde(default)]
    tags: Option<String>,
}

pub async fn create(State(tracker): State<Tracker>, Args(args): Args<Create>) -> Reply {
    let tags = inner("tags", args.tags.as_deref().unwrap_or("{}"))?;
    let id = format!("d-{}", uuid::Uuid::new_v4().simple());
    let now = tracker.now();
    let dataset = tracker.store.create_dataset(&id, &args.name, &tags, &args.experiment_ids, now).await?;
    let mut json = dataset_json(&dataset);
    if !args.experiment_ids.is_empty() {
        json["experiment_ids"] = json!(args.experiment_ids);
    }
    Ok(Json(json!({ "dataset": json })))
}

/// JSON that a parameter holds as text.
fn inner<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, TrackError> {
    serde_json::from_str(text).map_err(|error| {
        TrackError::Invalid(format!(
            "Invalid value for parameter '{name}' supplied: its text is not the JSON expected: {error}"
        ))
    })
}

fn dataset_json(dataset: &EvaluationDataset) -> Value {
    let tags = Value::from(dataset.tags.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect::<Map<_, _>>());
    let mut json = json!({
        "dataset_id": dataset.dataset_id,
        "name": dataset.name,
        "tags": tags.to_string(),
        "digest": dataset.digest,
        "created_time": dataset.created_time,
        "last_update_time": dataset.last_update_time,
    });
    let texts = [
        ("schema", &dataset.schema),
        ("profile", &dataset.profile),
        ("created_by", &dataset.created_by),
        ("last_updated_by", &dataset.last_updated_by),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            json[name] = text.as_str().into();
        }
    }
    json
}

pub async fn get(State(tracker): State<Tracker>, Path(id): Path<String>) -> Reply {
    Ok(Json(json!({ "dataset": dataset_json(&tracker.store.dataset(&id).await?) })))
}

pub async fn delete(State(tracker): State<Tracker>, Path(id): Path<String>) -> Reply {
    tracker.store.delete_dataset(&id).await?;
    done()
}

#[derive(Deserialize)]
pub struct Search {
    #[serde(default, deserialize_with = "one_or_many")]
    experiment_ids: Vec<ExperimentId>,
    #[serde(default)]
    filter_string: Option<String>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default, deserialize_with = "one_or_many")]
    order_by: Vec<String>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let search = DatasetSearch {
        experiment_ids: args.experiment_ids,
        filter: args.filter_string.unwrap_or_default(),
        order_by: args.order_by,
        max_results: checks::page_size(args.max_results)?,
        page_token: args.page_token.unwrap_or_default(),
    };
    let found = tracker.store.search_evaluation_datasets(&search).await?;
    let items = found.items.iter().map(dataset_json).collect();
    page("datasets", crate::Page { items, next_page_token: found.next_page_token })
}

#[derive(Deserialize)]
pub struct Tags {
    #[serde(deserialize_with = "filled")]
    tags: String,
}

pub async fn set_tags(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<Tags>) -> Reply {
    let tags: BTreeMap<String, String> = inner("tags", &args.tags)?;
    tracker.store.set_dataset_tags(&id, &tags, tracker.now()).await?;
    done()
}

pub async fn delete_tag(State(tracker): State<Tracker>, Path((id, key)): Path<(String, String)>) -> Reply {
    tracker.store.delete_dataset_tag(&id, &key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Experiments {
    #[serde(default, deserialize_with = "or_empty")]
    experiment_ids: Vec<ExperimentId>,
}

pub async fn add_to(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<Experiments>) -> Reply {
    let dataset = tracker.store.add_dataset_to(&id, &args.experiment_ids, tracker.now()).await?;
    Ok(Json(json!({ "dataset": dataset_json(&dataset) })))
}

pub async fn remove_from(
    State(tracker): State<Tracker>,
    Path(id): Path<String>,
    Args(args): Args<Experiments>,
) -> Reply {
    let dataset = tracker.store.remove_dataset_from(&id, &args.experiment_ids, tracker.now()).await?;
    Ok(Json(json!({ "dataset": dataset_json(&dataset) })))
}

pub async fn experiments(State(tracker): State<Tracker>, Path(id): Path<String>) -> Listing {
    let items = tracker.store.dataset_experiments(&id).await?;
    page("experiment_ids", crate::Page { items, next_page_token: None })
}

#[derive(Deserialize)]
pub struct Upsert {
    #[serde(deserialize_with = "filled")]
    records: String,
}

pub async fn upsert_records(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<Upsert>) -> Reply {
    let records: Vec<Map<String, Value>> = inner("records", &args.records)?;
    limits::at_most("records", records.len(), limits::MAX_RECORDS_PER_CALL)?;
    let named = records.into_iter().map(|record| (format!("dr-{}", uuid::Uuid::new_v4().simple()), record)).collect();
    let upserted = tracker.store.upsert_records(&id, named, tracker.now()).await?;
    Ok(Json(json!({ "inserted_count": upserted.inserted, "updated_count": upserted.updated })))
}

#[derive(Deserialize)]
pub struct PageOf {
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn records(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<PageOf>) -> Reply {
    let n = checks::page_size(args.max_results)?;
    let found = tracker.store.records(&id, n, args.page_token.as_deref().unwrap_or_default()).await?;
    let mut reply = json!({ "records": Value::from(found.items).to_string() });
    if let Some(token) = found.next_page_token {
        reply["next_page_token"] = token.into();
    }
    Ok(Json(reply))
}

#[derive(Deserialize)]
pub struct DeleteRecords {
    #[serde(default, deserialize_with = "or_empty")]
    dataset_record_ids: Vec<String>,
}

pub async fn delete_records(
    State(tracker): State<Tracker>,
    Path(id): Path<String>,
    Args(args): Args<DeleteRecords>,
) -> Reply {
    let n = tracker.store.delete_records(&id, &args.dataset_record_ids, tracker.now()).await?;
    Ok(Json(json!({ "deleted_count": n })))
}
