use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;

use super::{Args, Reply, done, page};
use crate::wire::{Int, Pair, one_or_many, or_empty};
use crate::{ArchiveOthers, Mover, NewVersion, Target, TrackError, Tracker, version_number};

#[derive(Deserialize)]
pub struct Create {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn create(State(tracker): State<Tracker>, Args(args): Args<Create>) -> Reply {
    let description = args.description.unwrap_or_default();
    let model = tracker.store.create_registered_model(&args.name, &description, &args.tags, tracker.now()).await?;
    Ok(Json(json!({ "registered_model": model })))
}

#[derive(Deserialize)]
pub struct ByName {
    name: String,
}

pub async fn get(State(tracker): State<Tracker>, Args(args): Args<ByName>) -> Reply {
    Ok(Json(json!({ "registered_model": tracker.store.registered_model(&args.name).await? })))
}

#[derive(Deserialize)]
pub struct Search {
    #[serde(default)]
    filter: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    order_by: Vec<String>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

impl Search {
    fn parts(self) -> (String, Vec<String>, i64, String) {
        let n = self.max_results.map_or(0, |n| n.0);
        (self.filter.unwrap_or_default(), self.order_by, n, self.page_token.unwrap_or_default())
    }
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Reply {
    let (filter, order_by, n, token) = args.parts();
    page("registered_models", tracker.store.search_registered_models(&filter, &order_by, n, &token).await?)
}

#[derive(Deserialize)]
pub struct Update {
    name: String,
    #[serde(default)]
    description: String,
}

pub async fn update(State(tracker): State<Tracker>, Args(args): Args<Update>) -> Reply {
    let model = tracker.store.update_registered_model(&args.name, &args.description, tracker.now()).await?;
    Ok(Json(json!({ "registered_model": model })))
}

#[derive(Deserialize)]
pub struct Rename {
    name: String,
    #[serde(default)]
    new_name: String,
}

pub async fn rename(State(tracker): State<Tracker>, Args(args): Args<Rename>) -> Reply {
    let store = &tracker.store;
    let model = store.rename_registered_model(&args.name, &args.new_name, &plain_client(), tracker.now()).await?;
    Ok(Json(json!({ "registered_model": model })))
}

pub async fn delete(State(tracker): State<Tracker>, Args(args): Args<ByName>) -> Reply {
    tracker.store.delete_registered_model(&args.name, &plain_client(), tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Tag {
    name: String,
    key: String,
    #[serde(default)]
    value: String,
}

pub async fn set_tag(State(tracker): State<Tracker>, Args(args): Args<Tag>) -> Reply {
    let tag = Pair { key: args.key, value: args.value };
    tracker.store.set_registered_model_tag(&args.name, &tag, tracker.now()).await?;
    done()
}

pub async fn delete_tag(State(tracker): State<Tracker>, Args(args): Args<Tag>) -> Reply {
    tracker.store.delete_registered_model_tag(&args.name, &args.key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Latest {
    name: String,
    #[serde(default, deserialize_with = "one_or_many")]
    stages: Vec<String>,
}

pub async fn latest_versions(State(tracker): State<Tracker>, Args(args): Args<Latest>) -> Reply {
    let items = tracker.store.latest_versions(&args.name, &args.stages).await?;
    page("model_versions", crate::Page { items, next_page_token: None })
}

#[derive(Deserialize)]
pub struct AliasRef {
    name: String,
    alias: String,
}

pub async fn by_alias(State(tracker): State<Tracker>, Args(args): Args<AliasRef>) -> Reply {
    Ok(Json(json!({ "model_version": tracker.store.version_by_alias(&args.name, &args.alias).await? })))
}

#[derive(Deserialize)]
pub struct SetAlias {
    name: String,
    alias: String,
    version: Int,
}

pub async fn set_alias(State(tracker): State<Tracker>, Args(args): Args<SetAlias>) -> Reply {
    let target = Target::Set(args.version.0);
    let (mover, now) = (plain_client(), tracker.now());
    tracker.store.move_alias(&args.name, &args.alias, target, &mover, &tracker.gate, now).await?;
    done()
}

pub async fn delete_alias(State(tracker): State<Tracker>, Args(args): Args<AliasRef>) -> Reply {
    let (mover, now) = (plain_client(), tracker.now());
    tracker.store.move_alias(&args.name, &args.alias, Target::Away, &mover, &tracker.gate, now).await?;
    done()
}

/// MLflow's routes say neither who nor why.
fn plain_client() -> Mover {
    Mover { by: "an MLflow client".into(), why: "through MLflow's own route".into(), rehearsal: None }
}

#[derive(Deserialize)]
pub struct CreateVersion {
    name: String,
    source: String,
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    run_link: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    model_id: Option<String>,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Pair>,
}

pub async fn create_version(State(tracker): State<Tracker>, Args(args): Args<CreateVersion>) -> Reply {
    let new = NewVersion {
        name: args.name,
        source: args.source,
        run_id: args.run_id.unwrap_or_default(),
        run_link: args.run_link.unwrap_or_default(),
        description: args.description.unwrap_or_default(),
        user_id: args.user_id.unwrap_or_default(),
        model_id: args.model_id.filter(|id| !id.is_empty()),
        tags: args.tags,
    };
    Ok(Json(json!({ "model_version": tracker.store.create_model_version(new, tracker.now()).await? })))
}

#[derive(Deserialize)]
pub struct VersionRef {
    name: String,
    version: String,
}

impl VersionRef {
    fn number(&self) -> Result<i64, TrackError> {
        version_number(&self.version)
    }
}

pub async fn get_version(State(tracker): State<Tracker>, Args(args): Args<VersionRef>) -> Reply {
    Ok(Json(json!({ "model_version": tracker.store.model_version(&args.name, args.number()?).await? })))
}

pub async fn search_versions(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Reply {
    let (filter, order_by, n, token) = args.parts();
    page("model_versions", tracker.store.search_model_versions(&filter, &order_by, n, &token).await?)
}

#[derive(Deserialize)]
pub struct UpdateVersion {
    #[serde(flatten)]
    version: VersionRef,
    #[serde(default)]
    description: String,
}

pub async fn update_version(State(tracker): State<Tracker>, Args(args): Args<UpdateVersion>) -> Reply {
    let (name, number) = (&args.version.name, args.version.number()?);
    let version = tracker.store.update_model_version(name, number, &args.description, tracker.now()).await?;
    Ok(Json(json!({ "model_version": version })))
}

pub async fn delete_version(State(tracker): State<Tracker>, Args(args): Args<VersionRef>) -> Reply {
    tracker.store.delete_model_version(&args.name, args.number()?, &plain_client(), tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct VersionTag {
    #[serde(flatten)]
    version: VersionRef,
    key: String,
    #[serde(default)]
    value: String,
}

pub async fn set_version_tag(State(tracker): State<Tracker>, Args(args): Args<VersionTag>) -> Reply {
    let tag = Pair { key: args.key, value: args.value };
    tracker.store.set_version_tag(&args.version.name, args.version.number()?, &tag, tracker.now()).await?;
    done()
}

pub async fn delete_version_tag(State(tracker): State<Tracker>, Args(args): Args<VersionTag>) -> Reply {
    tracker.store.delete_version_tag(&args.version.name, args.version.number()?, &args.key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Transition {
    #[serde(flatten)]
    version: VersionRef,
    stage: String,
    #[serde(default)]
    archive_existing_versions: bool,
}

pub async fn transition_stage(State(tracker): State<Tracker>, Args(args): Args<Transition>) -> Reply {
    let others = if args.archive_existing_versions { ArchiveOthers::Yes } else { ArchiveOthers::No };
    let (name, number, now) = (&args.version.name, args.version.number()?, tracker.now());
    let version = tracker.store.set_stage(name, number, &args.stage, others, &tracker.gate, now).await?;
    Ok(Json(json!({ "model_version": version })))
}

pub async fn download_uri(State(tracker): State<Tracker>, Args(args): Args<VersionRef>) -> Reply {
    Ok(Json(json!({ "artifact_uri": tracker.store.download_uri(&args.name, args.number()?).await? })))
}
