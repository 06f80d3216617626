//! `/v1/recommend`: a history of items in, the items that come next out.

use std::collections::HashSet;

use highroad_package::{Manifest, TaskKind};
use highroad_service::Problem;
use highroad_task::Answer;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::body_of;

/// Most items of a history, and most that are left out.
const MAX_ITEMS: usize = 10_000;
/// Most items that are recommended.
const MAX_TOP_N: u64 = 1000;
const DEFAULT_TOP_N: u64 = 10;

/// `POST /v1/recommend`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecommendRequest {
    /// The member.
    pub model: Option<String>,
    /// What somebody had, the newest last.
    pub history: Vec<String>,
    /// How many items are wanted.
    pub top_n: usize,
    /// Whether items of the history are left out.
    pub exclude_seen: bool,
    /// Further items that are left out.
    pub exclude: Vec<String>,
}

impl RecommendRequest {
    /// Reads a body: `{"model": "…", "history": ["…"], "top_n": 10, "exclude_seen": true, "exclude": []}`.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let body = body.as_object().ok_or_else(|| Problem::invalid("the body is not a JSON object"))?;
        let model = match body.get("model") {
            None | Some(Value::Null) => None,
            Some(Value::String(model)) => Some(model.clone()),
            Some(_) => return Err(Problem::invalid("`model` is a string")),
        };
        let top_n = match body.get("top_n") {
            None | Some(Value::Null) => DEFAULT_TOP_N,
            Some(n) => n
                .as_u64()
                .filter(|n| (1..=MAX_TOP_N).contains(n))
                .ok_or_else(|| Problem::invalid(format!("`top_n` is a whole number from 1 to {MAX_TOP_N}")))?,
        };
        let exclude_seen = match body.get("exclude_seen") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(flag)) => *flag,
            Some(_) => return Err(Problem::invalid("`exclude_seen` is true or false")),
        };
        let history = items(body, "history")?;
        if history.is_empty() {
            return Err(Problem::invalid("`history` has at least one item"));
        }
        // A number of at most `MAX_TOP_N` fits.
        Ok(Self { model, history, top_n: top_n as usize, exclude_seen, exclude: items(body, "exclude")? })
    }

    /// The history as the package reads it.
    pub fn text(&self) -> String {
        self.history.join(" ")
    }

    /// The reply: the items of the highest scores, best first, those of one score in the catalogue's order.
    pub fn reply(&self, request_id: &str, manifest: &Manifest, model: &str, answers: &[Answer]) -> Vec<u8> {
        let TaskKind::Recommend { items } = &manifest.task.kind else { return Vec::new() };
        let scores = answers.first().map(Answer::values).unwrap_or_default();
        let known: HashSet<&str> = items.iter().map(String::as_str).collect();
        let n_unknown = self.history.iter().filter(|item| !known.contains(item.as_str())).count();
        let data = best(items, scores, &self.left_out(), self.top_n)
            .into_iter()
            .map(|(item, score)| Recommended { item, score })
            .collect();
        let usage = HistoryUsage { n_history: self.history.len(), n_unknown };
        body_of(&RecommendReply { id: request_id, object: "list", model, data, usage })
    }

    fn left_out(&self) -> HashSet<&str> {
        let seen = self.history.iter().filter(|_| self.exclude_seen);
        seen.chain(&self.exclude).map(String::as_str).collect()
    }
}

/// The reply to [`RecommendRequest`].
#[derive(Serialize, JsonSchema)]
pub(crate) struct RecommendReply<'a> {
    /// Id of the request.
    id: &'a str,
    /// `list`
    object: &'static str,
    /// The member that answered.
    model: &'a str,
    /// Items, best first.
    data: Vec<Recommended<'a>>,
    usage: HistoryUsage,
}

#[derive(Serialize, JsonSchema)]
struct Recommended<'a> {
    item: &'a str,
    /// From 0 to 1, over all items of the catalogue.
    score: f32,
}

#[derive(Serialize, JsonSchema)]
struct HistoryUsage {
    /// Items of the history.
    n_history: usize,
    /// Those that the model does not know.
    n_unknown: usize,
}

fn best<'a>(items: &'a [String], scores: &[f32], left_out: &HashSet<&str>, top_n: usize) -> Vec<(&'a str, f32)> {
    let scored = items.iter().map(String::as_str).zip(scores.iter().copied());
    let mut wanted: Vec<(&str, f32)> = scored.filter(|(item, _)| !left_out.contains(item)).collect();
    // Stable, so that equal scores stay in order.
    wanted.sort_by(|(_, left), (_, right)| right.total_cmp(left));
    wanted.truncate(top_n);
    wanted
}

fn items(body: &Map<String, Value>, name: &str) -> Result<Vec<String>, Problem> {
    let error = || {
        Problem::invalid(format!(
            "`{name}` is a list of at most {MAX_ITEMS} items: strings that are not empty, without spaces"
        ))
    };
    let list = match body.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(list) => list.as_array().filter(|list| list.len() <= MAX_ITEMS).ok_or_else(error)?,
    };
    let is_item = |text: &&str| !text.is_empty() && !text.contains(char::is_whitespace);
    let item = |item: &Value| item.as_str().filter(is_item).map(str::to_owned).ok_or_else(error);
    list.iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<RecommendRequest, String> {
        RecommendRequest::parse(body.to_string().as_bytes()).map_err(|problem| problem.message)
    }

    #[test]
    fn a_history_is_words_and_what_was_seen_is_left_out_unless_told() {
        let request = parse(&json!({ "history": ["a", "b"], "exclude": ["d"], "top_n": 2 })).expect("a request");
        assert_eq!((request.text().as_str(), request.exclude_seen), ("a b", true));
        let items = ["a", "b", "c", "d", "e"].map(str::to_owned);
        let scores = [0.5, 0.1, 0.1, 0.2, 0.1];
        let best_of = |request: &RecommendRequest| {
            best(&items, &scores, &request.left_out(), request.top_n)
                .into_iter()
                .map(|(item, _)| item)
                .collect::<Vec<_>>()
        };
        assert_eq!(best_of(&request), ["c", "e"]);
        let again = RecommendRequest { exclude_seen: false, exclude: Vec::new(), ..request };
        assert_eq!(best_of(&again), ["a", "d"]);
        for body in [
            json!([]),
            json!({}),
            json!({ "history": [] }),
            json!({ "history": "a" }),
            json!({ "history": ["a b"] }),
            json!({ "history": [""] }),
            json!({ "history": [1] }),
            json!({ "history": ["a"], "top_n": 0 }),
            json!({ "history": ["a"], "top_n": 1001 }),
            json!({ "history": ["a"], "exclude_seen": 1 }),
            json!({ "history": ["a"], "model": 1 }),
        ] {
            assert!(parse(&body).is_err(), "{body}");
        }
    }
}
