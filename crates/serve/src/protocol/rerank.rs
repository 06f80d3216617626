//! Reranking in the dialects that clients speak: Cohere's v1 and v2, Jina's and vLLM's, which are Cohere's, and that of Text
//! Embeddings Inference (TEI).
//!
//! Cohere's list what is ranked as `documents`, TEI as `texts`; both come to `/rerank`.

use std::num::NonZeroUsize;

use highroad_service::{Kind, Problem};
use highroad_task::vector::cosine;
use highroad_task::{Answer, Input, Prompt, Purpose, Ranked, Truncate, ranked};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::protocol::cohere::{ApiVersion, InputTokens};
use crate::protocol::tei::{self, ErrorType, TeiError};
use crate::protocol::{body_of, json_of};

/// Most documents of a request, as Cohere has it.
pub(crate) const MAX_DOCUMENTS: usize = 1000;

/// Most tokens of a document where a request in Cohere's v2 says nothing, as Cohere has it.
const DEFAULT_DOCUMENT_TOKENS: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");
const MAX_DOCUMENT_TOKENS: u64 = 1 << 31;

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Cohere's, of this version of its interface.
    Cohere(&'static str),
    /// TEI's: a bare list.
    Tei {
        /// Logits instead of scores from 0 to 1.
        raw_scores: bool,
    },
}

/// `POST /rerank`, `/v1/rerank`, `/v2/rerank`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RerankRequest {
    /// Member name; the only reranker if absent.
    pub model: Option<String>,
    /// What is sought.
    pub query: String,
    /// What may answer it, at least one.
    pub documents: Vec<String>,
    /// How many of the best are returned.
    pub top_n: usize,
    /// Whether their texts are returned too.
    pub with_texts: bool,
    /// What happens to pairs that are too long.
    pub cut: Truncate,
    /// Most tokens of a document, by Cohere's `max_tokens_per_doc`; what is more is cut off its end.
    pub document_tokens: Option<NonZeroUsize>,
    /// How it is answered.
    pub dialect: Dialect,
}

