//! MLflow's REST interface: each route reads its arguments, calls the store once, and shapes the reply.

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, body::Bytes};
use serde::de::DeserializeOwned;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::{TrackError, Tracker, limits};

mod artifacts;
mod budgets;
mod checks;
mod datasets;
mod experiments;
mod highroad;
mod logged_models;
mod otlp;
mod registry;
mod runs;
mod server;
mod traces;
mod transfers;

/// Everything under `/api`.
pub fn routes(tracker: Tracker) -> Router {
    Router::new()
        .merge(tracking())
        .merge(registry())
        .merge(traces())
        .merge(golden_datasets())
        .route("/2.0/mlflow-artifacts/artifacts", get(artifacts::list_folder))
        .route(
            "/2.0/mlflow-artifacts/artifacts/{*path}",
            put(artifacts::upload).get(artifacts::download).delete(artifacts::remove),
        )
        .route("/2.0/mlflow-artifacts/mpu/create/{*folder}", post(transfers::create))
        .route("/2.0/mlflow-artifacts/mpu/complete/{*folder}", post(transfers::complete))
        .route("/2.0/mlflow-artifacts/mpu/abort/{*folder}", post(transfers::abort))
        .route("/2.0/mlflow-artifacts/presigned/{*path}", get(transfers::presigned))
        .route("/3.0/mlflow/server-info", get(server::info))
        .route("/3.0/mlflow/workspaces", get(server::no_workspaces).post(server::no_workspaces))
        .route(
            "/3.0/mlflow/workspaces/{name}",
            get(server::no_workspaces).patch(server::no_workspaces).delete(server::no_workspaces),
        )
        .route("/2.0/highroad/audit", get(highroad::audit))
        .route("/2.0/highroad/budgets/lease", post(budgets::lease))
        .route("/2.0/highroad/budgets/spent", post(budgets::spent))
        .route("/2.0/highroad/promote", post(highroad::promote))
        .route("/2.0/highroad/rollback", post(highroad::rollback))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(DefaultBodyLimit::max(limits::MAX_BODY_BYTES))
        .with_state(tracker)
}

fn tracking() -> Router<Tracker> {
    let mlflow = Router::new()
        .route("/experiments/create", post(experiments::create))
        .route("/experiments/get", get(experiments::get))
        .route("/experiments/get-by-name", get(experiments::get_by_name))
        .route("/experiments/search", post(experiments::search).get(experiments::search))
        .route("/experiments/update", post(experiments::update))
        .route("/experiments/delete", post(experiments::delete))
        .route("/experiments/restore", post(experiments::restore))
        .route("/experiments/set-experiment-tag", post(experiments::set_tag))
        .route("/experiments/delete-experiment-tag", post(experiments::delete_tag))
        .route("/experiments/search-datasets", post(experiments::search_datasets))
        .route("/runs/create", post(runs::create))
        .route("/runs/get", get(runs::get))
        .route("/runs/update", post(runs::update))
        .route("/runs/delete", post(runs::delete))
        .route("/runs/restore", post(runs::restore))
        .route("/runs/search", post(runs::search))
        .route("/runs/log-metric", post(runs::log_metric))
        .route("/runs/log-parameter", post(runs::log_param))
        .route("/runs/log-batch", post(runs::log_batch))
        .route("/runs/set-tag", post(runs::set_tag))
        .route("/runs/delete-tag", post(runs::delete_tag))
        .route("/runs/log-inputs", post(runs::log_inputs))
        .route("/runs/outputs", post(runs::log_outputs))
        .route("/runs/log-model", post(runs::log_model))
        .route("/metrics/get-history", get(runs::metric_history))
        .route("/metrics/get-history-bulk-interval", get(runs::sampled_histories))
        .route("/artifacts/list", get(artifacts::list_run))
        .route("/logged-models", post(logged_models::create))
        .route("/logged-models/search", post(logged_models::search))
        .route(
            "/logged-models/{model_id}",
            get(logged_models::get).patch(logged_models::finalize).delete(logged_models::delete),
        )
        .route("/logged-models/{model_id}/tags", patch(logged_models::set_tags))
        .route("/logged-models/{model_id}/tags/{key}", delete(logged_models::delete_tag))
        .route("/logged-models/{model_id}/params", post(logged_models::log_params))
        .route("/logged-models/{model_id}/artifacts/directories", get(artifacts::list_logged_model));
    // The real server registers one route without the slash, and its own page calls it there.
    Router::new()
        .nest("/2.0/mlflow", mlflow)
        .route("/2.0mlflow/experiments/search-datasets", post(experiments::search_datasets))
}

