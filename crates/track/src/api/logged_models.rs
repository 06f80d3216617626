use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::json;

use super::{Args, Listing, Reply, checks, done, missing, page};
use crate::wire::{ExperimentId, Int, Pair, enum_name, or_empty, present};
use crate::{LoggedModelSearch, NewLoggedModel, OrderField, Tracker};

#[derive(Deserialize)]
pub struct Create {
    experiment_id: ExperimentId,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    source_run_id: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    params: Vec<Pair>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn create(State(tracker): State<Tracker>, Args(args): Args<Create>) -> Reply {
    let model_id = format!("m-{}", uuid::Uuid::new_v4().simple());
    let new = NewLoggedModel {
        name: args.name.filter(|name| !name.is_empty()).unwrap_or_else(super::runs::random_name),
        model_id,
        experiment_id: args.experiment_id,
        model_type: args.model_type,
        source_run_id: args.source_run_id,
        params: args.params,
        tags: args.tags,
    };
    Ok(Json(json!({ "model": tracker.store.create_logged_model(new, tracker.now()).await? })))
}

pub async fn get(State(tracker): State<Tracker>, Path(id): Path<String>) -> Reply {
    Ok(Json(json!({ "model": tracker.store.logged_model(&id).await? })))
}

#[derive(Deserialize)]
pub struct Finalize {
    #[serde(deserialize_with = "enum_name")]
    status: Option<String>,
}

pub async fn finalize(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<Finalize>) -> Reply {
    let status = status_name(args.status.filter(|status| !status.is_empty()).ok_or_else(|| missing("status"))?);
    let model = tracker.store.finalize_logged_model(&id, &status, tracker.now()).await?;
    Ok(Json(json!({ "model": model })))
}

pub async fn delete(State(tracker): State<Tracker>, Path(id): Path<String>) -> Reply {
    tracker.store.delete_logged_model(&id, tracker.now()).await?;
    done()
}

/// A status by its number in MLflow's protocol.
fn status_name(given: String) -> String {
    match given.as_str() {
        "1" => "LOGGED_MODEL_PENDING".into(),
        "2" => "LOGGED_MODEL_READY".into(),
        "3" => "LOGGED_MODEL_UPLOAD_FAILED".into(),
        _ => given,
    }
}

#[derive(Deserialize)]
pub struct Tags {
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn set_tags(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<Tags>) -> Reply {
    Ok(Json(json!({ "model": tracker.store.set_model_tags(&id, &args.tags, tracker.now()).await? })))
}

pub async fn delete_tag(State(tracker): State<Tracker>, Path((id, key)): Path<(String, String)>) -> Reply {
    tracker.store.delete_model_tag(&id, &key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Params {
    #[serde(default, deserialize_with = "or_empty")]
    params: Vec<Pair>,
}

pub async fn log_params(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<Params>) -> Reply {
    tracker.store.log_model_params(&id, &args.params, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Search {
    #[serde(deserialize_with = "present")]
    experiment_ids: Vec<ExperimentId>,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    order_by: Vec<OrderField>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let search = LoggedModelSearch {
        experiment_ids: args.experiment_ids,
        filter: args.filter.unwrap_or_default(),
        order_by: args.order_by,
        max_results: checks::page_size(args.max_results)?,
        page_token: args.page_token.unwrap_or_default(),
    };
    page("models", tracker.store.search_logged_models(&search).await?)
}
