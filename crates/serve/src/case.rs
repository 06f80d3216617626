//! A case file of `highroad replay`: one served input again, as a golden case or as the body that was sent.

mod grpc;

use highroad_service::Problem;
use highroad_task::raw::{TensorSpec, of_arrays};
use highroad_task::{Input, Prompt};
use serde_json::Value;

use crate::protocol::cohere;
use crate::protocol::oip::{InferRequest, Query, ROUTE};
use crate::protocol::openai;
use crate::protocol::recommend::RecommendRequest;
use crate::protocol::rerank::{self, RerankRequest};
use crate::protocol::similarity::SimilarityRequest;
use crate::protocol::tei::{self, Wish};

/// What a case asks, of a program with inputs `specs`.
///
/// Taken are `{"input": {"text": "…"}}` (a golden case), `{"text": "…"}`, `{"tokens": […]}`, `{"pair": {…}}`,
/// `{"image_base64": "…"}`, `{"tensors": {…}}`, a PNG, JPEG or WebP itself, the body of an OpenAI
/// request (`{"input": "…"}` and its other shapes), that of a rerank request (or a golden case with `query` and `documents`), the body of
/// an Open Inference Protocol request (JSON, with binary tensors behind it or without), of one to Text Embeddings Inference or of one to
/// Cohere for embeddings, and a gRPC client's `ModelInferRequest`, as it is serialised or as JSON. Where texts that are too long are cut
/// is in the request log.
pub fn query(case: &[u8], specs: &[TensorSpec]) -> Result<Query, Problem> {
    if is_image(case) {
        return Ok(Query::Rows(vec![Input::Image(case.into())]));
    }
    if let Some(json_bytes) = json_before_tensors(case) {
        return InferRequest::parse(case, Some(json_bytes))?.query(specs).map(|(query, _)| query);
    }
    let case: Value = match serde_json::from_slice(case) {
        Ok(json) => json,
        Err(error) => match grpc::message(case) {
            Some(request) => return request?.query(specs).map(|(query, _)| query),
            None => return Err(Problem::invalid(format!("the case is not JSON: {error}"))),
        },
    };
    if let Some(request) = grpc::json_message(&case) {
        return request?.query(specs).map(|(query, _)| query);
    }
    if let Some(inputs) = case.get("inputs") {
        if !is_tensors(inputs) {
            return tei_inputs(case).map(Query::Rows);
        }
        let body = case.to_string();
        return InferRequest::parse(body.as_bytes(), None)?.query(specs).map(|(query, _)| query);
    }
    if case.get("texts").is_some() && case.get("query").is_none() {
        let request = cohere::EmbedRequest::parse(case.to_string().as_bytes(), cohere::Version::V2)?;
        return Ok(Query::Rows(request.inputs()));
    }
    let golden = case.get("input").filter(|input| input.is_object()).unwrap_or(&case);
    if GOLDEN_KEYS.iter().any(|key| golden.get(key).is_some()) {
        return match golden_input(golden)? {
            Input::Tensors(arrays) => {
                let tensors = of_arrays(specs, &arrays).map_err(|error| Problem::invalid(error.to_string()))?;
                Ok(Query::Program(tensors))
            }
            input => Ok(Query::Rows(vec![input])),
        };
    }
    if golden.get("image").is_some() {
        return Err(Problem::invalid("the case names an image's file: give that file itself as the input"));
    }
    if case.get("pairs").is_some() {
        return SimilarityRequest::parse(case.to_string().as_bytes()).map(|request| Query::Pairs(request.pairs));
    }
    if golden.get("history").is_some() {
        let request = RecommendRequest::parse(golden.to_string().as_bytes())?;
        return Ok(Query::Rows(vec![Input::Text(request.text())]));
    }
    if golden.get("query").is_some() {
        return RerankRequest::parse(golden.to_string().as_bytes(), "1").map(|request| Query::Rows(request.inputs()));
    }
    let inputs = openai::inputs(&case).map_err(|refused| refused.problem)?;
    Ok(Query::Rows(inputs))
}

/// The same of a request that was asked `on` a route: on the Open Inference Protocol's, what is no JSON of a case is the one raw text that
/// a body is with `Inference-Header-Content-Length: 0`.
pub fn query_on(case: &[u8], specs: &[TensorSpec], on: &str) -> Result<Query, Problem> {
    let refused = match query(case, specs) {
        Ok(query) => return Ok(query),
        Err(problem) => problem,
    };
    let is_other = matches!(serde_json::from_slice(case), Ok(Value::Object(_) | Value::Array(_)));
    match str::from_utf8(case) {
        Ok(text) if on == ROUTE && !text.is_empty() && !is_other => Ok(Query::Rows(vec![Input::Text(text.to_owned())])),
        _ => Err(refused),
    }
}

/// The rows of a reranking as an embedder was asked them: the query once, then each document by itself. Others as they are.
pub fn for_embedder(rows: Vec<Input>) -> Vec<Input> {
    let query = match rows.first() {
        Some(Input::Pair { query, .. }) => query.clone(),
        _ => return rows,
    };
    let document = |row| match row {
        Input::Pair { document, .. } => Some(document),
        _ => None,
    };
    rerank::sides(query, rows.into_iter().filter_map(document))
}

