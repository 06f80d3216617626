//! Cohere's v1 and v2 interfaces for embeddings; its rerankers are in `rerank`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use highroad_service::Problem;
use highroad_task::vector::{int8, signs};
use highroad_task::{Input, Prompt, Truncate};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::protocol::openai::Vector;
use crate::protocol::{body_of, prompts};

/// Which of Cohere's interfaces a request is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Version {
    V1,
    V2,
}

/// `POST /v1/embed` and `/v2/embed`
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedRequest {
    /// Member name; the only embedder if absent.
    pub model: Option<String>,
    /// What to embed, at least one text.
    pub texts: Vec<String>,
    /// What happens to texts that are too long.
    pub cut: Truncate,
    /// Width the client asks for.
    pub dimensions: Option<u64>,
    prompt: Option<Prompt>,
    version: Version,
    /// None where v1 answers with one bare list of vectors.
    types: Option<Vec<EmbeddingType>>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EmbeddingType {
    Float,
    Int8,
    Uint8,
    Binary,
    Ubinary,
    Base64,
}

const TYPES: [(&str, EmbeddingType); 6] = [
    ("float", EmbeddingType::Float),
    ("int8", EmbeddingType::Int8),
    ("uint8", EmbeddingType::Uint8),
    ("binary", EmbeddingType::Binary),
    ("ubinary", EmbeddingType::Ubinary),
    ("base64", EmbeddingType::Base64),
];

impl EmbedRequest {
    /// Reads a body. `input_type` chooses the package's prompt, and has no effect where it has none for it.
    pub fn parse(body: &[u8], version: Version) -> Result<Self, Problem> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let body = body.as_object().ok_or_else(|| Problem::invalid("the body is not a JSON object"))?;
        let dimensions = match body.get("output_dimension") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_u64()
                    .filter(|&n| n > 0)
                    .ok_or_else(|| Problem::invalid("`output_dimension` is a positive whole number"))?,
            ),
        };
        Ok(Self {
            model: text(body, "model")?.map(str::to_owned),
            texts: texts(body)?,
            cut: prompts::cohere_truncate(body)?,
            dimensions,
            prompt: prompts::input_type(body)?,
            version,
            types: match (types(body.get("embedding_types"))?, version) {
                (None, Version::V2) => Some(vec![EmbeddingType::Float]),
                (types, _) => types,
            },
        })
    }

    /// The texts for the task.
    pub fn inputs(&self) -> Vec<Input> {
        let input = |text: &String| Input::Text(text.clone()).prompted(self.prompt.as_ref());
        self.texts.iter().map(input).collect()
    }

    /// The reply: every vector in every way that was asked for.
    pub fn reply(&self, request_id: &str, vectors: &[Vec<f32>], n_tokens: usize) -> Vec<u8> {
        let name = |kind: EmbeddingType| TYPES.iter().find(|(_, known)| *known == kind).map_or("", |(name, _)| name);
        let written = |&kind: &EmbeddingType| {
            (name(kind).to_owned(), Value::Array(vectors.iter().map(|vector| write(vector, kind)).collect()))
        };
        let (embeddings, response_type) = match &self.types {
            Some(types) => (Embeddings::ByType(types.iter().map(written).collect()), "embeddings_by_type"),
            None => (Embeddings::Floats(written(&EmbeddingType::Float).1), "embeddings_floats"),
        };
        let version = match self.version {
            Version::V1 => "1",
            Version::V2 => "2",
        };
        let tokens = InputTokens { input_tokens: n_tokens };
        let meta = EmbedMeta { api_version: ApiVersion { version }, billed_units: tokens, tokens };
        body_of(&EmbedReply { id: request_id, texts: &self.texts, embeddings, response_type, meta })
    }
}

/// The reply to [`EmbedRequest`].
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CohereEmbedReply")]
pub(crate) struct EmbedReply<'a> {
    /// Id of the request.
    id: &'a str,
    texts: &'a [String],
    embeddings: Embeddings,
    /// `embeddings_floats`, or `embeddings_by_type` where types were asked for; always in v2.
    response_type: &'static str,
    meta: EmbedMeta,
}

