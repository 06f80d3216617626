//! Where the members of a server stand, asked of the server itself.

use anyhow::Context as _;
use highroad_serve::rollout::{Book, Ended, RolloutStatus};
use serde_json::{Value, json};

use super::{ABORTED, GOES_ON, Known, Look};
use crate::reports::new_table;

/// Holds a key for the server.
const API_KEY: &str = "HIGHROAD_API_KEY";
/// Longest wait for an answer, in seconds.
const TIMEOUT_S: u64 = 30;

/// The rollout of one member, with the `n_worst` disagreements that the server keeps; `None` where it has had none there.
pub(super) fn one(server: &str, member: &str, n_worst: usize) -> anyhow::Result<Option<Known>> {
    let Some(found) = get(server, &["rollouts", member])? else { return Ok(None) };
    let status: RolloutStatus =
        serde_json::from_value(found).context("the server tells of a rollout in other words")?;
    let n_pairs = status.worst.len();
    let worst = status.worst.iter().take(n_worst).cloned().collect();
    let (latency, spent) = (status.latency.clone(), status.spent);
    Ok(Some(Known { book: book(status), worst, n_pairs, latency, spent, of_server: true }))
}

/// As the registry would have it: counts of all replicas, as far as the server knows them.
fn book(status: RolloutStatus) -> Book {
    let RolloutStatus { rollout, step, end, counts, .. } = status;
    let seen = [("the server".to_owned(), counts)].into();
    Book { rollout: Some(rollout), step, ends: end.iter().cloned().collect(), end, seen }
}

/// Where every member stands, and what is tried.
pub(super) fn all(server: &str) -> anyhow::Result<Look> {
    let status = get(server, &["status"])?.context("the server does not tell where its members stand")?;
    let rollouts = get(server, &["rollouts"])?.map(|found| found["rollouts"].clone()).unwrap_or_default();
    let rollouts: Vec<RolloutStatus> = serde_json::from_value(rollouts).unwrap_or_default();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let mut table = new_table(["member", "state", "serves", "evidence", "rollout"]);
    for member in &members {
        let text = |pointer: &str| member.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
        let state = match member.pointer("/failure/reason").and_then(Value::as_str) {
            Some(reason) => format!("{}: {reason}", text("/state")),
            None => text("/state"),
        };
        let rollout = rollouts.iter().find(|rollout| rollout.member == text("/member"));
        let row = [
            text("/member"),
            state,
            text("/serving/version"),
            text("/serving/evidence"),
            rollout.map_or("-".to_owned(), in_words),
        ];
        table.add_row(row);
    }
    let is_ready =
        status["ready"].as_bool().unwrap_or(false) && members.iter().all(|member| member["failure"].is_null());
    let goes_on = rollouts.iter().any(|rollout| rollout.end.is_none());
    let code = if !is_ready {
        ABORTED
    } else if goes_on {
        GOES_ON
    } else {
        0
    };
    let json = json!({ "ready": status["ready"], "members": members, "rollouts": rollouts });
    Ok(Look { text: format!("{table}\n"), json, code, is_over: is_ready && !goes_on })
}

fn in_words(status: &RolloutStatus) -> String {
    let version = status.rollout.candidate.version;
    match &status.end {
        Some(end) if end.outcome == Ended::Promoted => format!("version {version} was promoted"),
        Some(end) => format!("version {version} was aborted: {}", end.reason),
        None => format!("version {version} at {} %, {} compared", status.percent, status.counts.n_compared),
    }
}

fn get(server: &str, path: &[&str]) -> anyhow::Result<Option<Value>> {
    let mut url = reqwest::Url::parse(server).with_context(|| format!("`{server}` is no URL"))?;
    let mut segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("`{server}` is no URL of a server"))?;
    segments.pop_if_empty().extend(["v1", "highroad"]).extend(path);
    drop(segments);
    let request = reqwest::Client::new().get(url).timeout(std::time::Duration::from_secs(TIMEOUT_S));
    let request = match std::env::var(API_KEY) {
        Ok(key) if !key.is_empty() => request.bearer_auth(key),
        _ => request,
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let response = request.send().await.with_context(|| format!("`{server}` does not answer"))?;
        if response.status() == 404 {
            return Ok(None);
        }
        Ok(Some(response.error_for_status()?.json().await?))
    })
}
