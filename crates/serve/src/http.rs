//! The protocols on HTTP: one short handler a route, each a conversion, a question to the portfolio and a conversion back.

mod docs;
pub(crate) mod grpc;
mod monitor;
mod pages;
mod recommend;
mod records;
mod similarity;
pub(crate) mod tei;
pub(crate) mod told;

pub(crate) use monitor::{LabelsTaken, Monitored};
pub(crate) use pages::{Replayed, RequestChain, RolloutCourse};
pub(crate) use records::Defined;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, OriginalUri, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use axum::{Json, Router};
use highroad_hosted::HostedTask;
use highroad_package::TaskKind;
use highroad_service::access::Principal;
use highroad_service::{Kind, Problem, RequestId, trace};
use highroad_task::vector::{embedding_width, shortened};
use highroad_task::{Answer, Input};
use metrics::{counter, histogram};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use crate::alerts::{self, watch};
use crate::budget::keeper::charged_to_pipeline;
use crate::config::RequestLimits;
use crate::deployment::{Deployment, State as DeploymentState, Status};
use crate::error::AskError;
use crate::overview;
use crate::pipeline::{self, Action, Finished};
use crate::portfolio::Portfolio;
use crate::protocol::oip::{self, InferRequest, ModelStatistics, Query, RepositoryEntry, ServerMetadata, Statistics};
use crate::protocol::openai::{self, EmbeddingsRequest, ModelEntry, ModerationsRequest, Refused};
use crate::protocol::pipeline::{self as pipeline_protocol, PipelineEntry, PipelineRequest};
use crate::protocol::rerank::{self, Dialect, RerankRequest};
use crate::protocol::tei as tei_protocol;
use crate::protocol::{List, ModelTask, cohere, error_shape, json_of, similarity as alike};
use crate::reload::FileTold;
use crate::request_log::{Caller, PipelineRecord, Record, RequestLog};
use crate::revision::{Asked, Facts, Revision, Terms, check_limit};
use crate::rollout::{Assigned, Key, RolloutStatus, Served};
use crate::telemetry::{PIPELINE_REQUESTS, PIPELINE_SECONDS, REQUEST_SECONDS, REQUESTS};
use crate::traffic;

const PACKAGE: HeaderName = HeaderName::from_static("x-highroad-package");
const VERSION: HeaderName = HeaderName::from_static("x-highroad-version");
const EVIDENCE: HeaderName = HeaderName::from_static("x-highroad-evidence");
const OVERRIDE: HeaderName = HeaderName::from_static("x-highroad-override");
pub(crate) const ROLLOUT: HeaderName = HeaderName::from_static("x-highroad-rollout");
const DEVELOPMENT: HeaderName = HeaderName::from_static("x-highroad-development");
const CACHE: HeaderName = HeaderName::from_static("x-highroad-cache");
const TRUNCATED: HeaderName = HeaderName::from_static("x-highroad-truncated");
pub(crate) const HEADER_LENGTH: HeaderName = HeaderName::from_static(oip::HEADER_LENGTH);

#[derive(Clone)]
struct App {
    portfolio: Arc<Portfolio>,
    log: RequestLog,
}

/// Who asks, by the headers of a request.
struct Asker {
    id: RequestId,
    sticky: Option<String>,
}

impl Asker {
    fn new(id: RequestId, headers: &HeaderMap) -> Self {
        let named = STICKY.iter().find_map(|name| headers.get(*name)).map(HeaderValue::as_bytes);
        // Only its digest is used, so bytes that are no text are as good as others.
        let sticky = named.map(|value| String::from_utf8_lossy(value).into_owned());
        Self { id, sticky }
    }

    /// What decides on which side of a rollout the request falls.
    fn key(&self) -> Key {
        Key { sticky: self.sticky.clone(), request_id: self.id.0.clone() }
    }
}

/// What decides on which side of a rollout a request falls.
pub(crate) fn key(id: &RequestId, headers: &HeaderMap) -> Key {
    Asker::new(id.clone(), headers).key()
}

/// Headers that name who asks, the first that is there: all requests of one user fall on one side of a rollout, else all of one
/// tenant.
const STICKY: [&str; 2] = ["x-highroad-user", "x-highroad-tenant"];

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        let id = parts.extensions.get::<RequestId>().cloned().unwrap_or_else(|| RequestId(String::new()));
        Ok(Self::new(id, &parts.headers))
    }
}

/// The inference routes of our own models and the reading of the request log; [`crate::router`] has those of hosted members around it.
pub(crate) fn router(portfolio: Arc<Portfolio>, log: RequestLog) -> Router {
    let app = App { portfolio, log };
    routes().router.route(grpc::PATH, post(grpc::answer)).with_state(app)
}

fn routes() -> Routes {
    openai_routes()
        .and(rerank_routes())
        .and(cohere_routes())
        .and(oip_routes())
        .and(tei::routes())
        .and(pipeline_routes())
        .and(recommend::routes())
        .and(similarity::routes())
        .and(own_routes())
        .and(monitor::routes())
        .and(pages::routes())
        .and(docs::routes())
}

