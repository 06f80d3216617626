//! `/v1/pipelines`: one text in, the last step's value out, and where every part of it comes from.

use highroad_service::Problem;
use serde_json::{Value, json};

use crate::pipeline::{Composition, Finished, PipelineConfig};

/// `POST /v1/pipelines/{name}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineRequest {
    /// The text.
    pub input: String,
    /// Whether the value of every step is told and not only the last one's.
    pub values: bool,
    /// Whether a last step that generates comes in events.
    pub stream: bool,
}

impl PipelineRequest {
    /// Reads a body: `{"input": "…", "values": false, "stream": false}`.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let body = body.as_object().ok_or_else(|| Problem::invalid("the body is not a JSON object"))?;
        let input = match body.get("input") {
            Some(Value::String(input)) if !input.is_empty() => input.clone(),
            _ => return Err(Problem::invalid("`input` is a text that is not empty")),
        };
        let flag = |name: &str| match body.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Problem::invalid(format!("`{name}` is true or false"))),
        };
        Ok(Self { input, values: flag("values")?, stream: flag("stream")? })
    }

    /// The reply.
    pub fn reply(&self, request_id: &str, pipeline: &str, finished: &Finished) -> Vec<u8> {
        let step = |report: &crate::pipeline::StepReport| {
            let mut step = serde_json::to_value(report).expect("a report is JSON");
            if self.values {
                step["value"] = serde_json::to_value(&report.value).expect("a value is JSON");
            }
            step
        };
        let steps: Vec<Value> = finished.steps.iter().map(step).collect();
        let reply = json!({
            "id": request_id, "object": "pipeline.answer", "pipeline": pipeline,
            "output": finished.output, "stopped": finished.stopped, "steps": steps,
        });
        serde_json::to_vec(&reply).expect("a value is JSON")
    }
}

/// What comes before a generated text that comes in events: where it rests on.
pub fn first_event(request_id: &str, pipeline: &str, finished: &Finished) -> Vec<u8> {
    let steps = serde_json::to_value(&finished.steps).expect("reports are JSON");
    let data = json!({ "id": request_id, "object": "pipeline.steps", "pipeline": pipeline, "steps": steps });
    format!("event: pipeline\ndata: {data}\n\n").into_bytes()
}

/// A pipeline in a list, and of what it is made now.
pub fn entry(name: &str, config: &PipelineConfig, composition: Option<&Composition>) -> Value {
    let steps: Vec<&str> = config.steps.iter().map(|step| step.name.as_str()).collect();
    json!({ "id": name, "object": "pipeline", "steps": steps, "output": steps[config.output], "composition": composition })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_text() {
        let parse = |body: &str| PipelineRequest::parse(body.as_bytes()).map_err(|problem| problem.message);
        assert_eq!(
            parse(r#"{"input": "a"}"#),
            Ok(PipelineRequest { input: "a".to_owned(), values: false, stream: false })
        );
        for body in [
            "",
            "[]",
            "{}",
            r#"{"input": ""}"#,
            r#"{"input": 1}"#,
            r#"{"input": "a", "values": 1}"#,
            r#"{"input": "a", "stream": 1}"#,
        ] {
            assert!(parse(body).is_err(), "{body}");
        }
    }
}
