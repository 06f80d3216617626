//! A hosted model asked again what it was asked: the request as it went out, by its digest, and the answer as it can be compared.

use highroad_hosted::{Hosted, HostedTask, Protocol, Tokens};
use highroad_package::Digest;
use highroad_service::Problem;
use highroad_task::Answer;
use serde::Serialize;
use serde_json::{Value, json};

use super::ask::{Received, Wanted};
use super::routes::step_body;
use super::tasks;
use crate::case;
use crate::protocol::chat::{ChatRequest, Kind, Tally};
use crate::protocol::oip::Query;
use crate::protocol::openai::Refused;
use crate::protocol::rerank::RerankRequest;

/// A request to a host.
pub struct Question {
    hosted: Hosted,
    wanted: Wanted,
    n_inputs: usize,
}

/// What a host said to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// As the request log keeps them: one for each answer.
    pub digests: Vec<Digest>,
    /// The answers.
    pub said: Vec<Said>,
    /// Tokens, as the host counted them.
    pub usage: Option<Tokens>,
    /// The model that the host says answered.
    pub served_by: Option<String>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Said {
    Text(String),
    Vector(Vec<f32>),
    Moderation {
        flagged: bool,
        score: f64,
    },
    Relevance(f32),
    Label {
        label: String,
        score: f32,
    },
    /// Tensors, of which the digest is all that is kept.
    Tensors,
}

impl Question {
    /// What `hosted` is asked for `case`, the body that was sent to its route, or a golden case with a `text`.
    pub fn of_case(hosted: &Hosted, case: &[u8]) -> Result<Self, Problem> {
        let mut body: Value =
            serde_json::from_slice(case).map_err(|error| Problem::invalid(format!("the case is not JSON: {error}")))?;
        let golden = body.get("input").filter(|input| input.is_object()).unwrap_or(&body).clone();
        let text = golden.get("text").and_then(Value::as_str);
        if let Some(text) = text {
            body = match hosted.task {
                HostedTask::Generate => step_body(&hosted.model, None, text, None),
                _ => json!({ "input": text }),
            };
        } else if golden.get("query").is_some() {
            body = golden;
        }
        let Some(fields) = body.as_object_mut() else { return Err(Problem::invalid("the case is not a JSON object")) };
        // The name is the member's there and the host's here, and how the answer comes does not matter.
        fields.insert("model".to_owned(), hosted.model.clone().into());
        ["stream", "stream_options"].iter().for_each(|key| drop(fields.remove(*key)));
        Self::of_body(hosted, &body)
    }

    /// What a pipeline's step asks.
    pub fn of_step(
        hosted: &Hosted,
        system: Option<&str>,
        prompt: &str,
        max_tokens: Option<u64>,
    ) -> Result<Self, Problem> {
        Self::of_body(hosted, &step_body(&hosted.model, system, prompt, max_tokens))
    }

    fn of_body(hosted: &Hosted, body: &Value) -> Result<Self, Problem> {
        let bytes = body.to_string().into_bytes();
        let is_openai = hosted.protocol == Protocol::Openai;
        let inputs = || match case::query(&bytes, &[])? {
            Query::Rows(inputs) => Ok(inputs),
            Query::Pairs(pairs) => pairs.asked(hosted.task == HostedTask::Embed),
            Query::Program(_) => Err(Problem::invalid("the host of this model reads texts")),
        };
        let problem = |refused: Refused| refused.problem;
        let (wanted, n_inputs) = match hosted.task {
            HostedTask::Generate => (chat(hosted, body, &bytes).map_err(problem)?, 1),
            HostedTask::Classify if is_openai => (tasks::chat(hosted, &inputs()?).map_err(problem)?, 1),
            HostedTask::Moderate => {
                let inputs = inputs()?;
                (tasks::moderations(hosted, &inputs), inputs.len())
            }
            HostedTask::Embed if is_openai => {
                let inputs = inputs()?;
                (tasks::embeddings(hosted, &inputs, body["dimensions"].as_u64()), inputs.len())
            }
            HostedTask::Classify | HostedTask::Embed => {
                let inputs = inputs()?;
                let dimensions = body["dimensions"].as_u64().filter(|_| hosted.task == HostedTask::Embed);
                (tasks::texts(hosted, &inputs, dimensions).map_err(problem)?, inputs.len())
            }
            HostedTask::Rerank => {
                let request = RerankRequest::parse(&bytes, "1")?;
                let wanted = match is_openai {
                    true => tasks::rerank(hosted, &request),
                    false => tasks::documents(hosted, &request.query, &request.documents).map_err(problem)?,
                };
                (wanted, request.documents.len())
            }
            HostedTask::Infer => (tasks::tensors(hosted, &bytes, None).map_err(problem)?, 1),
        };
        Ok(Self { hosted: hosted.clone(), wanted, n_inputs })
    }

