//! Routes that hosted members share with models of our own: which a request takes, and its reply in the protocol of that route.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use highroad_hosted::{HostedTask, Protocol};
use highroad_package::TaskKind;
use highroad_service::Problem;
use highroad_task::Answer;
use serde::{Deserialize, Serialize};

use super::answers::{Asker, Instead, Tensors, Told, only_end};
use super::ask::Declined;
use super::routes::App;
use super::{HostedMember, HostedMembers};
use crate::deployment::Deployment;
use crate::http::{HEADER_LENGTH, is_for, json_bytes, tei as tei_routes};
use crate::protocol::cohere::{self, EmbedRequest as CohereRequest};
use crate::protocol::oip::{self, InferRequest, Query, rename};
use crate::protocol::openai::{self, EmbeddingsRequest, ModerationsRequest};
use crate::protocol::rerank::{self, RerankRequest};
use crate::protocol::similarity;
use crate::protocol::tei::{self, EmbedRequest, PredictRequest, ScoreFunction, SimilarityRequest, Wish};
use crate::protocol::{error_shape, json_of};
use crate::revision::check_limit;

/// A route that hosted members share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shared {
    kind: Kind,
    /// As the request log has it.
    route: &'static str,
    /// The member that the path names.
    pub(super) model: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Embeddings,
    CohereEmbed(cohere::Version),
    Similarity,
    Moderations,
    /// Of this version of Cohere's interface.
    Rerank(&'static str),
    /// What the model is for, in TEI's words.
    TeiRoot,
    TeiEmbed,
    TeiPredict,
    TeiSimilarity,
    TeiRerank,
    Infer,
}

