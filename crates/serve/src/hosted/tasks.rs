//! Embeddings, moderations and reranking of hosted members: the requests of our routes as a host is asked, and its answers as ours.

use highroad_hosted::{Hosted, Tokens, Vector};
use highroad_package::Digest;
use highroad_task::{Answer, Input};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::{Received, Wanted};
use crate::protocol::chat::Tally;

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
    Wanted { path, body, most: Tokens { input, output: 0 }, events: false }
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
pub(crate) fn rerank(hosted: &Hosted, query: &str, documents: &[String]) -> Wanted {
    let body = json!({ "model": hosted.model, "query": query, "documents": documents });
    // The query counts with every document.
    wanted("rerank", &body, documents.len(), query.len() * documents.len())
}

fn json_inputs(inputs: &[Input]) -> Value {
    let one = |input: &Input| match input {
        Input::Text(text) => json!(text),
        Input::Tokens(ids) => json!(ids),
        Input::Pair { query, document } => json!([query, document]),
        Input::Image(_) => Value::Null,
    };
    inputs.iter().map(one).collect()
}

fn parse<T: for<'a> Deserialize<'a>>(received: Received) -> Result<T, String> {
    match received {
        Received::Whole(body) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
        Received::Events(..) => Err("it answered with a stream".to_owned()),
    }
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
pub(crate) fn read_moderations(received: Received, n_inputs: usize) -> Result<Read, String> {
    let Moderations { results, usage, model } = parse(received)?;
    let fits = |result: &Value| {
        let (flagged, categories, scores) = (&result["flagged"], &result["categories"], &result["category_scores"]);
        flagged.is_boolean() && categories.is_object() && scores.is_object()
    };
    if results.len() != n_inputs || !results.iter().all(fits) {
        return Err(format!("it has no result with categories for each of {n_inputs} inputs"));
    }
    let digests = results.iter().map(|result| Digest::of(result.to_string().as_bytes())).collect();
    Ok(Read { answers: Vec::new(), digests, tally: tally(usage, model), results })
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
    let are_shares = scores.iter().all(|score| (0.0..=1.0).contains(score));
    let answer = |score: f64| Answer::Relevance { logit: if are_shares { logit(score) } else { score as f32 } };
    let answers: Vec<Answer> = scores.into_iter().map(answer).collect();
    let digests = answers.iter().map(Answer::digest).collect();
    Ok(Read { answers, digests, tally: tally(usage, model), results: Vec::new() })
}

/// What our dialects make the score of: the inverse of the logistic function, as far as f32 tells scores apart.
fn logit(score: f64) -> f32 {
    const MOST: f64 = 200.0;
    (score / (1.0 - score)).ln().clamp(-MOST, MOST) as f32
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn whole(body: &str) -> Received {
        Received::Whole(body.as_bytes().to_vec())
    }

    #[test]
    fn vectors_come_in_the_order_of_their_inputs() {
        let body = r#"{"data":[{"index":1,"embedding":[0.5]},{"index":0,"embedding":"AACAPw=="}],"usage":{"prompt_tokens":4},"model":"m"}"#;
        let read = read_embeddings(whole(body), 2).unwrap();
        assert_eq!(read.answers.iter().map(|answer| answer.values()[0]).collect::<Vec<_>>(), [1.0, 0.5]);
        assert_eq!(read.tally.usage, Some(Tokens { input: 4, output: 0 }));
    }

    #[test]
    fn scores_survive_the_way_through_a_logit() {
        let body = r#"{"results":[{"index":2,"relevance_score":1.0},{"index":0,"relevance_score":0.0},{"index":1,"relevance_score":0.731}]}"#;
        let read = read_rerank(whole(body), 3).unwrap();
        let scores: Vec<f32> = read.answers.iter().map(|answer| answer.score().unwrap()).collect();
        assert!(scores[0] == 0.0 && (scores[1] - 0.731).abs() < 1e-6 && scores[2] == 1.0, "{scores:?}");
        let logits = r#"{"results":[{"index":0,"relevance_score":-7.5},{"index":1,"relevance_score":3.25}]}"#;
        assert_eq!(read_rerank(whole(logits), 2).unwrap().answers[1].values(), [3.25]);
    }

    #[test]
    fn answers_that_are_none_are_told() {
        for body in [
            "<html>",
            r#"{"data":[]}"#,
            r#"{"data":[{"index":0,"embedding":[]}]}"#,
            r#"{"data":[{"index":0,"embedding":"AAA="}]}"#,
            r#"{"data":[{"index":7,"embedding":[1]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#,
        ] {
            assert!(read_embeddings(whole(body), 1).is_err(), "{body}");
        }
        for body in [
            r#"{"results":[]}"#,
            r#"{"results":[{"flagged":true}]}"#,
            r#"{"results":[{"flagged":1,"categories":{},"category_scores":{}}]}"#,
        ] {
            assert!(read_moderations(whole(body), 1).is_err(), "{body}");
        }
        for body in [r#"{"results":[]}"#, r#"{"results":[{"index":1,"relevance_score":1}]}"#] {
            assert!(read_rerank(whole(body), 1).is_err(), "{body}");
        }
    }
}