    /// As [`super::HostedRecord::request`].
    pub fn digest(&self) -> Digest {
        self.wanted.digest()
    }

    /// Below the host's address.
    pub fn path(&self) -> &str {
        &self.wanted.path
    }

    /// The body that goes out, and how much of it is JSON where binary data follows.
    pub fn body(&self) -> (Vec<u8>, Option<usize>) {
        (self.wanted.body.clone(), self.wanted.json_bytes)
    }

    /// What it may take at most.
    pub fn most(&self) -> Tokens {
        self.wanted.most
    }

    /// Reads an answer, of which `json_bytes` are JSON where binary data follows. Errors, in words, where it is none.
    pub fn read(&self, body: Vec<u8>, json_bytes: Option<usize>) -> Result<Heard, String> {
        let (hosted, n) = (&self.hosted, self.n_inputs);
        let received = match json_bytes {
            Some(json_bytes) => Received::Tensors(body, json_bytes),
            None => Received::Whole(body),
        };
        let read = match (hosted.task, hosted.protocol, received) {
            (HostedTask::Generate, _, Received::Whole(body) | Received::Tensors(body, _)) => return heard_texts(&body),
            (HostedTask::Infer, _, Received::Whole(body) | Received::Tensors(body, _)) => {
                let digests = vec![Digest::of(&body)];
                return Ok(Heard { digests, said: vec![Said::Tensors], usage: None, served_by: None });
            }
            (HostedTask::Moderate, _, received) => tasks::read_moderations(hosted, received, n)?,
            (HostedTask::Classify, Protocol::Openai, received) => tasks::read_chat(hosted, received)?,
            (HostedTask::Embed, Protocol::Openai, received) => tasks::read_embeddings(received, n)?,
            (HostedTask::Rerank, Protocol::Openai, received) => tasks::read_rerank(received, n)?,
            (HostedTask::Rerank, _, received) => tasks::read_documents(hosted, received, n)?,
            (_, _, received) => tasks::read_texts(hosted, received, n)?,
        };
        let said = match hosted.task {
            HostedTask::Moderate => read.results.iter().map(moderation).collect(),
            _ => read.answers.iter().map(said).collect(),
        };
        let Tally { usage, served_by, .. } = read.tally;
        Ok(Heard { digests: read.digests, said, usage, served_by })
    }
}

/// What goes out for a conversation or a text to go on with.
fn chat(hosted: &Hosted, body: &Value, bytes: &[u8]) -> Result<Wanted, Refused> {
    let kind = if body.get("messages").is_some() { Kind::Chat } else { Kind::Completion };
    let (body, most) = ChatRequest::parse(kind, bytes)?.upstream(hosted)?;
    Ok(Wanted { path: kind.path().to_owned(), body, json_bytes: None, most, events: false })
}

fn heard_texts(body: &[u8]) -> Result<Heard, String> {
    let mut tally = Tally::default();
    tally.whole(body)?;
    let said = tally.texts().map(|text| Said::Text(text.to_owned())).collect();
    Ok(Heard { digests: tally.digests(), said, usage: tally.usage, served_by: tally.served_by })
}

fn said(answer: &Answer) -> Said {
    match answer {
        Answer::Relevance { logit } => Said::Relevance(*logit),
        Answer::Class { scores, .. } | Answer::Labels { scores, .. } => {
            let label = answer.label().unwrap_or_default().into_owned();
            Said::Label { label, score: scores.iter().copied().fold(0.0, f32::max) }
        }
        answer => Said::Vector(answer.values().to_vec()),
    }
}

