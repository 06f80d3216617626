//! Text Embeddings Inference: what is sent, and what comes back.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Said;
use crate::Hosted;

/// Texts, for vectors or for labels.
pub(super) fn of_texts(hosted: &Hosted, texts: &[String], dimensions: Option<u64>) -> (&'static str, Value) {
    if hosted.task == crate::HostedTask::Embed {
        let mut body = json!({ "inputs": texts, "truncate": true });
        if let Some(dimensions) = dimensions {
            body["dimensions"] = dimensions.into();
        }
        return ("embed", body);
    }
    // A list in a list: one of two strings would be a pair.
    let inputs: Vec<[&String; 1]> = texts.iter().map(|text| [text]).collect();
    ("predict", json!({ "inputs": inputs, "truncate": true }))
}

pub(super) fn of_documents(query: &str, documents: &[String]) -> (&'static str, Value) {
    ("rerank", json!({ "query": query, "texts": documents, "truncate": true, "raw_scores": false }))
}

#[derive(Deserialize)]
struct Predicted {
    label: String,
    score: f64,
}

#[derive(Deserialize)]
struct Ranked {
    index: usize,
    score: f64,
}

pub(super) fn vectors(body: &[u8], n_inputs: usize) -> Result<Vec<Said>, String> {
    let vectors: Vec<Vec<f32>> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if vectors.len() != n_inputs {
        return Err(format!("it has {} vectors for {n_inputs} inputs", vectors.len()));
    }
    vectors.into_iter().map(super::vector).collect()
}

/// The scores of each text in the order of `labels`.
pub(super) fn labels(body: &[u8], labels: &[String], n_inputs: usize) -> Result<Vec<Said>, String> {
    let rows: Vec<Vec<Predicted>> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if rows.len() != n_inputs {
        return Err(format!("it has {} answers for {n_inputs} inputs", rows.len()));
    }
    let score =
        |row: &[Predicted], label: &String| row.iter().find(|found| found.label == *label).map(|found| found.score);
    let scores = |row: Vec<Predicted>| {
        let scores: Option<Vec<f64>> = labels.iter().map(|label| score(&row, label)).collect();
        super::scores(scores.filter(|_| row.len() == labels.len()).ok_or("its labels are not the description's")?)
    };
    rows.into_iter().map(scores).collect()
}

pub(super) fn ranks(body: &[u8], n_documents: usize) -> Result<Vec<Said>, String> {
    let ranked: Vec<Ranked> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut scores = vec![None; n_documents];
    for Ranked { index, score } in ranked {
        let place = scores.get_mut(index).filter(|place| place.is_none() && score.is_finite());
        *place.ok_or("a result has an index that it cannot have")? = Some(score);
    }
    let scores = scores.into_iter().collect::<Option<Vec<f64>>>().ok_or("a document has no score")?;
    Ok(vec![Said::Relevances { scores }])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_in_the_order_of_the_description() {
        let known = ["ham".to_owned(), "spam".to_owned()];
        let body = br#"[[{"label":"spam","score":0.75},{"label":"ham","score":0.25}]]"#;
        assert_eq!(labels(body, &known, 1).unwrap(), [Said::Scores { scores: vec![0.25, 0.75] }]);
        for (body, n_inputs) in [
            (&br#"[[{"label":"spam","score":0.75},{"label":"eggs","score":0.25}]]"#[..], 1),
            (br#"[[{"label":"spam","score":0.75}]]"#, 1),
            (br#"[[{"label":"spam","score":2},{"label":"ham","score":0.25}]]"#, 1),
            (br#"[]"#, 1),
            (br#"<html>"#, 1),
        ] {
            assert!(labels(body, &known, n_inputs).is_err());
        }
        assert!(ranks(br#"[{"index":0,"score":1},{"index":0,"score":1}]"#, 2).is_err());
        assert!(vectors(b"[[]]", 1).is_err());
    }
}
