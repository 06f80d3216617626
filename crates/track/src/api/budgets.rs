//! Leases of budgets that servers share, and what the servers spent.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;

use super::{Args, Reply};
use crate::Tracker;
use crate::store::{LeaseWanted, Spent};
use crate::wire::filled;

#[derive(Deserialize)]
pub struct Lease {
    #[serde(deserialize_with = "filled")]
    pool: String,
    #[serde(deserialize_with = "filled")]
    replica: String,
    leases: Vec<LeaseWanted>,
}

#[derive(Deserialize)]
pub struct Told {
    #[serde(deserialize_with = "filled")]
    pool: String,
    #[serde(deserialize_with = "filled")]
    replica: String,
    /// First second, since 1970, of the first day that is asked for.
    from: i64,
    #[serde(default)]
    spent: Vec<Spent>,
}

pub async fn spent(State(tracker): State<Tracker>, Args(args): Args<Told>) -> Reply {
    let Told { pool, replica, from, spent } = args;
    let all = tracker.store.tell_spent(&pool, &replica, from, &spent, tracker.now()).await?;
    Ok(Json(json!({ "spent": all })))
}

pub async fn lease(State(tracker): State<Tracker>, Args(args): Args<Lease>) -> Reply {
    let leased = tracker.store.lease_budgets(&args.pool, &args.replica, &args.leases, tracker.now()).await?;
    Ok(Json(json!({ "leases": leased })))
}
