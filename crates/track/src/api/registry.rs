use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;

use super::{Args, Both, Listing, Reply, checks, done, page};
use crate::wire::{Int, ModelVersion, Pair, filled, one_or_many, or_default, or_empty};
use crate::{ArchiveOthers, Mover, NewVersion, Target, TrackError, Tracker, limits, version_number};

#[derive(Deserialize)]
pub struct Create {
    #[serde(deserialize_with = "filled")]
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
    #[serde(deserialize_with = "filled")]
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
    fn parts(self) -> Result<(String, Vec<String>, i64, String), TrackError> {
        let n = checks::page_size(self.max_results)?;
        Ok((self.filter.unwrap_or_default(), self.order_by, n, self.page_token.unwrap_or_default()))
    }
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let (filter, order_by, n, token) = args.parts()?;
    page("registered_models", tracker.store.search_registered_models(&filter, &order_by, n, &token).await?)
}

#[derive(Deserialize)]
pub struct Update {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    description: String,
}

pub async fn update(State(tracker): State<Tracker>, Args(args): Args<Update>) -> Reply {
    let model = tracker.store.update_registered_model(&args.name, &args.description, tracker.now()).await?;
    Ok(Json(json!({ "registered_model": model })))
}

#[derive(Deserialize)]
pub struct Rename {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(deserialize_with = "filled")]
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
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(deserialize_with = "filled")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
}

pub async fn set_tag(State(tracker): State<Tracker>, Args(args): Args<Tag>) -> Reply {
    let tag = Pair { key: args.key, value: args.value };
    limits::key("key", &tag.key)?;
    tracker.store.set_registered_model_tag(&args.name, &tag, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct TagRef {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(deserialize_with = "filled")]
    key: String,
}

pub async fn delete_tag(State(tracker): State<Tracker>, Args(args): Args<TagRef>) -> Reply {
    tracker.store.delete_registered_model_tag(&args.name, &args.key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Latest {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(default, deserialize_with = "one_or_many")]
    stages: Vec<String>,
}

pub async fn latest_versions(State(tracker): State<Tracker>, Args(args): Args<Latest>) -> Listing {
    let items = tracker.store.latest_versions(&args.name, &args.stages).await?;
    page("model_versions", crate::Page { items, next_page_token: None })
}

#[derive(Deserialize)]
pub struct AliasRef {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(deserialize_with = "filled")]
    alias: String,
}

pub async fn by_alias(State(tracker): State<Tracker>, Args(args): Args<AliasRef>) -> Reply {
    limits::alias_word(&args.alias)?;
    if args.alias.eq_ignore_ascii_case("latest") {
        return Ok(Json(json!({ "model_version": newest_version(&tracker, &args.name).await? })));
    }
    Ok(Json(json!({ "model_version": tracker.store.version_by_alias(&args.name, &args.alias).await? })))
}

/// What `latest` names, which nobody can set.
async fn newest_version(tracker: &Tracker, name: &str) -> Result<ModelVersion, TrackError> {
    let versions = tracker.store.latest_versions(name, &[]).await?;
    let newest = versions.into_iter().filter_map(|version| version.version.parse().ok()).max();
    match newest {
        Some(number) => tracker.store.model_version(name, number).await,
        None => Err(TrackError::Missing(format!("Latest version not found for model {name}."))),
    }
}

#[derive(Deserialize)]
pub struct Alias {
    #[serde(deserialize_with = "filled")]
    alias: String,
}

pub async fn set_alias(State(tracker): State<Tracker>, Both(version, args): Both<VersionRef, Alias>) -> Reply {
    let target = Target::Set(version.number()?);
    let (mover, now) = (plain_client(), tracker.now());
    tracker.store.move_alias(&version.name, &args.alias, target, &mover, &tracker.gate, now).await?;
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
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(deserialize_with = "filled")]
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
    let model_id = args.model_id.filter(|id| !id.is_empty());
    if !args.tags.iter().any(|tag| tag.key == PROMPT_TAG && tag.value == "true") {
        check_source(&tracker, &args.source, model_id.as_deref()).await?;
    }
    let new = NewVersion {
        name: args.name,
        source: args.source,
        run_id: args.run_id.unwrap_or_default(),
        run_link: args.run_link.unwrap_or_default(),
        description: args.description.unwrap_or_default(),
        user_id: args.user_id.unwrap_or_default(),
        model_id,
        tags: args.tags,
    };
    Ok(Json(json!({ "model_version": tracker.store.create_model_version(new, tracker.now()).await? })))
}