/// One vector for each text, in each type that was asked for.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Embeddings {
    Floats(#[schemars(with = "Vec<Vec<f32>>")] Value),
    ByType(#[schemars(with = "BTreeMap<String, Vec<Vector<'static>>>")] Map<String, Value>),
}

#[derive(Serialize, JsonSchema)]
struct EmbedMeta {
    api_version: ApiVersion,
    billed_units: InputTokens,
    tokens: InputTokens,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ApiVersion {
    /// `1` or `2`
    pub(crate) version: &'static str,
}

#[derive(Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct InputTokens {
    pub(crate) input_tokens: usize,
}

/// Whole numbers are relative to the coordinate of the largest magnitude, which becomes 127; `uint8` is `int8` plus 128. Bits are
/// signs, eight to a number, the first one the highest; `binary` is `ubinary` minus 128.
fn write(vector: &[f32], kind: EmbeddingType) -> Value {
    match kind {
        EmbeddingType::Float => serde_json::to_string(vector)
            .ok()
            // The shortest decimals that read back as the same f32.
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or(Value::Null),
        EmbeddingType::Int8 => json!(int8(vector)),
        EmbeddingType::Uint8 => int8(vector).into_iter().map(|x| i16::from(x) + 128).collect(),
        EmbeddingType::Binary => signs(vector).into_iter().map(|byte| i16::from(byte) - 128).collect(),
        EmbeddingType::Ubinary => json!(signs(vector)),
        EmbeddingType::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            BASE64_STANDARD.encode(bytes).into()
        }
    }
}

fn types(asked: Option<&Value>) -> Result<Option<Vec<EmbeddingType>>, Problem> {
    let error = || {
        let names = TYPES.map(|(name, _)| format!("`{name}`")).join(", ");
        Problem::invalid(format!("`embedding_types` is a list of {names}"))
    };
    let items = match asked {
        None | Some(Value::Null) => return Ok(None),
        Some(asked) => asked.as_array().filter(|items| !items.is_empty()).ok_or_else(error)?,
    };
    let kind = |item: &Value| TYPES.iter().find(|(name, _)| item == name).map(|(_, kind)| *kind).ok_or_else(error);
    let mut kinds = Vec::new();
    for item in items {
        let kind = kind(item)?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(Some(kinds))
}

/// `texts`, or `inputs` with one text each.
fn texts(body: &Map<String, Value>) -> Result<Vec<String>, Problem> {
    let error = || Problem::invalid("`texts` is a list of strings");
    if body.get("images").is_some_and(|images| !images.is_null()) {
        return Err(Problem::invalid("`images`: the model reads texts"));
    }
    let texts: Vec<String> = match (body.get("texts"), body.get("inputs")) {
        (Some(Value::Array(items)), _) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(error)).collect::<Result<_, _>>()?
        }
        (None | Some(Value::Null), Some(Value::Array(items))) => {
            items.iter().map(content_text).collect::<Result<_, _>>()?
        }
        _ => return Err(error()),
    };
    match texts.iter().any(String::is_empty) {
        _ if texts.is_empty() => Err(Problem::invalid("`texts` is empty")),
        true => Err(Problem::invalid("one of `texts` is an empty string")),
        false => Ok(texts),
    }
}

fn content_text(input: &Value) -> Result<String, Problem> {
    let error = || Problem::invalid("an input is `{\"content\": [{\"type\": \"text\", \"text\": \"…\"}]}`");
    match input.get("content").and_then(Value::as_array).map(Vec::as_slice) {
        Some([part]) if part["type"] == "text" => part["text"].as_str().map(str::to_owned).ok_or_else(error),
        _ => Err(error()),
    }
}

fn text<'b>(body: &'b Map<String, Value>, name: &str) -> Result<Option<&'b str>, Problem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Problem::invalid(format!("`{name}` is a string"))),
    }
}

#[cfg(test)]
mod tests {
    use highroad_task::{CutSide, Purpose};

    use super::*;

