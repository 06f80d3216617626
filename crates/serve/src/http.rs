//! The protocols on HTTP: one short handler a route, each a conversion, a question to the portfolio and a conversion back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, OriginalUri, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router};
use highroad_hosted::HostedTask;
use highroad_package::TaskKind;
use highroad_service::{Kind, Problem, RequestId};
use metrics::{counter, histogram};
use serde_json::{Value, json};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use crate::config::RequestLimits;
use crate::deployment::{Deployment, State as DeploymentState};
use crate::error::AskError;
use crate::portfolio::Portfolio;
use crate::protocol::oip::{self, InferRequest, Query};
use crate::protocol::openai::{self, EmbeddingsRequest, ModerationsRequest, Refused};
use crate::protocol::rerank::{self, RerankRequest};
use crate::request_log::{Record, RequestLog};
use crate::revision::{Asked, Facts, Revision, check_limit};
use crate::telemetry::{REQUEST_SECONDS, REQUESTS};

const PACKAGE: HeaderName = HeaderName::from_static("x-highroad-package");
const VERSION: HeaderName = HeaderName::from_static("x-highroad-version");
const EVIDENCE: HeaderName = HeaderName::from_static("x-highroad-evidence");
const OVERRIDE: HeaderName = HeaderName::from_static("x-highroad-override");
const DEVELOPMENT: HeaderName = HeaderName::from_static("x-highroad-development");
const TRUNCATED: HeaderName = HeaderName::from_static("x-highroad-truncated");
const HEADER_LENGTH: HeaderName = HeaderName::from_static(oip::HEADER_LENGTH);

#[derive(Clone)]
struct App {
    portfolio: Arc<Portfolio>,
    log: RequestLog,
}

/// The inference routes of our own models and the reading of the request log; [`crate::router`] has those of hosted members around it.
pub(crate) fn router(portfolio: Arc<Portfolio>, log: RequestLog) -> Router {
    let body_bytes = portfolio.limits().body_bytes;
    let app = App { portfolio, log };
    openai_routes()
        .merge(rerank_routes())
        .merge(oip_routes())
        .merge(own_routes())
        .layer(DefaultBodyLimit::max(body_bytes))
        .with_state(app)
}

/// `/health`: the process answers. `/ready`: every member serves what it should, and the status of each.
pub fn probes(portfolio: Arc<Portfolio>) -> Router {
    Router::new().route("/health", get(|| async { StatusCode::OK })).route("/ready", get(ready)).with_state(portfolio)
}

async fn ready(State(portfolio): State<Arc<Portfolio>>) -> Response {
    let status = if portfolio.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": portfolio.is_ready(), "members": portfolio.statuses() }))).into_response()
}

fn openai_routes() -> Router<App> {
    Router::new()
        .route("/v1/embeddings", post(embeddings).fallback(openai_method))
        .route("/v1/moderations", post(moderations).fallback(openai_method))
        .route("/v1/models", get(models).fallback(openai_method))
        .route("/v1/models/{model}", get(model).fallback(openai_method))
        .route("/v1/{*rest}", any(openai_unknown))
}

fn rerank_routes() -> Router<App> {
    Router::new()
        .route("/rerank", post(documents).fallback(rerank_method))
        .route("/v1/rerank", post(documents).fallback(rerank_method))
        .route("/v2/rerank", post(documents).fallback(rerank_method))
}

fn oip_routes() -> Router<App> {
    // Clients that ask for it get large tensors compressed; the fastest level, because time is what they are short of.
    let compression = CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(SizeAbove::new(1024));
    Router::new()
        .route("/v2", get(|| async { Json(oip::server_metadata()) }).fallback(oip_method))
        .route("/v2/health/live", get(|| async { StatusCode::OK }).fallback(oip_method))
        .route("/v2/health/ready", get(oip_ready).fallback(oip_method))
        .route("/v2/models/{model}", get(model_metadata).fallback(oip_method))
        .route("/v2/models/{model}/versions/{version}", get(model_metadata).fallback(oip_method))
        .route("/v2/models/{model}/ready", get(model_ready).fallback(oip_method))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready).fallback(oip_method))
        .route("/v2/models/{model}/config", get(model_config).fallback(oip_method))
        .route("/v2/models/{model}/versions/{version}/config", get(model_config).fallback(oip_method))
        .route("/v2/models/stats", get(all_stats).fallback(oip_method))
        .route("/v2/models/{model}/stats", get(model_stats).fallback(oip_method))
        .route("/v2/models/{model}/versions/{version}/stats", get(model_stats).fallback(oip_method))
        .route("/v2/models/{model}/infer", post(infer).layer(compression.clone()).fallback(oip_method))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer).layer(compression).fallback(oip_method))
        .route("/v2/repository/index", post(repository_index).fallback(oip_method))
        .route("/v2/repository/models/{model}/{action}", any(repository_action))
        .route("/v2/{*rest}", any(oip_unknown))
}

