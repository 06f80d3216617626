//! The OpenAI API: embeddings, moderations, models and its error object.
//!
//! Bodies may carry fields that are not known here (clients send vendor extras); known fields of a wrong type are errors
//! that name the parameter, as the original answers them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use highroad_package::{ANY_LABEL, TaskKind};
use highroad_service::{Kind, Problem};
use highroad_task::{Answer, Input, Truncate};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::budget;
use crate::error::AskError;
use crate::protocol::{ModelTask, body_of, json_of, prompts};
use crate::revision::Facts;

/// A refused request in OpenAI's words.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// What is wrong.
    pub problem: Problem,
    /// The parameter it is about.
    pub param: Option<&'static str>,
    /// OpenAI's code for it, where it has one.
    pub code: Option<&'static str>,
}

impl Refused {
    fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self { problem: Problem::invalid(message), param: Some(param), code: None }
    }

    /// The error object.
    pub fn body(&self) -> Value {
        let kind = match self.problem.kind {
            Kind::Overloaded => "rate_limit_error",
            Kind::Internal | Kind::Unavailable | Kind::BadGateway => "server_error",
            Kind::Unauthenticated => "authentication_error",
            Kind::Forbidden => "permission_error",
            _ => "invalid_request_error",
        };
        let (message, param, code) = (self.problem.message.clone(), self.param, self.code);
        json_of(&OpenAiError { error: ErrorFacts { message, kind, param, code } })
    }
}

/// A refusal in OpenAI's words.
#[derive(Serialize, JsonSchema)]
pub(crate) struct OpenAiError {
    error: ErrorFacts,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiErrorFacts")]
struct ErrorFacts {
    /// What is wrong, where, and what helps.
    message: String,
    /// `invalid_request_error`, `rate_limit_error`, …
    #[serde(rename = "type")]
    kind: &'static str,
    /// The parameter that it is about.
    param: Option<&'static str>,
    /// OpenAI's code for it, where it has one.
    code: Option<&'static str>,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, param: None, code: None }
    }
}

impl From<AskError> for Refused {
    fn from(error: AskError) -> Self {
        let (param, code) = match &error {
            AskError::UnknownMember { .. } | AskError::NotDeployed(_) => (Some("model"), Some("model_not_found")),
            AskError::WrongTask { .. } => (Some("model"), None),
            AskError::Dimensions(_) => (Some("dimensions"), None),
            AskError::Pair { .. } => (Some("pairs"), None),
            AskError::Input { .. } | AskError::Limit { .. } => (Some("input"), None),
            AskError::Overloaded { .. } => (None, Some("queue_full")),
            AskError::Budget(budget::Refused::UnknownPrice { .. }) => (None, Some("price_unknown")),
            AskError::Budget(budget::Refused::Never { .. }) => (Some("max_tokens"), Some("budget_exceeded")),
            AskError::Budget(_) => (None, Some("budget_exceeded")),
            AskError::Elsewhere { .. } => (Some("model"), None),
            _ => (None, None),
        };
        Self { problem: error.problem(), param, code }
    }
}

/// `POST /v1/embeddings`
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingsRequest {
    /// Member name.
    pub model: String,
    /// What to embed.
    pub inputs: Vec<Input>,
    /// How to write vectors.
    pub encoding: Encoding,
    /// Width the client asks for.
    pub dimensions: Option<u64>,
    /// What happens to texts that are too long.
    pub cut: Truncate,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A JSON array.
    Float,
    /// Little-endian f32, what the OpenAI client asks for on its own.
    Base64,
}

impl EmbeddingsRequest {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        let body = object(body)?;
        let encoding = match optional_text(&body, "encoding_format")? {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => return Err(Refused::invalid("encoding_format", "`encoding_format` is `float` or `base64`")),
        };
        let dimensions = match body.get("dimensions") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_u64()
                    .filter(|&n| n > 0)
                    .ok_or_else(|| Refused::invalid("dimensions", "`dimensions` is a positive whole number"))?,
            ),
        };
        Ok(Self {
            model: required_text(&body, "model")?.to_owned(),
            inputs: prompted_inputs(&body)?,
            encoding,
            dimensions,
            cut: prompts::truncate(&body)?,
        })
    }
}

