//! The HTTP interface of Text Embeddings Inference (TEI), beside `/rerank`, which is in `rerank`.
//!
//! A TEI server has one model, and clients name it by the server's address; so every route also exists below `/tei/{model}`.
//! Bodies may carry fields that are not known here; known fields of a wrong type are errors that name them.

use std::collections::BTreeMap;

use highroad_package::{Manifest, TaskKind, Truncation};
use highroad_service::{Kind, Problem};
use highroad_task::vector::{cosine, unit};
use highroad_task::{Answer, CutSide, Input, Piece, Prompt, Special, TaskError, Truncate};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::RequestLimits;
use crate::error::AskError;
use crate::protocol::rerank::TeiRank;
use crate::protocol::{ModelTask, body_of, json_of, prompts};
use crate::revision::Facts;

/// What sort of error, in TEI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "TeiErrorType")]
#[allow(missing_docs)]
pub enum ErrorType {
    Unhealthy,
    Backend,
    Overloaded,
    Validation,
    Tokenizer,
    Empty,
}

/// A refused request in TEI's words.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// What is wrong.
    pub problem: Problem,
    /// What sort of error.
    pub error_type: ErrorType,
}

impl Refused {
    pub(crate) fn of(error_type: ErrorType, message: impl Into<String>) -> Self {
        Self { problem: Problem::invalid(message), error_type }
    }

    fn validation(message: impl Into<String>) -> Self {
        Self::of(ErrorType::Validation, message)
    }

    /// The HTTP status: TEI's for its sort of error, but where HTTP has a word of its own for the problem.
    pub fn status(&self) -> u16 {
        match (self.problem.kind, self.error_type) {
            (Kind::Forbidden | Kind::NotFound | Kind::MethodNotAllowed | Kind::TooLarge, _) => {
                self.problem.kind.status().as_u16()
            }
            (_, ErrorType::Unhealthy) => 503,
            (_, ErrorType::Backend) => 424,
            (_, ErrorType::Overloaded) => 429,
            (_, ErrorType::Validation | ErrorType::Tokenizer) => 422,
            (_, ErrorType::Empty) => 400,
        }
    }

    /// The error object.
    pub fn body(&self) -> Value {
        json_of(&TeiError { error: self.problem.message.clone(), error_type: self.error_type })
    }
}

/// A refusal in TEI's words.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TeiError {
    /// What is wrong, where, and what helps.
    error: String,
    error_type: ErrorType,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        let error_type = match problem.kind {
            Kind::Overloaded => ErrorType::Overloaded,
            Kind::Internal => ErrorType::Backend,
            Kind::Unavailable => ErrorType::Unhealthy,
            _ => ErrorType::Validation,
        };
        Self { problem, error_type }
    }
}

impl From<AskError> for Refused {
    fn from(error: AskError) -> Self {
        let problem = error.problem();
        match &error {
            AskError::WrongTask { .. } => Self { problem, error_type: ErrorType::Backend },
            AskError::Limit { .. } => Problem { kind: Kind::TooLarge, ..problem }.into(),
            AskError::Input { source: TaskError::Tokenizer(_), .. } => {
                Self { problem, error_type: ErrorType::Tokenizer }
            }
            _ => problem.into(),
        }
    }
}

/// `POST /embed`
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedRequest {
    /// What to embed.
    pub inputs: Vec<Input>,
    /// What happens to texts that are too long.
    pub cut: Truncate,
    /// Whether the vectors are scaled to length 1.
    pub normalize: bool,
    /// Width the client asks for.
    pub dimensions: Option<u64>,
}