impl RerankRequest {
    /// Reads a body; `version` is that of Cohere's interface where the body is in its dialect.
    pub fn parse(body: &[u8], version: &'static str) -> Result<Self, Problem> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let body = body.as_object().ok_or_else(|| Problem::invalid("the body is not a JSON object"))?;
        let (list, dialect, texts) = match body.get("texts") {
            Some(_) => ("texts", Dialect::Tei { raw_scores: flag(body, "raw_scores")? }, "return_text"),
            None => ("documents", Dialect::Cohere(version), "return_documents"),
        };
        let documents = documents(body.get(list), list)?;
        let top_n = match body.get("top_n") {
            None | Some(Value::Null) => documents.len(),
            Some(n) => n
                .as_u64()
                .filter(|&n| n > 0)
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| Problem::invalid("`top_n` is a positive whole number"))?,
        };
        let cut = match dialect {
            Dialect::Tei { .. } => tei::cut(body).map_err(|refused| refused.problem)?,
            Dialect::Cohere(_) => Truncate::default(),
        };
        let document_tokens = match dialect {
            Dialect::Tei { .. } => None,
            Dialect::Cohere(_) => {
                // A document is one chunk here, which is within whatever is the most.
                positive(body, "max_chunks_per_doc")?;
                positive(body, "max_tokens_per_doc")?
            }
        };
        let query = text(body, "query")?.ok_or_else(|| Problem::invalid("`query` is missing"))?;
        if query.is_empty() {
            return Err(Problem::invalid("`query` is an empty string"));
        }
        Ok(Self {
            model: text(body, "model")?.map(str::to_owned),
            query: query.to_owned(),
            documents,
            top_n,
            with_texts: flag(body, texts)?,
            cut,
            document_tokens,
            dialect,
        })
    }

    /// Most tokens of a document for a model of our own: what the request says, in Cohere's v2 or else 4096.
    pub fn most_document_tokens(&self) -> Option<NonZeroUsize> {
        let usual = (self.dialect == Dialect::Cohere("2")).then_some(DEFAULT_DOCUMENT_TOKENS);
        self.document_tokens.or(usual)
    }

    /// Bytes of all pairs: the query counts with every document, so that a small body cannot ask for a large work.
    pub fn pairs_bytes(&self) -> usize {
        let documents: usize = self.documents.iter().map(String::len).sum();
        self.query.len().saturating_mul(self.documents.len()).saturating_add(documents)
    }

    /// Each document beside the query.
    pub fn inputs(&self) -> Vec<Input> {
        let pair = |document: &String| Input::Pair { query: self.query.clone(), document: document.clone() };
        self.documents.iter().map(pair).collect()
    }

    /// The query and then each document by itself, for a member that embeds.
    pub fn texts(&self) -> Vec<Input> {
        sides(self.query.clone(), self.documents.iter().cloned())
    }

    /// The reply: the best documents, best first, by a reranker's answers to the pairs or an embedder's to the texts.
    pub fn reply(&self, request_id: &str, model: &str, answers: &[Answer], n_tokens: usize) -> Vec<u8> {
        let documents = match answers {
            [Answer::Embedding { vector: query }, documents @ ..] => by_cosine(query, documents),
            _ => ranked(answers),
        };
        let best = documents.into_iter().take(self.top_n);
        let text = |index: usize| self.with_texts.then(|| self.documents[index].as_str());
        body_of(&match self.dialect {
            Dialect::Tei { raw_scores } => {
                let ranked = |Ranked { index, logit, score }| TeiRank {
                    index,
                    score: if raw_scores { logit } else { score },
                    text: text(index),
                };
                RerankReply::Tei(best.map(ranked).collect())
            }
            Dialect::Cohere(version) => {
                let ranked = |Ranked { index, score, .. }| CohereRank {
                    index,
                    relevance_score: score,
                    document: text(index).map(|text| RankedDocument { text }),
                };
                let tokens = InputTokens { input_tokens: n_tokens };
                RerankReply::Cohere(CohereRerankReply {
                    id: request_id,
                    model,
                    results: best.map(ranked).collect(),
                    usage: TotalTokens { total_tokens: n_tokens },
                    meta: RerankMeta { api_version: ApiVersion { version }, tokens },
                })
            }
        })
    }
}

/// The reply to [`RerankRequest`], in the dialect of its body.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum RerankReply<'a> {
    Cohere(CohereRerankReply<'a>),
    Tei(Vec<TeiRank<'a>>),
}

/// A reply in Cohere's words.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CohereRerankReply<'a> {
    /// Id of the request.
    id: &'a str,
    /// The member that answered.
    model: &'a str,
    /// The best documents, best first.
    results: Vec<CohereRank<'a>>,
    usage: TotalTokens,
    meta: RerankMeta,
}

#[derive(Serialize, JsonSchema)]
struct CohereRank<'a> {
    /// Which of the request's documents, from 0.
    index: usize,
    /// From 0 to 1; of a member that embeds the cosine.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct RankedDocument<'a> {
    text: &'a str,
}

#[derive(Serialize, JsonSchema)]
struct TotalTokens {
    total_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
struct RerankMeta {
    api_version: ApiVersion,
    tokens: InputTokens,
}

/// A document in TEI's words.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TeiRank<'a> {
    /// Which of the request's texts, from 0.
    index: usize,
    /// From 0 to 1, or the logit where raw scores were asked for; of a member that embeds the cosine.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

/// A refusal in the words of Cohere, which read `message`, and of TEI, which read the others.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CohereError {
    /// What is wrong, where, and what helps.
    message: String,
    /// The same.
    error: String,
    error_type: ErrorType,
}

/// A refusal in the dialect of the body, where it could be read.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "what may be answered, for the OpenAPI document")]
pub(crate) enum RerankError {
    Cohere(CohereError),
    Tei(TeiError),
}

/// A query and documents as an embedder is asked them, each with the prompt that is for it.
pub(crate) fn sides(query: String, documents: impl Iterator<Item = String>) -> Vec<Input> {
    let asked = |text, purpose| Input::Prompted { text, prompt: Prompt::For(purpose) };
    let documents = documents.map(|document| asked(document, Purpose::Document));
    std::iter::once(asked(query, Purpose::Query)).chain(documents).collect()
}