/// The inputs of a request of either kind.
pub fn inputs(body: &Value) -> Result<Vec<Input>, Refused> {
    let body = body.as_object().ok_or_else(|| Refused::from(Problem::invalid("the body is not a JSON object")))?;
    match body.get("input").and_then(|input| input.get(0)) {
        Some(Value::Object(_)) => moderation_inputs(body),
        _ => prompted_inputs(body),
    }
}

fn prompted_inputs(body: &Map<String, Value>) -> Result<Vec<Input>, Refused> {
    let prompt = prompts::beside_openai(body)?;
    Ok(embedding_inputs(body)?.into_iter().map(|input| input.prompted(prompt.as_ref())).collect())
}

fn embedding_inputs(body: &Map<String, Value>) -> Result<Vec<Input>, Refused> {
    const SHAPES: &str = "`input` is a string, a list of strings, a list of token ids or a list of lists of token ids";
    let error = || Refused::invalid("input", SHAPES);
    match body.get("input") {
        Some(Value::String(text)) => Ok(vec![text_input(text)?]),
        Some(Value::Array(items)) => match items.first() {
            None => Err(Refused::invalid("input", "`input` is empty")),
            Some(Value::Number(_)) => Ok(vec![token_input(items).ok_or_else(error)?]),
            Some(Value::String(_)) => items.iter().map(|item| text_input(item.as_str().ok_or_else(error)?)).collect(),
            Some(Value::Array(_)) => {
                items.iter().map(|item| item.as_array().and_then(|ids| token_input(ids)).ok_or_else(error)).collect()
            }
            Some(_) => Err(error()),
        },
        _ => Err(error()),
    }
}

fn text_input(text: &str) -> Result<Input, Refused> {
    if text.is_empty() {
        return Err(Refused::invalid("input", "an input is an empty string"));
    }
    Ok(Input::Text(text.to_owned()))
}

fn token_input(ids: &[Value]) -> Option<Input> {
    let ids: Option<Vec<u32>> = ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
    ids.filter(|ids| !ids.is_empty()).map(Input::Tokens)
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct EmbeddingsReply<'a> {
    object: &'static str,
    data: Vec<EmbeddingItem<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingItem<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

/// A vector, as numbers or as the base64 of its little-endian float32 values.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// Tokens of a request.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TokenUsage")]
pub(crate) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    /// Of a request that is read and to which nothing is written.
    pub(crate) fn read(n_tokens: usize) -> Self {
        Self { prompt_tokens: n_tokens, total_tokens: n_tokens }
    }
}

/// The reply to [`EmbeddingsRequest`].
pub fn embeddings_reply(model: &str, vectors: &[Vec<f32>], n_tokens: usize, encoding: Encoding) -> Vec<u8> {
    let embeddings = vectors.iter().map(|values| vector(values, encoding)).enumerate();
    let data = embeddings.map(|(index, embedding)| EmbeddingItem { object: "embedding", index, embedding }).collect();
    let reply = EmbeddingsReply { object: "list", data, model, usage: Usage::read(n_tokens) };
    serde_json::to_vec(&reply).expect("strings and finite or null numbers are JSON")
}

fn vector(values: &[f32], encoding: Encoding) -> Vector<'_> {
    match encoding {
        Encoding::Float => Vector::Float(values),
        Encoding::Base64 => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Base64(BASE64_STANDARD.encode(bytes))
        }
    }
}

/// `POST /v1/moderations`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModerationsRequest {
    /// Member name; the only moderating member if absent.
    pub model: Option<String>,
    /// What to judge.
    pub inputs: Vec<Input>,
}

