//! Hosted members on HTTP: routes of their own where only they answer, and a look before our own models' routes for who is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use highroad_hosted::{Hosted, HostedTask};
use highroad_service::access::Principal;
use highroad_service::{Kind as ProblemKind, Problem, RequestId};
use highroad_task::Input;
use metrics::counter;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::HostedMember;
use super::answers::Asker;
use super::ask::{Began, Declined, Failure, Received, Wanted};
use super::exchange::{self, Asked, Exchange};
use super::shared::Shared;
use super::trial::Part;
use crate::alerts::watch::{self, Watch};
use crate::budget::keeper::Spending;
use crate::config::RequestLimits;
use crate::error::AskError;
use crate::http::told::Origin;
use crate::http::{self};
use crate::portfolio::Portfolio;
use crate::protocol::chat::{ChatRequest, Kind, Tally};
use crate::protocol::openai;
use crate::protocol::{error_shape, json_of};
use crate::request_log::{Caller, RequestLog};
use crate::revision::{Facts, check_limit, is_image, size_bytes};
use crate::rollout::{Key, Side};
use crate::telemetry::{HOSTED_FALLBACKS, REQUESTS};
use crate::traffic;
use crate::urgency::Urgency;

const TRIES: HeaderName = HeaderName::from_static("x-highroad-tries");
const FALLBACK: HeaderName = HeaderName::from_static("x-highroad-fallback");

#[derive(Clone)]
pub(super) struct App {
    pub portfolio: Arc<Portfolio>,
    pub log: RequestLog,
}

/// Every inference route of `portfolio` and the reading of its request log.
///
/// Wrap it in a `highroad_service::Shell`, which gives requests their ids; [`crate::probes`] and `/metrics` are apart, so that a
/// process with several routers has them once.
pub fn router(portfolio: Arc<Portfolio>, log: RequestLog) -> Router {
    let own = http::router(Arc::clone(&portfolio), log.clone());
    let app = App { portfolio, log };
    let hosted = Router::new()
        .route("/v1/chat/completions", post(chat).fallback(http::openai_method))
        .route("/v1/completions", post(completions).fallback(http::openai_method))
        .route("/v1/highroad/budgets", get(budgets).fallback(http::openai_method))
        .route("/v1/highroad/budgets/history", get(spent).fallback(http::openai_method))
        .with_state(app.clone());
    own.merge(hosted).layer(middleware::from_fn_with_state(app, front))
}

async fn budgets(State(app): State<App>) -> Json<Value> {
    Json(json_of(&app.portfolio.budgets().map(|budgets| budgets.view()).unwrap_or_default()))
}

async fn spent(State(app): State<App>) -> Json<Value> {
    Json(match app.portfolio.budgets() {
        Some(budgets) => json_of(&budgets.history().await),
        None => json_of(&Spending::default()),
    })
}

async fn chat(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    told(app.generate(Kind::Chat, &id, &http::key(&id, &headers), body).await)
}

async fn completions(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    told(app.generate(Kind::Completion, &id, &http::key(&id, &headers), body).await)
}

fn told(result: Result<Response, Declined>) -> Response {
    result.unwrap_or_else(|declined| declined.problem.respond(|_| declined.body()))
}

/// Counts what a request takes against the budgets, whichever route it takes, and answers for hosted members on the routes that they
/// share with our own.
///
/// Whatever is edited meanwhile, the request is answered by what is served as it comes.
async fn front(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let portfolio = Arc::clone(&app.portfolio);
    let (origin, is_grpc) = (Origin::default(), http::is_grpc(request.uri().path()));
    let answering = async move {
        DefaultBodyLimit::max(app.portfolio.limits().body_bytes).apply(&mut request);
        let urgency = match Urgency::of(request.headers(), Instant::now()) {
            Ok(urgency) => urgency,
            Err(problem) => return http::refusal(request.uri().path(), &problem),
        };
        let budgets = app.portfolio.budgets();
        let answering = urgency.scope(app.watched(request, next));
        match budgets {
            Some(budgets) => budgets.scope(answering).await,
            None => answering.await,
        }
    };
    let mut response = origin.scope(portfolio.pinned(Box::pin(answering))).await;
    origin.put(response.headers_mut(), portfolio.unverified(), is_grpc);
    response
}

