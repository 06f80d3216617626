//! Spans as OpenTelemetry's exporters send them: `POST /v1/traces`, protobuf or JSON, plain or gzipped.

use std::io::Read as _;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span as OtlpSpan, span::SpanKind, status::StatusCode};
use prost::Message as _;
use serde_json::{Map, Value, json};

use super::{Edge, missing};
use crate::wire::ExperimentId;
use crate::{Previews, Span, TrackError, Tracker, limits};

/// The header that says which experiment spans belong to.
const EXPERIMENT: &str = "x-mlflow-experiment-id";
/// The header that says which run they belong to, if any.
const RUN: &str = "x-mlflow-run-id";
/// Deepest nesting of an attribute's value.
const MAX_DEPTH: usize = 32;

pub async fn export(State(tracker): State<Tracker>, headers: HeaderMap, body: Bytes) -> Result<Response, Edge> {
    let spans = spans_of(request_of(&headers, &body)?)?;
    let experiment_id = experiment_of(&headers)?;
    tracker.store.put_spans(experiment_id, &spans).await?;
    if let Some(run_id) = headers.get(RUN).and_then(|value| value.to_str().ok()) {
        let mut ids: Vec<String> = spans.into_iter().map(|span| span.trace_id).collect();
        ids.dedup();
        tracker.store.run(run_id).await?;
        tracker.store.link_traces(&ids, "run", run_id).await?;
    }
    let reply = ExportTraceServiceResponse::default().encode_to_vec();
    Ok(([(header::CONTENT_TYPE, "application/x-protobuf")], reply).into_response())
}

fn experiment_of(headers: &HeaderMap) -> Result<ExperimentId, TrackError> {
    let text = headers.get(EXPERIMENT).and_then(|value| value.to_str().ok()).ok_or_else(|| missing(EXPERIMENT))?;
    text.parse().map(ExperimentId).map_err(|_| {
        TrackError::Invalid(format!("Invalid experiment ID '{text}'. Experiment ID must be a valid integer."))
    })
}

fn request_of(headers: &HeaderMap, body: &[u8]) -> Result<ExportTraceServiceRequest, TrackError> {
    let unreadable = |why: String| TrackError::Invalid(format!("Invalid OpenTelemetry format: {why}"));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let plain = match text(header::CONTENT_ENCODING) {
        "" | "identity" => body.to_vec(),
        "gzip" => unzipped(body)?,
        other => return Err(unreadable(format!("the content encoding `{other}` is not spoken; use gzip or none"))),
    };
    match text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim() {
        "application/x-protobuf" => {
            ExportTraceServiceRequest::decode(plain.as_slice()).map_err(|error| unreadable(error.to_string()))
        }
        "application/json" => serde_json::from_slice(&plain).map_err(|error| unreadable(error.to_string())),
        other => Err(TrackError::Invalid(format!(
            "Invalid Content-Type: {other}. Expected: application/x-protobuf or application/json"
        ))),
    }
}

fn unzipped(body: &[u8]) -> Result<Vec<u8>, TrackError> {
    let mut plain = Vec::new();
    let most = limits::MAX_BODY_BYTES as u64;
    let read = flate2::read::GzDecoder::new(body).take(most + 1).read_to_end(&mut plain);
    read.map_err(|error| TrackError::Invalid(format!("the gzipped body cannot be read: {error}")))?;
    if plain.len() > limits::MAX_BODY_BYTES {
        return Err(TrackError::TooLarge(format!("the unpacked request is over {most} bytes")));
    }
    Ok(plain)
}

fn spans_of(request: ExportTraceServiceRequest) -> Result<Vec<Span>, TrackError> {
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| span_of(&span)).collect()
}