fn own_routes() -> Router<App> {
    Router::new()
        .route("/v1/highroad/status", get(status).fallback(openai_method))
        .route("/v1/highroad/requests/{id}", get(request_record).fallback(openai_method))
}

async fn embeddings(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    openai_response(app.embeddings(&id, body).await)
}

async fn moderations(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    openai_response(app.moderations(&id, body).await)
}

async fn documents(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    OriginalUri(uri): OriginalUri,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (route, version) = if uri.path() == "/v2/rerank" { ("/v2/rerank", "2") } else { ("/v1/rerank", "1") };
    app.rerank(&id, route, version, body).await.unwrap_or_else(|problem| problem.respond(rerank::error_body))
}

async fn rerank_method(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    wrong_method(&method, uri.path()).respond(rerank::error_body)
}

async fn models(State(app): State<App>) -> Response {
    let mut models: Vec<Value> =
        app.portfolio.deployments().iter().filter_map(|d| d.revision().ok()).map(|r| entry(&r)).collect();
    models.extend(app.portfolio.hosted().all().iter().filter_map(|member| member.entry()));
    Json(json!({ "object": "list", "data": models })).into_response()
}

async fn model(State(app): State<App>, Path(model): Path<String>) -> Response {
    if let Some(entry) = app.portfolio.hosted_member(&model).ok().and_then(|member| member.entry()) {
        return Json(entry).into_response();
    }
    openai_response(
        app.portfolio.revision(&model).map(|revision| Json(entry(&revision)).into_response()).map_err(Refused::from),
    )
}

fn entry(revision: &Revision) -> Value {
    openai::model(&revision.facts().member, revision.facts(), &revision.manifest().task.kind)
}

async fn openai_unknown(OriginalUri(uri): OriginalUri) -> Response {
    let message = format!(
        "this server has no `{}`; it has /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/moderations, /v1/rerank, /v1/models and the Open Inference Protocol at /v2",
        uri.path()
    );
    openai_response(Err(Refused { code: Some("unknown_url"), ..Problem::not_found(message).into() }))
}

pub(crate) async fn openai_method(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    openai_response(Err(wrong_method(&method, uri.path()).into()))
}

async fn oip_method(method: Method, OriginalUri(uri): OriginalUri) -> Problem {
    wrong_method(&method, uri.path())
}

fn wrong_method(method: &Method, path: &str) -> Problem {
    Problem::new(Kind::MethodNotAllowed, format!("`{path}` does not take {method}"))
}

async fn oip_unknown(OriginalUri(uri): OriginalUri) -> Problem {
    Problem::not_found(format!("this server has no `{}`; `/v2` lists its extensions", uri.path()))
}

async fn oip_ready(State(app): State<App>) -> Response {
    ready(State(app.portfolio)).await
}

/// The path's model and, where it names one, version.
#[derive(serde::Deserialize)]
struct ModelPath {
    model: String,
    version: Option<String>,
}