/// Method and path of everything that a serving process answers, but what refuses unknown paths.
#[cfg(test)]
pub(crate) fn told() -> Vec<(String, String)> {
    let apart = [
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("get", "/v1/highroad/budgets"),
        ("get", "/v1/highroad/budgets/history"),
        ("post", grpc::PATH),
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/metrics"),
    ];
    let apart = apart.map(|(method, path)| (method.to_owned(), path.to_owned()));
    let routes = routes().told.into_iter().map(|(method, path)| (method.to_owned(), path));
    routes.chain(apart).collect()
}

/// Routes that remember what they are, so that the OpenAPI document can be held against them.
#[derive(Default)]
struct Routes {
    router: Router<App>,
    told: Vec<(&'static str, String)>,
}

impl Routes {
    fn get(self, path: &str, answers: MethodRouter<App>) -> Self {
        self.on("get", path, answers)
    }

    fn post(self, path: &str, answers: MethodRouter<App>) -> Self {
        self.on("post", path, answers)
    }

    fn on(mut self, method: &'static str, path: &str, answers: MethodRouter<App>) -> Self {
        self.told.push((method, path.to_owned()));
        Self { router: self.router.route(path, answers), told: self.told }
    }

    /// Refuses every path below another that nothing answers.
    fn refuse(self, path: &str, refuses: MethodRouter<App>) -> Self {
        Self { router: self.router.route(path, refuses), told: self.told }
    }

    fn and(mut self, others: Self) -> Self {
        self.told.extend(others.told);
        Self { router: self.router.merge(others.router), told: self.told }
    }
}

/// `/health`: the process answers. `/ready`: every member serves what it should, and the status of each.
pub fn probes(portfolio: Arc<Portfolio>) -> Router {
    Router::new().route("/health", get(|| async { StatusCode::OK })).route("/ready", get(ready)).with_state(portfolio)
}

/// Whether every member serves what it should.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Readiness {
    ready: bool,
    /// Where each stands.
    members: Vec<Status>,
}

async fn ready(State(portfolio): State<Arc<Portfolio>>) -> Response {
    let readiness = Readiness { ready: portfolio.is_ready(), members: portfolio.statuses() };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json_of(&readiness))).into_response()
}

fn openai_routes() -> Routes {
    Routes::default()
        .post("/v1/embeddings", post(embeddings).fallback(openai_method))
        .post("/v1/moderations", post(moderations).fallback(openai_method))
        .get("/v1/models", get(models).fallback(openai_method))
        .get("/v1/models/{model}", get(model).fallback(openai_method))
        .refuse("/v1/{*rest}", any(openai_unknown))
}

fn rerank_routes() -> Routes {
    Routes::default()
        .post("/rerank", post(documents).fallback(rerank_method))
        .post("/v1/rerank", post(documents).fallback(rerank_method))
        .post("/v2/rerank", post(documents).fallback(rerank_method))
}

fn cohere_routes() -> Routes {
    Routes::default()
        .post("/v1/embed", post(cohere_embed).fallback(rerank_method))
        .post("/v2/embed", post(cohere_embed).fallback(rerank_method))
}

fn oip_routes() -> Routes {
    // Clients that ask for it get large tensors compressed; the fastest level, because time is what they are short of.
    let compression = CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(SizeAbove::new(1024));
    Routes::default()
        .get("/v2", get(|| async { Json(json_of(&ServerMetadata::OWN)) }).fallback(oip_method))
        .get("/v2/health/live", get(|| async { StatusCode::OK }).fallback(oip_method))
        .get("/v2/health/ready", get(oip_ready).fallback(oip_method))
        .get("/v2/models/{model}", get(model_metadata).fallback(oip_method))
        .get("/v2/models/{model}/versions/{version}", get(model_metadata).fallback(oip_method))
        .get("/v2/models/{model}/ready", get(model_ready).fallback(oip_method))
        .get("/v2/models/{model}/versions/{version}/ready", get(model_ready).fallback(oip_method))
        .get("/v2/models/{model}/config", get(model_config).fallback(oip_method))
        .get("/v2/models/{model}/versions/{version}/config", get(model_config).fallback(oip_method))
        .get("/v2/models/stats", get(all_stats).fallback(oip_method))
        .get("/v2/models/{model}/stats", get(model_stats).fallback(oip_method))
        .get("/v2/models/{model}/versions/{version}/stats", get(model_stats).fallback(oip_method))
        .post("/v2/models/{model}/infer", post(infer).layer(compression.clone()).fallback(oip_method))
        .post("/v2/models/{model}/versions/{version}/infer", post(infer).layer(compression).fallback(oip_method))
        .post("/v2/repository/index", post(repository_index).fallback(oip_method))
        .post("/v2/repository/models/{model}/{action}", post(repository_action).fallback(oip_method))
        .refuse("/v2/{*rest}", any(oip_unknown))
}

fn pipeline_routes() -> Routes {
    Routes::default()
        .get("/v1/pipelines", get(pipelines).fallback(openai_method))
        .post("/v1/pipelines/{pipeline}", post(run_pipeline).fallback(openai_method))
}

