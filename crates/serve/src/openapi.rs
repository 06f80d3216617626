//! The OpenAPI document: every route of a serving process, described once. `/docs` shows it.

use serde_json::{Map, Value, json};

/// A route and what is said of it.
struct Route {
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    takes: Takes,
    refuses: &'static [u16],
}

/// What a request has as its body.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    /// JSON of this schema.
    Json(&'static str),
    /// JSON of this schema, with or without binary data behind it.
    Tensors(&'static str),
    Protobuf,
}

const OPENAI: &str = "OpenAI";
const COHERE: &str = "Cohere";
const TEI: &str = "Text Embeddings Inference";
const OIP: &str = "Open Inference Protocol";
const OWN: &str = "Highroad";

const ASKS: &[u16] = &[400, 404, 413, 429, 500, 503];
const TEI_ASKS: &[u16] = &[400, 404, 413, 422, 424, 429, 503];
/// Cohere's refusals and those of TEI's dialect.
const RERANKS: &[u16] = &[400, 404, 413, 422, 424, 429, 500, 503];
const EMBEDS_NOT: &[u16] = &[400, 404, 413, 422, 424];
/// What hosts refuse too, and what is told of hosts that fail.
const HOSTS: &[u16] = &[400, 403, 404, 413, 422, 429, 500, 502, 503];
const LOOKS: &[u16] = &[404, 503];

const fn get(path: &'static str, tag: &'static str, summary: &'static str, refuses: &'static [u16]) -> Route {
    Route { method: "get", path, tag, summary, takes: Takes::Nothing, refuses }
}

const fn post(
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    takes: Takes,
    refuses: &'static [u16],
) -> Route {
    Route { method: "post", path, tag, summary, takes, refuses }
}

const ROUTES: &[Route] = &[
    post(
        "/v1/chat/completions",
        OPENAI,
        "A hosted member goes on with a conversation",
        Takes::Json("ChatRequest"),
        HOSTS,
    ),
    post("/v1/completions", OPENAI, "A hosted member goes on with a text", Takes::Json("CompletionRequest"), HOSTS),
    post("/v1/embeddings", OPENAI, "Embeddings", Takes::Json("EmbeddingsRequest"), ASKS),
    post("/v1/moderations", OPENAI, "Moderations by a classifier", Takes::Json("ModerationsRequest"), ASKS),
    get("/v1/models", OPENAI, "The models that serve", &[]),
    get("/v1/models/{model}", OPENAI, "One of them", LOOKS),
    post("/rerank", COHERE, "The best documents, in the dialect of the body", Takes::Json("RerankRequest"), RERANKS),
    post("/v1/rerank", COHERE, "The best documents", Takes::Json("RerankRequest"), RERANKS),
    post("/v2/rerank", COHERE, "The best documents", Takes::Json("RerankRequest"), RERANKS),
    post("/v1/embed", COHERE, "Embeddings", Takes::Json("CohereEmbedRequest"), ASKS),
    post("/v2/embed", COHERE, "Embeddings of several kinds", Takes::Json("CohereEmbedRequest"), ASKS),
    post("/", TEI, "What the model is for", Takes::Json("TeiRootRequest"), TEI_ASKS),
    post("/embed", TEI, "Embeddings", Takes::Json("TeiEmbedRequest"), TEI_ASKS),
    post("/embed_all", TEI, "Refused: packages pool", Takes::Json("TeiEmbedRequest"), EMBEDS_NOT),
    post("/embed_sparse", TEI, "Refused: embeddings are dense", Takes::Json("TeiEmbedRequest"), EMBEDS_NOT),
    post("/predict", TEI, "Labels of texts", Takes::Json("TeiPredictRequest"), TEI_ASKS),
    post("/similarity", TEI, "Cosines to a sentence", Takes::Json("TeiSimilarityRequest"), TEI_ASKS),
    post("/tokenize", TEI, "Tokens of texts", Takes::Json("TeiTokenizeRequest"), TEI_ASKS),
    post("/decode", TEI, "Texts of tokens", Takes::Json("TeiDecodeRequest"), TEI_ASKS),
    get("/info", TEI, "What serves, and its limits", &[404, 422, 503]),
    post("/tei/{model}/rerank", TEI, "The best texts", Takes::Json("TeiRerankRequest"), TEI_ASKS),
    get("/tei/{model}/health", TEI, "Whether the model serves", LOOKS),
    get("/v2", OIP, "The server and its extensions", &[]),
    get("/v2/health/live", OIP, "The process answers", &[]),
    get("/v2/health/ready", OIP, "Every member serves what it should", &[503]),
    get("/v2/models/{model}", OIP, "Tensors of a model", LOOKS),
    get("/v2/models/{model}/versions/{version}", OIP, "Tensors of a version", LOOKS),
    get("/v2/models/{model}/ready", OIP, "Whether a model serves", LOOKS),
    get("/v2/models/{model}/versions/{version}/ready", OIP, "Whether a version serves", LOOKS),
    get("/v2/models/{model}/config", OIP, "Configuration of a model", LOOKS),
    get("/v2/models/{model}/versions/{version}/config", OIP, "Configuration of a version", LOOKS),
    get("/v2/models/stats", OIP, "Statistics of all models", &[]),
    get("/v2/models/{model}/stats", OIP, "Statistics of a model", LOOKS),
    get("/v2/models/{model}/versions/{version}/stats", OIP, "Statistics of a version", LOOKS),
    post("/v2/models/{model}/infer", OIP, "Inference", Takes::Tensors("InferRequest"), ASKS),
    post(
        "/v2/models/{model}/versions/{version}/infer",
        OIP,
        "Inference by a version",
        Takes::Tensors("InferRequest"),
        ASKS,
    ),
    post("/v2/repository/index", OIP, "Where every member stands", Takes::Nothing, &[]),
    post(
        "/v2/repository/models/{model}/{action}",
        OIP,
        "Refused: members follow the registry",
        Takes::Nothing,
        &[404, 501],
    ),
    post("/inference.GRPCInferenceService/{method}", OIP, "gRPC, over HTTP/2", Takes::Protobuf, &[]),
    post("/v1/recommend", OWN, "What comes next after a history of items", Takes::Json("RecommendRequest"), ASKS),
    post("/v1/similarity", OWN, "How alike pairs of texts are", Takes::Json("SimilarityRequest"), ASKS),
    get("/v1/pipelines", OWN, "The pipelines", &[]),
    post("/v1/pipelines/{pipeline}", OWN, "Several members answer one text", Takes::Json("PipelineRequest"), ASKS),
    get("/v1/highroad/rollouts", OWN, "Candidates that are tried", &[]),
    get("/v1/highroad/rollouts/{member}", OWN, "What is tried of one member", &[404]),
    post(
        "/v1/highroad/rollouts/{member}/labels",
        OWN,
        "The right answer to a compared request",
        Takes::Json("RolloutLabel"),
        &[400, 404, 413],
    ),
    get("/v1/highroad/monitor", OWN, "How what members meet compares with their baselines", &[]),
    get("/v1/highroad/monitor/{member}", OWN, "The same of one member, with distributions", &[403, 404]),
    post("/v1/highroad/labels", OWN, "Right answers to earlier requests", Takes::Json("Labels"), &[400, 413, 500]),
    get("/v1/highroad/alerts", OWN, "What fires, and what ended lately", &[]),
    get("/v1/highroad/objectives", OWN, "What is promised, and what is left of it", &[]),
    get("/v1/highroad/rollouts/{member}/course", OWN, "What each rule said in the course of a rollout", &[404]),
    post(
        "/v1/highroad/rollouts/{member}/abort",
        OWN,
        "A person ends a rollout",
        Takes::Json("RolloutAct"),
        &[400, 404, 409, 413],
    ),
    post(
        "/v1/highroad/rollouts/{member}/promote",
        OWN,
        "A person promotes what passed a rollout",
        Takes::Json("RolloutAct"),
        &[400, 404, 409, 413, 503],
    ),
    get("/v1/highroad/portfolio", OWN, "Members, pipelines and indexes, and what they were asked lately", &[]),
    get("/v1/highroad/budgets", OWN, "What is spent and what may be", &[]),
    get("/v1/highroad/budgets/history", OWN, "What was spent on each of the last 30 days", &[]),
    get("/v1/highroad/status", OWN, "Where every member stands", &[]),
    get("/v1/highroad/requests/{id}", OWN, "The record of one answer", &[404, 500]),
    get("/v1/highroad/definitions/{digest}", OWN, "What a pipeline or a hosted member was", &[404]),
    get("/v1/highroad/requests/{id}/chain", OWN, "What stands behind one answer", &[404, 500]),
    post(
        "/v1/highroad/replay",
        OWN,
        "One answer computed again and compared bit by bit",
        Takes::Json("ReplayRequest"),
        &[400, 404, 413, 429, 500],
    ),
    get("/health", OWN, "The process answers", &[]),
    get("/ready", OWN, "Every member serves what it should", &[503]),
    get("/metrics", OWN, "Metrics for Prometheus", &[]),
    get("/openapi.json", OWN, "This document", &[]),
    get("/docs", OWN, "This document as a page", &[]),
    get("/docs/{file}", OWN, "What the page loads", &[404]),
];

/// Below it the routes of TEI are once more, of the model that the path names.
const TEI_BASE: &str = "/tei/{model}";

/// The document, version 3.1 of OpenAPI.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for (path, route) in described() {
        paths.entry(path.clone()).or_insert_with(|| json!({}))[route.method] = operation(&path, route);
    }
    let schemas: Value = serde_json::from_str(include_str!("openapi/schemas.json")).expect("the file is JSON");
    let tags: Vec<Value> = [OPENAI, COHERE, TEI, OIP, OWN].iter().map(|name| json!({ "name": name })).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Highroad serving",
            "description": "Every answer has `x-request-id`, `x-highroad-package`, `x-highroad-version` and `x-highroad-evidence`. Requests may have `x-highroad-priority` (`high`, `normal`, `low`) and `x-highroad-timeout-ms`.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "tags": tags,
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// Every path with its route.
fn described() -> impl Iterator<Item = (String, &'static Route)> {
    let nested = ROUTES.iter().filter(|route| route.tag == TEI && !route.path.starts_with(TEI_BASE));
    let below = nested.map(|route| (format!("{TEI_BASE}{}", route.path.trim_end_matches('/')), route));
    ROUTES.iter().map(|route| (route.path.to_owned(), route)).chain(below)
}