fn span_of(span: &OtlpSpan) -> Result<Span, TrackError> {
    if span.trace_id.len() != 16 || span.span_id.len() != 8 {
        return Err(TrackError::Invalid(format!(
            "the span `{}` has an id of {} and a trace id of {} bytes; they have 8 and 16",
            span.name,
            span.span_id.len(),
            span.trace_id.len()
        )));
    }
    let text =
        |key: &str| attribute(span, key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let root = span.parent_span_id.is_empty().then(|| Previews {
        request: text("mlflow.spanInputs").map(preview),
        response: text("mlflow.spanOutputs").map(preview),
    });
    let status = span.status.as_ref().map(|status| status.code()).unwrap_or_default();
    Ok(Span {
        trace_id: format!("tr-{}", hex(&span.trace_id)),
        span_id: hex(&span.span_id),
        start_ns: i64::try_from(span.start_time_unix_nano).unwrap_or(i64::MAX),
        end_ns: i64::try_from(span.end_time_unix_nano).unwrap_or(i64::MAX),
        name: span.name.clone(),
        kind: text("mlflow.spanType").unwrap_or_else(|| "UNKNOWN".to_owned()),
        status: status.as_str_name().trim_start_matches("STATUS_CODE_").to_owned(),
        root,
        content: span_json(span)?,
    })
}

fn preview(mut text: String) -> String {
    limits::cut(&mut text, limits::MAX_TRACE_PREVIEW);
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of an attribute as plain JSON.
fn attribute(span: &OtlpSpan, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    plain(found.value.as_ref()?, 0)
}

fn plain(value: &AnyValue, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    Some(match value.value.as_ref()? {
        any_value::Value::StringValue(text) => text.as_str().into(),
        any_value::Value::BoolValue(value) => (*value).into(),
        any_value::Value::IntValue(value) => (*value).into(),
        any_value::Value::DoubleValue(value) => (*value).into(),
        any_value::Value::BytesValue(bytes) => STANDARD.encode(bytes).into(),
        any_value::Value::ArrayValue(list) => list.values.iter().map(|each| plain(each, depth + 1)).collect(),
        any_value::Value::KvlistValue(list) => {
            let entry = |each: &KeyValue| Some((each.key.clone(), plain(each.value.as_ref()?, depth + 1)?));
            Value::Object(list.values.iter().filter_map(entry).collect())
        }
        _ => return None,
    })
}

/// The span in protobuf's JSON with the fields' own names, as MLflow's clients read it back. What is unset is left out.
fn span_json(span: &OtlpSpan) -> Result<Value, TrackError> {
    let mut json = Map::new();
    let mut set = |name: &str, value: Value| {
        let unset = value.is_null() || value == "" || value == 0 || value.as_array().is_some_and(Vec::is_empty);
        if !unset {
            json.insert(name.to_owned(), value);
        }
    };
    set("trace_id", STANDARD.encode(&span.trace_id).into());
    set("span_id", STANDARD.encode(&span.span_id).into());
    set("trace_state", span.trace_state.as_str().into());
    set("parent_span_id", STANDARD.encode(&span.parent_span_id).into());
    set("flags", span.flags.into());
    set("name", span.name.as_str().into());
    if span.kind != SpanKind::Unspecified as i32 {
        set("kind", span.kind().as_str_name().into());
    }
    set("start_time_unix_nano", span.start_time_unix_nano.into());
    set("end_time_unix_nano", span.end_time_unix_nano.into());
    set("attributes", attributes_json(&span.attributes)?);
    let events: Result<Vec<Value>, TrackError> = span
        .events
        .iter()
        .map(|event| {
            let attributes = attributes_json(&event.attributes)?;
            Ok(json!({ "time_unix_nano": event.time_unix_nano, "name": event.name, "attributes": attributes }))
        })
        .collect();
    set("events", events?.into());
    let links: Result<Vec<Value>, TrackError> = span
        .links
        .iter()
        .map(|link| {
            let (trace_id, span_id) = (STANDARD.encode(&link.trace_id), STANDARD.encode(&link.span_id));
            Ok(json!({ "trace_id": trace_id, "span_id": span_id, "attributes": attributes_json(&link.attributes)? }))
        })
        .collect();
    set("links", links?.into());
    if let Some(status) = span.status.as_ref().filter(|status| status.code() != StatusCode::Unset) {
        let mut told = json!({ "code": status.code().as_str_name() });
        if !status.message.is_empty() {
            told["message"] = status.message.as_str().into();
        }
        set("status", told);
    }
    Ok(Value::Object(json))
}

fn attributes_json(attributes: &[KeyValue]) -> Result<Value, TrackError> {
    let one = |each: &KeyValue| {
        let value = each.value.as_ref().map(|value| typed(value, 0)).transpose()?.unwrap_or_else(|| json!({}));
        Ok(json!({ "key": each.key, "value": value }))
    };
    attributes.iter().map(one).collect()
}

/// A value with its type, as protobuf's JSON has it.
fn typed(value: &AnyValue, depth: usize) -> Result<Value, TrackError> {
    if depth > MAX_DEPTH {
        return Err(TrackError::Invalid(format!("an attribute is nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(match &value.value {
        Some(any_value::Value::StringValue(text)) => json!({ "string_value": text }),
        Some(any_value::Value::BoolValue(value)) => json!({ "bool_value": value }),
        Some(any_value::Value::IntValue(value)) => json!({ "int_value": value }),
        Some(any_value::Value::DoubleValue(value)) => json!({ "double_value": double(*value) }),
        Some(any_value::Value::BytesValue(bytes)) => json!({ "bytes_value": STANDARD.encode(bytes) }),
        Some(any_value::Value::ArrayValue(list)) => {
            let values: Result<Vec<Value>, _> = list.values.iter().map(|each| typed(each, depth + 1)).collect();
            json!({ "array_value": { "values": values? } })
        }
        Some(any_value::Value::KvlistValue(list)) => {
            let one = |each: &KeyValue| -> Result<Value, TrackError> {
                let value = each.value.as_ref().map(|value| typed(value, depth + 1)).transpose()?;
                Ok(json!({ "key": each.key, "value": value.unwrap_or_else(|| json!({})) }))
            };
            let values: Result<Vec<Value>, _> = list.values.iter().map(one).collect();
            json!({ "kvlist_value": { "values": values? } })
        }
        _ => json!({}),
    })
}

/// JSON has no word for what is no number; protobuf's has.
fn double(value: f64) -> Value {
    match value {
        _ if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(value: any_value::Value) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    #[test]
    fn a_span_is_told_with_types_and_without_what_is_unset() {
        let attribute =
            KeyValue { key: "n".into(), value: Some(value(any_value::Value::IntValue(3))), ..Default::default() };
        let span = OtlpSpan {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "a".into(),
            start_time_unix_nano: 5,
            attributes: vec![attribute],
            ..OtlpSpan::default()
        };
        let told = span_of(&span).unwrap();
        assert_eq!((told.span_id.as_str(), told.status.as_str()), ("0202020202020202", "UNSET"));
        assert!(told.root.is_some());
        assert_eq!(
            told.content,
            json!({
                "trace_id": "AQEBAQEBAQEBAQEBAQEBAQ==", "span_id": "AgICAgICAgI=", "name": "a", "start_time_unix_nano": 5,
                "attributes": [{"key": "n", "value": {"int_value": 3}}],
            })
        );
    }

    #[test]
    fn ids_of_another_length_and_bottomless_values_are_refused() {
        assert!(span_of(&OtlpSpan::default()).is_err());
        let mut nested = value(any_value::Value::IntValue(1));
        for _ in 0..=MAX_DEPTH {
            let list = opentelemetry_proto::tonic::common::v1::ArrayValue { values: vec![nested] };
            nested = value(any_value::Value::ArrayValue(list));
        }
        assert!(typed(&nested, 0).is_err());
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/x-protobuf".parse().unwrap());
        assert!(request_of(&headers, b"\xff\xff\xff").is_err());
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert!(request_of(&headers, b"not gzip").is_err());
    }
}