impl Shared {
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        if *method != Method::POST {
            return None;
        }
        let (kind, route) = match path {
            "/v1/embeddings" => (Kind::Embeddings, "/v1/embeddings"),
            "/v1/embed" => (Kind::CohereEmbed(cohere::Version::V1), "/v1/embed"),
            "/v2/embed" => (Kind::CohereEmbed(cohere::Version::V2), "/v2/embed"),
            "/v1/similarity" => (Kind::Similarity, "/v1/similarity"),
            "/v1/moderations" => (Kind::Moderations, "/v1/moderations"),
            "/rerank" | "/v1/rerank" => (Kind::Rerank("1"), "/v1/rerank"),
            "/v2/rerank" => (Kind::Rerank("2"), "/v2/rerank"),
            _ => return Self::with_model(path),
        };
        Some(Self { kind, route, model: None })
    }

    /// Routes whose path may name the model.
    fn with_model(path: &str) -> Option<Self> {
        if let Some(rest) = path.strip_prefix("/v2/models/") {
            let (model, rest) = rest.split_once('/')?;
            let is_infer = rest == "infer" || (rest.starts_with("versions/") && rest.ends_with("/infer"));
            let model = Some(model.to_owned());
            return is_infer.then_some(Self { kind: Kind::Infer, route: "/v2/models/infer", model });
        }
        let (model, path) = match path.strip_prefix("/tei/") {
            Some(rest) => match rest.split_once('/') {
                Some((model, _)) => (Some(model.to_owned()), &rest[model.len()..]),
                None => (Some(rest.to_owned()), "/"),
            },
            None => (None, path),
        };
        let (kind, route) = match path {
            "/" => (Kind::TeiRoot, "/"),
            "/embed" => (Kind::TeiEmbed, "/embed"),
            "/predict" => (Kind::TeiPredict, "/predict"),
            "/similarity" => (Kind::TeiSimilarity, "/similarity"),
            "/rerank" if model.is_some() => (Kind::TeiRerank, "/rerank"),
            _ => return None,
        };
        Some(Self { kind, route, model })
    }

    /// Whether a hosted member may be meant.
    pub(super) fn concerns(&self, hosted: &HostedMembers) -> bool {
        match &self.model {
            Some(model) => hosted.get(model).is_some(),
            None => self.tasks().iter().any(|task| hosted.has(*task)),
        }
    }

    /// What members of this route are for.
    fn tasks(&self) -> &'static [HostedTask] {
        use HostedTask::{Classify, Embed, Moderate, Rerank};
        match self.kind {
            Kind::Embeddings | Kind::CohereEmbed(_) | Kind::Similarity | Kind::TeiEmbed | Kind::TeiSimilarity => {
                &[Embed]
            }
            Kind::Moderations | Kind::TeiPredict => &[Moderate, Classify],
            Kind::Rerank(_) | Kind::TeiRerank => &[Rerank],
            Kind::TeiRoot | Kind::Infer => &[Embed, Moderate, Classify, Rerank],
        }
    }

    /// The hosted member that path or body names; the only one for the task where none is named and no model of our own may be meant.
    pub(super) fn named(&self, app: &App, body: &[u8]) -> Option<Arc<HostedMember>> {
        #[derive(Deserialize)]
        struct Named {
            model: Option<String>,
        }
        let hosted = app.portfolio.hosted();
        if let Some(model) = &self.model {
            return hosted.get(model).cloned();
        }
        // What cannot be read is refused by the route itself.
        match serde_json::from_slice::<Named>(body).ok()?.model {
            Some(model) => hosted.get(&model).cloned(),
            None if self.kind == Kind::Embeddings => None,
            None => {
                let tasks = self.of_body(body).tasks();
                let fits = |member: &Arc<HostedMember>| {
                    let hosted = member.hosted();
                    let moderates = self.kind != Kind::Moderations
                        || hosted.task != HostedTask::Classify
                        || hosted.flagged.is_some();
                    tasks.contains(&hosted.task) && moderates
                };
                let all = hosted.all();
                let mut fitting = all.into_iter().filter(fits);
                let only = fitting.next().filter(|_| fitting.next().is_none());
                // Every moderation is a classifier, and not the other way round.
                let of_own = if self.kind == Kind::Moderations { &tasks[..1] } else { tasks };
                let is_meant = |own: &Arc<Deployment>| of_own.iter().any(|task| is_for(own, *task));
                only.filter(|_| !app.portfolio.deployments().iter().any(is_meant))
            }
        }
    }

    /// What a body without a route of its own asks.
    fn of_body(&self, body: &[u8]) -> Self {
        let kind = match (self.kind, tei::Body::parse(body)) {
            (Kind::TeiRoot, Ok(body)) => kind_of(Wish::of_shape(&body)),
            (kind, _) => kind,
        };
        Self { kind, ..self.clone() }
    }

    pub(super) fn refuse(&self, path: &str, body: &[u8], declined: &Declined) -> Response {
        let is_tei = matches!(
            self.kind,
            Kind::TeiRoot | Kind::TeiEmbed | Kind::TeiPredict | Kind::TeiSimilarity | Kind::TeiRerank
        ) || (matches!(self.kind, Kind::Rerank(_)) && rerank::is_tei(body));
        match self.kind {
            _ if is_tei => tei_routes::refuse(declined.problem.clone().into()),
            Kind::Embeddings | Kind::Moderations => declined.problem.respond(|_| declined.body()),
            _ => declined.problem.respond(|problem| error_shape(path, problem)),
        }
    }

    /// The path of the same route for another member.
    pub(super) fn path_for(&self, uri: &Uri, own: &str) -> Option<Uri> {
        let model = self.model.as_ref()?;
        let from = if self.kind == Kind::Infer { "/v2/models/" } else { "/tei/" };
        let rest = uri.path().strip_prefix(from)?.strip_prefix(model.as_str())?;
        // The version that was asked for is the other member's.
        let rest = if self.kind == Kind::Infer { "/infer" } else { rest };
        format!("{from}{own}{rest}").parse().ok()
    }
}

