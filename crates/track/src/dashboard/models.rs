use axum::Json;
use axum::extract::{Path, State};
use highroad_eval::{Outcome, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::experiments::Tag;
use crate::Tracker;
use crate::api::{Args, Edge};
use crate::wire::{AliasMove, Int, ModelVersion, RegisteredModel};

const MAX_MODELS: i64 = 1000;
const MAX_VERSIONS: i64 = 500;
const MAX_MOVES: i64 = 500;

#[derive(Serialize, ToSchema)]
pub struct Models {
    models: Vec<ModelSummary>,
}

/// A registered model.
#[derive(Serialize, ToSchema)]
pub struct ModelSummary {
    name: String,
    description: String,
    /// Its newest version.
    #[schema(required)]
    newest: Option<String>,
    /// What the verdict of the newest version says.
    #[schema(required)]
    outcome: Option<VerdictOutcome>,
    aliases: Vec<AliasOf>,
    created: i64,
    updated: i64,
}

#[derive(Serialize, ToSchema)]
pub struct AliasOf {
    alias: String,
    version: String,
}

/// Read from the verdict and not from a tag; `missing` for a Highroad package without one that can be read.
#[derive(Serialize, ToSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum VerdictOutcome {
    Pass,
    Fail,
    Inconclusive,
    Missing,
}

/// A registered model and its versions, newest first.
#[derive(Serialize, ToSchema)]
pub struct ModelDetail {
    name: String,
    description: String,
    created: i64,
    updated: i64,
    aliases: Vec<AliasOf>,
    tags: Vec<Tag>,
    versions: Vec<Version>,
    /// Whether there are older versions than these.
    more_versions: bool,
}

#[derive(Serialize, ToSchema)]
pub struct Version {
    version: String,
    description: String,
    created: i64,
    user: String,
    stage: String,
    source: String,
    run_id: String,
    aliases: Vec<String>,
    tags: Vec<Tag>,
    /// Digest of the Highroad package it holds; none for any other model.
    #[schema(required)]
    package: Option<String>,
    #[schema(required)]
    outcome: Option<VerdictOutcome>,
    #[schema(required)]
    verdict: Option<VerdictShown>,
}

/// What a gate decided, and on what.
#[derive(Serialize, ToSchema)]
pub struct VerdictShown {
    golden_set: String,
    golden_digest: String,
    n_cases: usize,
    numerics_id: String,
    created_at: String,
    created_by: String,
    checks: Vec<Check>,
    flips: Vec<FlipShown>,
    waivers: Vec<WaiverShown>,
}

#[derive(Serialize, ToSchema)]
pub struct Check {
    rule: String,
    outcome: VerdictOutcome,
    n_cases: usize,
    candidate: f64,
    #[schema(required)]
    baseline: Option<f64>,
    /// Confidence interval of the difference.
    #[schema(required)]
    interval: Option<Vec<f64>>,
    #[schema(required)]
    minimum_detectable_effect: Option<f64>,
    reason: String,
}

/// A case that two packages answer differently.
#[derive(Serialize, ToSchema)]
pub struct FlipShown {
    case: String,
    expected: String,
    baseline: String,
    candidate: String,
    regression: bool,
}

#[derive(Serialize, ToSchema)]
pub struct WaiverShown {
    case: String,
    by: String,
    why: String,
    expires_at: String,
}

#[derive(Serialize, ToSchema)]
pub struct Moves {
    moves: Vec<Move>,
    /// Whether there are older moves than these.
    more: bool,
}

/// One move of an alias: who, when, why, and on what evidence.
#[derive(Serialize, ToSchema)]
pub struct Move {
    id: i64,
    at: i64,
    model: String,
    alias: String,
    action: String,
    #[schema(required)]
    from: Option<i64>,
    #[schema(required)]
    to: Option<i64>,
    by: String,
    why: String,
    #[schema(required)]
    package: Option<String>,
    #[schema(required)]
    verdict: Option<String>,
    /// The override that admitted it where no verdict did, as JSON.
    #[schema(required)]
    overridden: Option<String>,
    /// What the rehearsal of the way back found, as JSON.
    #[schema(required)]
    rehearsal: Option<String>,
}

/// Registered models by name, prompts left out.
#[utoipa::path(get, operation_id = "list_models", path = "/models", responses((status = OK, body = Models)))]
pub async fn list(State(tracker): State<Tracker>) -> Result<Json<Models>, Edge> {
    let found = tracker.store.search_registered_models("", &[], MAX_MODELS, "").await?.items;
    let mut models = Vec::with_capacity(found.len());
    for model in found {
        let newest = model.latest_versions.iter().max_by_key(|version| version.creation_timestamp);
        let outcome = match newest {
            Some(version) => judged(&tracker, version).await.0,
            None => None,
        };
        let newest = newest.map(|version| version.version.clone());
        models.push(ModelSummary {
            aliases: aliases(&model),
            name: model.name,
            description: model.description,
            newest,
            outcome,
            created: model.creation_timestamp,
            updated: model.last_updated_timestamp,
        });
    }
    Ok(Json(Models { models }))
}

