//! Leases of budgets that servers share.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;

use super::{Args, Reply};
use crate::Tracker;
use crate::store::LeaseWanted;
use crate::wire::filled;

#[derive(Deserialize)]
pub struct Lease {
    #[serde(deserialize_with = "filled")]
    pool: String,
    #[serde(deserialize_with = "filled")]
    replica: String,
    leases: Vec<LeaseWanted>,
}

pub async fn lease(State(tracker): State<Tracker>, Args(args): Args<Lease>) -> Reply {
    let leased = tracker.store.lease_budgets(&args.pool, &args.replica, &args.leases, tracker.now()).await?;
    Ok(Json(json!({ "leases": leased })))
}