impl ModerationsRequest {
    /// Reads a body. A list of content parts is one input, its texts joined by line breaks, as OpenAI judges it.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        let body = object(body)?;
        let model = optional_text(&body, "model")?.map(str::to_owned);
        Ok(Self { model, inputs: moderation_inputs(&body)? })
    }
}

fn moderation_inputs(body: &Map<String, Value>) -> Result<Vec<Input>, Refused> {
    let error = || Refused::invalid("input", "`input` is a string, a list of strings or a list of content parts");
    match body.get("input") {
        Some(Value::String(text)) => Ok(vec![text_input(text)?]),
        Some(Value::Array(items)) => match items.first() {
            None => Err(Refused::invalid("input", "`input` is empty")),
            Some(Value::Object(_)) => {
                let texts = items.iter().map(part_text).collect::<Result<Vec<_>, _>>()?;
                Ok(vec![text_input(&texts.join("\n"))?])
            }
            Some(_) => items.iter().map(|item| text_input(item.as_str().ok_or_else(error)?)).collect(),
        },
        _ => Err(error()),
    }
}

fn part_text(part: &Value) -> Result<&str, Refused> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text),
        (Some("image_url"), _) => Err(Refused::invalid("input", "this model judges text, not images")),
        _ => Err(Refused::invalid("input", "a content part is `{\"type\": \"text\", \"text\": \"…\"}`")),
    }
}

/// The categories that every client of `/v1/moderations` knows.
const CATEGORIES: [&str; 13] = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
];

/// The reply to [`ModerationsRequest`]: all thirteen standard categories, false and without an applied input type where
/// the model does not know them, and the label that the model flags as a category of its own name beside them (or as the
/// standard one of that name). Every label's score is under `highroad`.
///
/// `flagged` is true exactly where the model's label is the flagged one, and exactly then some category is. Of a model that finds any
/// number of labels each one that may be flagged is a category.
pub fn moderations_reply(request_id: &str, model: &str, task: &TaskKind, answers: &[Answer]) -> Vec<u8> {
    let (labels, flagged) = match task {
        TaskKind::Classify { labels, flagged, .. } => (labels.as_slice(), flagged.as_deref().unwrap_or_default()),
        _ => (&[][..], ""),
    };
    let results = answers.iter().map(|answer| json_of(&moderation(labels, flagged, answer))).collect();
    moderated(request_id, model, results)
}

/// The same of results that a host has given: it may know more categories than we do.
pub fn moderated(request_id: &str, model: &str, results: Vec<Value>) -> Vec<u8> {
    body_of(&ModerationsReply { id: format!("modr-{request_id}"), model, results })
}

/// The reply to [`ModerationsRequest`].
#[derive(Serialize, JsonSchema)]
pub(crate) struct ModerationsReply<'a> {
    id: String,
    /// The member that answered.
    model: &'a str,
    /// One for each input.
    #[schemars(with = "Vec<Moderation>")]
    results: Vec<Value>,
}

#[derive(Serialize, JsonSchema)]
struct Moderation {
    /// Whether some category is true.
    flagged: bool,
    categories: BTreeMap<String, bool>,
    /// From 0 to 1.
    #[schemars(with = "BTreeMap<String, f64>")]
    category_scores: Map<String, Value>,
    /// `text` where the model knows the category; a host may leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    category_applied_input_types: Option<BTreeMap<String, Vec<&'static str>>>,
    /// What a model of our own said; nothing of a hosted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    highroad: Option<LabelScores>,
}

#[derive(Serialize, JsonSchema)]
struct LabelScores {
    /// The label; of a model of any number of labels all that hold, with `, ` between them.
    label: String,
    /// From 0 to 1, of every label.
    #[schemars(with = "BTreeMap<String, f64>")]
    scores: Map<String, Value>,
}

