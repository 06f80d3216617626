//! `/v1/similarity`: how alike the two texts of each pair are, by the cosine of their vectors.

use std::collections::HashMap;

use highroad_service::Problem;
use highroad_task::vector::cosine;
use highroad_task::{Answer, Input, Prompt, Truncate};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::AskError;
use crate::protocol::openai::Usage;
use crate::protocol::{body_of, prompts};

/// Most pairs of a request. Their different texts count as inputs.
const MAX_PAIRS: usize = 10_000;

/// `POST /v1/similarity`
#[derive(Clone, Debug, PartialEq)]
pub struct SimilarityRequest {
    /// Member name; the only embedder if absent.
    pub model: Option<String>,
    /// What is compared.
    pub pairs: Pairs,
    /// What happens to texts that are too long.
    pub cut: Truncate,
}

/// Texts side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairs {
    /// At least one.
    pub pairs: Vec<[String; 2]>,
    /// The package's prompt that goes before each text.
    pub prompt: Option<Prompt>,
}

impl Pairs {
    /// The different texts, as they are met, and of each pair where its texts stand among them.
    pub fn texts(&self) -> (Vec<Input>, Vec<[usize; 2]>) {
        let (mut texts, mut known) = (Vec::new(), HashMap::new());
        let mut place = |text: &'_ String| {
            *known.entry(text.clone()).or_insert_with(|| {
                texts.push(Input::Text(text.clone()).prompted(self.prompt.as_ref()));
                texts.len() - 1
            })
        };
        let places = self.pairs.iter().map(|pair| pair.each_ref().map(&mut place)).collect();
        (texts, places)
    }

    /// What a classifier of pairs is asked. Errors if a prompt is asked for, which only embedders have.
    pub fn rows(self) -> Result<Vec<Input>, Problem> {
        if self.prompt.is_some() {
            return Err(Problem::invalid("`prompt_name` is for models that embed"));
        }
        let pair = |[query, document]: [String; 2]| Input::Pair { query, document };
        Ok(self.pairs.into_iter().map(pair).collect())
    }

    /// What a model is asked, which embeds or not.
    pub fn asked(self, embeds: bool) -> Result<Vec<Input>, Problem> {
        if embeds { Ok(self.texts().0) } else { self.rows() }
    }
}

/// The cosine of each pair, -1 to 1, whose texts' vectors stand at `places` of `answers`.
pub fn cosines(places: &[[usize; 2]], answers: &[Answer]) -> Vec<f32> {
    let alike = |&[left, right]: &[usize; 2]| cosine(answers[left].values(), answers[right].values());
    places.iter().map(alike).collect()
}

/// An error about one of the different texts as one about the first pair that has it, by its `places`.
pub fn of_pairs(error: AskError, places: &[[usize; 2]]) -> AskError {
    let pair_of = |text: usize| places.iter().position(|pair| pair.contains(&text));
    match error {
        AskError::Input { input_idx, source } => match pair_of(input_idx) {
            Some(pair_idx) => AskError::Pair { pair_idx, source },
            None => AskError::Input { input_idx, source },
        },
        error => error,
    }
}

impl SimilarityRequest {
    /// Reads a body: `{"model": "…", "pairs": [["…", "…"]]}`; a pair may also be `{"a": "…", "b": "…"}`, as golden sets have it.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let body = body.as_object().ok_or_else(|| Problem::invalid("the body is not a JSON object"))?;
        let model = match body.get("model") {
            None | Some(Value::Null) => None,
            Some(Value::String(model)) => Some(model.clone()),
            Some(_) => return Err(Problem::invalid("`model` is a string")),
        };
        let (cut, prompt) = (prompts::truncate(body)?, prompts::beside_openai(body)?);
        Ok(Self { model, pairs: Pairs { pairs: pairs(body)?, prompt }, cut })
    }

    /// The reply: how alike each pair is.
    pub fn reply(request_id: &str, model: &str, cosines: &[f32], n_tokens: usize) -> Vec<u8> {
        let pair = |(index, &similarity): (usize, &f32)| PairSimilarity { index, similarity };
        let data = cosines.iter().enumerate().map(pair).collect();
        body_of(&SimilarityReply { id: request_id, object: "list", model, data, usage: Usage::read(n_tokens) })
    }
}

