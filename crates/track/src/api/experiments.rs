use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Args, Listing, Reply, checks, done, page};
use crate::wire::{ExperimentId, Int, Pair, enum_name, filled, one_or_many, or_default, or_empty};
use crate::{ExperimentSearch, TrackError, Tracker, View, limits};

#[derive(Deserialize)]
pub struct Create {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(default)]
    artifact_location: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn create(State(tracker): State<Tracker>, Args(args): Args<Create>) -> Reply {
    let location = args.artifact_location.as_deref();
    checks::artifact_location(location.unwrap_or_default())?;
    let id = tracker.store.create_experiment(&args.name, location, &args.tags, tracker.now()).await?;
    Ok(Json(json!({ "experiment_id": id })))
}

#[derive(Deserialize)]
pub struct ById {
    experiment_id: ExperimentId,
}

pub async fn get(State(tracker): State<Tracker>, Args(args): Args<ById>) -> Reply {
    Ok(Json(json!({ "experiment": tracker.store.experiment(args.experiment_id).await? })))
}

#[derive(Deserialize)]
pub struct ByName {
    #[serde(deserialize_with = "filled")]
    experiment_name: String,
}

pub async fn get_by_name(State(tracker): State<Tracker>, Args(args): Args<ByName>) -> Reply {
    Ok(Json(json!({ "experiment": tracker.store.experiment_by_name(&args.experiment_name).await? })))
}

#[derive(Deserialize)]
pub struct Search {
    #[serde(default, deserialize_with = "enum_name")]
    view_type: Option<String>,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    order_by: Vec<String>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let search = ExperimentSearch {
        view: View::parse(args.view_type.as_deref().unwrap_or_default())?,
        filter: args.filter.unwrap_or_default(),
        order_by: args.order_by,
        max_results: checks::page_size(args.max_results)?,
        page_token: args.page_token.unwrap_or_default(),
    };
    page("experiments", tracker.store.search_experiments(&search).await?)
}

#[derive(Deserialize)]
pub struct Update {
    experiment_id: ExperimentId,
    #[serde(deserialize_with = "filled")]
    new_name: String,
}

pub async fn update(State(tracker): State<Tracker>, Args(args): Args<Update>) -> Reply {
    tracker.store.rename_experiment(args.experiment_id, &args.new_name, tracker.now()).await?;
    done()
}

pub async fn delete(State(tracker): State<Tracker>, Args(args): Args<ById>) -> Reply {
    tracker.store.set_experiment_stage(args.experiment_id, View::Deleted, tracker.now()).await?;
    done()
}

pub async fn restore(State(tracker): State<Tracker>, Args(args): Args<ById>) -> Reply {
    tracker.store.set_experiment_stage(args.experiment_id, View::Active, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct SetTag {
    experiment_id: ExperimentId,
    #[serde(deserialize_with = "filled")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
}

pub async fn set_tag(State(tracker): State<Tracker>, Args(args): Args<SetTag>) -> Reply {
    let tag = Pair { key: args.key, value: args.value };
    tracker.store.set_experiment_tag(args.experiment_id, &tag, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct DeleteTag {
    experiment_id: ExperimentId,
    #[serde(deserialize_with = "filled")]
    key: String,
}

pub async fn delete_tag(State(tracker): State<Tracker>, Args(args): Args<DeleteTag>) -> Reply {
    tracker.store.delete_experiment_tag(args.experiment_id, &args.key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct ByIds {
    #[serde(default, deserialize_with = "one_or_many")]
    experiment_ids: Vec<ExperimentId>,
}

pub async fn search_datasets(State(tracker): State<Tracker>, Args(args): Args<ByIds>) -> Listing {
    let n = args.experiment_ids.len();
    if n == 0 {
        return Err(
            TrackError::Invalid("SearchDatasets request must specify at least one experiment_id.".into()).into()
        );
    }
    if n > limits::MAX_EXPERIMENTS_OF_DATASETS {
        return Err(TrackError::Invalid(format!(
            "SearchDatasets request cannot specify more than {} experiment_ids. Received {n} experiment_ids.",
            limits::MAX_EXPERIMENTS_OF_DATASETS
        ))
        .into());
    }
    let found = tracker.store.search_datasets(&args.experiment_ids).await?;
    let items = found.into_iter().map(summary).collect();
    page("dataset_summaries", crate::Page { items, next_page_token: None })
}

fn summary((experiment_id, name, digest, context): (ExperimentId, String, String, Option<String>)) -> Value {
    let mut summary = json!({ "experiment_id": experiment_id, "name": name, "digest": digest });
    if let Some(context) = context {
        summary["context"] = context.into();
    }
    summary
}
