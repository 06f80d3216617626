//! The wire protocols: pure conversions between bodies and the core's inputs and answers.

pub mod chat;
pub mod oip;
pub mod openai;
pub mod rerank;

use highroad_service::Problem;
use serde_json::{Value, json};

/// The body of what is refused before a route is reached, as the clients of `path` read it.
pub fn error_shape(path: &str, problem: &Problem) -> Value {
    match path {
        "/rerank" | "/v1/rerank" | "/v2/rerank" => rerank::error_body(problem),
        _ if path.starts_with("/v1/") => openai::Refused::from(problem.clone()).body(),
        _ => json!({ "error": problem.message }),
    }
}