fn own_routes() -> Routes {
    Routes::default()
        .get("/v1/highroad/rollouts", get(rollouts).fallback(openai_method))
        .get("/v1/highroad/rollouts/{member}", get(rollout).fallback(openai_method))
        .post("/v1/highroad/rollouts/{member}/labels", post(labels).fallback(openai_method))
        .get("/v1/highroad/alerts", get(alerts).fallback(openai_method))
        .get("/v1/highroad/objectives", get(objectives).fallback(openai_method))
        .get("/v1/highroad/status", get(status).fallback(openai_method))
        .get("/v1/highroad/requests/{id}", get(records::record_of).fallback(openai_method))
        .get("/v1/highroad/definitions/{digest}", get(records::definition).fallback(openai_method))
}

async fn embeddings(State(app): State<App>, asker: Asker, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.embeddings(&asker, body).await)
}

async fn moderations(State(app): State<App>, asker: Asker, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.moderations(&asker, body).await)
}

async fn documents(
    State(app): State<App>,
    asker: Asker,
    OriginalUri(uri): OriginalUri,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (route, version) = if uri.path() == "/v2/rerank" { ("/v2/rerank", "2") } else { ("/v1/rerank", "1") };
    app.rerank(&asker, route, version, None, body).await
}

async fn cohere_embed(
    State(app): State<App>,
    asker: Asker,
    OriginalUri(uri): OriginalUri,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (route, version) = match uri.path() {
        "/v1/embed" => ("/v1/embed", cohere::Version::V1),
        _ => ("/v2/embed", cohere::Version::V2),
    };
    let answered = app.cohere_embed(&asker, (route, version), body).await;
    answered.unwrap_or_else(|failed| failed.problem().respond(rerank::error_body))
}

async fn pipelines(State(app): State<App>) -> Json<Value> {
    let pipelines = app.portfolio.pipelines().unwrap_or_default();
    let named: Vec<&str> = pipelines.names().filter(|name| Principal::current_may_ask(name)).collect();
    // Who may ask a pipeline may know what answers.
    let entries = Principal::with_all_members(async {
        let entry = |name: &&str| {
            let composition = pipelines.composition(name, &app.portfolio);
            Some(PipelineEntry::of(name, pipelines.get(name)?, composition))
        };
        named.iter().filter_map(entry).collect::<Vec<_>>()
    });
    Json(json_of(&List::of(entries.await)))
}

async fn run_pipeline(
    State(app): State<App>,
    asker: Asker,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    openai_response(app.run_pipeline(&asker, &name, body).await.map_err(Refused::from))
}

async fn rerank_method(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    wrong_method(&method, uri.path()).respond(rerank::error_body)
}

async fn models(State(app): State<App>) -> Response {
    let mut models: Vec<ModelEntry> =
        app.portfolio.deployments().iter().filter_map(|d| d.revision().ok()).map(|r| entry(&r)).collect();
    models.extend(app.portfolio.hosted().all().iter().filter_map(|member| member.entry()));
    Json(json_of(&List::of(models))).into_response()
}

async fn model(State(app): State<App>, Path(model): Path<String>) -> Response {
    if let Some(entry) = app.portfolio.hosted_member(&model).ok().and_then(|member| member.entry()) {
        return Json(json_of(&entry)).into_response();
    }
    let found = app.portfolio.revision(&model).map(|revision| Json(json_of(&entry(&revision))).into_response());
    openai_response(found.map_err(Refused::from))
}

fn entry(revision: &Revision) -> ModelEntry {
    let task = ModelTask::Package(revision.manifest().task.kind.clone());
    ModelEntry::of(&revision.facts().member, revision.facts(), task)
}