/// One registered model.
#[utoipa::path(get, operation_id = "get_model", path = "/models/{name}", params(("name" = String, Path)), responses((status = OK, body = ModelDetail)))]
pub async fn get(State(tracker): State<Tracker>, Path(name): Path<String>) -> Result<Json<ModelDetail>, Edge> {
    let model = tracker.store.registered_model(&name).await?;
    let filter = format!("name = '{}'", name.replace('\'', "''"));
    let order = ["version_number DESC".to_owned()];
    let page = tracker.store.search_model_versions(&filter, &order, MAX_VERSIONS, "").await?;
    let mut versions = Vec::with_capacity(page.items.len());
    for version in page.items {
        let (outcome, verdict) = judged(&tracker, &version).await;
        versions.push(shown_version(version, outcome, verdict));
    }
    Ok(Json(ModelDetail {
        aliases: aliases(&model),
        name: model.name,
        description: model.description,
        created: model.creation_timestamp,
        updated: model.last_updated_timestamp,
        tags: model.tags.into_iter().map(|tag| Tag { key: tag.key, value: tag.value }).collect(),
        versions,
        more_versions: page.next_page_token.is_some(),
    }))
}

#[derive(Deserialize)]
pub struct MovesOf {
    #[serde(default)]
    model: String,
    #[serde(default)]
    limit: Option<Int>,
}

/// The record of alias moves, newest first.
#[utoipa::path(
    get, operation_id = "list_moves", path = "/moves",
    params(
        ("model" = Option<String>, Query, description = "Of this model; else of all."),
        ("limit" = Option<i64>, Query, description = "At most and by default 500."),
    ),
    responses((status = OK, body = Moves)),
)]
pub async fn moves(State(tracker): State<Tracker>, Args(of): Args<MovesOf>) -> Result<Json<Moves>, Edge> {
    let limit = of.limit.map_or(MAX_MOVES, |limit| limit.0.clamp(1, MAX_MOVES));
    let page = tracker.store.audit(&of.model, limit, "").await?;
    let shown = |made: AliasMove| Move {
        id: made.move_id,
        at: made.at,
        model: made.model,
        alias: made.alias,
        action: made.action,
        from: made.from,
        to: made.to,
        by: made.by,
        why: match made.caution {
            Some(caution) => format!("{} ({caution})", made.why),
            None => made.why,
        },
        package: made.package,
        verdict: made.verdict,
        overridden: made.overridden,
        rehearsal: made.rehearsal,
    };
    Ok(Json(Moves { moves: page.items.into_iter().map(shown).collect(), more: page.next_page_token.is_some() }))
}

async fn judged(tracker: &Tracker, version: &ModelVersion) -> (Option<VerdictOutcome>, Option<Verdict>) {
    if matches!(crate::package_of(version), Ok(None)) {
        return (None, None);
    }
    let verdict = tracker.gate.verdict_of(version).await;
    (Some(verdict.as_ref().map_or(VerdictOutcome::Missing, |verdict| verdict.outcome.into())), verdict)
}

impl From<Outcome> for VerdictOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Pass => Self::Pass,
            Outcome::Fail => Self::Fail,
            Outcome::Inconclusive => Self::Inconclusive,
        }
    }
}

fn aliases(model: &RegisteredModel) -> Vec<AliasOf> {
    let shown = |alias: &crate::wire::Alias| AliasOf { alias: alias.alias.clone(), version: alias.version.clone() };
    model.aliases.iter().map(shown).collect()
}

fn shown_version(version: ModelVersion, outcome: Option<VerdictOutcome>, verdict: Option<Verdict>) -> Version {
    let package = crate::package_of(&version).ok().flatten().map(|digest| digest.to_string());
    Version {
        version: version.version,
        description: version.description,
        created: version.creation_timestamp,
        user: version.user_id,
        stage: version.current_stage,
        source: version.source,
        run_id: version.run_id,
        aliases: version.aliases,
        tags: version.tags.into_iter().map(|tag| Tag { key: tag.key, value: tag.value }).collect(),
        package,
        outcome,
        verdict: verdict.map(shown_verdict),
    }
}

fn shown_verdict(verdict: Verdict) -> VerdictShown {
    let check = |check: highroad_eval::CheckResult| Check {
        rule: check.rule,
        outcome: check.outcome.into(),
        n_cases: check.n_cases,
        candidate: check.candidate,
        baseline: check.baseline,
        interval: check.interval.map(Vec::from),
        minimum_detectable_effect: check.minimum_detectable_effect,
        reason: check.reason,
    };
    let flip = |flip: highroad_eval::Flip| FlipShown {
        case: flip.case,
        expected: flip.expected,
        baseline: flip.baseline,
        candidate: flip.candidate,
        regression: flip.regression,
    };
    let waiver = |waiver: highroad_eval::Waiver| WaiverShown {
        case: waiver.case,
        by: waiver.by,
        why: waiver.why,
        expires_at: waiver.expires_at,
    };
    VerdictShown {
        golden_set: verdict.golden_set.name,
        golden_digest: verdict.golden_set.digest,
        n_cases: verdict.golden_set.n_cases,
        numerics_id: verdict.numerics_id,
        created_at: verdict.created_at,
        created_by: verdict.created_by,
        checks: verdict.checks.into_iter().map(check).collect(),
        flips: verdict.flips.into_iter().map(flip).collect(),
        waivers: verdict.waivers.into_iter().map(waiver).collect(),
    }
}