async fn model_metadata(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, Problem> {
    let revision = app.versioned(&path)?;
    Ok(Json(oip::model_metadata(&path.model, revision.facts(), revision.manifest(), revision.program())))
}

async fn model_ready(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<StatusCode, Problem> {
    app.versioned(&path).map(|_| StatusCode::OK)
}

async fn model_config(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, Problem> {
    let revision = app.versioned(&path)?;
    Ok(Json(oip::model_config(&path.model, revision.facts(), revision.manifest(), revision.program())))
}

async fn model_stats(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, Problem> {
    let revision = app.versioned(&path)?;
    Ok(Json(json!({ "model_stats": [oip::model_stats(&path.model, revision.facts(), &revision.stats)] })))
}

async fn all_stats(State(app): State<App>) -> Json<Value> {
    let revisions = app.portfolio.deployments().into_iter().filter_map(|deployment| deployment.revision().ok());
    let stats: Vec<Value> = revisions
        .map(|revision| oip::model_stats(&revision.facts().member, revision.facts(), &revision.stats))
        .collect();
    Json(json!({ "model_stats": stats }))
}

async fn infer(
    State(app): State<App>,
    Path(path): Path<ModelPath>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    app.infer(&path, &id, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn repository_index(State(app): State<App>) -> Json<Value> {
    let entry = |status: crate::Status| {
        let version = status.serving.as_ref().map(oip::version).unwrap_or_default();
        let reason = status.failure.map(|failure| match failure.version {
            Some(version) => format!("{version} does not serve: {}", failure.reason),
            None => failure.reason,
        });
        let state = match (status.state, &status.serving) {
            (_, Some(_)) => "READY",
            (DeploymentState::Starting, None) if reason.is_none() => "LOADING",
            _ => "UNAVAILABLE",
        };
        json!({ "name": status.member, "version": version, "state": state, "reason": reason.unwrap_or_default() })
    };
    Json(app.portfolio.statuses().into_iter().map(entry).collect())
}

async fn repository_action(Path((model, action)): Path<(String, String)>) -> Problem {
    let message =
        format!("`{model}` cannot be {action}ed by hand: members follow the registry; `highroad promote` moves it");
    Problem::new(Kind::Unsupported, message)
}

async fn status(State(app): State<App>) -> Json<Value> {
    Json(json!({ "ready": app.portfolio.is_ready(), "members": app.portfolio.statuses() }))
}

async fn request_record(State(app): State<App>, Path(id): Path<String>) -> Response {
    let log = app.log.clone();
    let wanted = id.clone();
    let found = tokio::task::spawn_blocking(move || log.find(&wanted)).await;
    let result = match found {
        Ok(Ok(Some(record))) => Ok(Json(record).into_response()),
        Ok(Ok(None)) => Err(Problem::not_found(format!("the request log has no `{}`", printable(&id)))),
        Ok(Err(error)) => Err(Problem::internal(&error)),
        Err(error) => Err(Problem::internal(&error)),
    };
    openai_response(result.map_err(Refused::from))
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

fn openai_response(result: Result<Response, Refused>) -> Response {
    result.unwrap_or_else(|refused| refused.problem.respond(|_| refused.body()))
}

impl App {
    fn whole(&self, body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
        body.map_err(|rejection| unreadable(&rejection, self.portfolio.limits()))
    }

    async fn embeddings(&self, id: &RequestId, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let request = EmbeddingsRequest::parse(&self.whole(body)?)?;
        let revision = self.portfolio.revision(&request.model).map_err(|error| count(None, error))?;
        let task = &revision.manifest().task.kind;
        if !matches!(task, TaskKind::Embed { .. }) {
            return Err(wrong_task(&revision, "embeddings").into());
        }
        request.check_dimensions(task)?;
        let call = Call::begin(id, "/v1/embeddings", &revision);
        let asked = call.finish(revision.ask(request.inputs, self.portfolio.limits(), None).await)?;
        let n_tokens = asked.n_tokens.iter().sum();
        let body = openai::embeddings_reply(&request.model, &asked.answers, n_tokens, request.encoding);
        Ok(self.answer(&call, &asked, "application/json", body))
    }

    async fn moderations(&self, id: &RequestId, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let request = ModerationsRequest::parse(&self.whole(body)?)?;
        let revision = match &request.model {
            Some(model) => self.portfolio.revision(model).map_err(|error| count(None, error))?,
            None => self.only("moderates", moderates).map_err(|problem| {
                let param = (problem.kind == Kind::Invalid).then_some("model");
                Refused { param, ..problem.into() }
            })?,
        };
        if !moderates(&revision) {
            return Err(wrong_task(&revision, "moderations").into());
        }
        let call = Call::begin(id, "/v1/moderations", &revision);
        let asked = call.finish(revision.ask(request.inputs, self.portfolio.limits(), None).await)?;
        let task = &revision.manifest().task.kind;
        let body = openai::moderations_reply(&id.0, &revision.facts().member, task, &asked.answers);
        Ok(self.answer(&call, &asked, "application/json", body))
    }

    async fn rerank(
        &self,
        id: &RequestId,
        route: &'static str,
        version: &'static str,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Problem> {
        let request = RerankRequest::parse(&self.whole(body)?, version)?;
        let revision = match &request.model {
            Some(model) => self.portfolio.revision(model).map_err(|error| count(None, error).problem())?,
            None => self.only("reranks", reranks)?,
        };
        if !reranks(&revision) {
            return Err(wrong_task(&revision, "reranking").problem());
        }
        let limits = self.portfolio.limits();
        check_limit("bytes in its pairs", request.pairs_bytes(), limits.body_bytes)
            .map_err(|error| count(Some(&revision), error).problem())?;
        let call = Call::begin(id, route, &revision);
        let asked = call.finish(revision.ask(request.inputs(), limits, None).await);
        let asked = asked.map_err(|error| error.problem())?;
        let n_tokens = asked.n_tokens.iter().sum();
        let body = request.reply(&id.0, &revision.facts().member, &asked.answers, n_tokens);
        Ok(self.answer(&call, &asked, "application/json", body))
    }

    /// The one member that `does` what is asked, for a request that names none.
    fn only(&self, does: &str, has: fn(&Revision) -> bool) -> Result<Arc<Revision>, Problem> {
        let revisions = self.portfolio.deployments().into_iter().filter_map(|deployment| deployment.revision().ok());
        let mut found: Vec<Arc<Revision>> = revisions.filter(|revision| has(revision)).collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Problem::not_found(format!("no model of this server {does}"))),
            _ => {
                let names: Vec<&str> = found.iter().map(|revision| revision.facts().member.as_str()).collect();
                let names = names.join(", ");
                Err(Problem::invalid(format!("more than one model {does}; name one as `model`: {names}")))
            }
        }
    }

    async fn infer(
        &self,
        path: &ModelPath,
        id: &RequestId,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Problem> {
        let revision = self.versioned(path)?;
        let request = InferRequest::parse(&self.whole(body)?, json_bytes(headers)?)?;
        let timeout = request.timeout;
        let (query, wanted) = request.query(revision.program().inputs())?;
        let task = &revision.manifest().task.kind;
        let call = Call::begin(id, "/v2/models/infer", &revision);
        let reply = |outputs| wanted.reply(&path.model, revision.facts(), task, outputs);
        let (reply, response) = match query {
            Query::Rows(inputs) => {
                let asked = call.finish(revision.ask(inputs, self.portfolio.limits(), timeout).await);
                let asked = asked.map_err(|error| error.problem())?;
                let reply = reply(oip::task_outputs(task, &asked.answers))?;
                (reply.json_bytes, self.answer(&call, &asked, content_type(&reply), reply.body))
            }
            Query::Program(tensors) => {
                let asked = call.finish(revision.run_program(tensors, timeout).await);
                let asked = asked.map_err(|error| error.problem())?;
                let reply = reply(oip::program_outputs(revision.program().outputs(), &asked.answers))?;
                (reply.json_bytes, self.answer(&call, &asked, content_type(&reply), reply.body))
            }
        };
        Ok(with_json_bytes(response, reply))
    }

    fn versioned(&self, path: &ModelPath) -> Result<Arc<Revision>, Problem> {
        let revision = self.portfolio.revision(&path.model).map_err(|error| count(None, error).problem())?;
        let current = oip::version(revision.facts());
        match &path.version {
            Some(version) if *version != current => {
                let (member, version) = (path.model.clone(), printable(version));
                Err(AskError::OtherVersion { member, version, current }.problem())
            }
            _ => Ok(revision),
        }
    }

    /// Logs the answer and puts its origin into the response's headers.
    fn answer<A>(&self, call: &Call<'_>, asked: &Asked<A>, content_type: &'static str, body: Vec<u8>) -> Response {
        let facts = call.revision.facts();
        self.log.put(call.record(asked));
        let mut response = Response::new(Body::from(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        origin(facts, headers);
        if asked.n_truncated > 0 {
            headers.insert(TRUNCATED, asked.n_truncated.into());
        }
        response
    }
}

pub(crate) fn unreadable(rejection: &BytesRejection, limits: &RequestLimits) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let limit = limits.body_bytes;
            Problem::new(Kind::TooLarge, format!("the body has more bytes than the limit of {limit}"))
        }
        _ => Problem::invalid(rejection.body_text()),
    }
}

/// Whether a member of our own is for what a hosted one is for.
pub(crate) fn is_for(deployment: &Deployment, task: HostedTask) -> bool {
    deployment.revision().is_ok_and(|revision| match task {
        HostedTask::Moderate => moderates(&revision),
        HostedTask::Rerank => reranks(&revision),
        HostedTask::Embed => matches!(&revision.manifest().task.kind, TaskKind::Embed { .. }),
        _ => false,
    })
}

fn content_type(reply: &oip::Reply) -> &'static str {
    if reply.json_bytes.is_some() { "application/octet-stream" } else { "application/json" }
}

fn with_json_bytes(mut response: Response, json_bytes: Option<usize>) -> Response {
    if let Some(json_bytes) = json_bytes {
        response.headers_mut().insert(HEADER_LENGTH, json_bytes.into());
    }
    response
}

fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Problem::invalid(format!("`{HEADER_LENGTH}` is not a number of bytes")))
}

pub(crate) fn origin(facts: &Facts, headers: &mut HeaderMap) {
    let mut put = |name: HeaderName, value: &str| {
        // Names and reasons may hold any UTF-8, which header values carry as opaque bytes; control characters never.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.insert(name, value);
        }
    };
    put(PACKAGE, &facts.package.to_string());
    put(VERSION, &facts.version);
    put(EVIDENCE, facts.evidence);
    if let Some(overridden) = &facts.overridden {
        put(OVERRIDE, &format!("until {}", overridden.expires_at));
    }
    if let Some(reason) = &facts.development {
        put(DEVELOPMENT, reason);
    }
}

fn moderates(revision: &Revision) -> bool {
    matches!(&revision.manifest().task.kind, TaskKind::Classify { flagged: Some(_), .. })
}

fn reranks(revision: &Revision) -> bool {
    matches!(&revision.manifest().task.kind, TaskKind::Rerank)
}

pub(crate) fn task_name(revision: &Revision) -> &'static str {
    match &revision.manifest().task.kind {
        TaskKind::Classify { .. } => "classification",
        TaskKind::Embed { .. } => "embeddings",
        TaskKind::Rerank => "reranking",
        _ => "another task",
    }
}