impl EmbedRequest {
    /// Reads a body.
    pub fn parse(body: &Body) -> Result<Self, Refused> {
        const SHAPES: &str = "`inputs` is a string, a list of strings, a list of token ids or a list of lists of them";
        let inputs = match body.0.get("inputs") {
            Some(Value::String(text)) => vec![Input::Text(text.clone())],
            Some(Value::Array(items)) => embed_inputs(items).ok_or_else(|| Refused::validation(SHAPES))?,
            _ => return Err(Refused::validation(SHAPES)),
        };
        let prompt = body.prompt()?;
        if prompt.is_some() && inputs.iter().any(|input| matches!(input, Input::Tokens(_))) {
            return Err(Refused::validation("`prompt_name` goes with texts, not with token ids"));
        }
        let inputs = inputs.into_iter().map(|input| input.prompted(prompt.as_ref())).collect();
        Ok(Self {
            inputs: not_empty(inputs, "inputs")?,
            cut: cut(&body.0)?,
            normalize: flag(&body.0, "normalize")?.unwrap_or(true),
            dimensions: count(&body.0, "dimensions")?,
        })
    }

    /// The reply: the vectors.
    pub fn reply(&self, vectors: &[Vec<f32>]) -> Vec<u8> {
        let vectors: Vec<Vec<f32>> =
            vectors.iter().map(|vector| if self.normalize { scaled(vector) } else { vector.clone() }).collect();
        serde_json::to_vec(&vectors).expect("finite numbers are JSON")
    }
}

// A vector that has length 1 keeps its bits.
fn scaled(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if (length - 1.0).abs() < 1e-6 { vector.to_vec() } else { unit(vector) }
}

fn embed_inputs(items: &[Value]) -> Option<Vec<Input>> {
    match items.first() {
        None => Some(Vec::new()),
        Some(Value::Number(_)) => Some(vec![Input::Tokens(ids(items)?)]),
        Some(_) => items.iter().map(embed_input).collect(),
    }
}

fn embed_input(item: &Value) -> Option<Input> {
    match item {
        Value::String(text) => Some(Input::Text(text.clone())),
        Value::Array(items) => ids(items).map(Input::Tokens),
        _ => None,
    }
}

/// `POST /predict`
#[derive(Clone, Debug, PartialEq)]
pub struct PredictRequest {
    /// What to judge.
    pub inputs: Vec<Input>,
    /// What happens to texts that are too long.
    pub cut: Truncate,
    /// What the client says makes scores of logits, where it says so.
    function: Option<ScoreFunction>,
    is_batch: bool,
    top_k: usize,
}

/// What makes scores of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreFunction {
    /// Of a model that gives one label of several.
    Softmax,
    /// Of a model that gives any number of labels.
    Sigmoid,
}

impl PredictRequest {
    /// Reads a body. A list of one or two strings is one text or one pair, as TEI reads it; a batch is a list of such lists.
    ///
    /// With `parameters`, which the Hugging Face client sends, the answer is a batch as that of its Inference API is.
    pub fn parse(body: &Body) -> Result<Self, Refused> {
        const SHAPES: &str = "`inputs` is a string, a pair of strings or a list of lists of one or two strings";
        let error = || Refused::validation(SHAPES);
        let (inputs, is_batch) = match body.0.get("inputs") {
            Some(Value::String(text)) => (vec![Input::Text(text.clone())], false),
            Some(Value::Array(items)) if items.first().is_none_or(Value::is_array) => {
                let sequence = |item: &Value| item.as_array().and_then(|texts| sequence(texts)).ok_or_else(error);
                (items.iter().map(sequence).collect::<Result<_, _>>()?, true)
            }
            Some(Value::Array(items)) => (vec![sequence(items).ok_or_else(error)?], false),
            _ => return Err(error()),
        };
        if flag(&body.0, "raw_scores")?.unwrap_or(false) {
            return Err(Refused::validation("`raw_scores`: the answers of this server are softmax scores, not logits"));
        }
        let parameters = body.parameters()?;
        let function = match parameters.and_then(|parameters| parameters.get("function_to_apply")) {
            None | Some(Value::Null) => None,
            Some(Value::String(function)) if function == "softmax" => Some(ScoreFunction::Softmax),
            Some(Value::String(function)) if function == "sigmoid" => Some(ScoreFunction::Sigmoid),
            Some(_) => return Err(Refused::validation("`function_to_apply` is `softmax` or `sigmoid`")),
        };
        let top_k = parameters.map_or(Ok(None), |parameters| count(parameters, "top_k"))?;
        Ok(Self {
            inputs: not_empty(inputs, "inputs")?,
            cut: cut(&body.0)?,
            function,
            is_batch: is_batch || parameters.is_some(),
            top_k: top_k.and_then(|k| usize::try_from(k).ok()).unwrap_or(usize::MAX),
        })
    }