/// Documents by the cosine of their vector and the query's, best first; those of one cosine in the order sent.
fn by_cosine(query: &[f32], documents: &[Answer]) -> Vec<Ranked> {
    let cosine = |(index, document): (usize, &Answer)| {
        let score = cosine(query, document.values());
        Ranked { index, logit: score, score }
    };
    let mut ranked: Vec<Ranked> = documents.iter().enumerate().map(cosine).collect();
    ranked.sort_by(|left, right| right.score.total_cmp(&left.score));
    ranked
}

/// Whether a body is in TEI's dialect.
pub fn is_tei(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|body| body.get("texts").is_some())
}

/// What `failed` is in TEI's words; a list without texts has one of its own.
pub(crate) fn tei_refused(body: &[u8], failed: impl Into<tei::Refused>) -> tei::Refused {
    let refused = failed.into();
    let is_empty = |body: Value| body["texts"].as_array().is_some_and(Vec::is_empty);
    match serde_json::from_slice(body).is_ok_and(is_empty) {
        true => tei::Refused { error_type: ErrorType::Empty, ..refused },
        false => refused,
    }
}

/// A refusal: Cohere's clients read `message`, TEI's `error` and `error_type`.
pub fn error_body(problem: &Problem) -> Value {
    let error_type = match problem.kind {
        Kind::Overloaded => ErrorType::Overloaded,
        Kind::Internal | Kind::BadGateway => ErrorType::Backend,
        Kind::Unavailable => ErrorType::Unhealthy,
        _ => ErrorType::Validation,
    };
    let message = &problem.message;
    json_of(&CohereError { message: message.clone(), error: message.clone(), error_type })
}

fn positive(body: &Map<String, Value>, name: &str) -> Result<Option<NonZeroUsize>, Problem> {
    let error = || Problem::invalid(format!("`{name}` is a whole number from 1 to {MAX_DOCUMENT_TOKENS}"));
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(n) => {
            let n = n.as_u64().filter(|&n| n <= MAX_DOCUMENT_TOKENS).and_then(|n| usize::try_from(n).ok());
            n.and_then(NonZeroUsize::new).map(Some).ok_or_else(error)
        }
    }
}

fn documents(list: Option<&Value>, name: &str) -> Result<Vec<String>, Problem> {
    let error = || Problem::invalid(format!("`{name}` is a list of strings, or of objects with a `text`"));
    let items = list.and_then(Value::as_array).ok_or_else(error)?;
    if items.is_empty() || items.len() > MAX_DOCUMENTS {
        let n = items.len();
        return Err(Problem::invalid(format!("`{name}` has {n} entries, and takes 1 to {MAX_DOCUMENTS}")));
    }
    let text = |item: &Value| item.as_str().or_else(|| item.get("text")?.as_str()).map(str::to_owned).ok_or_else(error);
    items.iter().map(text).collect()
}

fn text<'b>(body: &'b Map<String, Value>, name: &str) -> Result<Option<&'b str>, Problem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Problem::invalid(format!("`{name}` is a string"))),
    }
}