fn wrong_task(revision: &Revision, wanted: &'static str) -> AskError {
    let task = task_name(revision);
    count(Some(revision), AskError::WrongTask { member: revision.facts().member.clone(), task, wanted })
}

// Names that clients make up are no labels.
fn count(revision: Option<&Revision>, error: AskError) -> AskError {
    let member = revision.map_or("unknown".to_owned(), |revision| revision.facts().member.clone());
    counter!(REQUESTS, "member" => member, "outcome" => error.outcome()).increment(1);
    error
}

/// One request to one revision, from its parsed body to its answer.
struct Call<'a> {
    id: &'a RequestId,
    route: &'static str,
    revision: &'a Revision,
    begun: Instant,
}

impl<'a> Call<'a> {
    fn begin(id: &'a RequestId, route: &'static str, revision: &'a Revision) -> Self {
        Self { id, route, revision, begun: Instant::now() }
    }

    fn finish<A>(&self, result: Result<Asked<A>, AskError>) -> Result<Asked<A>, AskError> {
        let member = self.revision.facts().member.clone();
        match result {
            Ok(asked) => {
                counter!(REQUESTS, "member" => member.clone(), "outcome" => "ok").increment(1);
                histogram!(REQUEST_SECONDS, "member" => member).record(self.begun.elapsed().as_secs_f64());
                Ok(asked)
            }
            Err(error) => Err(count(Some(self.revision), error)),
        }
    }

    fn record<A>(&self, asked: &Asked<A>) -> Record {
        let facts = self.revision.facts().clone();
        Record {
            request_id: self.id.0.clone(),
            time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            member: facts.member,
            route: self.route.to_owned(),
            version: facts.version,
            package: facts.package,
            verdict: facts.verdict,
            evidence: facts.evidence.to_owned(),
            overridden: facts.overridden.map(|overridden| overridden.digest),
            development: facts.development,
            numerics_id: facts.numerics_id,
            outputs: asked.digests.clone(),
            n_tokens: asked.n_tokens.clone(),
            n_truncated: asked.n_truncated,
            queue_ms: milliseconds(asked.queued),
            compute_ms: milliseconds(asked.computed),
            total_ms: milliseconds(self.begun.elapsed()),
            hosted: None,
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