    /// Errors where the client wants other scores than `made_by` gives, which are those that are kept.
    pub fn check_scores(&self, made_by: ScoreFunction) -> Result<(), Refused> {
        let name = if made_by == ScoreFunction::Softmax { "softmax" } else { "sigmoid" };
        match self.function {
            Some(asked) if asked != made_by => {
                Err(Refused::validation(format!("`function_to_apply` is `{name}`: no other scores are kept")))
            }
            _ => Ok(()),
        }
    }

    /// The reply: the labels of each input with their scores, the highest first.
    pub fn reply(&self, labels: &[String], answers: &[Answer]) -> Vec<u8> {
        let predictions = |answer: &Answer| -> Vec<Prediction> {
            let mut scored: Vec<(&String, f32)> = labels.iter().zip(answer.values().iter().copied()).collect();
            scored.sort_by(|(_, left), (_, right)| right.total_cmp(left));
            let entry = |(label, score): (&String, f32)| Prediction { score: number(score), label: label.clone() };
            scored.into_iter().take(self.top_k).map(entry).collect()
        };
        let mut rows = answers.iter().map(predictions);
        body_of(&match self.is_batch {
            true => Predictions::Batch(rows.collect()),
            false => Predictions::One(rows.next().unwrap_or_default()),
        })
    }
}

/// The reply to [`PredictRequest`]: of each text its labels, best first.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Predictions {
    One(Vec<Prediction>),
    Batch(Vec<Vec<Prediction>>),
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Prediction {
    label: String,
    /// From 0 to 1.
    #[schemars(with = "f32")]
    score: Value,
}

/// The reply to a request that is for whatever the model is for.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "what may be answered, for the OpenAPI document")]
pub(crate) enum RootReply {
    Embeddings(Vec<Vec<f32>>),
    Predictions(Predictions),
    Similarities(Vec<f32>),
    Ranks(Vec<TeiRank<'static>>),
}

fn sequence(texts: &[Value]) -> Option<Input> {
    match texts {
        [Value::String(text)] => Some(Input::Text(text.clone())),
        [Value::String(query), Value::String(document)] => {
            Some(Input::Pair { query: query.clone(), document: document.clone() })
        }
        _ => None,
    }
}

/// `POST /similarity`
#[derive(Clone, Debug, PartialEq)]
pub struct SimilarityRequest {
    /// The sentence that is compared, before those it is compared with.
    pub inputs: Vec<Input>,
    /// What happens to texts that are too long.
    pub cut: Truncate,
}

impl SimilarityRequest {
    /// Reads a body.
    pub fn parse(body: &Body) -> Result<Self, Refused> {
        const SHAPE: &str = "`inputs` is `{\"source_sentence\": \"…\", \"sentences\": [\"…\"]}`";
        let error = || Refused::validation(SHAPE);
        let inputs = body.0.get("inputs").ok_or_else(error)?;
        let source = inputs.get("source_sentence").and_then(Value::as_str).ok_or_else(error)?;
        let sentences = inputs.get("sentences").and_then(Value::as_array).ok_or_else(error)?;
        let texts: Option<Vec<&str>> = sentences.iter().map(Value::as_str).collect();
        let texts = not_empty(texts.ok_or_else(error)?, "inputs.sentences")?;
        let prompt = body.prompt()?;
        let cut = cut(body.parameters()?.unwrap_or(&body.0))?;
        let input = |text: &str| Input::Text(text.to_owned()).prompted(prompt.as_ref());
        Ok(Self { inputs: [source].into_iter().chain(texts).map(input).collect(), cut })
    }

