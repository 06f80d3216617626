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

use highroad_hosted::HostedTask;
use highroad_package::TaskKind;
use highroad_service::Problem;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// The words in which clients of a route read refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    /// Cohere's, with TEI's beside them: both have such a route.
    Cohere,
    Tei,
    /// Those of no other project, which are OIP's too.
    Plain,
}

impl Dialect {
    /// Of the route at `path`.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/rerank" | "/v1/rerank" | "/v2/rerank" | "/v1/embed" | "/v2/embed" => Self::Cohere,
            "/" | "/embed" | "/embed_all" | "/embed_sparse" | "/predict" | "/similarity" | "/tokenize" | "/decode"
            | "/info" => Self::Tei,
            _ if path.starts_with("/tei/") => Self::Tei,
            _ if path.starts_with("/v1/") => Self::OpenAi,
            _ => Self::Plain,
        }
    }
}

/// A refusal in the words of no other project.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PlainError {
    /// What is wrong, where, and what helps.
    error: String,
}

/// The body of what is refused before a route is reached, as the clients of `path` read it.
pub fn error_shape(path: &str, problem: &Problem) -> Value {
    match Dialect::of(path) {
        Dialect::OpenAi => openai::Refused::from(problem.clone()).body(),
        Dialect::Cohere => rerank::error_body(problem),
        Dialect::Tei => tei::Refused::from(problem.clone()).body(),
        Dialect::Plain => json_of(&PlainError { error: problem.message.clone() }),
    }
}

/// `answer` as JSON; the keys of every object are in the order of the alphabet.
pub(crate) fn json_of(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("an answer is plain data with text keys")
}

/// The bytes of [`json_of`].
pub(crate) fn body_of(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(&json_of(answer)).expect("a value is JSON")
}

/// A list, as OpenAI's clients read it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub(crate) struct List<T> {
    data: Vec<T>,
    /// `list`
    object: &'static str,
}

impl<T> List<T> {
    pub(crate) fn of(data: Vec<T>) -> Self {
        Self { data, object: "list" }
    }
}

/// What a model is for, as its package or its description says it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelTask {
    /// Of a package.
    Package(TaskKind),
    /// Of a hosted member.
    Hosted(HostedTask),
}
