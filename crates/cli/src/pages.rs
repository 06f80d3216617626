//! What the dashboard asks beside tracking: which serving processes it may look into, and the rollouts that the registry knows.
//!
//! `highroad up` serves itself, so its pages ask the serving routes directly. A `highroad track --serving URL` hands their questions on, with
//! the key of who asks and nothing else: what it may see is decided there. It only reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use futures_util::StreamExt as _;
use highroad_eval::judge_rollout;
use highroad_serve::rollout::{Book, rollout_tag};
use highroad_service::access::Principal;
use highroad_service::{Kind, Problem};
use highroad_track::Tracker;
use serde_json::{Value, json};

/// Longest wait for a serving process.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer of one that is handed on, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Registered models that are looked through for rollouts.
const MAX_MODELS: i64 = 1000;
/// What a request brings its key in.
const KEY_HEADERS: [&str; 3] = ["authorization", "x-api-key", "api-key"];
/// The only paths of a serving process that are handed on.
const OWN: [&str; 2] = ["v1", "highroad"];

/// The serving processes that the pages look into.
#[derive(Clone)]
pub enum Servers {
    /// This one.
    This,
    /// Others, read only.
    Others { addresses: Arc<[reqwest::Url]>, client: reqwest::Client },
}

impl Servers {
    /// Errors if an address is none, is not HTTP, or brings a user or a password: who asks brings their own key.
    pub fn others(addresses: &[String]) -> anyhow::Result<Self> {
        let addresses = addresses.iter().map(|text| address(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self::Others { addresses: addresses.into(), client })
    }

    fn json(&self) -> Vec<Value> {
        match self {
            Self::This => vec![json!({ "name": "this process", "base": "", "acts": true })],
            Self::Others { addresses, .. } => {
                let one = |(idx, url): (usize, &reqwest::Url)| json!({ "name": name(url), "base": format!("/ui/api/servers/{idx}"), "acts": false });
                addresses.iter().enumerate().map(one).collect()
            }
        }
    }
}

fn address(text: &str) -> anyhow::Result<reqwest::Url> {
    let url = reqwest::Url::parse(text).map_err(|error| anyhow::anyhow!("--serving `{text}` is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
        bail!("--serving takes `http://HOST:PORT` or `https://HOST:PORT`");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        bail!("--serving takes an address without a user, a password or a query: the key of who asks is handed on");
    }
    Ok(url)
}

fn name(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[derive(Clone)]
struct Pages {
    tracker: Tracker,
    servers: Servers,
}

/// `/ui/api/servers`, what is below each of them, and `/ui/api/rollouts`.
pub fn routes(tracker: Tracker, servers: Servers) -> Router {
    Router::new()
        .route("/ui/api/servers", get(servers_list))
        .route("/ui/api/servers/{idx}/{*path}", get(hand_on))
        .route("/ui/api/rollouts", get(rollouts))
        .layer(middleware::map_response(never_stored))
        .with_state(Pages { tracker, servers })
}

async fn never_stored(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refuse(problem: &Problem) -> Response {
    problem.respond(|problem| json!({ "error": { "message": problem.message } }))
}

async fn servers_list(State(pages): State<Pages>) -> Json<Value> {
    Json(json!({ "servers": pages.servers.json() }))
}

async fn hand_on(
    State(pages): State<Pages>,
    Path((idx, path)): Path<(usize, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Servers::Others { addresses, client } = &pages.servers else {
        return refuse(&Problem::not_found("this process hands nothing on"));
    };
    let Some(base) = addresses.get(idx) else {
        return refuse(&Problem::not_found("there is no such serving process"));
    };
    match ask(client, base, &path, query.as_deref(), &headers).await {
        Ok(response) => response,
        Err(problem) => refuse(&problem),
    }
}

async fn ask(
    client: &reqwest::Client,
    base: &reqwest::Url,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let mut request = client.get(target(base, path, query)?);
    for name in KEY_HEADERS.map(HeaderName::from_static) {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value.clone());
        }
    }
    let away = |_| Problem::new(Kind::BadGateway, format!("the serving process {} does not answer", name(base)));
    let reply = request.send().await.map_err(away)?;
    let status = StatusCode::from_u16(reply.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let is_json = |value: &HeaderValue| value.to_str().is_ok_and(|kind| kind.starts_with("application/json"));
    if !reply.headers().get(header::CONTENT_TYPE).is_some_and(is_json) {
        return Err(Problem::new(Kind::BadGateway, format!("{} answers {status} and no JSON", name(base))));
    }
    let mut body = Vec::new();
    let mut parts = reply.bytes_stream();
    while let Some(part) = parts.next().await {
        body.extend_from_slice(&part.map_err(away)?);
        if body.len() > MAX_ANSWER_BYTES {
            return Err(Problem::new(Kind::BadGateway, format!("{} answers more than is handed on", name(base))));
        }
    }
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Where `path` is on the server at `base`: always below `/v1/highroad`.
fn target(base: &reqwest::Url, path: &str, query: Option<&str>) -> Result<reqwest::Url, Problem> {
    let parts: Vec<&str> = path.split('/').collect();
    // A part of two dots would be resolved, and lead elsewhere with somebody's key.
    if !parts.starts_with(&OWN) || parts.iter().any(|part| part.is_empty() || matches!(*part, "." | "..")) {
        return Err(Problem::not_found("only `/v1/highroad/…` is handed on"));
    }
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| Problem::internal(&"an address that was checked has no path"))?
        .pop_if_empty()
        .extend(parts);
    url.set_query(query);
    Ok(url)
}

/// The rollouts of all registered models, with what every replica told of them.
async fn rollouts(State(pages): State<Pages>) -> Response {
    let found = pages.tracker.store().search_registered_models("", &[], MAX_MODELS, "").await;
    let found = match found {
        Ok(found) => found,
        Err(error) => return refuse(&Problem::internal(&error)),
    };
    let mut rollouts = Vec::new();
    for model in found.items.iter().filter(|model| Principal::current_may_ask(&model.name)) {
        let tags: BTreeMap<String, String> =
            model.tags.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect();
        let aliases = tags.keys().filter_map(|key| key.strip_prefix(rollout_tag("").as_str()));
        rollouts.extend(aliases.filter_map(|alias| rollout(&model.name, alias, &tags)));
    }
    Json(json!({ "rollouts": rollouts, "more": found.next_page_token.is_some() })).into_response()
}

fn rollout(model: &str, alias: &str, tags: &BTreeMap<String, String>) -> Option<Value> {
    let book = Book::read(tags, alias);
    let rollout = book.rollout.as_ref()?;
    let counts = book.end.as_ref().map_or_else(|| book.counts(), |end| end.counts);
    let checks = match (&book.end, &book.step.passed) {
        (Some(end), _) if !end.checks.is_empty() => end.checks.clone(),
        (None, Some(passed)) => passed.checks.clone(),
        _ => judge_rollout(&rollout.rules, &counts).map(|judgement| judgement.checks).unwrap_or_default(),
    };
    let replicas: Vec<Value> =
        book.seen.iter().map(|(replica, counts)| json!({ "replica": replica, "counts": counts })).collect();
    Some(json!({
        "model": model, "alias": alias, "rollout": rollout, "step": book.step,
        "percent": if book.end.is_some() { 0.0 } else { rollout.percent(book.step.idx) },
        "fewest_to_pass": rollout.rules.fewest_to_pass(),
        "end": book.end, "counts": counts, "checks": checks, "replicas": replicas, "ends": book.ends,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_stays_below_our_own_routes_of_the_server_that_was_named() {
        let base = address("https://serve.example.com:8443/under/").expect("it is one");
        let ok = |path: &str| target(&base, path, Some("n=1")).map(|url| url.to_string()).ok();
        assert_eq!(
            ok("v1/highroad/requests/a b?c").as_deref(),
            Some("https://serve.example.com:8443/under/v1/highroad/requests/a%20b%3Fc?n=1")
        );
        for path in ["v1/models", "v1/highroad/../embeddings", "v1//highroad", "", "v1/highroad/", "//evil.example/x"] {
            assert_eq!(ok(path), None, "{path}");
        }
        assert_eq!(name(&base), "serve.example.com:8443");
    }

    #[test]
    fn addresses_that_bring_secrets_are_refused() {
        for text in ["serve:8080", "ftp://a", "http://user@a", "http://:secret@a", "http://a/?key=b", "nonsense"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
