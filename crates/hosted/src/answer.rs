//! What a host said, as an answer: the one place for evaluation and for serving.

use highroad_task::{Answer, class_of_logits};
use serde_json::{Value as Json, json};

use crate::{Hosted, HostedTask, Protocol, Question, Said, fill};

/// What a classifier that named no label is said to have answered: right nowhere.
pub const NO_LABEL: &str = "(no label)";

/// What is asked about one text. Errors, in words, where tokens cannot be made of it.
pub fn about_text(hosted: &Hosted, text: &str) -> Result<Question, String> {
    match (hosted.protocol, hosted.task) {
        (Protocol::Openai, HostedTask::Embed) => Ok(Question::embedding(hosted, text)),
        (Protocol::Openai, HostedTask::Moderate) => Ok(Question::moderation(hosted, text)),
        (Protocol::Openai, _) => {
            let prompt = hosted.prompt.as_ref().map(|prompt| fill(prompt, &[("input", text)]));
            let turns = hosted.system.iter().map(|system| ("system", system.as_str()));
            let turns: Vec<_> = turns.chain([("user", prompt.as_deref().unwrap_or(text))]).collect();
            Ok(Question::chat(hosted, &turns, 0, Some(("label", one_of("label", json!(hosted.labels))))))
        }
        _ => Question::texts(hosted, &[text.to_owned()], None),
    }
}

/// The schema of an object whose only key is one of `values`.
pub fn one_of(key: &str, values: Json) -> Json {
    json!({ "type": "object", "properties": { key: { "enum": values } }, "required": [key], "additionalProperties": false })
}

/// `None` for a reply of another kind than was asked for.
pub fn answer_of(hosted: &Hosted, said: &Said) -> Option<Answer> {
    let floats = |bits: &[u32]| bits.iter().map(|&bits| f32::from_bits(bits)).collect::<Vec<_>>();
    match (hosted.task, said) {
        (HostedTask::Embed, Said::Vector { bits }) => Some(Answer::Embedding { vector: floats(bits) }),
        (HostedTask::Infer, Said::Tensors { outputs }) => Some(Answer::Tensors(outputs.clone())),
        (HostedTask::Moderate, &Said::Moderation { flagged, score }) => {
            let label = hosted.labels.get(usize::from(flagged))?.clone();
            Some(Answer::Class { label, scores: vec![1.0 - score as f32, score as f32] })
        }
        (HostedTask::Classify, Said::Text { text, .. }) => Some(class(&hosted.labels, text)),
        (HostedTask::Classify, Said::Logits { bits }) => class_of_logits(&hosted.labels, &floats(bits)),
        (HostedTask::Classify, Said::Scores { scores }) => {
            let scores: Vec<f32> = scores.iter().map(|score| *score as f32).collect();
            let best = (0..scores.len()).reduce(|best, idx| if scores[idx] > scores[best] { idx } else { best })?;
            Some(Answer::Class { label: hosted.labels.get(best)?.clone(), scores })
        }
        _ => None,
    }
}

/// The relevance of each document as our own rerankers have it: a logit, of which scores from 0 to 1 are the logistic function.
pub fn relevances(scores: &[f64]) -> Vec<Answer> {
    let are_shares = scores.iter().all(|score| (0.0..=1.0).contains(score));
    let answer = |score: f64| Answer::Relevance { logit: if are_shares { logit(score) } else { score as f32 } };
    scores.iter().copied().map(answer).collect()
}

/// The inverse of the logistic function, as far as f32 tells scores apart.
fn logit(score: f64) -> f32 {
    const MOST: f64 = 200.0;
    (score / (1.0 - score)).ln().clamp(-MOST, MOST) as f32
}

/// Why an answer ended, in the host's words, but short and on one line.
pub fn finish_reason_of(reason: &str) -> String {
    const MOST_CHARS: usize = 40;
    reason.chars().filter(|c| !c.is_control()).take(MOST_CHARS).collect()
}

fn class(labels: &[String], text: &str) -> Answer {
    let named = label_in(labels, text);
    let scores = labels.iter().map(|label| if Some(label) == named { 1.0 } else { 0.0 }).collect();
    Answer::Class { label: named.map_or_else(|| NO_LABEL.to_owned(), String::clone), scores }
}

/// The label that a text names: as the only key of an object, as all it says but for case and what stands around it, or as the
/// only label that it has as a word.
fn label_in<'a>(labels: &'a [String], text: &str) -> Option<&'a String> {
    let object: Option<Json> = serde_json::from_str(text).ok();
    let told = object.as_ref().and_then(|object| object.get("label")?.as_str()).unwrap_or(text);
    let bare = told.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let lowered: Vec<String> = labels.iter().map(|label| label.to_lowercase()).collect();
    let whole = lowered.iter().position(|label| *label == bare || *label == told.trim().to_lowercase());
    let mut words = (0..labels.len()).filter(|&idx| has_word(&bare, &lowered[idx]));
    let idx = whole.or_else(|| words.next().filter(|_| words.next().is_none()))?;
    labels.get(idx)
}

fn has_word(text: &str, word: &str) -> bool {
    let is_end = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    text.match_indices(word).any(|(start, found)| {
        is_end(text[..start].chars().next_back()) && is_end(text[start + found.len()..].chars().next())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_where_a_text_names_one_and_only_one() {
        let labels = ["spam".to_owned(), "ham".to_owned(), "not spam".to_owned()];
        for (text, label) in [
            (" Spam.\n", Some("spam")),
            ("{\"label\": \"ham\"}", Some("ham")),
            ("**Not spam**", Some("not spam")),
            ("The label is: ham", Some("ham")),
            ("ham or spam", None),
            ("hamster", None),
            ("", None),
        ] {
            assert_eq!(label_in(&labels, text).map(String::as_str), label, "{text}");
        }
    }
}