    /// The reply: the cosine between the source sentence and each of the others.
    pub fn reply(answers: &[Answer]) -> Vec<u8> {
        let cosines: Vec<f32> = match answers.split_first() {
            Some((source, others)) => others.iter().map(|other| cosine(source.values(), other.values())).collect(),
            None => Vec::new(),
        };
        serde_json::to_vec(&cosines).expect("finite numbers are JSON")
    }
}

/// `POST /tokenize`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// The texts.
    pub inputs: Vec<String>,
    /// Whether special tokens are put around them.
    pub special: Special,
    /// What goes before them; nothing unless told, so that tokens are those of the text.
    pub prompt: Option<Prompt>,
}

impl TokenizeRequest {
    /// Reads a body.
    pub fn parse(body: &Body) -> Result<Self, Refused> {
        let error = || Refused::validation("`inputs` is a string or a list of strings");
        let inputs = match body.0.get("inputs") {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(error)?
            }
            _ => return Err(error()),
        };
        let prompt = body.prompt()?;
        let special = match flag(&body.0, "add_special_tokens")?.unwrap_or(true) {
            true => Special::Kept,
            false => Special::Dropped,
        };
        Ok(Self { inputs: not_empty(inputs, "inputs")?, special, prompt })
    }

    /// The reply: the tokens of each text.
    pub fn reply(texts: &[Vec<Piece>]) -> Vec<u8> {
        let token = |piece: &Piece| Token {
            id: piece.id,
            text: piece.text.clone(),
            special: piece.bytes.is_none(),
            start: piece.bytes.map(|(start, _)| start),
            stop: piece.bytes.map(|(_, stop)| stop),
        };
        let reply: Vec<Vec<Token>> = texts.iter().map(|pieces| pieces.iter().map(token).collect()).collect();
        body_of(&reply)
    }
}

/// A token of a text.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Token {
    id: u32,
    text: String,
    /// Whether it stands for no part of the text.
    special: bool,
    /// Where it begins in the text, in bytes.
    start: Option<usize>,
    /// Where it ends.
    stop: Option<usize>,
}

/// `POST /decode`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeRequest {
    /// The lists of tokens.
    pub ids: Vec<Vec<u32>>,
    /// Whether special tokens show in the text.
    pub special: Special,
}

impl DecodeRequest {
    /// Reads a body.
    pub fn parse(body: &Body) -> Result<Self, Refused> {
        let error = || Refused::validation("`ids` is a list of token ids or a list of such lists");
        let items = body.0.get("ids").and_then(Value::as_array).ok_or_else(error)?;
        let lists = match items.first() {
            Some(Value::Array(_)) => {
                items.iter().map(|item| item.as_array().and_then(|list| ids(list))).collect::<Option<Vec<_>>>()
            }
            Some(_) => ids(items).map(|ids| vec![ids]),
            None => Some(Vec::new()),
        };
        let special = match flag(&body.0, "skip_special_tokens")?.unwrap_or(true) {
            true => Special::Dropped,
            false => Special::Kept,
        };
        Ok(Self { ids: not_empty(lists.ok_or_else(error)?, "ids")?, special })
    }
}

/// What a request without a route of its own (`POST /`) asks of a server with several models, by the shape of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// As `/embed`.
    Embed,
    /// As `/predict`.
    Predict,
    /// As `/similarity`.
    Similarity,
    /// As `/rerank`.
    Rerank,
}

impl Wish {
    /// What a model of this task is asked; a source sentence is compared by an embedder.
    pub fn of_task(task: &TaskKind, body: &Body) -> Self {
        match task {
            TaskKind::Rerank => Self::Rerank,
            TaskKind::Classify { .. } => Self::Predict,
            _ if body.compares() => Self::Similarity,
            _ => Self::Embed,
        }
    }

    /// What the shape means where the model is not known: the Hugging Face client sends `parameters` to classifiers alone.
    pub fn of_shape(body: &Body) -> Self {
        match () {
            () if body.compares() => Self::Similarity,
            () if body.0.contains_key("texts") => Self::Rerank,
            () if body.0.contains_key("parameters") => Self::Predict,
            () => Self::Embed,
        }
    }
}

