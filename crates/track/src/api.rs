//! MLflow's REST interface: each route reads its arguments, calls the store once, and shapes the reply.

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, body::Bytes};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{TrackError, Tracker, limits};

mod artifacts;
mod experiments;
mod highroad;
mod logged_models;
mod registry;
mod runs;

/// Everything under `/api`.
pub fn routes(tracker: Tracker) -> Router {
    Router::new()
        .merge(tracking())
        .merge(registry())
        .route("/2.0/mlflow-artifacts/artifacts", get(artifacts::list_folder))
        .route(
            "/2.0/mlflow-artifacts/artifacts/{*path}",
            put(artifacts::upload).get(artifacts::download).delete(artifacts::remove),
        )
        .route("/2.0/highroad/audit", get(highroad::audit))
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

/// A [`TrackError`] on its way out: `{"error_code": …, "message": …}`.
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
        self.0.problem().respond(|problem| json!({ "error_code": code, "message": problem.message }))
    }
}

/// An empty success.
fn done() -> Reply {
    Ok(Json(json!({})))
}

/// A reply with a list: left out when empty, as protobuf's JSON does, and `next_page_token` when there is more.
fn page<T: serde::Serialize>(name: &str, page: crate::Page<T>) -> Reply {
    let mut reply = Map::new();
    if !page.items.is_empty() {
        reply.insert(name.to_owned(), json!(page.items));
    }
    if let Some(token) = page.next_page_token {
        reply.insert("next_page_token".to_owned(), Value::String(token));
    }
    Ok(Json(Value::Object(reply)))
}

/// The arguments of a call: the query of a `GET`, else the JSON body, else (without a body) the query.
///
/// Unknown fields are ignored. Errors as MLflow does, naming the parameter.
#[derive(Debug)]
pub struct Args<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Args<T> {
    type Rejection = Edge;

    async fn from_request(request: Request, state: &S) -> Result<Self, Edge> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = if matches!(*request.method(), Method::GET | Method::HEAD) {
            Bytes::new()
        } else {
            read_body(request, state).await?
        };
        let args = if body.is_empty() { parse(Value::Object(query_object(&query))) } else { parse_bytes(&body) };
        Ok(Self(args?))
    }
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, TrackError> {
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status().as_u16() {
        413 => TrackError::TooLarge(format!("the request body is over {} bytes", limits::MAX_BODY_BYTES)),
        _ => TrackError::Invalid(rejection.body_text()),
    })
}

fn parse_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TrackError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| unreadable(&error.path().to_string(), error.inner()))
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, TrackError> {
    serde_path_to_error::deserialize(value).map_err(|error| unreadable(&error.path().to_string(), error.inner()))
}

fn unreadable(path: &str, error: &serde_json::Error) -> TrackError {
    let text = error.to_string();
    let message = match text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        Some(field) if path == "." => format!("Missing value for required parameter '{field}'."),
        Some(field) => format!("Missing value for required parameter '{path}.{field}'."),
        None if path == "." => format!("Invalid request: {text}"),
        None => format!("Invalid value for parameter '{path}' supplied: {text}"),
    };
    TrackError::Invalid(message)
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
        run_id: String,
        #[serde(default)]
        max_results: Option<Int>,
        #[serde(default, deserialize_with = "crate::wire::one_or_many")]
        order_by: Vec<String>,
    }

    #[test]
    fn a_query_is_read_like_a_body() {
        let object = query_object("run_id=a%20b&max_results=5&order_by=x&order_by=y+DESC");
        let example: Example = parse(Value::Object(object)).unwrap();
        assert_eq!((example.run_id.as_str(), example.max_results), ("a b", Some(Int(5))));
        assert_eq!(example.order_by, ["x", "y DESC"]);
        let one: Example = parse(Value::Object(query_object("run_id=a&order_by=x"))).unwrap();
        assert_eq!(one.order_by, ["x"]);
    }

    #[test]
    fn an_error_names_the_parameter() {
        let message = |body: &str| parse_bytes::<Example>(body.as_bytes()).unwrap_err().to_string();
        assert_eq!(message("{}"), "Missing value for required parameter 'run_id'.");
        assert!(message(r#"{"run_id": 1}"#).starts_with("Invalid value for parameter 'run_id' supplied: "));
        assert!(message(r#"{"run_id": "a", "max_results": "x"}"#).contains("'max_results'"));
        assert!(message("[").starts_with("Invalid request: "));
    }
}