async fn openai_unknown(OriginalUri(uri): OriginalUri) -> Response {
    let message = format!(
        "this server has no `{}`; it has /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/moderations, /v1/rerank, /v1/models and the Open Inference Protocol at /v2; /docs shows them all",
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
    let metadata = oip::model_metadata(&path.model, revision.facts(), revision.manifest(), revision.program());
    Ok(Json(json_of(&metadata)))
}

async fn model_ready(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<StatusCode, Problem> {
    app.versioned(&path).map(|_| StatusCode::OK)
}

async fn model_config(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, Problem> {
    let revision = app.versioned(&path)?;
    let config = oip::model_config(&path.model, revision.facts(), revision.manifest(), revision.program());
    Ok(Json(json_of(&config)))
}

async fn model_stats(State(app): State<App>, Path(path): Path<ModelPath>) -> Result<Json<Value>, Problem> {
    let revision = app.versioned(&path)?;
    let stats = ModelStatistics::of(&path.model, revision.facts(), &revision.stats);
    Ok(Json(json_of(&Statistics { model_stats: vec![stats] })))
}

async fn all_stats(State(app): State<App>) -> Json<Value> {
    let revisions = app.portfolio.deployments().into_iter().filter_map(|deployment| deployment.revision().ok());
    let stats = revisions
        .map(|revision| ModelStatistics::of(&revision.facts().member, revision.facts(), &revision.stats))
        .collect();
    Json(json_of(&Statistics { model_stats: stats }))
}

async fn infer(
    State(app): State<App>,
    Path(path): Path<ModelPath>,
    asker: Asker,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    app.infer(&path, &asker, &headers, body).await.unwrap_or_else(IntoResponse::into_response)
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
        RepositoryEntry { name: status.member, version, state, reason: reason.unwrap_or_default() }
    };
    let entries: Vec<RepositoryEntry> = app.portfolio.statuses().into_iter().map(entry).collect();
    Json(json_of(&entries))
}

async fn repository_action(Path((model, action)): Path<(String, String)>) -> Problem {
    if !matches!(action.as_str(), "load" | "unload") {
        return Problem::not_found(format!(
            "a repository does not `{}`; it has `load` and `unload`",
            printable(&action)
        ));
    }
    let message =
        format!("`{model}` cannot be {action}ed by hand: members follow the registry; `highroad promote` moves it");
    Problem::new(Kind::Unsupported, message)
}

/// Where every member stands, and what the portfolio's file says.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ServerStatus {
    #[serde(flatten)]
    readiness: Readiness,
    portfolio: FileTold,
}

async fn status(State(app): State<App>) -> Json<Value> {
    let portfolio = &app.portfolio;
    let readiness = Readiness { ready: portfolio.is_ready(), members: portfolio.statuses() };
    Json(json_of(&ServerStatus { readiness, portfolio: portfolio.told() }))
}

async fn alerts(State(app): State<App>) -> Json<Value> {
    Json(json_of(&alerts::route(&app.portfolio)))
}

async fn objectives(State(app): State<App>) -> Json<Value> {
    Json(json_of(&alerts::objectives_route(&app.portfolio)))
}

/// Candidates that are tried, and the last of each member that was.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Rollouts")]
pub(crate) struct RolloutsTold {
    rollouts: Vec<RolloutStatus>,
}

async fn rollouts(State(app): State<App>) -> Json<Value> {
    Json(json_of(&RolloutsTold { rollouts: app.portfolio.rollouts() }))
}

async fn rollout(State(app): State<App>, Path(member): Path<String>) -> Response {
    let found = app.portfolio.rollout(&member).map_err(Refused::from).and_then(|status| {
        status.ok_or_else(|| Problem::not_found(format!("`{member}` has had no rollout here")).into())
    });
    let shown = match found {
        Ok(status) => pages::blocking(move || status.with_latency()).await.map_err(Refused::from),
        Err(refused) => Err(refused),
    };
    openai_response(shown.map(|status| Json(status).into_response()))
}

/// A right answer that came later: it counts for a rollout that compared the request in this process.
#[derive(serde::Deserialize)]
struct Label {
    request_id: String,
    label: String,
}

/// Whether a right answer counts.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LabelCounted {
    /// Not where this process has not compared the request, or not any more.
    counted: bool,
}

async fn labels(State(app): State<App>, Path(member): Path<String>, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.label(&member, body))
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

fn openai_response(result: Result<Response, Refused>) -> Response {
    result.unwrap_or_else(|refused| refused.problem.respond(|_| refused.body()))
}

impl App {
    fn whole(&self, body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
        body.map_err(|rejection| unreadable(&rejection, &self.portfolio.limits()))
    }

    async fn embeddings(&self, asker: &Asker, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let bytes = self.whole(body)?;
        let request = EmbeddingsRequest::parse(&bytes)
            .inspect_err(|refused| self.malformed(None, &bytes, &refused.problem.message))?;
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let wanted = Wanted { inputs: request.inputs, terms, dimensions: request.dimensions };
        let embedded = self.embed(asker, "/v1/embeddings", &request.model, wanted).await?;
        let body = openai::embeddings_reply(&request.model, &embedded.vectors, embedded.n_tokens(), request.encoding);
        Ok(self.answer(&embedded.call, &embedded.asked, "application/json", body))
    }