fn moderation(result: &Value) -> Said {
    let scores = result["category_scores"].as_object().into_iter().flat_map(|scores| scores.values());
    let score = scores.filter_map(Value::as_f64).fold(0.0, f64::max);
    Said::Moderation { flagged: result["flagged"].as_bool().unwrap_or(false), score }
}

impl Said {
    /// How alike two answers are, from 0 to 1: of texts the normalised Levenshtein similarity of their characters, of vectors the
    /// cosine (at least 0), of moderations and relevances 1 less the difference of the scores, of labels 1 where they are one. `None` where they are of two kinds.
    pub fn similarity(&self, other: &Self) -> Option<f64> {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => Some(text_similarity(one, other)),
            (Self::Vector(one), Self::Vector(other)) if one.len() == other.len() => {
                Some(f64::from(highroad_task::vector::cosine(one, other)).max(0.0))
            }
            (Self::Moderation { score: one, .. }, Self::Moderation { score: other, .. }) => {
                Some((1.0 - (one - other).abs()).max(0.0))
            }
            (Self::Relevance(one), Self::Relevance(other)) => {
                let score = |logit: f32| 1.0 / (1.0 + (-f64::from(logit)).exp());
                Some(1.0 - (score(*one) - score(*other)).abs())
            }
            (Self::Label { label: one, .. }, Self::Label { label: other, .. }) => {
                Some(f64::from(u8::from(one == other)))
            }
            _ => None,
        }
    }
}

/// Longest text, in characters, that is compared character by character: beyond it only equality is looked at, as the time grows
/// with the product of the lengths.
const MAX_COMPARED_CHARS: usize = 8192;

/// 1 less the Levenshtein distance of two texts as a share of the longer one's characters; 1 for two empty texts. Of texts
/// beyond 8192 characters the words are compared in place of the characters.
pub fn text_similarity(one: &str, other: &str) -> f64 {
    if one == other {
        return 1.0;
    }
    if one.chars().count().max(other.chars().count()) <= MAX_COMPARED_CHARS {
        return strsim::normalized_levenshtein(one, other);
    }
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().take(MAX_COMPARED_CHARS).map(str::to_owned).collect() };
    let (one, other) = (words(one), words(other));
    let longest = one.len().max(other.len()).max(1);
    1.0 - strsim::generic_levenshtein(&one, &other) as f64 / longest as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn hosted(more: &str) -> Hosted {
        let text = format!("highroad_hosted = 1\nbase_url = \"http://localhost/v1\"\nmodel = \"m\"\n{more}");
        Hosted::parse(&text).unwrap()
    }

    #[test]
    fn a_request_asks_the_same_whole_and_in_events() {
        let hosted = hosted("task = \"generate\"\nsystem = \"Be brief.\"");
        let case = r#"{"model": "chat", "messages": [{"role": "user", "content": "a"}], "temperature": 0.5"#;
        let digest = |rest: &str| Question::of_case(&hosted, format!("{case}{rest}}}").as_bytes()).unwrap().digest();
        let streamed = digest(r#", "stream": true, "stream_options": {"include_usage": true}"#);
        assert_eq!(digest(""), streamed);
        assert_ne!(digest(r#", "top_p": 0.5"#), streamed);
    }

    #[test]
    fn a_golden_case_is_what_a_user_says() {
        let hosted = hosted("task = \"generate\"");
        let body = |case: &str| Question::of_case(&hosted, case.as_bytes()).unwrap().digest();
        let said = r#"{"model": "x", "messages": [{"role": "user", "content": "a"}]}"#;
        assert_eq!(body(r#"{"input": {"text": "a"}}"#), body(said));
        assert!(Question::of_case(&hosted, b"[]").is_err());
        assert!(Question::of_case(&hosted, b"{}").is_err());
    }

    #[test]
    fn texts_are_alike_by_their_characters_and_long_ones_by_their_words() {
        assert_eq!(text_similarity("", ""), 1.0);
        assert_eq!(text_similarity("kitten", "sitting"), 1.0 - 3.0 / 7.0);
        assert_eq!(text_similarity("", "abc"), 0.0);
        let long = "word ".repeat(4000);
        let other = long.replacen("word", "world", 400);
        assert!((text_similarity(&long, &other) - 0.9).abs() < 1e-9);
    }
}