fn kind_of(wish: Wish) -> Kind {
    match wish {
        Wish::Embed => Kind::TeiEmbed,
        Wish::Predict => Kind::TeiPredict,
        Wish::Similarity => Kind::TeiSimilarity,
        Wish::Rerank => Kind::TeiRerank,
    }
}

/// What a hosted model without a route of its own is asked.
fn wish_of(member: &HostedMember, body: &tei::Body) -> Kind {
    match member.hosted().task {
        HostedTask::Rerank => Kind::TeiRerank,
        HostedTask::Classify | HostedTask::Moderate => Kind::TeiPredict,
        _ if Wish::of_shape(body) == Wish::Similarity => Kind::TeiSimilarity,
        _ => Kind::TeiEmbed,
    }
}

impl App {
    /// A request on a shared route; `Err` within `Ok` is the model of our own that answers instead.
    pub(super) async fn shared(
        &self,
        shared: &Shared,
        (id, headers): (&str, &HeaderMap),
        member: &Arc<HostedMember>,
        body: &[u8],
    ) -> Result<Result<Response, Instead>, Declined> {
        let asker = Asker { id, part: None, route: shared.route };
        match shared.kind {
            Kind::Embeddings => {
                let request = EmbeddingsRequest::parse(body)?;
                only_end(request.cut)?;
                let told = self.vectors(asker, member, &request.inputs, request.dimensions).await?;
                Ok(told.map(|told| {
                    let reply =
                        openai::embeddings_reply(&request.model, &vectors(&told), told.n_tokens, request.encoding);
                    json_reply(told.headers, reply)
                }))
            }
            Kind::CohereEmbed(version) => {
                let request = CohereRequest::parse(body, version)?;
                only_end(request.cut)?;
                let told = self.vectors(asker, member, &request.inputs(), request.dimensions).await?;
                Ok(told.map(|told| {
                    let reply = request.reply(id, &vectors(&told), told.n_tokens);
                    json_reply(told.headers, reply)
                }))
            }
            Kind::Similarity => {
                let request = similarity::SimilarityRequest::parse(body)?;
                only_end(request.cut)?;
                let (inputs, places) = request.pairs.texts();
                let told = self.vectors(asker, member, &inputs, None).await?;
                Ok(told.map(|told| {
                    let cosines = similarity::cosines(&places, &told.answers);
                    let name = &told.facts.member;
                    let reply = similarity::SimilarityRequest::reply(id, name, &cosines, told.n_tokens);
                    json_reply(told.headers, reply)
                }))
            }
            Kind::Moderations => self.moderated(asker, member, body).await,
            Kind::Rerank(version) => self.reranked(asker, member, body, version).await,
            Kind::Infer => self.inferred(asker, member, body, json_bytes(headers)?).await,
            kind => self.in_teis_words(kind, asker, member, body).await,
        }
    }

    async fn moderated(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        body: &[u8],
    ) -> Result<Result<Response, Instead>, Declined> {
        let request = ModerationsRequest::parse(body)?;
        let hosted = member.hosted();
        if hosted.task == HostedTask::Classify && hosted.flagged.is_none() {
            let message = format!("`{}` classifies, and its description has no `flagged` label", member.name());
            return Err(Problem::invalid(message).into());
        }
        let told = self.labels(asker, member, &request.inputs).await?;
        Ok(told.map(|told| {
            let name = &told.facts.member;
            let reply = if told.results.is_empty() {
                openai::moderations_reply(asker.id, name, &told.task, &told.answers)
            } else {
                openai::moderated(asker.id, name, told.results)
            };
            json_reply(told.headers, reply)
        }))
    }

    async fn reranked(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        body: &[u8],
        version: &'static str,
    ) -> Result<Result<Response, Instead>, Declined> {
        let request = RerankRequest::parse(body, version)?;
        only_end(request.cut)?;
        check_limit("bytes in its pairs", request.pairs_bytes(), self.portfolio.limits().body_bytes)?;
        let told = self.relevances(asker, member, &request).await?;
        Ok(told.map(|told| {
            let reply = request.reply(asker.id, &told.facts.member, &told.answers, told.n_tokens);
            json_reply(told.headers, reply)
        }))
    }

