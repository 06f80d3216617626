//! The routes of Text Embeddings Inference: of the one model that can, and below `/tei/{model}` of that one.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, Path, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};
use highroad_package::TaskKind;
use serde_json::Value;

use super::{
    App, Asker, Call, Failed, Routes, Wanted, classifies, count, embeds, origin, reads, wrong_method, wrong_task,
};
use crate::error::AskError;
use crate::protocol::json_of;
use crate::protocol::tei::{
    self, Body, DecodeRequest, EmbedRequest, ErrorType, PredictRequest, Refused, ScoreFunction, SimilarityRequest,
    TokenizeRequest, Wish,
};
use crate::revision::{Asked, Revision, Terms};

const TOTAL: HeaderName = HeaderName::from_static("x-total-time");
const TOKENIZATION: HeaderName = HeaderName::from_static("x-tokenization-time");
const QUEUE: HeaderName = HeaderName::from_static("x-queue-time");
const INFERENCE: HeaderName = HeaderName::from_static("x-inference-time");
const TOKENS: HeaderName = HeaderName::from_static("x-compute-tokens");

/// Where the routes are: at the server's root, and once more for each model.
const BASES: [&str; 2] = ["", "/tei/{model}"];

/// What is asked of a route.
#[derive(Clone, Copy)]
enum Asking {
    /// What the model is for.
    Root,
    Embed,
    EmbedAll,
    EmbedSparse,
    Predict,
    Similarity,
    Tokenize,
    Decode,
}

pub(super) fn routes() -> Routes {
    let mut routes = Routes::default();
    for base in BASES {
        let at = |path: &str| format!("{base}{path}");
        routes = routes
            .post(if base.is_empty() { "/" } else { base }, asks(Asking::Root))
            .post(&at("/embed"), asks(Asking::Embed))
            .post(&at("/embed_all"), asks(Asking::EmbedAll))
            .post(&at("/embed_sparse"), asks(Asking::EmbedSparse))
            .post(&at("/predict"), asks(Asking::Predict))
            .post(&at("/similarity"), asks(Asking::Similarity))
            .post(&at("/tokenize"), asks(Asking::Tokenize))
            .post(&at("/decode"), asks(Asking::Decode))
            .get(&at("/info"), get(info).fallback(method));
    }
    routes
        .post("/tei/{model}/rerank", post(rerank).fallback(method))
        .get("/tei/{model}/health", get(health).fallback(method))
}

fn asks(asking: Asking) -> MethodRouter<App> {
    let handler = move |State(app): State<App>,
                        Path(at): Path<At>,
                        asker: Asker,
                        body: Result<Bytes, BytesRejection>| async move {
        app.tei(asking, at.model, &asker, body).await.unwrap_or_else(refuse)
    };
    post(handler).fallback(method)
}

async fn rerank(
    State(app): State<App>,
    Path(model): Path<String>,
    asker: Asker,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    app.rerank(&asker, "/rerank", "1", Some(model), body).await
}

/// The path's model, where it has one.
#[derive(serde::Deserialize)]
struct At {
    model: Option<String>,
}

async fn method(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    refuse(wrong_method(&method, uri.path()).into())
}

async fn info(State(app): State<App>, Path(at): Path<At>) -> Response {
    let found = app.tei_revision(at.model.as_deref(), "is served", |_| true);
    let answer = |revision: Arc<Revision>| {
        let body = {
            let limits = revision.limits(&app.portfolio.limits());
            tei::info(revision.facts(), revision.manifest(), revision.max_tokens(), &limits)
        };
        let mut response = Json(json_of(&body)).into_response();
        origin(revision.facts(), response.headers_mut());
        response
    };
    found.map(answer).unwrap_or_else(|failed| refuse(failed.into()))
}

async fn health(State(app): State<App>, Path(at): Path<At>) -> Response {
    let found = app.tei_revision(at.model.as_deref(), "", |_| true);
    found.map(|_| StatusCode::OK.into_response()).unwrap_or_else(|failed| refuse(failed.into()))
}