/// Who answers.
pub(super) enum Answer<T> {
    /// A host.
    Hosted(Began<T>),
    /// A model of our own, in place of a host.
    Own(String),
}

/// A generator's answer that is there, or has begun.
struct Generated {
    began: Began<(Received, Tally)>,
    passed: Vec<String>,
    asked: Asked,
    /// Of the canary that answered.
    rollout: Option<String>,
}

/// How much one request asks, for the limits of whoever is asked.
#[derive(Clone, Copy, Default)]
pub(super) struct Load {
    /// Texts, or messages of a conversation.
    inputs: usize,
    /// Bytes of the longest.
    longest_bytes: usize,
    /// Of a reranking.
    documents: usize,
}

impl Load {
    pub(super) fn of(inputs: &[Input]) -> Self {
        let longest_bytes = inputs.iter().filter(|input| !is_image(input)).map(size_bytes).max().unwrap_or(0);
        Self { inputs: inputs.len(), longest_bytes, documents: 0 }
    }

    pub(super) fn of_reranking(query: &str, documents: &[String]) -> Self {
        let longest = documents.iter().map(String::len).max().unwrap_or(0);
        Self { inputs: documents.len(), longest_bytes: query.len() + longest, documents: documents.len() }
    }

    fn check(self, limits: &RequestLimits) -> Result<(), AskError> {
        check_limit("documents", self.documents, limits.documents)?;
        check_limit("inputs", self.inputs, limits.inputs)?;
        check_limit("bytes in one input", self.longest_bytes, limits.input_bytes)
    }
}

/// An answer, and the members that could not give one before it, each with the reason.
pub(super) struct InOrder<T> {
    pub answer: Answer<T>,
    pub passed: Vec<String>,
}

/// A pipeline's step that generates: one message to a hosted member.
pub(crate) struct Generation<'a> {
    pub portfolio: &'a Arc<Portfolio>,
    pub log: &'a RequestLog,
    pub pipeline: &'a str,
    pub step: &'a str,
    /// Decides on which side of a trial it falls.
    pub key: &'a Key,
    pub member: &'a str,
    pub system: Option<&'a str>,
    pub prompt: &'a str,
    pub max_tokens: Option<u64>,
}

/// A text that was generated.
pub(crate) struct Text {
    pub text: String,
    pub facts: Facts,
    /// Members that could not answer before, each with the reason.
    pub passed: Vec<String>,
}

const PIPELINES: &str = "/v1/pipelines";

impl Generation<'_> {
    /// The text, whole.
    pub(crate) async fn text(self) -> Result<Text, Declined> {
        let (app, request) = self.request(false)?;
        let asked = self.asked(&app);
        let Generated { began, passed, asked, .. } = app.generated(&request, Kind::Chat, self.key, asked).await?;
        let facts = began.serving.facts.clone();
        let (exchange, (_, tally)) = Exchange::new(began, asked);
        let text = tally.text().to_owned();
        let digests = tally.digests();
        exchange.whole(tally, digests);
        Ok(Text { text, facts, passed })
    }

    /// The text as it comes: the host's events, and the headers that say where they come from.
    pub(crate) async fn events(self) -> Result<(HeaderMap, Body), Declined> {
        let (app, request) = self.request(true)?;
        let asked = self.asked(&app);
        let Generated { began, passed, asked, .. } = app.generated(&request, Kind::Chat, self.key, asked).await?;
        let mut headers = origin(&began, &passed);
        put_event_headers(&mut headers);
        let (exchange, (received, _)) = Exchange::new(began, asked);
        let Received::Events(first, incoming) = received else {
            return Err(Problem::internal(&"a host answered whole where events were asked for").into());
        };
        Ok((headers, exchange::relay(exchange, &first, incoming, false)))
    }

    fn request(&self, stream: bool) -> Result<(App, ChatRequest), Declined> {
        let mut body = step_body(self.member, self.system, self.prompt, self.max_tokens);
        body["stream"] = stream.into();
        let app = App { portfolio: Arc::clone(self.portfolio), log: self.log.clone() };
        Ok((app, ChatRequest::parse(Kind::Chat, body.to_string().as_bytes())?))
    }

    fn asked(&self, app: &App) -> Asked {
        let step_of = Some(self.pipeline.to_owned());
        let asker = Asker { id: &self.key.request_id, part: Some(self.step), route: PIPELINES };
        Asked { step_of, ..app.asked(asker, Vec::new()) }
    }
}

