//! A gRPC client's `ModelInferRequest` as a case: the bytes that it serialises to, or JSON as protobuf's own tools and grpcurl write it.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use highroad_service::Problem;
use prost::Message as _;
use serde::Deserialize;
use serde_json::Value;

use crate::protocol::oip::InferRequest;
use crate::protocol::oip::grpc::infer_request;
use crate::protocol::oip::grpc::proto::model_infer_request::InferInputTensor;
use crate::protocol::oip::grpc::proto::{InferTensorContents, ModelInferRequest};

/// The request in serialised bytes; `None` where they are no such message. Any bytes may be one by chance, so it has to have inputs with names.
pub(super) fn message(bytes: &[u8]) -> Option<Result<InferRequest, Problem>> {
    let message = ModelInferRequest::decode(bytes).ok()?;
    let is_meant = !message.inputs.is_empty() && message.inputs.iter().all(|input| !input.name.is_empty());
    is_meant.then(|| infer_request(message).map(|(request, _)| request))
}

/// The request in JSON; `None` where it is another protocol's, of which an input has its elements in `data`.
pub(super) fn json_message(case: &Value) -> Option<Result<InferRequest, Problem>> {
    let raw = case.get("rawInputContents").or_else(|| case.get("raw_input_contents"));
    let has_contents = |input: &Value| input.get("contents").is_some();
    let typed = case.get("inputs").and_then(Value::as_array).is_some_and(|inputs| inputs.iter().any(has_contents));
    if raw.is_none() && !typed {
        return None;
    }
    let read = serde_json::from_value::<Request>(case.clone());
    let request = read.map_err(|error| Problem::invalid(format!("the case is no `ModelInferRequest`: {error}")));
    Some(request.and_then(Request::message).and_then(|message| infer_request(message).map(|(request, _)| request)))
}

#[derive(Deserialize)]
struct Request {
    inputs: Vec<Tensor>,
    #[serde(default, alias = "rawInputContents")]
    raw_input_contents: Vec<String>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    datatype: String,
    shape: Vec<Number>,
    contents: Option<Contents>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Contents {
    #[serde(alias = "boolContents")]
    bool_contents: Vec<bool>,
    #[serde(alias = "intContents")]
    int_contents: Vec<i32>,
    #[serde(alias = "int64Contents")]
    int64_contents: Vec<Number>,
    #[serde(alias = "uintContents")]
    uint_contents: Vec<u32>,
    #[serde(alias = "fp32Contents")]
    fp32_contents: Vec<f32>,
    #[serde(alias = "fp64Contents")]
    fp64_contents: Vec<f64>,
    #[serde(alias = "bytesContents")]
    bytes_contents: Vec<String>,
}

/// Protobuf writes 64-bit integers as texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(i64),
    Text(String),
}

impl Number {
    fn value(self) -> Result<i64, Problem> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => text.parse().map_err(|_| Problem::invalid("the case has a number that is none")),
        }
    }
}

impl Request {
    fn message(self) -> Result<ModelInferRequest, Problem> {
        let inputs = self.inputs.into_iter().map(Tensor::message).collect::<Result<_, _>>()?;
        let raw_input_contents = self.raw_input_contents.iter().map(|text| base64(text)).collect::<Result<_, _>>()?;
        Ok(ModelInferRequest { inputs, raw_input_contents, ..ModelInferRequest::default() })
    }
}

impl Tensor {
    fn message(self) -> Result<InferInputTensor, Problem> {
        let Self { name, datatype, shape, contents } = self;
        let shape = shape.into_iter().map(Number::value).collect::<Result<_, _>>()?;
        let contents = contents.map(Contents::message).transpose()?;
        Ok(InferInputTensor { name, datatype, shape, contents, ..InferInputTensor::default() })
    }
}

impl Contents {
    fn message(self) -> Result<InferTensorContents, Problem> {
        Ok(InferTensorContents {
            bool_contents: self.bool_contents,
            int_contents: self.int_contents,
            int64_contents: self.int64_contents.into_iter().map(Number::value).collect::<Result<_, _>>()?,
            uint_contents: self.uint_contents,
            fp32_contents: self.fp32_contents,
            fp64_contents: self.fp64_contents,
            bytes_contents: self.bytes_contents.iter().map(|text| base64(text)).collect::<Result<_, _>>()?,
            ..InferTensorContents::default()
        })
    }
}

fn base64(text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| Problem::invalid(format!("the case has bytes that are not base64: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use highroad_task::Input;

    use super::super::query;
    use super::*;
    use crate::protocol::oip::Query;

    fn rows(case: &[u8]) -> Vec<Input> {
        match query(case, &[]).unwrap() {
            Query::Rows(rows) => rows,
            Query::Pairs(pairs) => pairs.texts().0,
            Query::Program(_) => Vec::new(),
        }
    }

    #[test]
    fn a_message_is_read_as_bytes_and_as_json() {
        let contents = InferTensorContents { bytes_contents: vec![b"a".to_vec()], ..InferTensorContents::default() };
        let input = InferInputTensor {
            name: "text".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![1],
            contents: Some(contents),
            ..InferInputTensor::default()
        };
        let message = ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() };
        let a = [Input::Text("a".to_owned())];
        assert_eq!(rows(&message.encode_to_vec()), a);
        for json in [
            r#"{"modelName": "m", "inputs": [{"name": "text", "datatype": "BYTES", "shape": ["1"], "contents": {"bytesContents": ["YQ=="]}}]}"#,
            r#"{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}], "raw_input_contents": ["AQAAAGE="]}"#,
        ] {
            assert_eq!(rows(json.as_bytes()), a, "{json}");
        }
        assert!(query(br#"{"inputs": [], "raw_input_contents": ["?"]}"#, &[]).is_err());
        assert!(query(b"\x0a\x01", &[]).unwrap_err().message.contains("is not JSON"));
    }
}