/// What MLflow and OpenTelemetry serve beside `/api`.
pub fn root(tracker: Tracker) -> Router {
    Router::new()
        .route("/version", get(server::version))
        .route("/v1/traces", post(otlp::export))
        .layer(DefaultBodyLimit::max(limits::MAX_BODY_BYTES))
        .with_state(tracker)
}

fn traces() -> Router<Tracker> {
    let tags = patch(traces::set_tag).delete(traces::delete_tag);
    let version_3 = Router::new()
        .route("/traces", post(traces::put))
        .route("/traces/get", get(traces::get))
        .route("/traces/batchGet", get(traces::batch_get))
        .route("/traces/batchGetInfos", post(traces::batch_get_infos))
        .route("/traces/search", post(traces::search))
        .route("/traces/delete-traces", post(traces::delete))
        .route("/traces/{trace_id}", get(traces::get_info))
        .route("/traces/{trace_id}/tags", tags.clone())
        .route("/traces/{trace_id}/assessments", post(traces::assess))
        .route(
            "/traces/{trace_id}/assessments/{assessment_id}",
            get(traces::assessment_of).patch(traces::change_assessment).delete(traces::delete_assessment),
        );
    let version_2 = Router::new()
        .route("/traces/delete-traces", post(traces::delete))
        .route("/traces/link-to-run", post(traces::link_to_run))
        .route("/traces/link-prompts", post(traces::link_prompts))
        .route("/traces/{trace_id}/tags", tags);
    Router::new().nest("/3.0/mlflow", version_3).nest("/2.0/mlflow", version_2)
}

fn golden_datasets() -> Router<Tracker> {
    let datasets = Router::new()
        .route("/create", post(datasets::create))
        .route("/search", get(datasets::search).post(datasets::search))
        .route("/{dataset_id}", get(datasets::get).delete(datasets::delete))
        .route("/{dataset_id}/add-experiments", post(datasets::add_to))
        .route("/{dataset_id}/remove-experiments", post(datasets::remove_from))
        .route("/{dataset_id}/experiment-ids", get(datasets::experiments))
        .route(
            "/{dataset_id}/records",
            get(datasets::records).post(datasets::upsert_records).delete(datasets::delete_records),
        )
        .route("/{dataset_id}/tags", patch(datasets::set_tags))
        .route("/{dataset_id}/tags/{key}", delete(datasets::delete_tag));
    Router::new().nest("/3.0/mlflow/datasets", datasets)
}

fn registry() -> Router<Tracker> {
    let mlflow = Router::new()
        .route("/registered-models/create", post(registry::create))
        .route("/registered-models/get", get(registry::get))
        .route("/registered-models/search", get(registry::search))
        .route("/registered-models/update", patch(registry::update))
        .route("/registered-models/rename", post(registry::rename))
        .route("/registered-models/delete", delete(registry::delete))
        .route("/registered-models/set-tag", post(registry::set_tag))
        .route("/registered-models/delete-tag", delete(registry::delete_tag))
        .route("/registered-models/get-latest-versions", get(registry::latest_versions).post(registry::latest_versions))
        .route(
            "/registered-models/alias",
            get(registry::by_alias).post(registry::set_alias).delete(registry::delete_alias),
        )
        .route("/model-versions/create", post(registry::create_version))
        .route("/model-versions/get", get(registry::get_version))
        .route("/model-versions/search", get(registry::search_versions))
        .route("/model-versions/update", patch(registry::update_version))
        .route("/model-versions/delete", delete(registry::delete_version))
        .route("/model-versions/set-tag", post(registry::set_version_tag))
        .route("/model-versions/delete-tag", delete(registry::delete_version_tag))
        .route("/model-versions/transition-stage", post(registry::transition_stage))
        .route("/model-versions/get-download-uri", get(registry::download_uri));
    Router::new().nest("/2.0/mlflow", mlflow)
}

/// MLflow's 404, for paths and methods that are not spoken.
pub async fn unknown_route(method: Method, uri: Uri) -> Edge {
    Edge(TrackError::UnknownRoute { method: method.to_string(), path: uri.path().to_owned() })
}

/// A [`TrackError`] on its way out: `{"error_code": …, "message": …}` and how MLflow 3 classifies it.
#[derive(Debug)]
pub struct Edge(TrackError);