    async fn in_teis_words(
        &self,
        kind: Kind,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        bytes: &[u8],
    ) -> Result<Result<Response, Instead>, Declined> {
        let body = tei::Body::parse(bytes).map_err(of_tei)?;
        match if kind == Kind::TeiRoot { wish_of(member, &body) } else { kind } {
            Kind::TeiPredict => {
                let request = PredictRequest::parse(&body).map_err(of_tei)?;
                only_end(request.cut)?;
                request.check_scores(ScoreFunction::Softmax).map_err(of_tei)?;
                let told = self.labels(asker, member, &request.inputs).await?;
                Ok(told.map(|told| {
                    let labels = match &told.task {
                        TaskKind::Classify { labels, .. } => labels.as_slice(),
                        _ => &[],
                    };
                    let reply = request.reply(labels, &told.answers);
                    json_reply(told.headers, reply)
                }))
            }
            Kind::TeiSimilarity => {
                let request = SimilarityRequest::parse(&body).map_err(of_tei)?;
                only_end(request.cut)?;
                let told = self.vectors(asker, member, &request.inputs, None).await?;
                Ok(told.map(|told| {
                    let reply = SimilarityRequest::reply(&told.answers);
                    json_reply(told.headers, reply)
                }))
            }
            Kind::TeiRerank => self.reranked(asker, member, bytes, "1").await,
            _ => {
                let request = EmbedRequest::parse(&body).map_err(of_tei)?;
                only_end(request.cut)?;
                let told = self.vectors(asker, member, &request.inputs, request.dimensions).await?;
                Ok(told.map(|told| {
                    let reply = request.reply(&vectors(&told));
                    json_reply(told.headers, reply)
                }))
            }
        }
    }

    /// The Open Inference Protocol over REST: the one input `text` by the task, all else to the host as it is.
    async fn inferred(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        body: &[u8],
        json_bytes: Option<usize>,
    ) -> Result<Result<Response, Instead>, Declined> {
        let request = InferRequest::parse(body, json_bytes);
        match request.ok().filter(|request| request.is_texts() && member.has_task()) {
            Some(request) => {
                let (query, wanted) = request.query(&[])?;
                let told = match self.rows(asker, member, query).await? {
                    Ok(told) => told,
                    Err(instead) => return Ok(Err(instead)),
                };
                let outputs = oip::task_outputs(&told.task, &told.answers);
                let reply = wanted.reply(member.name(), &told.facts, &told.task, outputs)?;
                Ok(Ok(tensors_reply(told.headers, reply.body, reply.json_bytes)))
            }
            None => {
                let found = self.tensors(asker, member, body, json_bytes).await?;
                let Tensors { body, json_bytes, facts, headers } = match found {
                    Ok(found) => found,
                    Err(instead) => return Ok(Err(instead)),
                };
                let (body, json_bytes) = rename(&body, json_bytes, member.name(), &facts)?;
                Ok(Ok(tensors_reply(headers, body, json_bytes)))
            }
        }
    }

    /// Texts by the member's task.
    pub(super) async fn rows(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        query: Query,
    ) -> Result<Result<Told, Instead>, Declined> {
        let Query::Rows(inputs) = query else { return Err(Problem::internal(&"texts became tensors").into()) };
        match member.hosted().task {
            HostedTask::Embed => self.vectors(asker, member, &inputs, None).await,
            _ => self.labels(asker, member, &inputs).await,
        }
    }