fn operation(path: &str, route: &Route) -> Value {
    let parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    let mut responses: Map<String, Value> = Map::new();
    if !route.refuses.contains(&501) && route.refuses != EMBEDS_NOT {
        responses.insert("200".to_owned(), json!({ "description": "The answer" }));
    }
    for status in route.refuses {
        responses.insert(status.to_string(), refusal(*status, route.tag));
    }
    let mut operation = json!({ "tags": [route.tag], "summary": route.summary, "responses": responses });
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(content) = content(route.takes) {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn content(takes: Takes) -> Option<Value> {
    let reference = |name: &str| json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } });
    let bytes = json!({ "type": "string", "format": "binary" });
    match takes {
        Takes::Nothing => None,
        Takes::Json(name) => Some(json!({ "application/json": reference(name) })),
        Takes::Tensors(name) => {
            Some(json!({ "application/json": reference(name), "application/octet-stream": { "schema": bytes } }))
        }
        Takes::Protobuf => Some(json!({ "application/grpc": { "schema": bytes } })),
    }
}

fn refusal(status: u16, tag: &str) -> Value {
    let schema = match tag {
        OPENAI => "OpenAiError",
        COHERE => "CohereError",
        TEI => "TeiError",
        _ => "PlainError",
    };
    let description = match status {
        400 => "The body cannot be read, or an input or a limit is broken",
        404 => "No such model, version or record",
        409 => "It contradicts what is there",
        413 => "More than a limit allows",
        422 => "The body cannot be read, or an input cannot be taken",
        424 => "The model does not do this, or failed",
        429 => "The queue is full; `retry-after` says when to try again",
        500 => "The model failed",
        501 => "Not done by hand",
        _ => "Not ready, or waited too long",
    };
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let found: BTreeSet<(String, String)> = crate::http::told().into_iter().collect();
        let described: BTreeSet<(String, String)> =
            described().map(|(path, route)| (route.method.to_owned(), path)).collect();
        let missing: Vec<_> = found.difference(&described).collect();
        let stale: Vec<_> = described.difference(&found).collect();
        assert!(
            missing.is_empty() && stale.is_empty(),
            "not described: {missing:?}; described and not there: {stale:?}"
        );
    }

    #[test]
    fn the_document_is_one_and_refers_to_what_it_has() {
        let document = document();
        let read: utoipa::openapi::OpenApi = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(read.paths.paths.len(), document["paths"].as_object().unwrap().len());
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        for name in schemas.keys() {
            assert!(text.contains(&format!("#/components/schemas/{name}\"")), "nothing uses {name}");
        }
    }

    #[test]
    fn examples_are_requests_that_are_read() {
        use crate::protocol::{cohere, oip, openai, rerank, similarity, tei};
        let schemas = document()["components"]["schemas"].clone();
        let example = |name: &str| schemas[name]["example"].to_string();
        let body = |name: &str| tei::Body::parse(example(name).as_bytes()).unwrap();
        openai::EmbeddingsRequest::parse(example("EmbeddingsRequest").as_bytes()).unwrap();
        openai::ModerationsRequest::parse(example("ModerationsRequest").as_bytes()).unwrap();
        rerank::RerankRequest::parse(example("RerankRequest").as_bytes(), "2").unwrap();
        rerank::RerankRequest::parse(example("TeiRerankRequest").as_bytes(), "2").unwrap();
        cohere::EmbedRequest::parse(example("CohereEmbedRequest").as_bytes(), cohere::Version::V2).unwrap();
        oip::InferRequest::parse(example("InferRequest").as_bytes(), None).unwrap();
        tei::EmbedRequest::parse(&body("TeiEmbedRequest")).unwrap();
        tei::EmbedRequest::parse(&body("TeiRootRequest")).unwrap();
        tei::PredictRequest::parse(&body("TeiPredictRequest")).unwrap();
        similarity::SimilarityRequest::parse(example("SimilarityRequest").as_bytes()).unwrap();
        tei::SimilarityRequest::parse(&body("TeiSimilarityRequest")).unwrap();
        tei::TokenizeRequest::parse(&body("TeiTokenizeRequest")).unwrap();
        tei::DecodeRequest::parse(&body("TeiDecodeRequest")).unwrap();
    }
}
