//! The OpenAPI document: every route of a serving process, described once. `/docs` shows it.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::alerts::{AlertsShown, ObjectivesShown};
use crate::budget::keeper::{BudgetsShown, Spending};
use crate::http::{
    Defined, LabelCounted, LabelsTaken, Monitored, Readiness, Replayed, RequestChain, RolloutCourse, RolloutsTold,
    ServerStatus,
};
use crate::monitor::MemberReport;
use crate::overview::Overview;
use crate::protocol::cohere::EmbedReply;
use crate::protocol::oip::{InferReply, ModelConfig, ModelMetadata, RepositoryEntry, ServerMetadata, Statistics};
use crate::protocol::openai::{EmbeddingsReply, ModelEntry, ModerationsReply, OpenAiError};
use crate::protocol::pipeline::{PipelineEntry, PipelineReply};
use crate::protocol::recommend::RecommendReply;
use crate::protocol::rerank::{RerankError, RerankReply, TeiRank};
use crate::protocol::similarity::SimilarityReply;
use crate::protocol::tei::{Info, Predictions, RootReply, TeiError, Token};
use crate::protocol::{Dialect, List, PlainError};
use crate::request_log::Record;
use crate::rollout::{End, RolloutStatus};

/// A route and what is said of it.
struct Route {
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    takes: Takes,
    answers: Answers,
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

/// What an answer has as its body. Schemas are derived from the types that handlers serialize; that each route has the right one
/// schemathesis finds out.
#[derive(Clone, Copy)]
enum Answers {
    Nothing,
    /// Nothing but refusals.
    Refusal,
    Json(Schema),
    /// JSON of this schema among the written ones: what a host answers.
    Named(&'static str),
    /// JSON, or events where they are asked for.
    Events(Schema),
    /// JSON, with or without binary data behind it.
    Tensors(Schema),
    /// The same JSON with 200 and with 503.
    Probe(Schema),
    /// Of this media type.
    Bytes(&'static str),
    Script,
}

/// Gives a schema, and puts those that it refers to into the generator.
type Schema = fn(&mut SchemaGenerator) -> schemars::Schema;

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

const fn json<T: JsonSchema>() -> Answers {
    Answers::Json(schema::<T>)
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
/// What is told of models of our own alone refuses a hosted member.
const LOOKS_IN: &[u16] = &[400, 404, 503];

const fn get(
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    answers: Answers,
    refuses: &'static [u16],
) -> Route {
    Route { method: "get", path, tag, summary, takes: Takes::Nothing, answers, refuses }
}

const fn post(
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    takes: Takes,
    answers: Answers,
    refuses: &'static [u16],
) -> Route {
    Route { method: "post", path, tag, summary, takes, answers, refuses }
}

const ROUTES: &[Route] = &[
    post(
        "/v1/chat/completions",
        OPENAI,
        "A hosted member goes on with a conversation",
        Takes::Json("ChatRequest"),
        Answers::Named("ChatCompletion"),
        HOSTS,
    ),
    post(
        "/v1/completions",
        OPENAI,
        "A hosted member goes on with a text",
        Takes::Json("CompletionRequest"),
        Answers::Named("Completion"),
        HOSTS,
    ),
    post("/v1/embeddings", OPENAI, "Embeddings", Takes::Json("EmbeddingsRequest"), json::<EmbeddingsReply<'_>>(), ASKS),
    post(
        "/v1/moderations",
        OPENAI,
        "Moderations by a classifier",
        Takes::Json("ModerationsRequest"),
        json::<ModerationsReply<'_>>(),
        ASKS,
    ),
    get("/v1/models", OPENAI, "The models that serve", json::<List<ModelEntry>>(), &[]),
    get("/v1/models/{model}", OPENAI, "One of them", json::<ModelEntry>(), LOOKS),
    post(
        "/rerank",
        COHERE,
        "The best documents, in the dialect of the body",
        Takes::Json("RerankRequest"),
        json::<RerankReply<'_>>(),
        RERANKS,
    ),
    post("/v1/rerank", COHERE, "The best documents", Takes::Json("RerankRequest"), json::<RerankReply<'_>>(), RERANKS),
    post("/v2/rerank", COHERE, "The best documents", Takes::Json("RerankRequest"), json::<RerankReply<'_>>(), RERANKS),
    post("/v1/embed", COHERE, "Embeddings", Takes::Json("CohereEmbedRequest"), json::<EmbedReply<'_>>(), ASKS),
    post(
        "/v2/embed",
        COHERE,
        "Embeddings of several kinds",
        Takes::Json("CohereEmbedRequest"),
        json::<EmbedReply<'_>>(),
        ASKS,
    ),
    post("/", TEI, "What the model is for", Takes::Json("TeiRootRequest"), json::<RootReply>(), TEI_ASKS),
    post("/embed", TEI, "Embeddings", Takes::Json("TeiEmbedRequest"), json::<Vec<Vec<f32>>>(), TEI_ASKS),
    post("/embed_all", TEI, "Refused: packages pool", Takes::Json("TeiEmbedRequest"), Answers::Refusal, EMBEDS_NOT),
    post(
        "/embed_sparse",
        TEI,
        "Refused: embeddings are dense",
        Takes::Json("TeiEmbedRequest"),
        Answers::Refusal,
        EMBEDS_NOT,
    ),
    post("/predict", TEI, "Labels of texts", Takes::Json("TeiPredictRequest"), json::<Predictions>(), TEI_ASKS),
    post(
        "/similarity",
        TEI,
        "Cosines to a sentence",
        Takes::Json("TeiSimilarityRequest"),
        json::<Vec<f32>>(),
        TEI_ASKS,
    ),
    post("/tokenize", TEI, "Tokens of texts", Takes::Json("TeiTokenizeRequest"), json::<Vec<Vec<Token>>>(), TEI_ASKS),
    post("/decode", TEI, "Texts of tokens", Takes::Json("TeiDecodeRequest"), json::<Vec<String>>(), TEI_ASKS),
    get("/info", TEI, "What serves, and its limits", json::<Info>(), &[404, 422, 424, 503]),
    post(
        "/tei/{model}/rerank",
        TEI,
        "The best texts",
        Takes::Json("TeiRerankRequest"),
        json::<Vec<TeiRank<'_>>>(),
        TEI_ASKS,
    ),
    get("/tei/{model}/health", TEI, "Whether the model serves", Answers::Nothing, LOOKS),
    get("/v2", OIP, "The server and its extensions", json::<ServerMetadata>(), &[]),
    get("/v2/health/live", OIP, "The process answers", Answers::Nothing, &[]),
    get("/v2/health/ready", OIP, "Every member serves what it should", Answers::Probe(schema::<Readiness>), &[503]),
    get("/v2/models/{model}", OIP, "Tensors of a model", json::<ModelMetadata>(), LOOKS),
    get("/v2/models/{model}/versions/{version}", OIP, "Tensors of a version", json::<ModelMetadata>(), LOOKS),
    get("/v2/models/{model}/ready", OIP, "Whether a model serves", Answers::Nothing, LOOKS),
    get("/v2/models/{model}/versions/{version}/ready", OIP, "Whether a version serves", Answers::Nothing, LOOKS),
    get("/v2/models/{model}/config", OIP, "Configuration of a model", json::<ModelConfig>(), LOOKS_IN),
    get(
        "/v2/models/{model}/versions/{version}/config",
        OIP,
        "Configuration of a version",
        json::<ModelConfig>(),
        LOOKS_IN,
    ),
    get("/v2/models/stats", OIP, "Statistics of all models", json::<Statistics>(), &[]),
    get("/v2/models/{model}/stats", OIP, "Statistics of a model", json::<Statistics>(), LOOKS_IN),
    get("/v2/models/{model}/versions/{version}/stats", OIP, "Statistics of a version", json::<Statistics>(), LOOKS_IN),
    post(
        "/v2/models/{model}/infer",
        OIP,
        "Inference",
        Takes::Tensors("InferRequest"),
        Answers::Tensors(schema::<InferReply<'_>>),
        ASKS,
    ),
    post(
        "/v2/models/{model}/versions/{version}/infer",
        OIP,
        "Inference by a version",
        Takes::Tensors("InferRequest"),
        Answers::Tensors(schema::<InferReply<'_>>),
        ASKS,
    ),
    post("/v2/repository/index", OIP, "Where every member stands", Takes::Nothing, json::<Vec<RepositoryEntry>>(), &[]),
    post(
        "/v2/repository/models/{model}/{action}",
        OIP,
        "Refused: members follow the registry",
        Takes::Nothing,
        Answers::Refusal,
        &[404, 501],
    ),
    post(
        "/inference.GRPCInferenceService/{method}",
        OIP,
        "gRPC, over HTTP/2",
        Takes::Protobuf,
        Answers::Bytes("application/grpc"),
        &[],
    ),
    post(
        "/v1/recommend",
        OWN,
        "What comes next after a history of items",
        Takes::Json("RecommendRequest"),
        json::<RecommendReply<'_>>(),
        ASKS,
    ),
    post(
        "/v1/similarity",
        OWN,
        "How alike pairs of texts are",
        Takes::Json("SimilarityRequest"),
        json::<SimilarityReply<'_>>(),
        ASKS,
    ),
    get("/v1/pipelines", OWN, "The pipelines", json::<List<PipelineEntry>>(), &[]),
    post(
        "/v1/pipelines/{pipeline}",
        OWN,
        "Several members answer one text",
        Takes::Json("PipelineRequest"),
        Answers::Events(schema::<PipelineReply<'_>>),
        ASKS,
    ),
    get("/v1/highroad/rollouts", OWN, "Candidates that are tried", json::<RolloutsTold>(), &[]),
    get("/v1/highroad/rollouts/{member}", OWN, "What is tried of one member", json::<RolloutStatus>(), &[404]),
    post(
        "/v1/highroad/rollouts/{member}/labels",
        OWN,
        "The right answer to a compared request",
        Takes::Json("RolloutLabel"),
        json::<LabelCounted>(),
        &[400, 404, 413],
    ),
    get("/v1/highroad/monitor", OWN, "How what members meet compares with their baselines", json::<Monitored>(), &[]),
    get(
        "/v1/highroad/monitor/{member}",
        OWN,
        "The same of one member, with distributions",
        json::<MemberReport>(),
        &[403, 404],
    ),
    post(
        "/v1/highroad/labels",
        OWN,
        "Right answers to earlier requests",
        Takes::Json("Labels"),
        json::<LabelsTaken>(),
        &[400, 413, 500],
    ),
    get("/v1/highroad/alerts", OWN, "What fires, and what ended lately", json::<AlertsShown>(), &[]),
    get("/v1/highroad/objectives", OWN, "What is promised, and what is left of it", json::<ObjectivesShown>(), &[]),
    get(
        "/v1/highroad/rollouts/{member}/course",
        OWN,
        "What each rule said in the course of a rollout",
        json::<RolloutCourse>(),
        &[400, 404],
    ),
    post(
        "/v1/highroad/rollouts/{member}/abort",
        OWN,
        "A person ends a rollout",
        Takes::Json("RolloutAct"),
        json::<End>(),
        &[400, 404, 409, 413],
    ),
    post(
        "/v1/highroad/rollouts/{member}/promote",
        OWN,
        "A person promotes what passed a rollout",
        Takes::Json("RolloutAct"),
        json::<End>(),
        &[400, 404, 409, 413, 503],
    ),
    get(
        "/v1/highroad/portfolio",
        OWN,
        "Members, pipelines and indexes, and what they were asked lately",
        json::<Overview>(),
        &[],
    ),
    get("/v1/highroad/budgets", OWN, "What is spent and what may be", json::<BudgetsShown>(), &[]),
    get("/v1/highroad/budgets/history", OWN, "What was spent on each of the last 30 days", json::<Spending>(), &[]),
    get("/v1/highroad/status", OWN, "Where every member stands", json::<ServerStatus>(), &[]),
    get("/v1/highroad/requests/{id}", OWN, "The record of one answer", json::<Record>(), &[404, 409, 500]),
    get("/v1/highroad/definitions/{digest}", OWN, "What a pipeline or a hosted member was", json::<Defined>(), &[404]),
    get(
        "/v1/highroad/requests/{id}/chain",
        OWN,
        "What stands behind one answer",
        json::<RequestChain>(),
        &[404, 409, 500],
    ),
    post(
        "/v1/highroad/replay",
        OWN,
        "One answer computed again and compared bit by bit",
        Takes::Json("ReplayRequest"),
        json::<Replayed>(),
        &[400, 404, 409, 413, 429, 500],
    ),
    get("/health", OWN, "The process answers", Answers::Nothing, &[]),
    get("/ready", OWN, "Every member serves what it should", Answers::Probe(schema::<Readiness>), &[503]),
    get("/metrics", OWN, "Metrics for Prometheus", Answers::Bytes("text/plain"), &[]),
    get("/openapi.json", OWN, "This document", json::<Map<String, Value>>(), &[]),
    get("/docs", OWN, "This document as a page", Answers::Bytes("text/html"), &[]),
    get("/docs/{file}", OWN, "What the page loads", Answers::Script, &[404]),
];

/// What may be asked without a key, where keys are needed.
const OPEN: &[&str] = &["/health", "/ready", "/v2/health/live", "/v2/health/ready"];
/// How all others are refused before they are looked at, where keys are needed.
const KEYS: &[u16] = &[401, 403, 429];

/// Below it the routes of TEI are once more, of the model that the path names.
const TEI_BASE: &str = "/tei/{model}";

/// The document, version 3.1 of OpenAPI.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    let mut components = Components { generator: settings.into_generator(), refusals: Map::new() };
    let mut paths: Map<String, Value> = Map::new();
    for (path, route) in described() {
        let operation = operation(&path, route, &mut components);
        paths.entry(path).or_insert_with(|| json!({}))[route.method] = operation;
    }
    let mut schemas: Map<String, Value> =
        serde_json::from_str(include_str!("openapi/schemas.json")).expect("the file is JSON");
    for (name, mut schema) in components.generator.take_definitions(true) {
        for_readers(&mut schema);
        let taken = schemas.insert(name.clone(), schema);
        assert!(taken.is_none(), "`{name}` is written and derived");
    }
    let tags: Vec<Value> = [OPENAI, COHERE, TEI, OIP, OWN].iter().map(|name| json!({ "name": name })).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Highroad serving",
            "description": "Every answer has `x-request-id`, `x-highroad-package`, `x-highroad-version` and `x-highroad-evidence`. Requests may have `x-highroad-priority` (`high`, `normal`, `low`) and `x-highroad-timeout-ms`.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "tags": tags,
        // Keys are needed where the server has an access file.
        "security": [{}, { "bearer": [] }, { "api-key": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": components.refusals,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "A key of the server's access file." },
                "api-key": { "type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same in a header." },
            },
        },
    })
}

/// Every path with its route.
fn described() -> impl Iterator<Item = (String, &'static Route)> {
    let nested = ROUTES.iter().filter(|route| route.tag == TEI && !route.path.starts_with(TEI_BASE));
    let below = nested.map(|route| (format!("{TEI_BASE}{}", route.path.trim_end_matches('/')), route));
    ROUTES.iter().map(|route| (route.path.to_owned(), route)).chain(below)
}

/// What operations refer to.
struct Components {
    generator: SchemaGenerator,
    /// Refusals, by dialect and status.
    refusals: Map<String, Value>,
}

/// Makes of a schema of our own types one for others: that objects have no other keys is said of what is read, and answers may grow;
/// anything is a schema without words, as some generators of clients take no `true`; and links lead to nothing here.
fn for_readers(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("additionalProperties") == Some(&Value::Bool(false)) {
                object.remove("additionalProperties");
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`");
            }
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                let anything = properties.values_mut().filter(|schema| **schema == Value::Bool(true));
                anything.for_each(|schema| *schema = json!({}));
            }
            if object.get("items") == Some(&Value::Bool(true)) {
                object.insert("items".to_owned(), json!({}));
            }
            object.values_mut().for_each(for_readers);
        }
        Value::Array(items) => items.iter_mut().for_each(for_readers),
        _ => {}
    }
}

fn operation(path: &str, route: &Route, components: &mut Components) -> Value {
    let parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    let mut responses: Map<String, Value> = Map::new();
    if let Some(answer) = answer(route.answers, &mut components.generator) {
        responses.insert("200".to_owned(), answer);
    }
    let asks_for_keys = !OPEN.contains(&path) && !matches!(route.takes, Takes::Protobuf);
    let of_keys = if asks_for_keys { KEYS } else { &[] };
    let of_bodies: &[u16] = if matches!(route.takes, Takes::Nothing | Takes::Protobuf) { &[] } else { &[415] };
    for status in route.refuses.iter().chain(of_bodies).chain(of_keys) {
        // A body that cannot be read is in nobody's dialect.
        let dialect = if path.ends_with("/rerank") { Dialect::Cohere } else { Dialect::of(path) };
        let refusal = match (route.answers, status) {
            (Answers::Probe(_), 503) => answer(route.answers, &mut components.generator).unwrap_or_default(),
            _ => components.refusal(*status, dialect),
        };
        responses.insert(status.to_string(), refusal);
    }
    let mut operation = json!({ "tags": [route.tag], "summary": route.summary, "responses": responses });
    if OPEN.contains(&path) {
        operation["security"] = json!([]);
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(content) = content(route.takes) {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn answer(answers: Answers, generator: &mut SchemaGenerator) -> Option<Value> {
    let bytes = || json!({ "schema": { "type": "string", "format": "binary" } });
    let mut content = Map::new();
    let mut put = |media_type: &str, said: Value| drop(content.insert(media_type.to_owned(), said));
    match answers {
        Answers::Refusal => return None,
        Answers::Nothing => {}
        Answers::Json(schema) | Answers::Events(schema) | Answers::Tensors(schema) | Answers::Probe(schema) => {
            put("application/json", json!({ "schema": schema(generator) }));
        }
        Answers::Named(name) => put("application/json", named(name)),
        Answers::Bytes(media_type) => put(media_type, bytes()),
        Answers::Script => ["text/javascript", "text/css"].into_iter().for_each(|kind| put(kind, bytes())),
    }
    match answers {
        Answers::Events(_) | Answers::Named(_) => put("text/event-stream", json!({ "schema": { "type": "string" } })),
        Answers::Tensors(_) => put("application/octet-stream", bytes()),
        _ => {}
    }
    let description = if matches!(answers, Answers::Probe(_)) { "Where every member stands" } else { "The answer" };
    Some(match content.is_empty() {
        true => json!({ "description": "Yes" }),
        false => json!({ "description": description, "content": content }),
    })
}

/// One of the schemas that are written.
fn named(name: &str) -> Value {
    json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } })
}

fn content(takes: Takes) -> Option<Value> {
    let bytes = json!({ "type": "string", "format": "binary" });
    match takes {
        Takes::Nothing => None,
        Takes::Json(name) => Some(json!({ "application/json": named(name) })),
        Takes::Tensors(name) => {
            Some(json!({ "application/json": named(name), "application/octet-stream": { "schema": bytes } }))
        }
        Takes::Protobuf => Some(json!({ "application/grpc": { "schema": bytes } })),
    }
}

impl Components {
    fn refusal(&mut self, status: u16, dialect: Dialect) -> Value {
        let generator = &mut self.generator;
        let name = format!("{dialect:?}{status}");
        let schema = match dialect {
            Dialect::OpenAi => schema::<OpenAiError>(generator),
            Dialect::Cohere => schema::<RerankError>(generator),
            Dialect::Tei => schema::<TeiError>(generator),
            Dialect::Plain => schema::<PlainError>(generator),
        };
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        self.refusals.entry(name).or_insert_with(|| refusal(status, &schema));
        reference
    }
}

fn refusal(status: u16, schema: &schemars::Schema) -> Value {
    let description = match status {
        400 => "The body cannot be read, or an input or a limit is broken",
        401 => "A key is needed, or this one is not known",
        403 => "The key may not do this, or the host refuses",
        404 => "No such model, version or record",
        409 => "It contradicts what is there",
        413 => "More than a limit allows",
        415 => "The body is compressed otherwise than `accept-encoding` of this answer says",
        422 => "The body cannot be read, or an input cannot be taken",
        424 => "The model does not do this, or failed",
        429 => "The queue is full, or the key's rate used up; `retry-after` says when to try again",
        500 => "The model failed",
        501 => "Not done by hand",
        502 => "The host failed",
        _ => "Not ready, or waited too long",
    };
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
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        for (name, schema) in schemas {
            jsonschema::draft202012::meta::validate(schema).unwrap();
            assert!(text.contains(&format!("#/components/schemas/{name}\"")), "nothing uses {name}");
        }
    }

    /// `UPDATE_OPENAPI=1 cargo nextest run --workspace -E 'test(the_openapi_document_is_current)'` writes it.
    #[test]
    fn the_openapi_document_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboard/serving.json");
        let made = format!("{:#}\n", document());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept == made, "{} is not what the code says: set UPDATE_OPENAPI=1 to write it anew", path.display());
    }

    #[test]
    fn every_answer_has_a_schema_and_every_schema_a_name_of_its_own() {
        let document = document();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (status, response) in
                operations.as_object().unwrap().values().flat_map(|one| one["responses"].as_object().unwrap())
            {
                let response = match response.get("$ref") {
                    Some(name) => document.pointer(name.as_str().unwrap().trim_start_matches('#')).unwrap(),
                    None => response,
                };
                let has_body = response["content"]
                    .as_object()
                    .is_some_and(|content| content.values().all(|kind| kind["schema"].is_object()));
                assert!(has_body || response["description"] == "Yes", "{path} {status}");
            }
        }
        // The generator of schemas numbers what has the name of another.
        let numbered = |name: &&String| name.ends_with(|c: char| c.is_ascii_digit());
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert_eq!(schemas.keys().filter(numbered).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn refusals_are_told_as_the_document_says() {
        let problem = highroad_service::Problem::invalid("no");
        let document = document();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let told = crate::protocol::error_shape(path, &problem);
            for refusal in operations.as_object().unwrap().values().filter_map(|one| one["responses"].get("400")) {
                let refusal = document.pointer(refusal["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap();
                let schema = &refusal["content"]["application/json"]["schema"];
                let name = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()).unwrap();
                let name = match name {
                    "RerankError" if path.starts_with("/tei/") => "TeiError",
                    "RerankError" => "CohereError",
                    name => name,
                };
                let keys: BTreeSet<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
                let required = document["components"]["schemas"][name]["required"].as_array().unwrap();
                assert_eq!(keys, required.iter().filter_map(Value::as_str).collect(), "{path}");
            }
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