/// What a pipeline's step asks a generator.
pub(super) fn step_body(member: &str, system: Option<&str>, prompt: &str, max_tokens: Option<u64>) -> Value {
    let system = system.map(|system| json!({ "role": "system", "content": system }));
    let messages: Vec<Value> = system.into_iter().chain([json!({ "role": "user", "content": prompt })]).collect();
    let mut body = json!({ "model": member, "messages": messages });
    if let Some(max_tokens) = max_tokens {
        body["max_tokens"] = max_tokens.into();
    }
    body
}

fn put_event_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies such as nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
}

impl App {
    /// Answers, and counts for the objectives how it went.
    async fn watched(&self, request: Request, next: Next) -> Response {
        let objectives = self.portfolio.alerts().objectives();
        if objectives.is_empty() {
            return self.answer(request, next).await;
        }
        let watch = Watch::begin(&objectives);
        let response = watch.scope(self.answer(request, next)).await;
        watch.answered(response.status());
        response
    }

    async fn answer(&self, request: Request, next: Next) -> Response {
        if *request.method() == Method::GET
            && let Some(response) = self.look(request.uri().path())
        {
            return response;
        }
        let shared = Shared::of(request.method(), request.uri().path());
        let Some(shared) = shared.filter(|shared| shared.concerns(&self.portfolio.hosted())) else {
            return next.run(request).await;
        };
        let (mut parts, body) = request.into_parts();
        let limit = self.portfolio.limits().body_bytes;
        let Ok(bytes) = to_bytes(body, limit).await else {
            let message = format!("the body has more bytes than the limit of {limit}, or breaks off");
            let problem = Problem::new(ProblemKind::TooLarge, message);
            return problem.respond(|problem| error_shape(parts.uri.path(), problem));
        };
        let Some(member) = shared.named(self, &bytes) else { return next.run(again(parts, bytes)).await };
        let id = parts.extensions.get::<RequestId>().cloned().unwrap_or_else(|| RequestId(String::new()));
        let answered = match self.portfolio.hosted_member(member.name()).map_err(counted) {
            Ok(member) => self.shared(&shared, (&id.0, &parts.headers), &member, &bytes).await,
            Err(error) => Err(error.into()),
        };
        match answered {
            Ok(Ok(response)) => response,
            Ok(Err((own, passed))) => {
                let mut response = match shared.path_for(&parts.uri, &own) {
                    None => next.run(again(parts, with_model(&bytes, &own))).await,
                    Some(uri) => {
                        // The route was chosen before, and its parameters are in the request: the one for the other path is chosen anew.
                        parts.uri = uri;
                        parts.extensions.clear();
                        parts.extensions.insert(id);
                        let mut request = again(parts, bytes);
                        DefaultBodyLimit::max(limit).apply(&mut request);
                        let own_routes = http::router(Arc::clone(&self.portfolio), self.log.clone());
                        match own_routes.oneshot(request).await {
                            Ok(response) => response,
                            Err(never) => match never {},
                        }
                    }
                };
                put_fallback(response.headers_mut(), &passed);
                response
            }
            Err(declined) => shared.refuse(parts.uri.path(), &bytes, &declined),
        }
    }