    /// Vectors, whatever protocol asks for them.
    async fn embed<'a>(
        &self,
        asker: &'a Asker,
        route: &'static str,
        member: &str,
        wanted: Wanted,
    ) -> Result<Embedded<'a>, AskError> {
        let assigned = self.assign(member, asker)?;
        let task = &assigned.revision().manifest().task.kind;
        let TaskKind::Embed { normalized, .. } = *task else {
            return Err(wrong_task(assigned.revision(), "embeddings"));
        };
        let width = embedding_width(task, wanted.dimensions)
            .map_err(|error| count(Some(assigned.revision()), AskError::Dimensions(error)))?;
        let served = assigned.ask(wanted.inputs, &self.portfolio.limits(), wanted.terms).await;
        let (call, result) = Call::of(asker, route, served);
        let asked = call.finish(result)?;
        let vectors = asked.answers.iter().map(|answer| shortened(answer.values(), width, normalized)).collect();
        Ok(Embedded { call, asked, vectors })
    }

    async fn moderations(&self, asker: &Asker, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let bytes = self.whole(body)?;
        let request = ModerationsRequest::parse(&bytes)
            .inspect_err(|refused| self.malformed(None, &bytes, &refused.problem.message))?;
        let member = match &request.model {
            Some(model) => model.clone(),
            None => self.only("moderates", moderates).map_err(|problem| {
                let param = (problem.kind == Kind::Invalid).then_some("model");
                Refused { param, ..problem.into() }
            })?,
        };
        let assigned = self.assign(&member, asker)?;
        if !moderates(assigned.revision()) {
            return Err(wrong_task(assigned.revision(), "moderations").into());
        }
        let served = assigned.ask(request.inputs, &self.portfolio.limits(), Terms::default()).await;
        let (call, result) = Call::of(asker, "/v1/moderations", served);
        let asked = call.finish(result)?;
        let task = &call.revision.manifest().task.kind;
        let body = openai::moderations_reply(&asker.id.0, &call.revision.facts().member, task, &asked.answers);
        Ok(self.answer(&call, &asked, "application/json", body))
    }

    async fn cohere_embed(
        &self,
        asker: &Asker,
        (route, version): (&'static str, cohere::Version),
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Failed> {
        let bytes = self.whole(body)?;
        let request = cohere::EmbedRequest::parse(&bytes, version)
            .inspect_err(|problem| self.malformed(None, &bytes, &problem.message))?;
        let member = match &request.model {
            Some(model) => model.clone(),
            None => self.only("embeds", embeds)?,
        };
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let wanted = Wanted { inputs: request.inputs(), terms, dimensions: request.dimensions };
        let embedded = self.embed(asker, route, &member, wanted).await?;
        let body = request.reply(&asker.id.0, &embedded.vectors, embedded.n_tokens());
        Ok(self.answer(&embedded.call, &embedded.asked, "application/json", body))
    }

    /// Reranks, and answers and refuses in the dialect of the body. `model` goes before the one that the body names.
    async fn rerank(
        &self,
        asker: &Asker,
        route: &'static str,
        version: &'static str,
        model: Option<String>,
        body: Result<Bytes, BytesRejection>,
    ) -> Response {
        let bytes = match self.whole(body) {
            Ok(bytes) => bytes,
            Err(problem) => return problem.respond(rerank::error_body),
        };
        let request = RerankRequest::parse(&bytes, version)
            .inspect_err(|problem| self.malformed(model.as_deref(), &bytes, &problem.message))
            .map_err(Failed::from);
        let reranked = match request {
            Ok(request) => self.ranked(asker, route, model, request).await,
            Err(failed) => Err(failed),
        };
        let refuse = |failed: Failed| match rerank::is_tei(&bytes) {
            true => tei::refuse(rerank::tei_refused(&bytes, failed)),
            false => failed.problem().respond(rerank::error_body),
        };
        reranked.unwrap_or_else(refuse)
    }

    async fn ranked(
        &self,
        asker: &Asker,
        route: &'static str,
        model: Option<String>,
        mut request: RerankRequest,
    ) -> Result<Response, Failed> {
        let member = match model.or_else(|| request.model.clone()) {
            Some(model) => model,
            None => self.only("reranks", reranks)?,
        };
        let assigned = self.assign(&member, asker)?;
        let by_cosine = embeds(assigned.revision());
        if !by_cosine && !reranks(assigned.revision()) {
            return Err(wrong_task(assigned.revision(), "reranking").into());
        }
        let limits = self.portfolio.limits();
        check_limit("documents", request.documents.len(), assigned.revision().limits(&limits).documents)
            .map_err(|error| count(Some(assigned.revision()), error))?;
        check_limit("bytes in its pairs", request.pairs_bytes(), limits.body_bytes)
            .map_err(|error| count(Some(assigned.revision()), error))?;
        let revision = assigned.revision();
        let cut = match request.most_document_tokens() {
            Some(most) => revision.shorten(&request.documents, most, &limits).await,
            None => Ok(None),
        };
        let mut cut = cut.map_err(|error| count(Some(revision), error))?;
        if let Some(cut) = &mut cut {
            cut.swap(&mut request.documents);
        }
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let inputs = if by_cosine { request.texts() } else { request.inputs() };
        let served = assigned.ask(inputs, &limits, terms).await;
        let (call, result) = Call::of(asker, route, served);
        let mut asked = call.finish(result)?;
        if let Some(mut cut) = cut {
            call.revision.was_shortened(&mut asked, &cut);
            cut.swap(&mut request.documents);
        }
        let n_tokens = asked.n_tokens.iter().sum();
        let body = request.reply(&asker.id.0, &call.revision.facts().member, &asked.answers, n_tokens);
        let mut response = self.answer(&call, &asked, "application/json", body);
        if matches!(request.dialect, Dialect::Tei { .. }) {
            tei::put_times(&call, &asked, &mut response);
        }
        Ok(response)
    }

    async fn run_pipeline(
        &self,
        asker: &Asker,
        name: &str,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Problem> {
        let request = PipelineRequest::parse(&self.whole(body)?)?;
        let pipelines = self.portfolio.pipelines().unwrap_or_default();
        let Some(config) = pipelines.get(name) else {
            let known = pipelines.names().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "there are none".to_owned() } else { format!("there are: {known}") };
            return Err(Problem::not_found(format!("there is no pipeline `{}`; {known}", printable(name))));
        };
        if !Principal::current_may_ask(name) {
            return Err(AskError::NotAllowed { member: name.to_owned() }.problem());
        }
        let (begun, key) = (Instant::now(), asker.key());
        // No step reads the last one, so nothing waits for it.
        let last = config.output + 1 == config.steps.len();
        let generates = matches!(config.steps[config.output].action, Action::Generate { .. });
        if request.stream && !(last && generates) {
            return Err(Problem::invalid("only a pipeline whose last step generates can stream"));
        }
        let asked = pipeline::Request {
            portfolio: &self.portfolio,
            log: &self.log,
            pipeline: name,
            input: &request.input,
            key: &key,
            streams: request.stream,
        };
        // Every scope holds the future twice, as its argument and as what it awaits; this one is large, and stacks are not.
        let running = Box::pin(pipelines.run(config, &asked));
        let running = told::by_several(charged_to_pipeline(name, running));
        let finished = Principal::with_all_members(running).await;
        let outcome = match &finished {
            Ok(Finished { stopped: None, .. }) => "ok",
            Ok(_) => "stopped",
            Err(_) => "failed",
        };
        counter!(PIPELINE_REQUESTS, "pipeline" => name.to_owned(), "outcome" => outcome).increment(1);
        traffic::count(&overview::of_pipeline(name), outcome, finished.is_ok().then(|| begun.elapsed()));
        histogram!(PIPELINE_SECONDS, "pipeline" => name.to_owned()).record(begun.elapsed().as_secs_f64());
        let finished = match finished.map_err(|error| error.problem()) {
            Ok(finished) => finished,
            Err(problem) => {
                watch::pipeline(name, watch::Went::of_problem(&problem));
                return Err(problem);
            }
        };
        watch::pipeline(name, watch::Went::Well);
        self.log_steps(&asker.id, name, &finished);
        if let Some(definition) = pipelines.kept(name, &finished, &self.portfolio) {
            let record = records::of_pipeline(
                asker.id.0.clone(),
                PipelineRecord::of(name, definition, &finished),
                &finished,
                begun.elapsed(),
            );
            told::asked(&records::origin_of(&record));
            self.log.put(record);
        }
        if let Some(prompt) = &finished.prompt {
            let asking = Box::pin(pipelines.events(config, &asked, prompt));
            let asking = told::by_several(charged_to_pipeline(name, asking));
            let events = Principal::with_all_members(asking).await;
            let (headers, events) = events.map_err(|error| error.problem())?;
            let first = Bytes::from(pipeline_protocol::first_event(&asker.id.0, name, &finished));
            let first = futures_util::stream::iter([Ok::<_, axum::Error>(first)]);
            let body = Body::from_stream(futures_util::StreamExt::chain(first, events.into_data_stream()));
            return Ok((headers, body).into_response());
        }
        let body = request.reply(&asker.id.0, name, &finished);
        Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
    }

    /// The one member that `does` what is asked, for a request that names none.
    fn only(&self, does: &str, has: fn(&Revision) -> bool) -> Result<String, Problem> {
        let revisions = self.portfolio.deployments().into_iter().filter_map(|deployment| deployment.revision().ok());
        let found = revisions.filter(|revision| has(revision)).map(|revision| revision.facts().member.clone());
        let mut found: Vec<String> = found.collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Problem::not_found(format!("no model of this server {does}"))),
            _ => {
                let names = found.join(", ");
                Err(Problem::invalid(format!("more than one model {does}; name one as `model`: {names}")))
            }
        }
    }

    fn label(&self, member: &str, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let given: Label = serde_json::from_slice(&self.whole(body)?)
            .map_err(|error| Problem::invalid(format!("expected `request_id` and `label`: {error}")))?;
        let deployment = self.portfolio.deployment(member)?;
        let counted = deployment.label(&given.request_id, &given.label);
        Ok(Json(LabelCounted { counted }).into_response())
    }

    /// Who answers a request for `member`.
    fn assign(&self, member: &str, asker: &Asker) -> Result<Assigned, AskError> {
        self.portfolio.assign(member, &asker.key()).map_err(|error| count(None, error))
    }

    async fn infer(
        &self,
        path: &ModelPath,
        asker: &Asker,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Problem> {
        let assigned = self.assigned_version(path, asker)?;
        let refused = |problem: &Problem| self.malformed(Some(&path.model), &[], &problem.message);
        let request = InferRequest::parse(&self.whole(body)?, json_bytes(headers)?).inspect_err(refused)?;
        let terms = Terms { timeout: request.timeout, priority: request.priority, ..Terms::default() };
        let asked = assigned.revision();
        let task_inputs = oip::task_inputs(&asked.manifest().task);
        let (query, wanted) = request.query_of(asked.program().inputs(), task_inputs).inspect_err(refused)?;
        let reply = |revision: &Revision, outputs| {
            wanted.reply(&path.model, revision.facts(), &revision.manifest().task.kind, outputs)
        };
        let (reply, headers) = self.infer_with(&assigned, asker, query, terms, reply).await?;
        let mut response = Response::new(Body::from(reply.body));
        *response.headers_mut() = headers;
        let content_type = if reply.json_bytes.is_some() { "application/octet-stream" } else { "application/json" };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(json_bytes) = reply.json_bytes {
            response.headers_mut().insert(HEADER_LENGTH, json_bytes.into());
        }
        Ok(response)
    }

    /// Answers `query` with what `reply` makes of its outputs, and gives the headers that tell where it comes from.
    async fn infer_with<R>(
        &self,
        assigned: &Assigned,
        asker: &Asker,
        query: Query,
        terms: Terms,
        reply: impl FnOnce(&Revision, Vec<oip::Output>) -> Result<R, Problem>,
    ) -> Result<(R, HeaderMap), Problem> {
        let limits = self.portfolio.limits();
        let (rows, places) = match query {
            Query::Rows(rows) => (rows, None),
            Query::Pairs(pairs) if embeds(assigned.revision()) => {
                let (texts, places) = pairs.texts();
                (texts, Some(places))
            }
            Query::Pairs(pairs) => (pairs.rows()?, None),
            Query::Program(tensors) => {
                let (call, result) = Call::of(asker, oip::ROUTE, assigned.run_program(tensors, terms).await);
                let asked = call.finish(result).map_err(|error| error.problem())?;
                let outputs = oip::program_outputs(call.revision.program().outputs(), &asked.answers);
                let reply = reply(&call.revision, outputs)?;
                return Ok((reply, self.answered(&call, &asked)));
            }
        };
        let (call, result) = Call::of(asker, oip::ROUTE, assigned.ask(rows, &limits, terms).await);
        let asked = call.finish(result).map_err(|error| match &places {
            Some(places) => alike::of_pairs(error, places).problem(),
            None => error.problem(),
        })?;
        let outputs = match places {
            Some(places) => vec![oip::similarity_output(&alike::cosines(&places, &asked.answers))],
            None => oip::task_outputs(&call.revision.manifest().task.kind, &asked.answers),
        };
        let reply = reply(&call.revision, outputs)?;
        Ok((reply, self.answered(&call, &asked)))
    }

    /// Who answers a request for the path's model: of two versions in a rollout the one that the path names.
    fn assigned_version(&self, path: &ModelPath, asker: &Asker) -> Result<Assigned, Problem> {
        let assigned = self.assign(&path.model, asker).map_err(|error| error.problem())?;
        let Some(version) = &path.version else { return Ok(assigned) };
        let named = assigned.pinned(|revision| oip::version(revision.facts()) == *version);
        named.map_or_else(|| self.versioned(path).map(|revision| Assigned::plain(revision, &asker.key())), Ok)
    }

    fn versioned(&self, path: &ModelPath) -> Result<Arc<Revision>, Problem> {
        let revision = self.portfolio.revision(&path.model).map_err(|error| count(None, error).problem())?;
        let current = oip::version(revision.facts());
        match &path.version {
            Some(version) if *version != current => {
                let deployment = self.portfolio.deployment(&path.model).ok();
                let candidate = deployment.and_then(|deployment| deployment.candidate());
                if let Some(candidate) = candidate.filter(|tried| oip::version(tried.facts()) == *version) {
                    return Ok(candidate);
                }
                let (member, version) = (path.model.clone(), printable(version));
                Err(AskError::OtherVersion { member, version, current }.problem())
            }
            _ => Ok(revision),
        }
    }

    /// Logs the answer and says in the response's headers where it comes from.
    fn answer<A>(&self, call: &Call<'_>, asked: &Asked<A>, content_type: &'static str, body: Vec<u8>) -> Response {
        let mut response = Response::new(Body::from(body));
        *response.headers_mut() = self.answered(call, asked);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    }

    /// Logs the answer and gives the headers that say where it comes from.
    fn answered<A>(&self, call: &Call<'_>, asked: &Asked<A>) -> HeaderMap {
        self.log.put(call.record(asked));
        let mut headers = HeaderMap::new();
        origin(call.revision.facts(), &mut headers);
        if let Some(rollout) = call.rollout.as_ref().and_then(|told| HeaderValue::from_str(told).ok()) {
            headers.insert(ROLLOUT, rollout);
        }
        if let Some(used) = asked.cache {
            headers.insert(CACHE, HeaderValue::from_static(used.name()));
        }
        if asked.n_truncated > 0 {
            headers.insert(TRUNCATED, asked.n_truncated.into());
        }
        headers
    }
}