/// The rows with what `cut` leaves of the documents of a reranking.
pub fn with_documents_cut<E>(rows: Vec<Input>, cut: impl Fn(&str) -> Result<&str, E>) -> Result<Vec<Input>, E> {
    let one = |row| match row {
        Input::Pair { query, document } => Ok(Input::Pair { query, document: cut(&document)?.to_owned() }),
        row => Ok(row),
    };
    rows.into_iter().map(one).collect()
}

/// The rows with the one prompt that a request's log names, where the case itself says none: a golden case is the bare text.
pub fn with_logged_prompt(rows: Vec<Input>, names: &[String]) -> Vec<Input> {
    match names {
        [name] => {
            let prompt = Prompt::Named(name.clone());
            rows.into_iter().map(|row| row.prompted(Some(&prompt))).collect()
        }
        _ => rows,
    }
}

/// Whether `inputs` are those of the Open Inference Protocol rather than TEI's.
fn is_tensors(inputs: &Value) -> bool {
    inputs.as_array().is_some_and(|inputs| inputs.first().is_none_or(Value::is_object))
}

fn tei_inputs(case: Value) -> Result<Vec<Input>, Problem> {
    let Value::Object(body) = case else { return Ok(Vec::new()) };
    let body = tei::Body(body);
    let pairs = tei::PredictRequest::parse(&body).map(|request| request.inputs);
    let inputs = match Wish::of_shape(&body) {
        Wish::Similarity => tei::SimilarityRequest::parse(&body).map(|request| request.inputs),
        Wish::Predict => pairs,
        // A batch of pairs has no other reading.
        _ => tei::EmbedRequest::parse(&body).map(|request| request.inputs).or(pairs),
    };
    inputs.map_err(|refused| refused.problem)
}

/// Where the JSON of a request ends that has binary tensors behind it, as `Inference-Header-Content-Length` said.
fn json_before_tensors(case: &[u8]) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(case).into_iter::<Value>();
    let header = values.next()?.ok()?;
    let json_bytes = values.byte_offset();
    let has_more = case[json_bytes..].iter().any(|byte| !byte.is_ascii_whitespace());
    (has_more && header.get("inputs").is_some_and(is_tensors)).then_some(json_bytes)
}

/// Whether the case is a picture's file rather than JSON.
fn is_image(case: &[u8]) -> bool {
    let is_webp = case.starts_with(b"RIFF") && case.get(8..12) == Some(b"WEBP");
    case.starts_with(b"\x89PNG") || case.starts_with(b"\xff\xd8\xff") || is_webp
}

const GOLDEN_KEYS: [&str; 5] = ["text", "tokens", "pair", "image_base64", "tensors"];

fn golden_input(golden: &Value) -> Result<Input, Problem> {
    let known = golden.as_object().map(|object| {
        let input = object.iter().filter(|(key, _)| GOLDEN_KEYS.contains(&key.as_str()));
        input.map(|(key, value)| (key.clone(), value.clone())).collect()
    });
    let input = Value::Object(known.unwrap_or_default());
    serde_json::from_value(input).map_err(|error| Problem::invalid(format!("the case's input: {error}")))
}

#[cfg(test)]
mod tests {
    use highroad_task::Purpose;
    use highroad_task::raw::{DType, Dim};

    use super::*;

    fn rows(case: &str) -> Result<Vec<Input>, String> {
        match query(case.as_bytes(), &[]) {
            Ok(Query::Rows(rows)) => Ok(rows),
            Ok(Query::Pairs(pairs)) => Ok(pairs.texts().0),
            Ok(Query::Program(_)) => Err("a program query".to_owned()),
            Err(problem) => Err(problem.message),
        }
    }

    fn text(text: &str) -> Input {
        Input::Text(text.to_owned())
    }

