//! Highroad's own routes: promote, rollback and the record of both.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Args, Listing, Reply, page};
use crate::wire::{Int, filled};
use crate::{Mover, Target, TrackError, Tracker};

#[derive(Deserialize)]
pub struct Promote {
    #[serde(deserialize_with = "filled")]
    name: String,
    version: Int,
    #[serde(default = "champion")]
    #[serde(deserialize_with = "filled")]
    alias: String,
    by: String,
    why: String,
    #[serde(default)]
    rehearsal: Option<Value>,
}

fn champion() -> String {
    "champion".to_owned()
}

pub async fn promote(State(tracker): State<Tracker>, Args(args): Args<Promote>) -> Reply {
    let mover = mover(args.by, args.why, args.rehearsal)?;
    let target = Target::Promote(args.version.0);
    let moved = tracker.store.move_alias(&args.name, &args.alias, target, &mover, &tracker.gate, tracker.now()).await?;
    Ok(Json(json!({ "move": moved })))
}

#[derive(Deserialize)]
pub struct Rollback {
    #[serde(deserialize_with = "filled")]
    name: String,
    #[serde(default = "champion")]
    #[serde(deserialize_with = "filled")]
    alias: String,
    by: String,
    why: String,
}

pub async fn rollback(State(tracker): State<Tracker>, Args(args): Args<Rollback>) -> Reply {
    let mover = mover(args.by, args.why, None)?;
    let now = tracker.now();
    let moved = tracker.store.move_alias(&args.name, &args.alias, Target::Back, &mover, &tracker.gate, now).await?;
    Ok(Json(json!({ "move": moved })))
}

/// A promotion without a name and a reason is what the record exists to prevent.
fn mover(by: String, why: String, rehearsal: Option<Value>) -> Result<Mover, TrackError> {
    for (name, text) in [("by", &by), ("why", &why)] {
        if text.trim().is_empty() {
            return Err(TrackError::Invalid(format!("Missing value for required parameter '{name}'.")));
        }
        crate::limits::length(name, text, crate::limits::MAX_TAG_VALUE)?;
    }
    let rehearsal = rehearsal.filter(|value| !value.is_null()).map(|value| value.to_string());
    if let Some(text) = &rehearsal {
        crate::limits::length("rehearsal", text, crate::limits::MAX_REGISTRY_TAG_VALUE)?;
    }
    Ok(Mover { by, why, rehearsal })
}

#[derive(Deserialize)]
pub struct Audit {
    #[serde(default)]
    name: String,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn audit(State(tracker): State<Tracker>, Args(args): Args<Audit>) -> Listing {
    let token = args.page_token.unwrap_or_default();
    page("moves", tracker.store.audit(&args.name, args.max_results.map_or(0, |n| n.0), &token).await?)
}