/// Whether a path is one of gRPC's.
pub(crate) fn is_grpc(path: &str) -> bool {
    path.starts_with(grpc::SERVICE)
}

/// A refusal before any route, in the words of the one that `path` belongs to.
pub(crate) fn refusal(path: &str, problem: &Problem) -> Response {
    if is_grpc(path) {
        return grpc::status(problem).into_http();
    }
    problem.respond(|problem| error_shape(path, problem))
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
        HostedTask::Classify => classifies(&revision),
        HostedTask::Rerank => reranks(&revision),
        HostedTask::Embed => matches!(&revision.manifest().task.kind, TaskKind::Embed { .. }),
        _ => false,
    })
}

pub(crate) fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
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

/// What a request for embeddings asks, in no protocol's words.
struct Wanted {
    inputs: Vec<Input>,
    terms: Terms,
    dimensions: Option<u64>,
}

/// Answered embeddings.
struct Embedded<'a> {
    call: Call<'a>,
    asked: Asked<Vec<Answer>>,
    /// Of the width that was asked for.
    vectors: Vec<Vec<f32>>,
}

impl Embedded<'_> {
    fn n_tokens(&self) -> usize {
        self.asked.n_tokens.iter().sum()
    }
}

/// Why there is no answer, before a protocol words it.
enum Failed {
    Ask(AskError),
    Said(Problem),
}

