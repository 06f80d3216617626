//! Which of a package's prompts a request asks for, and what it says about texts that are too long, in the words of each protocol.

use highroad_service::Problem;
use highroad_task::{CutSide, Prompt, Purpose, Truncate};
use serde_json::{Map, Value};

/// What Cohere calls what a text is embedded for.
const INPUT_TYPES: [(&str, Purpose); 4] = [
    ("search_query", Purpose::Query),
    ("search_document", Purpose::Document),
    ("classification", Purpose::Classification),
    ("clustering", Purpose::Clustering),
];
/// The same in the words of Voyage and NVIDIA, whose clients speak OpenAI's protocol.
const SIDES: [(&str, Purpose); 3] =
    [("query", Purpose::Query), ("document", Purpose::Document), ("passage", Purpose::Document)];
/// The tasks of Jina's models.
const TASKS: [(&str, Purpose); 5] = [
    ("retrieval.query", Purpose::Query),
    ("retrieval.passage", Purpose::Document),
    ("classification", Purpose::Classification),
    ("separation", Purpose::Clustering),
    ("text-matching", Purpose::Similarity),
];

/// TEI's `prompt_name`: one of the package's own.
pub(crate) fn named(body: &Map<String, Value>) -> Result<Option<Prompt>, Problem> {
    Ok(text(body, "prompt_name")?.map(|name| Prompt::Named(name.to_owned())))
}

/// Cohere's `input_type`.
pub(crate) fn input_type(body: &Map<String, Value>) -> Result<Option<Prompt>, Problem> {
    purpose(body, "input_type", &INPUT_TYPES)
}

/// What a body in OpenAI's words may say beside them: `prompt_name`, Jina's `task`, or `input_type`. Jina's later models have tasks of
/// their own, so a task that is not known here is the name of a prompt.
pub(crate) fn beside_openai(body: &Map<String, Value>) -> Result<Option<Prompt>, Problem> {
    let task = text(body, "task")?.map(|task| match TASKS.iter().find(|(known, _)| *known == task) {
        Some((_, purpose)) => Prompt::For(*purpose),
        None => Prompt::Named(task.to_owned()),
    });
    let both = INPUT_TYPES.into_iter().chain(SIDES).collect::<Vec<_>>();
    let mut said = [named(body)?, task, purpose(body, "input_type", &both)?].into_iter().flatten();
    match (said.next(), said.next()) {
        (_, Some(_)) => {
            Err(Problem::invalid("only one of `prompt_name`, `task` and `input_type` says what the texts are"))
        }
        (said, None) => Ok(said),
    }
}

/// What Jina's `truncate` (true or false) means, or Cohere's.
pub(crate) fn truncate(body: &Map<String, Value>) -> Result<Truncate, Problem> {
    match body.get("truncate") {
        Some(Value::Bool(allowed)) => Ok(Truncate { allowed: Some(*allowed), side: None }),
        Some(Value::String(_)) | None | Some(Value::Null) => cohere_truncate(body),
        Some(_) => Err(Problem::invalid("`truncate` is true or false")),
    }
}

/// Cohere's `truncate`.
pub(crate) fn cohere_truncate(body: &Map<String, Value>) -> Result<Truncate, Problem> {
    match text(body, "truncate")? {
        None => Ok(Truncate::default()),
        Some("END") => Ok(Truncate::at(CutSide::End)),
        Some("START") => Ok(Truncate::at(CutSide::Start)),
        Some("NONE") => Ok(Truncate::NEVER),
        Some(_) => Err(Problem::invalid("`truncate` is `NONE`, `START` or `END`")),
    }
}

fn purpose(body: &Map<String, Value>, key: &str, known: &[(&str, Purpose)]) -> Result<Option<Prompt>, Problem> {
    let Some(said) = text(body, key)? else { return Ok(None) };
    match known.iter().find(|(name, _)| *name == said) {
        Some((_, purpose)) => Ok(Some(Prompt::For(*purpose))),
        None => {
            let names: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            Err(Problem::invalid(format!("`{key}` is one of {}", names.join(", "))))
        }
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
    use serde_json::json;

    use super::*;

    fn openai(body: Value) -> Result<Option<Prompt>, String> {
        beside_openai(body.as_object().expect("an object")).map_err(|problem| problem.message)
    }

    #[test]
    fn every_dialect_says_what_a_text_is() {
        let query = Ok(Some(Prompt::For(Purpose::Query)));
        for body in [
            json!({ "task": "retrieval.query" }),
            json!({ "input_type": "query" }),
            json!({ "input_type": "search_query" }),
        ] {
            assert_eq!(openai(body.clone()), query, "{body}");
        }
        assert_eq!(openai(json!({ "prompt_name": "s2p" })), Ok(Some(Prompt::Named("s2p".to_owned()))));
        assert_eq!(openai(json!({ "task": "nl2code.query" })), Ok(Some(Prompt::Named("nl2code.query".to_owned()))));
        assert_eq!(openai(json!({ "prompt_name": null })), Ok(None));
        for (body, complaint) in [
            (json!({ "task": 1 }), "`task` is a string"),
            (json!({ "task": "classification", "prompt_name": "x" }), "only one of"),
            (json!({ "input_type": "quary" }), "`input_type` is one of `search_query`"),
        ] {
            assert!(openai(body.clone()).unwrap_err().starts_with(complaint), "{body}");
        }
    }

    #[test]
    fn truncation_is_a_yes_or_one_of_coheres_words() {
        let read = |value: Value| truncate(&Map::from_iter([("truncate".to_owned(), value)])).map_err(|e| e.message);
        assert_eq!(read(json!(false)), Ok(Truncate::NEVER));
        assert_eq!(read(json!(true)), Ok(Truncate { allowed: Some(true), side: None }));
        assert_eq!(read(json!("START")), Ok(Truncate::at(CutSide::Start)));
        assert_eq!(read(Value::Null), Ok(Truncate::default()));
        assert!(read(json!("LEFT")).is_err() && read(json!(1)).is_err());
    }
}