/// What a handler answers.
type Reply = Result<Json<Value>, Edge>;

impl From<TrackError> for Edge {
    fn from(error: TrackError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Edge {
    fn into_response(self) -> Response {
        let code = self.0.code();
        let classification = self.0.classification();
        self.0.problem().respond(|problem| {
            let mut body = json!({ "error_code": code, "message": problem.message });
            if let Some((sqlstate, class)) = classification {
                body["sqlstate"] = json!(sqlstate);
                body["error_class"] = json!(class);
            }
            body
        })
    }
}

/// An empty success.
fn done() -> Reply {
    Ok(Json(json!({})))
}

/// What a handler that lists answers.
type Listing = Result<Response, Edge>;

/// A reply with a list: left out when empty, as protobuf's JSON does, and `next_page_token` when there is more.
struct Listed<T> {
    name: &'static str,
    page: crate::Page<T>,
}

impl<T: Serialize> Serialize for Listed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut reply = serializer.serialize_map(None)?;
        if !self.page.items.is_empty() {
            reply.serialize_entry(self.name, &self.page.items)?;
        }
        if let Some(token) = &self.page.next_page_token {
            reply.serialize_entry("next_page_token", token)?;
        }
        reply.end()
    }
}

fn page<T: Serialize>(name: &'static str, page: crate::Page<T>) -> Listing {
    Ok(Json(Listed { name, page }).into_response())
}

/// The arguments of a call: the query of a `GET`, else the JSON body, else (without a body) the query.
///
/// Unknown fields are ignored, `camelCase` names are read as protobuf's JSON allows. Errors are MLflow's and name the parameter.
#[derive(Debug)]
pub struct Args<T>(pub T);

/// The same for a call whose arguments are two sets: what it is about, and the rest.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub B);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Args<T> {
    type Rejection = Edge;

    async fn from_request(request: Request, state: &S) -> Result<Self, Edge> {
        let object = arguments(request, state).await?;
        Ok(Self(parse(&object)?))
    }
}

impl<S: Send + Sync, A: DeserializeOwned, B: DeserializeOwned> FromRequest<S> for Both<A, B> {
    type Rejection = Edge;

    async fn from_request(request: Request, state: &S) -> Result<Self, Edge> {
        let object = arguments(request, state).await?;
        Ok(Self(parse(&object)?, parse(&object)?))
    }
}

async fn arguments<S: Send + Sync>(request: Request, state: &S) -> Result<Value, TrackError> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(Value::Object(query_object(&query)));
    }
    let body = read_body(request, state).await?;
    if body.is_empty() { Ok(Value::Object(query_object(&query))) } else { body_object(&body) }
}

/// The body of a call that says it is JSON, as MLflow demands of `POST` and `PUT`.
pub async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, TrackError> {
    if matches!(*request.method(), Method::POST | Method::PUT) {
        check_content_type(request.headers())?;
    }
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status().as_u16() {
        413 => TrackError::TooLarge(format!("the request body is over {} bytes", limits::MAX_BODY_BYTES)),
        _ => TrackError::Invalid(rejection.body_text()),
    })
}

fn check_content_type(headers: &HeaderMap) -> Result<(), TrackError> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else {
        return Err(TrackError::Invalid("Bad Request. Content-Type header is missing.".into()));
    };
    let kind = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    if kind == "application/json" {
        return Ok(());
    }
    Err(TrackError::Invalid("Bad Request. Content-Type must be one of ['application/json'].".into()))
}

/// A body as an object. Old clients encode it twice; `null` is no arguments.
fn body_object(body: &[u8]) -> Result<Value, TrackError> {
    let unreadable = |error| TrackError::Invalid(format!("Invalid request: the body is no JSON: {error}"));
    let mut value: Value = serde_json::from_slice(body).map_err(unreadable)?;
    if let Value::String(text) = &value {
        value = serde_json::from_str(text).map_err(unreadable)?;
    }
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(object) => snake_case_names(object).map(Value::Object),
        _ => Err(TrackError::Invalid("Invalid request: the body is no JSON object".into())),
    }
}