    #[test]
    fn a_case_is_a_golden_case_or_the_body_that_was_sent() {
        for case in [
            r#"{"id": "x", "input": {"text": "a"}, "expected": "b"}"#,
            r#"{"text": "a"}"#,
            r#"{"input": "a"}"#,
            r#"{"model": "m", "input": ["a"]}"#,
            r#"{"model": "m", "input": [{"type": "text", "text": "a"}]}"#,
            r#"{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}"#,
            r#"{"inputs": "a"}"#,
            r#"{"texts": ["a"]}"#,
            r#"{"inputs": ["a"], "normalize": false}"#,
            r#"{"inputs": [["a"]], "parameters": {}}"#,
            r#"{"inputs": "a", "truncation_direction": "left"}"#,
            r#"{"texts": ["a"], "truncate": "START"}"#,
        ] {
            assert_eq!(rows(case), Ok(vec![text("a")]), "{case}");
        }
        for case in [
            r#"{"pairs": [["a", "b"], ["a", "a"]]}"#,
            r#"{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]},
                           {"name": "text_pair", "datatype": "BYTES", "shape": [1], "data": ["b"]}]}"#,
        ] {
            assert_eq!(rows(case), Ok(vec![text("a"), text("b")]), "{case}");
        }
        let sought = text("a").prompted(Some(&Prompt::For(Purpose::Query)));
        for case in [
            r#"{"texts": ["a"], "input_type": "search_query"}"#,
            r#"{"model": "m", "input": "a", "task": "retrieval.query"}"#,
        ] {
            assert_eq!(rows(case), Ok(vec![sought.clone()]), "{case}");
        }
        let named = text("a").prompted(Some(&Prompt::Named("q".to_owned())));
        for case in [
            r#"{"inputs": "a", "prompt_name": "q"}"#,
            r#"{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "parameters": {"prompt_name": "q"}}"#,
        ] {
            assert_eq!(rows(case), Ok(vec![named.clone()]), "{case}");
        }
        assert_eq!(with_logged_prompt(vec![text("a")], &["q".to_owned()]), [named]);
        assert_eq!(with_logged_prompt(vec![sought.clone()], &["q".to_owned()]), [sought]);
        assert_eq!(rows(r#"{"input": {"tokens": [1, 2]}}"#), Ok(vec![Input::Tokens(vec![1, 2])]));
        let image = |bytes: &[u8]| Input::Image(bytes.into());
        assert_eq!(rows(r#"{"input": {"image_base64": "iVA="}}"#), Ok(vec![image(b"\x89P")]));
        assert!(rows(r#"{"image_base64": "?"}"#).unwrap_err().contains("is not base64"));
        match query(b"\x89PNG\r\n", &[]) {
            Ok(Query::Rows(rows)) => assert_eq!(rows, [image(b"\x89PNG\r\n")]),
            other => panic!("{other:?}"),
        }
        let pair = |document: &str| Input::Pair { query: "q".to_owned(), document: document.to_owned() };
        assert_eq!(rows(r#"{"pair": {"query": "q", "document": "d"}}"#), Ok(vec![pair("d")]));
        for case in [
            r#"{"id": "x", "input": {"query": "q", "documents": ["d", "e"]}, "expected": [0, 1]}"#,
            r#"{"model": "m", "query": "q", "documents": ["d", {"text": "e"}]}"#,
            r#"{"query": "q", "texts": ["d", "e"]}"#,
        ] {
            assert_eq!(rows(case), Ok(vec![pair("d"), pair("e")]), "{case}");
        }
        assert_eq!(rows(r#"{"input": [[1, 2], [3]]}"#), Ok(vec![Input::Tokens(vec![1, 2]), Input::Tokens(vec![3])]));
    }

    #[test]
    fn a_golden_case_of_tensors_is_the_programs_inputs() {
        let size = |name: &str| Dim::Symbol(name.to_owned());
        let spec = TensorSpec { name: "x".to_owned(), dtype: DType::F32, sizes: vec![size("b"), Dim::Known(2)] };
        let case = br#"{"id": "a", "input": {"tensors": {"x": [[0.5, 1]]}}, "expected": {"tensors": {"y": [[3]]}}}"#;
        match query(case, std::slice::from_ref(&spec)) {
            Ok(Query::Program(tensors)) => {
                assert_eq!((tensors[0].shape(), tensors[0].as_slice::<f32>()), (&[1, 2][..], Some(&[0.5, 1.0][..])));
            }
            other => panic!("{other:?}"),
        }
        let unknown = query(br#"{"tensors": {"z": [1]}}"#, &[spec]).unwrap_err().message;
        assert_eq!(unknown, "there is no input `z`: the program takes `x`");
    }

    #[test]
    fn binary_tensors_follow_their_json() {
        let header = r#"{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}"#;
        let case = [header.as_bytes(), &[1, 0, 0, 0, b'a']].concat();
        match query(&case, &[]) {
            Ok(Query::Rows(rows)) => assert_eq!(rows, [text("a")]),
            other => panic!("{other:?}"),
        }
        assert!(query(&case[..case.len() - 1], &[]).is_err());
    }

    #[test]
    fn a_raw_text_is_a_case_of_the_route_that_takes_one() {
        let on = |case: &str, route| match query_on(case.as_bytes(), &[], route) {
            Ok(Query::Rows(rows)) => Some(rows),
            _ => None,
        };
        for raw in ["hello raw", "123", "\"quoted\"", "{ no JSON"] {
            assert_eq!(on(raw, ROUTE), Some(vec![text(raw)]), "{raw}");
        }
        assert_eq!(on(r#"{"text": "a"}"#, ROUTE), Some(vec![text("a")]));
        assert_eq!(
            [on("hello raw", "/v1/embeddings"), on(r#"{"texd": "a"}"#, ROUTE), on("", ROUTE)],
            [None, None, None]
        );
    }

    #[test]
    fn what_is_no_case_is_told() {
        for case in [
            "",
            "[]",
            "{}",
            r#"{"inputs": 1}"#,
            r#"{"input": {}}"#,
            r#"{"text": 1}"#,
            r#"{"text": "a", "tokens": [1]}"#,
        ] {
            assert!(rows(case).is_err(), "{case}");
        }
    }
}