fn flag(body: &Map<String, Value>, name: &str) -> Result<bool, Problem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Problem::invalid(format!("`{name}` is true or false"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<RerankRequest, String> {
        RerankRequest::parse(body.to_string().as_bytes(), "2").map_err(|problem| problem.message)
    }

    fn reply(request: &RerankRequest, logits: &[f32]) -> Value {
        let answers: Vec<Answer> = logits.iter().map(|&logit| Answer::Relevance { logit }).collect();
        serde_json::from_slice(&request.reply("id", "m", &answers, 7)).unwrap()
    }

    #[test]
    fn cohere_gets_the_best_documents_first() {
        let body =
            json!({ "model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2, "extra": 1 });
        let request = parse(&body).unwrap();
        assert_eq!(request.inputs()[1], Input::Pair { query: "q".to_owned(), document: "b".to_owned() });
        let reply = reply(&request, &[-1.0, 0.0, 2.0]);
        assert_eq!(reply["results"][0]["index"], 2);
        assert_eq!(reply["results"][1], json!({ "index": 1, "relevance_score": 0.5 }));
        assert_eq!(reply["results"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&reply["usage"]["total_tokens"], &reply["meta"]["api_version"]["version"]),
            (&json!(7), &json!("2"))
        );
    }

    #[test]
    fn texts_come_back_where_they_are_asked_for() {
        let cohere = parse(&json!({ "query": "q", "documents": ["a"], "return_documents": true })).unwrap();
        assert_eq!(reply(&cohere, &[0.0])["results"][0]["document"], json!({ "text": "a" }));
        let tei = json!({ "query": "q", "texts": ["a", "b"], "return_text": true, "truncation_direction": "Right" });
        let ranked = json!([{ "index": 1, "score": 0.5, "text": "b" }, { "index": 0, "score": 0.0, "text": "a" }]);
        assert_eq!(reply(&parse(&tei).unwrap(), &[-200.0, 0.0]), ranked);
    }

    #[test]
    fn a_query_counts_with_every_document() {
        let request = parse(&json!({ "query": "four", "documents": ["a", "bc", ""] })).unwrap();
        assert_eq!(request.pairs_bytes(), 3 * 4 + 3);
    }

    #[test]
    fn documents_have_so_many_tokens_as_cohere_has_it() {
        let most = |more: Value, version| {
            let mut body = json!({ "query": "q", "documents": ["a"] });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let request = RerankRequest::parse(body.to_string().as_bytes(), version).map_err(|problem| problem.message);
            request.map(|request| request.most_document_tokens().map(NonZeroUsize::get))
        };
        assert_eq!(most(json!({}), "2"), Ok(Some(4096)));
        assert_eq!(most(json!({}), "1"), Ok(None));
        assert_eq!(most(json!({ "max_tokens_per_doc": 7, "max_chunks_per_doc": 10 }), "1"), Ok(Some(7)));
        assert_eq!(most(json!({ "max_tokens_per_doc": null }), "2"), Ok(Some(4096)));
        for key in ["max_tokens_per_doc", "max_chunks_per_doc"] {
            for value in [json!(0), json!(-1), json!(1.5), json!("7"), json!(1_u64 << 40)] {
                let complaint = format!("`{key}` is a whole number from 1 to 2147483648");
                assert_eq!(most(json!({ key: value }), "2"), Err(complaint));
            }
        }
        let tei = json!({ "query": "q", "texts": ["a"] }).to_string();
        assert_eq!(RerankRequest::parse(tei.as_bytes(), "2").unwrap().most_document_tokens(), None);
    }

    #[test]
    fn tei_gives_logits_on_request() {
        let request = parse(&json!({ "query": "q", "texts": ["a"], "raw_scores": true })).unwrap();
        assert_eq!(reply(&request, &[-2.5]), json!([{ "index": 0, "score": -2.5 }]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = vec!["d"; 1001];
        for (body, complaint) in [
            (json!([]), "the body is not a JSON object"),
            (json!({ "documents": ["a"] }), "`query` is missing"),
            (json!({ "query": 1, "documents": ["a"] }), "`query` is a string"),
            (json!({ "query": "", "documents": ["a"] }), "`query` is an empty string"),
            (json!({ "query": "q" }), "`documents` is a list of strings, or of objects with a `text`"),
            (json!({ "query": "q", "documents": [] }), "`documents` has 0 entries, and takes 1 to 1000"),
            (json!({ "query": "q", "texts": many }), "`texts` has 1001 entries, and takes 1 to 1000"),
            (
                json!({ "query": "q", "documents": [1] }),
                "`documents` is a list of strings, or of objects with a `text`",
            ),
            (json!({ "query": "q", "documents": ["a"], "top_n": 0 }), "`top_n` is a positive whole number"),
            (json!({ "query": "q", "texts": ["a"], "raw_scores": 1 }), "`raw_scores` is true or false"),
        ] {
            assert_eq!(parse(&body).unwrap_err(), complaint);
        }
        assert!(RerankRequest::parse(b"{", "1").unwrap_err().message.starts_with("the body is not JSON: "));
    }
}