fn moderation(labels: &[String], flagged_label: &str, answer: &Answer) -> Moderation {
    let said = answer.label().unwrap_or_default();
    let holds = |label: &str| match answer {
        Answer::Labels { labels, .. } => labels.iter().any(|held| held == label),
        _ => said == label,
    };
    let (mut categories, mut category_scores, mut applied) = (BTreeMap::new(), Map::new(), BTreeMap::new());
    for name in CATEGORIES {
        categories.insert(name.to_owned(), false);
        category_scores.insert(name.to_owned(), 0.0.into());
        applied.insert(name.to_owned(), Vec::new());
    }
    let scored = || labels.iter().zip(answer.values().iter().copied());
    let mut flagged = false;
    for (label, value) in scored().filter(|(label, _)| flagged_label == ANY_LABEL || *label == flagged_label) {
        let own = CATEGORIES.iter().copied().find(|name| same_category(name, label)).unwrap_or(label);
        categories.insert(own.to_owned(), holds(label));
        category_scores.insert(own.to_owned(), score(value));
        applied.insert(own.to_owned(), vec!["text"]);
        flagged |= holds(label);
    }
    let scores = scored().map(|(label, value)| (label.clone(), score(value))).collect();
    let highroad = Some(LabelScores { label: said.into_owned(), scores });
    Moderation { flagged, categories, category_scores, category_applied_input_types: Some(applied), highroad }
}

// The shortest decimal that reads back as the same f32, not the longer one of the f64 beside it.
fn score(value: f32) -> Value {
    serde_json::from_str(&serde_json::to_string(&value).unwrap_or_default()).unwrap_or(Value::Null)
}

fn same_category(standard: &str, label: &str) -> bool {
    let plain = |c: char| if c == '_' || c == ' ' { '-' } else { c.to_ascii_lowercase() };
    label.chars().map(plain).eq(standard.chars())
        || label.chars().map(plain).eq(standard.chars().map(|c| if c == '/' { '-' } else { c }))
}

/// One entry of `GET /v1/models`.
#[derive(Serialize, JsonSchema)]
pub struct ModelEntry {
    /// The member's name.
    id: String,
    /// `model`
    object: &'static str,
    /// When what serves was loaded, seconds since 1970, UTC.
    created: i64,
    /// `highroad`, or `hosted` where somebody else hosts it.
    owned_by: &'static str,
    highroad: ModelFacts,
}

/// What serves, and for what.
#[derive(Serialize, JsonSchema)]
struct ModelFacts {
    task: ModelTask,
    facts: Facts,
}

impl ModelEntry {
    /// Of a member that serves what `facts` say.
    pub(crate) fn of(name: &str, facts: &Facts, task: ModelTask) -> Self {
        let created = facts.loaded_at.parse::<jiff::Timestamp>().map_or(0, |time| time.as_second());
        let owned_by = match task {
            ModelTask::Package(_) => "highroad",
            ModelTask::Hosted(_) => "hosted",
        };
        let highroad = ModelFacts { task, facts: facts.clone() };
        Self { id: name.to_owned(), object: "model", created, owned_by, highroad }
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refused> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::invalid("the body is not a JSON object").into()),
        Err(error) => Err(Problem::invalid(format!("the body is not JSON: {error}")).into()),
    }
}

fn optional_text<'a>(body: &'a Map<String, Value>, key: &'static str) -> Result<Option<&'a str>, Refused> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refused::invalid(key, format!("`{key}` is a string"))),
    }
}