impl From<AskError> for Failed {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Said(problem)
    }
}

impl From<Failed> for tei_protocol::Refused {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Ask(error) => error.into(),
            Failed::Said(problem) => problem.into(),
        }
    }
}

impl Failed {
    fn problem(self) -> Problem {
        match self {
            Self::Ask(error) => error.problem(),
            Self::Said(problem) => problem,
        }
    }
}

fn embeds(revision: &Revision) -> bool {
    matches!(&revision.manifest().task.kind, TaskKind::Embed { .. })
}

fn classifies(revision: &Revision) -> bool {
    matches!(&revision.manifest().task.kind, TaskKind::Classify { .. }) && reads(revision)
}

fn reads(revision: &Revision) -> bool {
    let task = &revision.manifest().task;
    task.image.is_none() && !matches!(task.kind, TaskKind::Tensors)
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
        TaskKind::Recommend { .. } => "recommendations",
        TaskKind::Tensors => "tensors",
        _ => "another task",
    }
}

fn recommends(revision: &Revision) -> bool {
    matches!(&revision.manifest().task.kind, TaskKind::Recommend { .. })
}

fn wrong_task(revision: &Revision, wanted: &'static str) -> AskError {
    let task = task_name(revision);
    count(Some(revision), AskError::WrongTask { member: revision.facts().member.clone(), task, wanted })
}