/// The response that says `refused`.
pub(crate) fn refuse(refused: Refused) -> Response {
    let mut response = refused.problem.respond(|_| refused.body());
    *response.status_mut() = StatusCode::from_u16(refused.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// What TEI's load tests read, in milliseconds.
pub(super) fn put_times<A>(call: &Call<'_>, asked: &Asked<A>, response: &mut Response) {
    let headers = response.headers_mut();
    for (name, time) in [
        (TOTAL, call.begun.elapsed()),
        (TOKENIZATION, asked.prepared),
        (QUEUE, asked.queued),
        (INFERENCE, asked.computed),
    ] {
        headers.insert(name, HeaderValue::from(millis(time)));
    }
    headers.insert(TOKENS, asked.n_tokens.iter().sum::<usize>().into());
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl App {
    async fn tei(
        &self,
        asking: Asking,
        model: Option<String>,
        asker: &Asker,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, Refused> {
        let bytes = self.whole(body)?;
        let body = Body::parse(&bytes)?;
        let model = match &model {
            Some(model) => Some(model.as_str()),
            None => body.model()?,
        };
        match asking {
            Asking::Root => match self.wish(model, &body)? {
                Wish::Embed => self.tei_embed(model, asker, &body).await,
                Wish::Predict => self.tei_predict(model, asker, &body).await,
                Wish::Similarity => self.tei_similarity(model, asker, &body).await,
                Wish::Rerank => Ok(self.rerank(asker, "/rerank", "1", model.map(str::to_owned), Ok(bytes)).await),
            },
            Asking::Embed => self.tei_embed(model, asker, &body).await,
            Asking::Predict => self.tei_predict(model, asker, &body).await,
            Asking::Similarity => self.tei_similarity(model, asker, &body).await,
            Asking::Tokenize => self.tei_tokenize(model, &body).await,
            Asking::Decode => self.tei_decode(model, &body).await,
            Asking::EmbedAll => Err(Refused::of(
                ErrorType::Backend,
                "`/embed_all`: a package's program returns one pooled vector for a text, and none for each token",
            )),
            Asking::EmbedSparse => {
                Err(Refused::of(ErrorType::Backend, "`/embed_sparse`: packages of sparse embeddings do not exist"))
            }
        }
    }

    /// What a body without a route of its own asks.
    fn wish(&self, model: Option<&str>, body: &Body) -> Result<Wish, Failed> {
        let deployments = self.portfolio.deployments();
        let alone = match deployments.as_slice() {
            [only] => Some(only.name()),
            _ => None,
        };
        match model.or(alone) {
            Some(model) => {
                let revision = self.portfolio.revision(model).map_err(|error| count(None, error))?;
                Ok(Wish::of_task(&revision.manifest().task.kind, body))
            }
            None => Ok(Wish::of_shape(body)),
        }
    }

    fn tei_member(&self, model: Option<&str>, does: &str, has: fn(&Revision) -> bool) -> Result<String, Failed> {
        match model {
            Some(model) => Ok(model.to_owned()),
            None => Ok(self.only(does, has)?),
        }
    }

    /// What serves, for what no model computes.
    fn tei_revision(
        &self,
        model: Option<&str>,
        does: &str,
        has: fn(&Revision) -> bool,
    ) -> Result<Arc<Revision>, Failed> {
        let member = self.tei_member(model, does, has)?;
        Ok(self.portfolio.revision(&member).map_err(|error| count(None, error))?)
    }

    async fn tei_embed(&self, model: Option<&str>, asker: &Asker, body: &Body) -> Result<Response, Refused> {
        let request =
            EmbedRequest::parse(body).inspect_err(|refused| self.malformed(model, &[], &refused.problem.message))?;
        let member = self.tei_member(model, "embeds", embeds)?;
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let wanted = Wanted { inputs: request.inputs.clone(), terms, dimensions: request.dimensions };
        let embedded = self.embed(asker, "/embed", &member, wanted).await?;
        Ok(self.tei_answer(&embedded.call, &embedded.asked, request.reply(&embedded.vectors)))
    }

    async fn tei_similarity(&self, model: Option<&str>, asker: &Asker, body: &Body) -> Result<Response, Refused> {
        let request = SimilarityRequest::parse(body)
            .inspect_err(|refused| self.malformed(model, &[], &refused.problem.message))?;
        let member = self.tei_member(model, "embeds", embeds)?;
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let wanted = Wanted { inputs: request.inputs, terms, dimensions: None };
        let embedded = self.embed(asker, "/similarity", &member, wanted).await?;
        let reply = SimilarityRequest::reply(&embedded.asked.answers);
        Ok(self.tei_answer(&embedded.call, &embedded.asked, reply))
    }

    async fn tei_predict(&self, model: Option<&str>, asker: &Asker, body: &Body) -> Result<Response, Refused> {
        let request =
            PredictRequest::parse(body).inspect_err(|refused| self.malformed(model, &[], &refused.problem.message))?;
        let member = self.tei_member(model, "classifies texts", classifies)?;
        let assigned = self.assign(&member, asker)?;
        let TaskKind::Classify { thresholds, .. } = &assigned.revision().manifest().task.kind else {
            return Err(wrong_task(assigned.revision(), "classification").into());
        };
        request.check_scores(if thresholds.is_empty() { ScoreFunction::Softmax } else { ScoreFunction::Sigmoid })?;
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let served = assigned.ask(request.inputs.clone(), &self.portfolio.limits(), terms).await;
        let (call, result) = Call::of(asker, "/predict", served);
        let asked = call.finish(result)?;
        let TaskKind::Classify { labels, .. } = &call.revision.manifest().task.kind else {
            return Err(wrong_task(&call.revision, "classification").into());
        };
        Ok(self.tei_answer(&call, &asked, request.reply(labels, &asked.answers)))
    }

    async fn tei_tokenize(&self, model: Option<&str>, body: &Body) -> Result<Response, Refused> {
        let request = TokenizeRequest::parse(body)?;
        let revision = self.tei_revision(model, "reads texts", reads)?;
        let before =
            |prompt| revision.predictor().prompt(prompt).map_err(|source| AskError::Input { input_idx: 0, source });
        let prompt = request.prompt.as_ref().map(before).transpose()?.flatten().map_or("", |(_, text)| text);
        let inputs = request.inputs.into_iter().map(|text| format!("{prompt}{text}")).collect();
        let pieces = revision.pieces(inputs, request.special, &self.portfolio.limits()).await?;
        Ok(plain(&revision, TokenizeRequest::reply(&pieces)))
    }

    async fn tei_decode(&self, model: Option<&str>, body: &Body) -> Result<Response, Refused> {
        let request = DecodeRequest::parse(body)?;
        let revision = self.tei_revision(model, "reads texts", reads)?;
        let texts = revision.decode(request.ids, request.special, &self.portfolio.limits()).await?;
        Ok(plain(&revision, Value::from(texts).to_string().into_bytes()))
    }

    fn tei_answer<A>(&self, call: &Call<'_>, asked: &Asked<A>, body: Vec<u8>) -> Response {
        let mut response = self.answer(call, asked, "application/json", body);
        put_times(call, asked, &mut response);
        response
    }
}

/// An answer that no model computed: nothing to log or to replay.
fn plain(revision: &Revision, body: Vec<u8>) -> Response {
    let mut response = Response::new(HttpBody::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    origin(revision.facts(), response.headers_mut());
    response
}