/// The tag of a version that is a prompt; its source is a placeholder.
const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";

/// A source that names a version or a logged model must name one that exists; a logged model must be the version's own.
async fn check_source(tracker: &Tracker, source: &str, model_id: Option<&str>) -> Result<(), TrackError> {
    if let Some(model_id) = model_id {
        tracker.store.logged_model(model_id).await?;
    }
    checks::version_source(source, if model_id.is_some() { "model_id" } else { "run_id" })?;
    let Some(target) = source.strip_prefix("models:/") else { return Ok(()) };
    match target.split_once('/') {
        Some((name, version)) => tracker.store.model_version(name, version_number(version)?).await.map(|_| ()),
        None if model_id == Some(target) => Ok(()),
        None => Err(TrackError::Invalid(format!(
            "Invalid model version source: '{source}'. The model_id request parameter must identify the resource that \
             contains the source."
        ))),
    }
}

#[derive(Deserialize)]
pub struct VersionRef {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(deserialize_with = "filled")]
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

pub async fn search_versions(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let (filter, order_by, n, token) = args.parts()?;
    page("model_versions", tracker.store.search_model_versions(&filter, &order_by, n, &token).await?)
}

#[derive(Deserialize)]
pub struct UpdateVersion {
    #[serde(default, deserialize_with = "or_default")]
    description: String,
}

pub async fn update_version(
    State(tracker): State<Tracker>,
    Both(version, args): Both<VersionRef, UpdateVersion>,
) -> Reply {
    let (name, number) = (&version.name, version.number()?);
    let version = tracker.store.update_model_version(name, number, &args.description, tracker.now()).await?;
    Ok(Json(json!({ "model_version": version })))
}

pub async fn delete_version(State(tracker): State<Tracker>, Args(args): Args<VersionRef>) -> Reply {
    tracker.store.delete_model_version(&args.name, args.number()?, &plain_client(), tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct VersionTag {
    #[serde(deserialize_with = "filled")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
}

pub async fn set_version_tag(
    State(tracker): State<Tracker>,
    Both(version, args): Both<VersionRef, VersionTag>,
) -> Reply {
    let tag = Pair { key: args.key, value: args.value };
    limits::key("key", &tag.key)?;
    tracker.store.set_version_tag(&version.name, version.number()?, &tag, tracker.now()).await?;
    done()
}

pub async fn delete_version_tag(
    State(tracker): State<Tracker>,
    Both(version, args): Both<VersionRef, VersionTag>,
) -> Reply {
    tracker.store.delete_version_tag(&version.name, version.number()?, &args.key, tracker.now()).await?;
    done()
}

#[derive(Deserialize)]
pub struct Transition {
    #[serde(deserialize_with = "filled")]
    stage: String,
    #[serde(default, deserialize_with = "or_default")]
    archive_existing_versions: bool,
}

pub async fn transition_stage(
    State(tracker): State<Tracker>,
    Both(version, args): Both<VersionRef, Transition>,
) -> Reply {
    let others = if args.archive_existing_versions { ArchiveOthers::Yes } else { ArchiveOthers::No };
    if others == ArchiveOthers::Yes && !["staging", "production"].contains(&args.stage.to_lowercase().as_str()) {
        return Err(TrackError::Invalid(format!(
            "Model version transition cannot archive existing model versions because '{}' is not an Active stage. Valid \
             stages are ['Staging', 'Production']",
            args.stage
        ))
        .into());
    }
    let (name, number, now) = (&version.name, version.number()?, tracker.now());
    let version = tracker.store.set_stage(name, number, &args.stage, others, &tracker.gate, now).await?;
    Ok(Json(json!({ "model_version": version })))
}

pub async fn download_uri(State(tracker): State<Tracker>, Args(args): Args<VersionRef>) -> Reply {
    Ok(Json(json!({ "artifact_uri": tracker.store.download_uri(&args.name, args.number()?).await? })))
}