fn snake_case_names(object: Map<String, Value>) -> Result<Map<String, Value>, TrackError> {
    if !object.keys().any(|name| name.bytes().any(|c| c.is_ascii_uppercase())) {
        return Ok(object);
    }
    let mut named = Map::with_capacity(object.len());
    for (name, value) in object {
        let snake = snake_case(&name);
        if named.insert(snake.clone(), value).is_some() {
            return Err(TrackError::Invalid(format!(
                "Request specifies both '{snake}' and its camelCase form; provide only one of them."
            )));
        }
    }
    Ok(named)
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// A body that is read without a detour, for calls where that counts.
fn parse_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TrackError> {
    // What went wrong is told by the slow way, which knows the offending value and the path to it.
    serde_json::from_slice(bytes).or_else(|_| parse(&body_object(bytes)?))
}

fn parse<T: DeserializeOwned>(object: &Value) -> Result<T, TrackError> {
    serde_path_to_error::deserialize(object).map_err(|error| unreadable(object, error.path(), error.inner()))
}

/// MLflow's words for a parameter that is missing or of another type.
fn unreadable(object: &Value, path: &serde_path_to_error::Path, error: &serde_json::Error) -> TrackError {
    let text = error.to_string();
    let name = path.to_string();
    if let Some(field) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        let prefix = if name == "." { String::new() } else { format!("{name}.") };
        return missing(&if field.is_empty() { name } else { format!("{prefix}{field}") });
    }
    if let Some(own) = text.strip_prefix(crate::wire::OWN_WORDS) {
        return TrackError::Invalid(own.to_owned());
    }
    let value = value_at(object, path);
    TrackError::Invalid(format!(
        "Invalid value {value} for parameter '{name}' supplied:  Hint: Value was of type '{}'. {}",
        python_type(value),
        limits::SEE_DOCS
    ))
}

fn missing(name: &str) -> TrackError {
    TrackError::Invalid(format!("Missing value for required parameter '{name}'. {}", limits::SEE_DOCS))
}

fn value_at<'v>(object: &'v Value, path: &serde_path_to_error::Path) -> &'v Value {
    use serde_path_to_error::Segment;
    path.iter().fold(object, |value, segment| match segment {
        Segment::Seq { index } => value.get(*index).unwrap_or(&Value::Null),
        Segment::Map { key } => value.get(key).unwrap_or(&Value::Null),
        _ => value,
    })
}

fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// A query as an object of texts; a repeated name becomes a list.
fn query_object(query: &str) -> Map<String, Value> {
    let mut object = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = Value::String(value.into_owned());
        match object.get_mut(name.as_ref()) {
            None => drop(object.insert(name.into_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Int;

    #[derive(Debug, serde::Deserialize)]
    struct Example {
        #[serde(deserialize_with = "crate::wire::filled")]
        run_id: String,
        #[serde(default)]
        max_results: Option<Int>,
        #[serde(default, deserialize_with = "crate::wire::one_or_many")]
        order_by: Vec<String>,
    }

    #[test]
    fn a_query_is_read_like_a_body() {
        let object = query_object("run_id=a%20b&max_results=5&order_by=x&order_by=y+DESC");
        let example: Example = parse(&Value::Object(object)).unwrap();
        assert_eq!((example.run_id.as_str(), example.max_results), ("a b", Some(Int(5))));
        assert_eq!(example.order_by, ["x", "y DESC"]);
        let one: Example = parse(&Value::Object(query_object("run_id=a&order_by=x"))).unwrap();
        assert_eq!(one.order_by, ["x"]);
    }

    #[test]
    fn an_error_names_the_parameter() {
        let message = |body: &str| parse_bytes::<Example>(body.as_bytes()).unwrap_err().to_string();
        let missing = "Missing value for required parameter 'run_id'.";
        for body in ["{}", r#"{"run_id": ""}"#, r#"{"run_id": null}"#, "null", r#""{}""#] {
            assert!(message(body).starts_with(missing), "{body}: {}", message(body));
        }
        let hint = "Invalid value [1] for parameter 'run_id' supplied:  Hint: Value was of type 'list'.";
        assert!(message(r#"{"run_id": [1]}"#).starts_with(hint));
        assert!(message(r#"{"run_id": "a", "max_results": "x"}"#).contains("\"x\" for parameter 'max_results'"));
        assert!(message("[").starts_with("Invalid request: "));
        assert!(message("[1]").starts_with("Invalid request: "));
    }

    #[test]
    fn camel_case_is_read_and_both_cases_are_refused() {
        let example: Example = parse(&body_object(br#"{"runId": "a", "maxResults": 3}"#).unwrap()).unwrap();
        assert_eq!((example.run_id.as_str(), example.max_results), ("a", Some(Int(3))));
        assert!(body_object(br#"{"runId": "a", "run_id": "b"}"#).is_err());
    }
}