// Names that clients make up are no labels.
fn count(revision: Option<&Revision>, error: AskError) -> AskError {
    let member = revision.map_or("unknown".to_owned(), |revision| revision.facts().member.clone());
    watch::refused(revision.map(|revision| revision.facts().member.as_str()), &error);
    traffic::count(&member, error.outcome(), None);
    counter!(REQUESTS, "member" => member, "outcome" => error.outcome()).increment(1);
    if let Some((revision, kind)) = revision.zip(error.violation()) {
        revision.violated(kind);
    }
    error
}

/// One request to one revision, from its parsed body to its answer.
struct Call<'a> {
    id: &'a RequestId,
    route: &'static str,
    revision: Arc<Revision>,
    begun: Instant,
    rollout: Option<String>,
}

impl<'a> Call<'a> {
    /// What was served to a request on `route`, and how it went.
    fn of<A>(asker: &'a Asker, route: &'static str, served: Served<A>) -> (Self, Result<Asked<A>, AskError>) {
        let Served { revision, result, begun, rollout } = served;
        told::asked(revision.facts());
        (Self { id: &asker.id, route, revision, begun, rollout }, result)
    }

    fn finish<A>(&self, result: Result<Asked<A>, AskError>) -> Result<Asked<A>, AskError> {
        let member = self.revision.facts().member.clone();
        match result {
            Ok(asked) => {
                counter!(REQUESTS, "member" => member.clone(), "outcome" => "ok").increment(1);
                let took = self.begun.elapsed();
                watch::member(&member, "ok", took);
                traffic::count(&member, "ok", Some(took));
                let (seconds, trace_id) = (took.as_secs_f64(), trace::ids().map(|(trace, _)| trace));
                highroad_service::metrics::exemplar(
                    REQUEST_SECONDS,
                    &[("member", &member)],
                    seconds,
                    &self.id.0,
                    trace_id,
                );
                histogram!(REQUEST_SECONDS, "member" => member).record(seconds);
                Ok(asked)
            }
            Err(error) => Err(count(Some(&self.revision), error)),
        }
    }

    fn record<A>(&self, asked: &Asked<A>) -> Record {
        record(self.id.0.clone(), self.route, self.revision.facts().clone(), asked, self.begun.elapsed())
    }
}

fn record<A>(request_id: String, route: &str, facts: Facts, asked: &Asked<A>, total: Duration) -> Record {
    Record {
        request_id,
        caller: Caller::current(),
        time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        member: facts.member,
        route: route.to_owned(),
        version: facts.version,
        package: facts.package,
        verdict: facts.verdict,
        evidence: facts.evidence.to_owned(),
        overridden: facts.overridden.map(|overridden| overridden.digest),
        development: facts.development,
        numerics_id: facts.numerics_id,
        outputs: asked.digests.clone(),
        labels: asked.told.labels.clone(),
        order: asked.told.order.clone(),
        n_tokens: asked.n_tokens.clone(),
        n_truncated: asked.n_truncated,
        cache: asked.cache.map(|used| used.name().to_owned()),
        queue_ms: milliseconds(asked.queued),
        compute_ms: milliseconds(asked.computed),
        total_ms: milliseconds(total),
        cut: asked.cut,
        document_tokens: asked.document_tokens,
        prompts: asked.prompts.clone(),
        hosted: None,
        step_of: None,
        pipeline: None,
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
