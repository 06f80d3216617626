//! The wire protocols: pure conversions between bodies and the core's inputs and answers.

pub mod chat;
pub mod cohere;
pub mod oip;
pub mod openai;
pub mod pipeline;
pub(crate) mod prompts;
pub mod recommend;
pub mod rerank;
pub mod similarity;
pub mod tei;

use highroad_service::Problem;
use serde_json::{Value, json};

/// The body of what is refused before a route is reached, as the clients of `path` read it.
pub fn error_shape(path: &str, problem: &Problem) -> Value {
    match path {
        "/rerank" | "/v1/rerank" | "/v2/rerank" => rerank::error_body(problem),
        "/v1/embed" | "/v2/embed" => rerank::error_body(problem),
        "/" | "/embed" | "/embed_all" | "/predict" | "/similarity" | "/tokenize" | "/decode" | "/info" => {
            tei::Refused::from(problem.clone()).body()
        }
        _ if path.starts_with("/tei/") => tei::Refused::from(problem.clone()).body(),
        _ if path.starts_with("/v1/") => openai::Refused::from(problem.clone()).body(),
        _ => json!({ "error": problem.message }),
    }
}