    fn parse(body: &Value) -> Result<EmbedRequest, String> {
        EmbedRequest::parse(body.to_string().as_bytes(), Version::V2).map_err(|problem| problem.message)
    }

    #[test]
    fn vectors_are_written_in_every_way_that_is_asked_for() {
        let types = ["float", "int8", "uint8", "binary", "ubinary", "base64", "int8"];
        let request = parse(&json!({ "texts": ["a"], "embedding_types": types })).unwrap();
        let reply: Value = serde_json::from_slice(&request.reply("id", &[vec![0.5, -0.25, 0.1]], 7)).unwrap();
        assert_eq!(
            reply["embeddings"],
            json!({
                "float": [[0.5, -0.25, 0.1]], "int8": [[127, -64, 25]], "uint8": [[255, 64, 153]],
                "binary": [[32]], "ubinary": [[160]],
                "base64": [BASE64_STANDARD.encode([0, 0, 0, 63, 0, 0, 128, 190, 205, 204, 204, 61])],
            })
        );
        assert_eq!((&reply["meta"]["billed_units"]["input_tokens"], &reply["texts"]), (&json!(7), &json!(["a"])));
    }

    #[test]
    fn texts_also_come_as_inputs() {
        let inputs = json!([{ "content": [{ "type": "text", "text": "a" }] }]);
        let request = parse(&json!({ "inputs": inputs, "truncate": "START", "input_type": "search_query" })).unwrap();
        assert_eq!((request.texts.as_slice(), request.cut), (&["a".to_owned()][..], Truncate::at(CutSide::Start)));
        assert_eq!(request.types, Some(vec![EmbeddingType::Float]));
        let prompt = Prompt::For(Purpose::Query);
        assert_eq!(request.inputs(), [Input::Prompted { text: "a".to_owned(), prompt }]);
    }

    #[test]
    fn version_1_answers_with_bare_vectors_unless_types_are_asked_for() {
        let reply = |body: Value| -> Value {
            let request = EmbedRequest::parse(body.to_string().as_bytes(), Version::V1).unwrap();
            serde_json::from_slice(&request.reply("id", &[vec![0.5, -0.25]], 2)).unwrap()
        };
        let bare = reply(json!({ "texts": ["a"], "input_type": "clustering" }));
        assert_eq!(
            (&bare["embeddings"], &bare["response_type"]),
            (&json!([[0.5, -0.25]]), &json!("embeddings_floats"))
        );
        assert_eq!(bare["meta"]["api_version"]["version"], "1");
        let typed = reply(json!({ "texts": ["a"], "embedding_types": ["int8"] }));
        assert_eq!(
            (&typed["embeddings"], &typed["response_type"]),
            (&json!({ "int8": [[127, -64]] }), &json!("embeddings_by_type"))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, complaint) in [
            (json!([]), "the body is not a JSON object"),
            (json!({}), "`texts` is a list of strings"),
            (json!({ "texts": [1] }), "`texts` is a list of strings"),
            (json!({ "texts": [] }), "`texts` is empty"),
            (json!({ "texts": ["a", ""] }), "one of `texts` is an empty string"),
            (json!({ "texts": ["a"], "truncate": "MIDDLE" }), "`truncate` is `NONE`, `START` or `END`"),
            (json!({ "texts": ["a"], "output_dimension": -1 }), "`output_dimension` is a positive whole number"),
            (json!({ "texts": ["a"], "input_type": 1 }), "`input_type` is a string"),
            (
                json!({ "texts": ["a"], "input_type": "query" }),
                "`input_type` is one of `search_query`, `search_document`, `classification`, `clustering`",
            ),
            (json!({ "images": ["data:"] }), "`images`: the model reads texts"),
        ] {
            assert_eq!(parse(&body).unwrap_err(), complaint);
        }
        for types in [json!([]), json!(["int4"]), json!("float"), json!([1])] {
            let complaint = parse(&json!({ "texts": ["a"], "embedding_types": types })).unwrap_err();
            assert!(complaint.starts_with("`embedding_types` is a list of `float`, `int8`"), "{complaint}");
        }
    }
}
