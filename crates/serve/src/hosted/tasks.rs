//! Embeddings, moderations and reranking of hosted members: the requests of our routes as a host is asked, and its answers as ours.

use highroad_hosted::{Answers, Hosted, Question, Said, Tokens, Vector, about_text, answer_of};
use highroad_package::Digest;
use highroad_task::{Answer, Input, Prompt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{self, unaskable};
use super::ask::{Received, Wanted};
use crate::protocol::chat::Tally;
use crate::protocol::oip;
use crate::protocol::openai::Refused;
use crate::protocol::rerank::RerankRequest;

/// Tokens that a host may count beside the text of an input.
const TOKENS_AN_INPUT: u64 = 32;

/// What a host answered, as it goes on.
pub(crate) struct Read {
    pub answers: Vec<Answer>,
    pub digests: Vec<Digest>,
    pub tally: Tally,
    /// Results in the host's own shape.
    pub results: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
    usage: Option<Usage>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct Embedding {
    index: Option<usize>,
    embedding: Vector,
}

#[derive(Deserialize)]
struct Moderations {
    results: Vec<Value>,
    usage: Option<Usage>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct Reranked {
    results: Vec<Ranked>,
    usage: Option<Usage>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct Ranked {
    index: usize,
    relevance_score: f64,
}

fn wanted(path: &'static str, body: &Value, n_inputs: usize, n_repeated: usize) -> Wanted {
    let body = body.to_string().into_bytes();
    // A token is a byte or more.
    let input = (body.len() + n_repeated) as u64 + TOKENS_AN_INPUT * n_inputs as u64;
    Wanted { path: path.to_owned(), body, json_bytes: None, most: Tokens { input, output: 0 }, events: false }
}

/// A request for an answer to each text, in the words of a protocol that is not OpenAI's.
pub(crate) fn texts(hosted: &Hosted, inputs: &[Input], dimensions: Option<u64>) -> Result<Wanted, Refused> {
    let question = Question::texts(hosted, &only_texts(inputs)?, dimensions).map_err(unaskable)?;
    Ok(answers::wanted(&question))
}

/// The same for the relevance of each document.
pub(crate) fn documents(hosted: &Hosted, query: &str, documents: &[String]) -> Result<Wanted, Refused> {
    let question = Question::documents(hosted, query, documents).map_err(unaskable)?;
    Ok(answers::wanted(&question))
}

/// A request for the label of one text by a chat: the same that an evaluation asks.
pub(crate) fn chat(hosted: &Hosted, inputs: &[Input]) -> Result<Wanted, Refused> {
    match only_texts(inputs)?.as_slice() {
        [text] => Ok(answers::wanted(&about_text(hosted, text).map_err(unaskable)?)),
        _ => Err(unaskable("a chat is about one text".to_owned())),
    }
}

/// Tensors as they are.
pub(crate) fn tensors(hosted: &Hosted, body: &[u8], json_bytes: Option<usize>) -> Result<Wanted, Refused> {
    let version = hosted.oip.as_ref().and_then(|tensors| tensors.version.as_ref());
    let version = version.map(|version| format!("/versions/{version}")).unwrap_or_default();
    let path = format!("v2/models/{}{version}/infer", hosted.model);
    // Nobody counts tokens of tensors: a byte is one at most.
    let most = Tokens { input: body.len() as u64, output: 0 };
    let reads_binary = hosted.oip.as_ref().is_none_or(|tensors| tensors.binary);
    let (body, json_bytes) = match json_bytes.filter(|_| !reads_binary) {
        Some(json_bytes) => (oip::as_json(body, json_bytes)?, None),
        None => (body.to_vec(), json_bytes),
    };
    Ok(Wanted { path, body, json_bytes, most, events: false })
}

/// Prompts are what a host puts before a text by itself, or a client does. What a text is for is taken and changes nothing.
pub(super) fn no_prompts(inputs: &[Input]) -> Result<(), Refused> {
    match inputs.iter().any(|input| matches!(input, Input::Prompted { prompt: Prompt::Named(_), .. })) {
        true => Err(unaskable(
            "`prompt_name`: this model is hosted elsewhere, and no prompts of it are known here".to_owned(),
        )),
        false => Ok(()),
    }
}

fn only_texts(inputs: &[Input]) -> Result<Vec<String>, Refused> {
    let text = |input: &Input| match input {
        Input::Text(text) | Input::Prompted { text, prompt: Prompt::For(_) } => Ok(text.clone()),
        _ => Err(unaskable("the host of this model reads single texts: no tokens, pairs or images".to_owned())),
    };
    inputs.iter().map(text).collect()
}

/// Answers to `n` texts.
pub(crate) fn read_texts(hosted: &Hosted, received: Received, n: usize) -> Result<Read, String> {
    let (body, json_bytes) = whole(received)?;
    read_answers(hosted, Answers::of_others(hosted, &body, json_bytes, n)?)
}

/// The answer of a chat about one text.
pub(crate) fn read_chat(hosted: &Hosted, received: Received) -> Result<Read, String> {
    read_answers(hosted, Answers::of_chat(hosted, &whole(received)?.0)?)
}

/// The relevance of each of `n` documents.
pub(crate) fn read_documents(hosted: &Hosted, received: Received, n: usize) -> Result<Read, String> {
    let (body, json_bytes) = whole(received)?;
    let Answers { said, usage, served_by } = Answers::of_others(hosted, &body, json_bytes, n)?;
    let [Said::Relevances { scores }] = said.as_slice() else { return Err("it has no relevances".to_owned()) };
    let usage = usage.map(|usage| Tokens { input: usage.input, output: usage.output });
    Ok(relevances(scores, Tally::of(usage, served_by)))
}

fn read_answers(hosted: &Hosted, Answers { said, usage, served_by }: Answers) -> Result<Read, String> {
    let answers: Option<Vec<Answer>> = said.iter().map(|said| answer_of(hosted, said)).collect();
    let answers = answers.ok_or("it has no answer for its task")?;
    let digests = answers.iter().map(Answer::digest).collect();
    let usage = usage.map(|usage| Tokens { input: usage.input, output: usage.output });
    Ok(Read { answers, digests, tally: Tally::of(usage, served_by), results: Vec::new() })
}

fn whole(received: Received) -> Result<(Vec<u8>, Option<usize>), String> {
    match received {
        Received::Whole(body) => Ok((body, None)),
        Received::Tensors(body, json_bytes) => Ok((body, Some(json_bytes))),
        Received::Events(..) => Err("it answered with a stream".to_owned()),
    }
}

/// A request for vectors.
pub(crate) fn embeddings(hosted: &Hosted, inputs: &[Input], dimensions: Option<u64>) -> Wanted {
    // Base64 keeps the bits, and is what OpenAI's own client asks for.
    let mut body = json!({ "model": hosted.model, "input": json_inputs(inputs), "encoding_format": "base64" });
    if let Some(dimensions) = dimensions {
        body["dimensions"] = dimensions.into();
    }
    wanted("embeddings", &body, inputs.len(), 0)
}

/// A request for moderations.
pub(crate) fn moderations(hosted: &Hosted, inputs: &[Input]) -> Wanted {
    wanted("moderations", &json!({ "model": hosted.model, "input": json_inputs(inputs) }), inputs.len(), 0)
}

/// A request for the relevance of every document.
pub(crate) fn rerank(hosted: &Hosted, request: &RerankRequest) -> Wanted {
    let RerankRequest { query, documents, document_tokens, .. } = request;
    let mut body = json!({ "model": hosted.model, "query": query, "documents": documents });
    if let Some(most) = document_tokens {
        body["max_tokens_per_doc"] = most.get().into();
    }
    // The query counts with every document.
    wanted("rerank", &body, documents.len(), query.len() * documents.len())
}

fn json_inputs(inputs: &[Input]) -> Value {
    let one = |input: &Input| match input {
        Input::Text(text) | Input::Prompted { text, .. } => json!(text),
        Input::Tokens(ids) => json!(ids),
        Input::Pair { query, document } => json!([query, document]),
        Input::Image(_) | Input::Tensors(_) => Value::Null,
    };
    inputs.iter().map(one).collect()
}

fn parse<T: for<'a> Deserialize<'a>>(received: Received) -> Result<T, String> {
    serde_json::from_slice(&whole(received)?.0).map_err(|error| error.to_string())
}

fn tally(usage: Option<Usage>, model: Option<String>) -> Tally {
    let input = usage.and_then(|usage| usage.prompt_tokens.or(usage.total_tokens));
    Tally::of(input.map(|input| Tokens { input, output: 0 }), model)
}

/// Vectors, one for each of `n_inputs`.
pub(crate) fn read_embeddings(received: Received, n_inputs: usize) -> Result<Read, String> {
    let Embeddings { data, usage, model } = parse(received)?;
    let n_found = data.len();
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; n_inputs];
    for (place, Embedding { index, embedding }) in data.into_iter().enumerate() {
        let place = vectors.get_mut(index.unwrap_or(place)).filter(|place| place.is_none());
        *place.ok_or("a vector has an index that it cannot have")? = Some(embedding.values()?);
    }
    let vectors: Option<Vec<Vec<f32>>> = vectors.into_iter().collect();
    let vectors = vectors.ok_or_else(|| format!("it has {n_found} vectors for {n_inputs} inputs"))?;
    let answers: Vec<Answer> = vectors.into_iter().map(|vector| Answer::Embedding { vector }).collect();
    let digests = answers.iter().map(Answer::digest).collect();
    Ok(Read { answers, digests, tally: tally(usage, model), results: Vec::new() })
}

/// Results of moderation, one for each of `n_inputs`, as the host has them: it knows more categories than we do.
pub(crate) fn read_moderations(hosted: &Hosted, received: Received, n_inputs: usize) -> Result<Read, String> {
    let Moderations { results, usage, model } = parse(received)?;
    let fits = |result: &Value| {
        let (flagged, categories, scores) = (&result["flagged"], &result["categories"], &result["category_scores"]);
        flagged.is_boolean() && categories.is_object() && scores.is_object()
    };
    if results.len() != n_inputs || !results.iter().all(fits) {
        return Err(format!("it has no result with categories for each of {n_inputs} inputs"));
    }
    let digests = results.iter().map(|result| Digest::of(result.to_string().as_bytes())).collect();
    let answer = |result: &Value| {
        let scores = result["category_scores"].as_object()?.values().filter_map(Value::as_f64);
        let said =
            Said::Moderation { flagged: result["flagged"].as_bool()?, score: scores.fold(0.0, f64::max).min(1.0) };
        answer_of(hosted, &said)
    };
    let answers = results.iter().map(answer).collect::<Option<Vec<_>>>().ok_or("it has no result with categories")?;
    Ok(Read { answers, digests, tally: tally(usage, model), results })
}

/// The relevance of each of `n_documents`, in their order.
pub(crate) fn read_rerank(received: Received, n_documents: usize) -> Result<Read, String> {
    let Reranked { results, usage, model } = parse(received)?;
    let mut scores = vec![None; n_documents];
    for Ranked { index, relevance_score } in results {
        let place = scores.get_mut(index).filter(|place| place.is_none() && relevance_score.is_finite());
        *place.ok_or("a result has an index that it cannot have")? = Some(relevance_score);
    }
    let scores = scores.into_iter().collect::<Option<Vec<f64>>>().ok_or("a document has no score")?;
    Ok(relevances(&scores, tally(usage, model)))
}

fn relevances(scores: &[f64], tally: Tally) -> Read {
    let answers = highroad_hosted::relevances(scores);
    let digests = answers.iter().map(Answer::digest).collect();
    Read { answers, digests, tally, results: Vec::new() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn came(body: &str) -> Received {
        Received::Whole(body.as_bytes().to_vec())
    }

    #[test]
    fn vectors_come_in_the_order_of_their_inputs() {
        let body = r#"{"data":[{"index":1,"embedding":[0.5]},{"index":0,"embedding":"AACAPw=="}],"usage":{"prompt_tokens":4},"model":"m"}"#;
        let read = read_embeddings(came(body), 2).unwrap();
        assert_eq!(read.answers.iter().map(|answer| answer.values()[0]).collect::<Vec<_>>(), [1.0, 0.5]);
        assert_eq!(read.tally.usage, Some(Tokens { input: 4, output: 0 }));
    }

    #[test]
    fn scores_survive_the_way_through_a_logit() {
        let body = r#"{"results":[{"index":2,"relevance_score":1.0},{"index":0,"relevance_score":0.0},{"index":1,"relevance_score":0.731}]}"#;
        let read = read_rerank(came(body), 3).unwrap();
        let scores: Vec<f32> = read.answers.iter().map(|answer| answer.score().unwrap()).collect();
        assert!(scores[0] == 0.0 && (scores[1] - 0.731).abs() < 1e-6 && scores[2] == 1.0, "{scores:?}");
        let logits = r#"{"results":[{"index":0,"relevance_score":-7.5},{"index":1,"relevance_score":3.25}]}"#;
        assert_eq!(read_rerank(came(logits), 2).unwrap().answers[1].values(), [3.25]);
    }

    #[test]
    fn answers_that_are_none_are_told() {
        let described = "highroad_hosted = 1\ntask = 'moderate'\nbase_url = 'https://m.example/v1'\nmodel = 'm'\nlabels = ['ok', 'bad']";
        let moderator = Hosted::parse(described).unwrap();
        for body in [
            "<html>",
            r#"{"data":[]}"#,
            r#"{"data":[{"index":0,"embedding":[]}]}"#,
            r#"{"data":[{"index":0,"embedding":"AAA="}]}"#,
            r#"{"data":[{"index":7,"embedding":[1]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#,
        ] {
            assert!(read_embeddings(came(body), 1).is_err(), "{body}");
        }
        for body in [
            r#"{"results":[]}"#,
            r#"{"results":[{"flagged":true}]}"#,
            r#"{"results":[{"flagged":1,"categories":{},"category_scores":{}}]}"#,
        ] {
            assert!(read_moderations(&moderator, came(body), 1).is_err(), "{body}");
        }
        for body in [r#"{"results":[]}"#, r#"{"results":[{"index":1,"relevance_score":1}]}"#] {
            assert!(read_rerank(came(body), 1).is_err(), "{body}");
        }
    }
}