/// A body that is a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct Body(pub(crate) Map<String, Value>);

impl Body {
    /// Reads it.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err(Refused::validation("the body is not a JSON object")),
            Err(error) => Err(Refused::validation(format!("the body is not JSON: {error}"))),
        }
    }

    /// Member name, where the client names one in the body.
    pub fn model(&self) -> Result<Option<&str>, Refused> {
        match self.0.get("model") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(model)) => Ok(Some(model)),
            Some(_) => Err(Refused::validation("`model` is a string")),
        }
    }

    fn parameters(&self) -> Result<Option<&Map<String, Value>>, Refused> {
        match self.0.get("parameters") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(parameters)) => Ok(Some(parameters)),
            Some(_) => Err(Refused::validation("`parameters` is an object")),
        }
    }

    fn compares(&self) -> bool {
        self.0.get("inputs").is_some_and(|inputs| inputs.get("source_sentence").is_some())
    }

    /// The prompt that the body names, or its `parameters`, where the Hugging Face client puts it.
    fn prompt(&self) -> Result<Option<Prompt>, Refused> {
        match prompts::named(&self.0)? {
            Some(prompt) => Ok(Some(prompt)),
            None => Ok(self.parameters()?.map(prompts::named).transpose()?.flatten()),
        }
    }
}

/// What `truncate` and `truncation_direction` of a body mean; what they leave open the package says.
pub(crate) fn cut(body: &Map<String, Value>) -> Result<Truncate, Refused> {
    let side = match body.get("truncation_direction") {
        None | Some(Value::Null) => None,
        Some(Value::String(side)) if side.eq_ignore_ascii_case("right") => Some(CutSide::End),
        Some(Value::String(side)) if side.eq_ignore_ascii_case("left") => Some(CutSide::Start),
        Some(_) => return Err(Refused::validation("`truncation_direction` is `left` or `right`")),
    };
    Ok(Truncate { allowed: flag(body, "truncate")?, side })
}

/// `GET /info`
pub fn info(facts: &Facts, manifest: &Manifest, max_tokens: usize, limits: &RequestLimits) -> Info {
    let task = &manifest.task;
    let model_type = match &task.kind {
        TaskKind::Classify { labels, .. } => ModelType::Classifier(LabelIds::of(labels)),
        TaskKind::Rerank => ModelType::Reranker(LabelIds::of(&["relevance".to_owned()])),
        // The program pools, and what it does is in its graph: `highroad inspect`.
        _ => ModelType::Embedding { pooling: "program" },
    };
    let texts = PackageTexts {
        prompts: task.prompts.clone(),
        default_prompt_name: task.default_prompt_name.clone(),
        truncation: task.truncation,
    };
    Info {
        model_dtype: "float32",
        max_input_length: max_tokens,
        auto_truncate: task.truncation != Truncation::Error,
        ..Info::of(ModelTask::Package(task.kind.clone()), facts, limits, model_type, Some(texts))
    }
}

/// The answer to `GET /info`, with TEI's names.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TeiInfo")]
pub struct Info {
    /// The version that serves; of a hosted member what its host calls the model.
    pub(crate) model_id: String,
    /// The package's digest, or that of a hosted member's description.
    model_sha: String,
    /// The member.
    served_model_name: String,
    pub(crate) model_dtype: &'static str,
    model_type: ModelType,
    pub(crate) max_concurrent_requests: usize,
    /// Tokens of a text; of a hosted member bytes.
    pub(crate) max_input_length: usize,
    max_batch_tokens: usize,
    max_batch_requests: Option<usize>,
    max_client_batch_size: usize,
    /// Whether texts that are too long are cut.
    pub(crate) auto_truncate: bool,
    tokenization_workers: usize,
    /// Highroad's.
    version: &'static str,
    sha: Option<String>,
    docker_label: Option<String>,
    highroad: InfoFacts,
}