    async fn generate(
        &self,
        kind: Kind,
        id: &RequestId,
        key: &Key,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Declined> {
        let body = body.map_err(|rejection| http::unreadable(&rejection, &self.portfolio.limits()))?;
        let request = ChatRequest::parse(kind, &body)?;
        let generated = self.generated(&request, kind, key, self.asking(id, kind.route())).await?;
        let Generated { began, passed, asked, rollout } = generated;
        let mut headers = origin(&began, &passed);
        if let Some(rollout) = rollout.and_then(|id| HeaderValue::from_str(&id).ok()) {
            headers.insert(http::ROLLOUT, rollout);
        }
        let (exchange, (received, tally)) = Exchange::new(began, asked);
        let body = match received {
            Received::Whole(body) | Received::Tensors(body, _) => {
                let digests = tally.digests();
                exchange.whole(tally, digests);
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Body::from(body)
            }
            Received::Events(first, incoming) => {
                put_event_headers(&mut headers);
                exchange::relay(exchange, &first, incoming, request.wants_usage)
            }
        };
        Ok((headers, body).into_response())
    }

    /// Asks the member that `request` names to generate, or the one that is tried beside it and has a part in the traffic.
    async fn generated(
        &self,
        request: &ChatRequest,
        kind: Kind,
        key: &Key,
        mut asked: Asked,
    ) -> Result<Generated, Declined> {
        let member = self.portfolio.hosted_member(&request.model).map_err(counted)?;
        fits(&member, &[HostedTask::Generate], "generation")?;
        let hosted = self.portfolio.hosted();
        let trial = hosted.trial(member.name());
        asked.part = trial.and_then(|trial| trial.part(key, request, &asked.request_id)).map(|part| {
            let budgets = self.portfolio.budgets();
            Part { budgets, ..part }
        });
        let prepare = |hosted: &Hosted| {
            let (body, most) = request.upstream(hosted)?;
            Ok(Wanted { path: kind.path().to_owned(), body, json_bytes: None, most, events: request.stream })
        };
        let read = |_: &Hosted, received: Received| match received {
            Received::Whole(body) | Received::Tensors(body, _) => {
                let mut tally = Tally::default();
                tally.whole(&body)?;
                Ok((Received::Whole(body), tally))
            }
            received @ Received::Events(..) => Ok((received, Tally::default())),
        };
        let load = Load { inputs: request.texts.n, longest_bytes: request.texts.longest_bytes, documents: 0 };
        let canary = asked.part.as_ref().filter(|part| part.answers == Side::Candidate);
        let canary = canary.map(|part| (Arc::clone(part.trial.member(part.answers)), part.trial.id().to_owned()));
        let first = canary.as_ref().map_or(&member, |(candidate, _)| candidate);
        let InOrder { answer, passed } = self.ask_from(&member, first, load, prepare, read).await?;
        // What the candidate was not asked it has not failed.
        if canary.is_some() && passed.first().is_some_and(|passed| was_not_asked(passed)) {
            asked.part = None;
        }
        let rollout = canary.map(|(_, id)| if passed.is_empty() { id } else { format!("{id}; retried") });
        let Answer::Hosted(began) = answer else {
            return Err(Problem::internal(&"a package was to generate text").into());
        };
        asked.passed.clone_from(&passed);
        asked.glimpse = began.member.is_watched().then(|| request.glimpse());
        Ok(Generated { began, passed, asked, rollout })
    }

    /// Asks `member`, and where it cannot answer those that stand in for it, in order.
    pub(super) async fn ask_in_order<T>(
        &self,
        member: &Arc<HostedMember>,
        load: Load,
        prepare: impl Fn(&Hosted) -> Result<Wanted, openai::Refused>,
        read: impl Fn(&Hosted, Received) -> Result<T, String>,
    ) -> Result<InOrder<T>, Declined> {
        self.ask_from(member, member, load, prepare, read).await
    }

    /// Asks `first`, which is `member` or what is tried beside it, and where that cannot answer `member` and those that stand in for it,
    /// in order.
    async fn ask_from<T>(
        &self,
        member: &Arc<HostedMember>,
        first: &Arc<HostedMember>,
        load: Load,
        prepare: impl Fn(&Hosted) -> Result<Wanted, openai::Refused>,
        read: impl Fn(&Hosted, Received) -> Result<T, String>,
    ) -> Result<InOrder<T>, Declined> {
        let limits = self.portfolio.limits();
        let (mut next, mut passed) = (Arc::clone(first), Vec::new());
        let own = (!Arc::ptr_eq(first, member)).then_some(&member.name);
        let mut others = own.into_iter().chain(&member.config.fallback);
        loop {
            let wanted = prepare(next.hosted())?;
            let budgets = self.portfolio.budgets();
            let asking = async {
                load.check(&next.limits(&limits)).map_err(Failure::Ask)?;
                next.ask(&wanted, budgets.as_ref(), |received| read(next.hosted(), received)).await
            };
            let failure = match asking.await {
                Ok(began) => return Ok(InOrder { answer: Answer::Hosted(began), passed }),
                Err(failure) => failure,
            };
            count(&next, &failure);
            // What is tried beside a member fails nobody, whoever is to blame.
            if !failure.falls_back() && (Arc::ptr_eq(&next, member) || !passed.is_empty()) {
                return Err(failure.declined(next.name()));
            }
            passed.push(format!("{}={}", next.name(), failure.reason()));
            // A key that may not ask the other member does not get there on a detour, and one that takes less is no help.
            let other = others.find(|other| Principal::current_may_ask(other) && self.takes(other, load, &limits));
            let Some(other) = other else { return Err(failure.declined(next.name())) };
            counter!(HOSTED_FALLBACKS, "member" => member.name().to_owned(), "to" => other.clone()).increment(1);
            match self.portfolio.hosted().get(other) {
                Some(hosted) => next = Arc::clone(hosted),
                None => return Ok(InOrder { answer: Answer::Own(other.clone()), passed }),
            }
        }
    }

    /// Whether a member that is to stand in lets through so much.
    fn takes(&self, name: &str, load: Load, of_all: &RequestLimits) -> bool {
        let limits = match self.portfolio.hosted().get(name) {
            Some(hosted) => Some(hosted.limits(of_all)),
            None => self.portfolio.revision(name).ok().map(|own| own.limits(of_all)),
        };
        limits.is_none_or(|limits| load.check(&limits).is_ok())
    }

    pub(super) fn asked(&self, asker: Asker<'_>, passed: Vec<String>) -> Asked {
        let (caller, id, log) = (Caller::current(), asker.id.to_owned(), self.log.clone());
        let (caller, request_id) = match asker.part {
            Some(part) => (caller.part(part), format!("{id}.{part}")),
            None => (caller, id),
        };
        Asked { request_id, caller, route: asker.route, log, passed, step_of: None, part: None, glimpse: None }
    }

    fn asking(&self, id: &RequestId, route: &'static str) -> Asked {
        self.asked(Asker { id: &id.0, part: None, route }, Vec::new())
    }
}

/// Whether a member was passed over for another reason than an answer of its host.
fn was_not_asked(passed: &str) -> bool {
    ["=over_budget", "=queue_full", "=not_ready", "=failed", "=invalid"].iter().any(|reason| passed.ends_with(reason))
}

fn count(member: &HostedMember, failure: &Failure) {
    watch::member(member.name(), failure.reason(), Duration::ZERO);
    traffic::count(member.name(), failure.reason(), None);
    counter!(REQUESTS, "member" => member.name().to_owned(), "outcome" => failure.reason()).increment(1);
}

// Names that clients make up are no labels.
pub(super) fn counted(error: AskError) -> AskError {
    counter!(REQUESTS, "member" => "unknown", "outcome" => error.outcome()).increment(1);
    error
}

pub(super) fn fits(member: &HostedMember, tasks: &[HostedTask], wanted: &'static str) -> Result<(), AskError> {
    let own = match member.hosted().task {
        own if tasks.contains(&own) => return Ok(()),
        HostedTask::Generate => "generation",
        HostedTask::Classify => "classification",
        HostedTask::Moderate => "moderations",
        HostedTask::Embed => "embeddings",
        HostedTask::Rerank => "reranking",
        HostedTask::Infer => "tensors",
    };
    Err(AskError::WrongTask { member: member.name().to_owned(), task: own, wanted })
}

/// Where an answer comes from.
pub(super) fn origin<T>(began: &Began<T>, passed: &[String]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    http::origin(&began.serving.facts, &mut headers);
    headers.insert(TRIES, began.n_tries.into());
    put_fallback(&mut headers, passed);
    headers
}

fn put_fallback(headers: &mut HeaderMap, passed: &[String]) {
    if let Ok(value) = HeaderValue::from_str(&passed.join(", "))
        && !passed.is_empty()
    {
        headers.insert(FALLBACK, value);
    }
}

fn again(mut parts: Parts, body: impl Into<Body>) -> Request {
    // The body may be another than the one that was announced.
    parts.headers.remove(header::CONTENT_LENGTH);
    Request::from_parts(parts, body.into())
}

fn with_model(body: &[u8], model: &str) -> Vec<u8> {
    let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
    if body.is_object() {
        body["model"] = model.into();
    }
    body.to_string().into_bytes()
}