/// The reply to [`SimilarityRequest`].
#[derive(Serialize, JsonSchema)]
pub(crate) struct SimilarityReply<'a> {
    /// Id of the request.
    id: &'a str,
    /// `list`
    object: &'static str,
    /// The member that answered.
    model: &'a str,
    /// The pairs, in the order sent.
    data: Vec<PairSimilarity>,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct PairSimilarity {
    index: usize,
    /// The cosine of the two vectors.
    similarity: f32,
}

fn pairs(body: &Map<String, Value>) -> Result<Vec<[String; 2]>, Problem> {
    let error = || Problem::invalid(format!("`pairs` is a list of 1 to {MAX_PAIRS} pairs of texts that are not empty"));
    let odd = |idx| Problem::invalid(format!("`pairs[{idx}]` is no pair of texts that are not empty"));
    let items = body.get("pairs").and_then(Value::as_array).filter(|items| (1..=MAX_PAIRS).contains(&items.len()));
    let text = |text: &Value| text.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let pair = |item: &Value| -> Option<[String; 2]> {
        match item {
            Value::Array(texts) => match texts.as_slice() {
                [left, right] => Some([text(left)?, text(right)?]),
                _ => None,
            },
            Value::Object(named) => Some([text(named.get("a")?)?, text(named.get("b")?)?]),
            _ => None,
        }
    };
    items.ok_or_else(error)?.iter().enumerate().map(|(idx, item)| pair(item).ok_or_else(|| odd(idx))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use highroad_task::TaskError;
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<SimilarityRequest, String> {
        SimilarityRequest::parse(body.to_string().as_bytes()).map_err(|problem| problem.message)
    }

    #[test]
    fn a_text_is_asked_once_however_many_pairs_it_is_in() {
        let request =
            parse(&json!({ "pairs": [["s", "a"], { "a": "s", "b": "b" }, ["a", "a"]], "prompt_name": "q" })).unwrap();
        let (texts, places) = request.pairs.texts();
        let asked = |text: &str| Input::Prompted { text: text.to_owned(), prompt: Prompt::Named("q".to_owned()) };
        assert_eq!((texts, &places), (["s", "a", "b"].map(asked).to_vec(), &vec![[0, 1], [0, 2], [1, 1]]));
        let answers = [[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]].map(|vector| Answer::Embedding { vector: vector.to_vec() });
        assert_eq!(cosines(&places, &answers), [0.0, -1.0, 1.0]);
    }

    #[test]
    fn a_text_that_is_refused_is_told_by_its_pair() {
        let refused = |input_idx| AskError::Input { input_idx, source: TaskError::MayNotCut { max_tokens: 4 } };
        let told = of_pairs(refused(2), &[[0, 1], [0, 2], [2, 1]]);
        assert_eq!((told.to_string().split(':').next(), told.violation()), (Some("pair 1"), Some("too_long")));
    }

    #[test]
    fn what_is_no_pair_is_told() {
        for pairs in [json!([]), json!("a")] {
            let told = parse(&json!({ "pairs": pairs })).unwrap_err();
            assert!(told.starts_with("`pairs` is a list of 1 to 10000"), "{told}");
        }
        for odd in [json!(["a"]), json!(["a", "b", "c"]), json!(["a", ""]), json!(["a", 1]), json!({ "a": "b" })] {
            let told = parse(&json!({ "pairs": [["a", "b"], odd] })).unwrap_err();
            assert_eq!(told, "`pairs[1]` is no pair of texts that are not empty");
        }
        let many = vec![["a", "b"]; MAX_PAIRS + 1];
        assert!(parse(&json!({ "pairs": many })).is_err());
        assert_eq!(parse(&json!({ "pairs": [["a", "b"]], "model": 1 })).unwrap_err(), "`model` is a string");
    }
}