/// What a model is for.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ModelType {
    Classifier(LabelIds),
    Reranker(LabelIds),
    Embedding {
        /// `program` or `host`: who pools.
        pooling: &'static str,
    },
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct LabelIds {
    id2label: BTreeMap<String, String>,
    label2id: BTreeMap<String, usize>,
}

#[derive(Serialize, JsonSchema)]
struct InfoFacts {
    task: ModelTask,
    facts: Facts,
    limits: RequestLimits,
    #[serde(flatten)]
    texts: Option<PackageTexts>,
}

/// How a package reads texts.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PackageTexts {
    /// What goes before texts, by name.
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
    truncation: Truncation,
}

impl LabelIds {
    pub(crate) fn of(labels: &[String]) -> Self {
        let id2label = labels.iter().enumerate().map(|(id, label)| (id.to_string(), label.clone())).collect();
        let label2id = labels.iter().enumerate().map(|(id, label)| (label.clone(), id)).collect();
        Self { id2label, label2id }
    }
}

impl Info {
    pub(crate) fn of(
        task: ModelTask,
        facts: &Facts,
        limits: &RequestLimits,
        model_type: ModelType,
        texts: Option<PackageTexts>,
    ) -> Self {
        Self {
            model_id: facts.version.clone(),
            model_sha: facts.package.hex(),
            served_model_name: facts.member.clone(),
            model_dtype: "unknown",
            model_type,
            max_concurrent_requests: limits.inputs,
            max_input_length: limits.input_bytes,
            max_batch_tokens: limits.tokens,
            max_batch_requests: None,
            max_client_batch_size: limits.inputs,
            auto_truncate: true,
            tokenization_workers: 1,
            version: env!("CARGO_PKG_VERSION"),
            sha: None,
            docker_label: None,
            highroad: InfoFacts { task, facts: facts.clone(), limits: *limits, texts },
        }
    }
}

fn not_empty<T>(items: Vec<T>, name: &str) -> Result<Vec<T>, Refused> {
    if items.is_empty() { Err(Refused::of(ErrorType::Empty, format!("`{name}` is empty"))) } else { Ok(items) }
}

fn ids(items: &[Value]) -> Option<Vec<u32>> {
    items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

fn flag(body: &Map<String, Value>, name: &str) -> Result<Option<bool>, Refused> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(Refused::validation(format!("`{name}` is true or false"))),
    }
}

fn count(body: &Map<String, Value>, name: &str) -> Result<Option<u64>, Refused> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|&n| n > 0) {
            Some(n) => Ok(Some(n)),
            None => Err(Refused::validation(format!("`{name}` is a positive whole number"))),
        },
    }
}