fn required_text<'a>(body: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, Refused> {
    optional_text(body, key)?.ok_or_else(|| Refused::invalid(key, format!("`{key}` is missing")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> Input {
        Input::Text(text.to_owned())
    }

    fn embed(input: Value) -> Result<Vec<Input>, Option<&'static str>> {
        let body = serde_json::to_vec(&json!({ "model": "m", "input": input })).unwrap();
        EmbeddingsRequest::parse(&body).map(|request| request.inputs).map_err(|refused| refused.param)
    }

    #[test]
    fn embeddings_take_every_shape_of_input() {
        assert_eq!(embed(json!("a")), Ok(vec![text("a")]));
        assert_eq!(embed(json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
        assert_eq!(embed(json!([1, 2])), Ok(vec![Input::Tokens(vec![1, 2])]));
        assert_eq!(embed(json!([[1], [2, 3]])), Ok(vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]));
    }

    #[test]
    fn inputs_of_no_known_shape_name_the_parameter() {
        let inputs =
            json!([null, "", [], [""], ["a", 1], [1, "a"], [-1], [1.5], [4294967296u64], [[]], [[1], "a"], {}, [null]]);
        for input in inputs.as_array().unwrap() {
            assert_eq!(embed(input.clone()), Err(Some("input")), "{input}");
        }
    }

    #[test]
    fn fields_of_a_wrong_type_are_named_and_unknown_ones_tolerated() {
        let param = |body: Value| {
            EmbeddingsRequest::parse(body.to_string().as_bytes()).map_err(|refused| refused.param).map(drop)
        };
        assert_eq!(param(json!({ "input": "a" })), Err(Some("model")));
        assert_eq!(param(json!({ "input": "a", "model": 3 })), Err(Some("model")));
        assert_eq!(
            param(json!({ "input": "a", "model": "m", "encoding_format": "hex" })),
            Err(Some("encoding_format"))
        );
        assert_eq!(param(json!({ "input": "a", "model": "m", "dimensions": -1 })), Err(Some("dimensions")));
        assert_eq!(param(json!({ "input": "a", "model": "m", "user": 3, "vendor": {} })), Ok(()));
        assert_eq!(EmbeddingsRequest::parse(b"[]").map(drop).map_err(|refused| refused.param), Err(None));
        assert_eq!(EmbeddingsRequest::parse(b"{").map(drop).map_err(|refused| refused.param), Err(None));
    }

    #[test]
    fn base64_is_little_endian_f32() {
        let vectors = [vec![1.0, -2.5]];
        let reply: Value = serde_json::from_slice(&embeddings_reply("m", &vectors, 3, Encoding::Base64)).unwrap();
        assert_eq!(reply["data"][0]["embedding"], BASE64_STANDARD.encode([0, 0, 128, 63, 0, 0, 32, 192]));
        assert_eq!(reply["usage"], json!({ "prompt_tokens": 3, "total_tokens": 3 }));
    }

    #[test]
    fn floats_survive_json_bit_for_bit() {
        let vector = vec![0.1f32, 1e-40, f32::MAX, -0.0, 1.0 / 3.0];
        let vectors = [vector.clone()];
        let reply: Value = serde_json::from_slice(&embeddings_reply("m", &vectors, 3, Encoding::Float)).unwrap();
        let back: Vec<u32> = serde_json::from_value::<Vec<f32>>(reply["data"][0]["embedding"].clone())
            .unwrap()
            .iter()
            .map(|value| value.to_bits())
            .collect();
        assert_eq!(back, vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    }

    fn moderations(body: Value) -> Result<Vec<Input>, Option<&'static str>> {
        let request = ModerationsRequest::parse(body.to_string().as_bytes());
        request.map(|request| request.inputs).map_err(|refused| refused.param)
    }

    #[test]
    fn moderations_take_strings_and_content_parts() {
        assert_eq!(moderations(json!({ "input": "a" })), Ok(vec![text("a")]));
        assert_eq!(moderations(json!({ "input": ["a", "b"] })), Ok(vec![text("a"), text("b")]));
        let parts = json!({ "input": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] });
        assert_eq!(moderations(parts), Ok(vec![text("a\nb")]));
        let image = json!({ "input": [{ "type": "image_url", "image_url": { "url": "x" } }] });
        assert_eq!(moderations(image), Err(Some("input")));
        assert_eq!(moderations(json!({ "input": [1] })), Err(Some("input")));
    }

    fn classify(labels: &[&str], flagged: &str) -> TaskKind {
        let labels = labels.iter().map(ToString::to_string).collect();
        TaskKind::Classify { labels, flagged: Some(flagged.to_owned()), pairs: false, thresholds: Vec::new() }
    }

    fn judge(task: &TaskKind, label: &str, scores: &[f32]) -> Value {
        let answer = Answer::Class { label: label.to_owned(), scores: scores.to_vec() };
        let reply: Value = serde_json::from_slice(&moderations_reply("id", "m", task, &[answer])).unwrap();
        reply["results"][0].clone()
    }

    #[test]
    fn the_models_own_label_stands_beside_the_standard_categories() {
        let result = judge(&classify(&["benign", "injection"], "injection"), "injection", &[0.25, 0.75]);
        assert_eq!(result["flagged"], true);
        assert_eq!(result["categories"]["injection"], true);
        assert_eq!(result["category_scores"]["injection"], 0.75);
        assert_eq!(result["category_applied_input_types"]["injection"], json!(["text"]));
        for name in CATEGORIES {
            assert_eq!(result["categories"][name], false);
            assert_eq!(result["category_applied_input_types"][name], json!([]));
        }
        assert_eq!(result["highroad"]["scores"], json!({ "benign": 0.25, "injection": 0.75 }));
    }

    #[test]
    fn each_of_several_labels_is_a_category_of_its_own() {
        let labels = ["hate", "self_harm", "spam"].map(ToOwned::to_owned).to_vec();
        let task = |flagged: &str| TaskKind::Classify {
            labels: labels.clone(),
            flagged: Some(flagged.to_owned()),
            pairs: false,
            thresholds: vec![0.5; 3],
        };
        let held = |flagged: &str, labels: &[&str]| {
            let labels = labels.iter().map(ToString::to_string).collect();
            let answer = Answer::Labels { labels, scores: vec![0.25, 0.75, 0.5] };
            let reply = moderations_reply("id", "m", &task(flagged), &[answer]);
            serde_json::from_slice::<Value>(&reply).unwrap()["results"][0].clone()
        };
        let both = held("*", &["self_harm", "spam"]);
        let categories = &both["categories"];
        assert_eq!(
            (&both["flagged"], &categories["self-harm"], &categories["spam"]),
            (&json!(true), &json!(true), &json!(true))
        );
        assert_eq!((&categories["hate"], &both["category_scores"]["hate"]), (&json!(false), &json!(0.25)));
        assert_eq!(categories.as_object().unwrap().len(), 14);
        assert_eq!(both["highroad"]["label"], "self_harm, spam");
        assert_eq!(held("*", &[])["flagged"], false);
        assert_eq!(held("hate", &["self_harm", "spam"])["flagged"], false);
    }

    #[test]
    fn nothing_is_flagged_where_no_category_is() {
        let result = judge(&classify(&["benign", "injection"], "injection"), "benign", &[0.9, 0.1]);
        assert_eq!(result["flagged"], false);
        assert!(result["categories"].as_object().unwrap().values().all(|value| value == false));
    }

    #[test]
    fn a_label_of_a_standard_name_is_that_category() {
        let result = judge(&classify(&["ok", "self_harm"], "self_harm"), "self_harm", &[0.1, 0.9]);
        assert_eq!(result["categories"]["self-harm"], true);
        assert_eq!(result["categories"].as_object().unwrap().len(), 13);
    }

    #[test]
    fn errors_have_the_shape_that_clients_read() {
        let error = AskError::UnknownMember { name: "x".to_owned(), known: vec!["a".to_owned()] };
        let refused = Refused::from(error);
        assert_eq!(
            refused.body(),
            json!({ "error": {
                "message": "the model `x` does not exist; this server has `a`",
                "type": "invalid_request_error", "param": "model", "code": "model_not_found",
            } })
        );
    }
}