    /// What is told of a hosted member on `GET`, where the path is about one that the key may ask.
    pub(super) fn look(&self, path: &str) -> Option<Response> {
        if let Some(rest) = path.strip_prefix("/v2/models/") {
            let mut parts = rest.split('/');
            let member = self.portfolio.hosted().get(parts.next()?).cloned()?;
            let rest: Vec<&str> = parts.collect();
            let tail = match rest.as_slice() {
                ["versions", _, tail @ ..] => tail,
                tail => tail,
            };
            let answer = match tail {
                [] => self
                    .portfolio
                    .hosted_member(member.name())
                    .and_then(|member| member.metadata())
                    .map(|found| as_json(&found)),
                ["ready"] => {
                    self.portfolio.hosted_member(member.name()).and_then(|member| member.check_ready()).map(as_ok)
                }
                _ => return None,
            };
            return Some(answer.unwrap_or_else(|error| error.problem().into_response()));
        }
        let (model, rest) = path.strip_prefix("/tei/")?.split_once('/')?;
        let member = self.portfolio.hosted().get(model).cloned()?;
        let found = self.portfolio.hosted_member(member.name());
        let answer = match rest {
            "info" => found
                .and_then(|member| member.tei_info(&member.limits(&self.portfolio.limits())))
                .map(|found| as_json(&found)),
            "health" => found.and_then(|member| member.check_ready()).map(as_ok),
            _ => return None,
        };
        Some(answer.unwrap_or_else(|error| tei_routes::refuse(error.into())))
    }
}

fn as_json(answer: &impl Serialize) -> Response {
    Json(json_of(answer)).into_response()
}

fn as_ok((): ()) -> Response {
    StatusCode::OK.into_response()
}

fn of_tei(refused: tei::Refused) -> Problem {
    refused.problem
}

fn vectors(told: &Told) -> Vec<Vec<f32>> {
    told.answers.iter().map(|answer: &Answer| answer.values().to_vec()).collect()
}

fn json_reply(mut headers: HeaderMap, body: Vec<u8>) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    (headers, body).into_response()
}

fn tensors_reply(mut headers: HeaderMap, body: Vec<u8>, json_bytes: Option<usize>) -> Response {
    let content_type = if json_bytes.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(json_bytes) = json_bytes {
        headers.insert(HEADER_LENGTH, json_bytes.into());
    }
    (headers, Body::from(body)).into_response()
}

impl HostedMember {
    /// Whether it answers texts, and does not only pass tensors on.
    pub(super) fn has_task(&self) -> bool {
        matches!(self.hosted().task, HostedTask::Embed | HostedTask::Classify | HostedTask::Moderate)
    }

    /// Whether tensors may be passed on.
    pub(super) fn takes_tensors(&self) -> bool {
        self.hosted().protocol == Protocol::Oip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_the_protocol_and_may_name_the_member() {
        let of = |path: &str| Shared::of(&Method::POST, path).map(|shared| (shared.kind, shared.model));
        let m = || Some("m".to_owned());
        assert_eq!(of("/v2/models/m/infer"), Some((Kind::Infer, m())));
        assert_eq!(of("/v2/models/m/versions/3/infer"), Some((Kind::Infer, m())));
        assert_eq!(of("/v2/models/m/ready"), None);
        assert_eq!(of("/tei/m"), Some((Kind::TeiRoot, m())));
        assert_eq!(of("/tei/m/rerank"), Some((Kind::TeiRerank, m())));
        assert_eq!(of("/tei/m/predict"), Some((Kind::TeiPredict, m())));
        assert_eq!(of("/tei/m/tokenize"), None);
        assert_eq!(of("/"), Some((Kind::TeiRoot, None)));
        assert_eq!(of("/rerank"), Some((Kind::Rerank("1"), None)));
        assert_eq!(Shared::of(&Method::GET, "/v1/embeddings"), None);
        let shared = Shared::of(&Method::POST, "/v2/models/m/versions/3/infer").unwrap_or_else(|| panic!("no route"));
        let uri = "/v2/models/m/versions/3/infer".parse().unwrap_or_else(|_| panic!("no uri"));
        assert_eq!(
            shared.path_for(&uri, "own").map(|uri| uri.path().to_owned()),
            Some("/v2/models/own/infer".to_owned())
        );
    }
}