// The shortest decimal that reads back as the same f32.
fn number(value: f32) -> Value {
    serde_json::from_str(&serde_json::to_string(&value).unwrap_or_default()).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(value: Value) -> Body {
        Body::parse(value.to_string().as_bytes()).unwrap()
    }

    fn text(text: &str) -> Input {
        Input::Text(text.to_owned())
    }

    fn embed(value: Value) -> Result<EmbedRequest, (u16, String)> {
        EmbedRequest::parse(&body(value)).map_err(|refused| (refused.status(), refused.problem.message))
    }

    fn predict(value: Value) -> Result<PredictRequest, (u16, String)> {
        PredictRequest::parse(&body(value)).map_err(|refused| (refused.status(), refused.problem.message))
    }

    #[test]
    fn embed_takes_texts_and_tokens() {
        for (inputs, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Input::Tokens(vec![1, 2])]),
            (json!([[1], "b"]), vec![Input::Tokens(vec![1]), text("b")]),
        ] {
            let request = embed(json!({ "inputs": inputs, "extra": 1 })).unwrap();
            assert_eq!((request.inputs, request.cut, request.normalize), (expected, Truncate::default(), true));
        }
    }

    #[test]
    fn what_embed_refuses_has_the_status_of_tei() {
        for (request, status, complaint) in [
            (json!({ "inputs": [] }), 400, "`inputs` is empty"),
            (json!({}), 422, "`inputs` is a string"),
            (json!({ "inputs": [1.5] }), 422, "`inputs` is a string"),
            (json!({ "inputs": [null] }), 422, "`inputs` is a string"),
            (json!({ "inputs": [4294967296u64] }), 422, "`inputs` is a string"),
            (json!({ "inputs": "a", "normalize": 1 }), 422, "`normalize` is true or false"),
            (json!({ "inputs": "a", "dimensions": 0 }), 422, "`dimensions` is a positive"),
            (json!({ "inputs": "a", "truncation_direction": "up" }), 422, "`truncation_direction` is"),
            (json!({ "inputs": "a", "prompt_name": 1 }), 422, "`prompt_name` is a string"),
            (json!({ "inputs": [1], "prompt_name": "query" }), 422, "`prompt_name` goes with texts"),
        ] {
            let (found, message) = embed(request.clone()).unwrap_err();
            assert!(found == status && message.starts_with(complaint), "{request}: {found} {message}");
        }
        for bytes in [&b"{"[..], b"[]", b"\xff", b"{\"inputs\": NaN}"] {
            assert_eq!(Body::parse(bytes).unwrap_err().status(), 422);
        }
    }

    #[test]
    fn a_prompt_is_named_beside_the_inputs_or_in_the_parameters() {
        let asked = |text: &str| self::text(text).prompted(Some(&Prompt::Named("q".to_owned())));
        assert_eq!(embed(json!({ "inputs": ["a"], "prompt_name": "q" })).unwrap().inputs, [asked("a")]);
        let inputs = json!({ "source_sentence": "s", "sentences": ["a"] });
        let request = body(json!({ "inputs": inputs, "parameters": { "prompt_name": "q" } }));
        assert_eq!(SimilarityRequest::parse(&request).unwrap().inputs, [asked("s"), asked("a")]);
        let tokenize = TokenizeRequest::parse(&body(json!({ "inputs": "a", "prompt_name": "q" }))).unwrap();
        assert_eq!(tokenize.prompt, Some(Prompt::Named("q".to_owned())));
    }

    #[test]
    fn texts_are_cut_where_the_client_says() {
        let found = |more: Value| {
            let mut request = json!({ "inputs": "a" });
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            embed(request).unwrap().cut
        };
        assert_eq!(
            found(json!({ "truncation_direction": "Right" })),
            Truncate { allowed: None, side: Some(CutSide::End) }
        );
        let left = json!({ "truncate": true, "truncation_direction": "left" });
        assert_eq!(found(left), Truncate::at(CutSide::Start));
        assert_eq!(found(json!({ "truncate": false })), Truncate::NEVER);
    }

    #[test]
    fn predict_answers_one_text_a_pair_or_a_batch() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        let answer = Answer::Class { label: "yes".to_owned(), scores: vec![0.25, 0.75] };
        let best = json!([{ "score": 0.75, "label": "yes" }, { "score": 0.25, "label": "no" }]);
        let reply = |request: &PredictRequest| -> Value {
            serde_json::from_slice(&request.reply(&labels, std::slice::from_ref(&answer))).unwrap()
        };
        assert_eq!(reply(&predict(json!({ "inputs": "a" })).unwrap()), best);
        assert_eq!(reply(&predict(json!({ "inputs": ["a"] })).unwrap()), best);
        assert_eq!(reply(&predict(json!({ "inputs": [["a"]] })).unwrap()), json!([best]));
        assert_eq!(reply(&predict(json!({ "inputs": "a", "parameters": {} })).unwrap()), json!([best]));
        let top = predict(json!({ "inputs": "a", "parameters": { "top_k": 1 } })).unwrap();
        assert_eq!(reply(&top), json!([[best[0]]]));
        let pair = Input::Pair { query: "a".to_owned(), document: "b".to_owned() };
        assert_eq!(predict(json!({ "inputs": ["a", "b"] })).unwrap().inputs[0], pair);
        assert_eq!(predict(json!({ "inputs": [["a", "b"], ["c"]] })).unwrap().inputs, [pair, text("c")]);
    }

    #[test]
    fn predict_says_what_it_does_not_keep() {
        for (request, status, complaint) in [
            (json!({ "inputs": [] }), 400, "`inputs` is empty"),
            (json!({ "inputs": ["a", "b", "c"] }), 422, "`inputs` is a string"),
            (json!({ "inputs": [[]] }), 422, "`inputs` is a string"),
            (json!({ "inputs": "a", "raw_scores": true }), 422, "`raw_scores`"),
            (json!({ "inputs": "a", "parameters": [] }), 422, "`parameters` is an object"),
            (json!({ "inputs": "a", "parameters": { "function_to_apply": "none" } }), 422, "`function_to_apply`"),
        ] {
            let (found, message) = predict(request.clone()).unwrap_err();
            assert!(found == status && message.starts_with(complaint), "{request}: {found} {message}");
        }
        let sigmoid = predict(json!({ "inputs": "a", "parameters": { "function_to_apply": "sigmoid" } })).unwrap();
        assert!(sigmoid.check_scores(ScoreFunction::Sigmoid).is_ok());
        assert_eq!(sigmoid.check_scores(ScoreFunction::Softmax).unwrap_err().status(), 422);
    }

    #[test]
    fn similarity_is_the_cosine_to_the_source() {
        let request = json!({ "inputs": { "source_sentence": "s", "sentences": ["a", "b"] }, "parameters": {} });
        assert_eq!(SimilarityRequest::parse(&body(request)).unwrap().inputs, [text("s"), text("a"), text("b")]);
        let answers = [[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]].map(|v| Answer::Embedding { vector: v.to_vec() });
        assert_eq!(SimilarityRequest::reply(&answers), b"[0.0,-1.0]");
        for (inputs, status) in [
            (json!({ "source_sentence": "s", "sentences": [] }), 400),
            (json!({ "source_sentence": 1 }), 422),
            (json!("s"), 422),
        ] {
            assert_eq!(SimilarityRequest::parse(&body(json!({ "inputs": inputs }))).unwrap_err().status(), status);
        }
    }

    #[test]
    fn an_unrouted_body_is_read_by_its_model_or_its_shape() {
        let shape = |value: Value| Wish::of_shape(&body(value));
        assert_eq!(shape(json!({ "inputs": "a" })), Wish::Embed);
        assert_eq!(shape(json!({ "inputs": "a", "parameters": {} })), Wish::Predict);
        assert_eq!(shape(json!({ "query": "a", "texts": ["b"] })), Wish::Rerank);
        let compares = json!({ "inputs": { "source_sentence": "s", "sentences": ["a"] }, "parameters": {} });
        assert_eq!(shape(compares.clone()), Wish::Similarity);
        let embed = TaskKind::Embed { dimensions: 2, normalized: true, matryoshka_dimensions: Vec::new() };
        assert_eq!(Wish::of_task(&embed, &body(compares)), Wish::Similarity);
        assert_eq!(Wish::of_task(&embed, &body(json!({ "inputs": "a", "parameters": {} }))), Wish::Embed);
    }

    #[test]
    fn errors_have_the_words_and_the_status_of_tei() {
        let wrong = AskError::WrongTask { member: "m".to_owned(), task: "reranking", wanted: "embeddings" };
        let refused = Refused::from(wrong);
        assert_eq!(refused.status(), 424);
        assert_eq!(
            refused.body(),
            json!({ "error": "`m` is for reranking, not for embeddings", "error_type": "Backend" })
        );
        let full = AskError::Overloaded { member: "m".to_owned(), retry_after: std::time::Duration::from_secs(1) };
        assert_eq!(Refused::from(full).status(), 429);
        let limit = AskError::Limit { what: "inputs", found: 3, limit: 2 };
        assert_eq!(Refused::from(limit).status(), 413);
        let unknown = AskError::UnknownMember { name: "x".to_owned(), known: Vec::new() };
        assert_eq!((Refused::from(unknown.problem()).status(), Refused::from(unknown).status()), (404, 404));
        assert_eq!(Refused::from(AskError::Expired { waited: std::time::Duration::ZERO }).status(), 503);
    }
}
