//! `/v1/pipelines`: one text in, the last step's value out, and where every part of it comes from.

use highroad_service::Problem;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::body_of;
use crate::pipeline::{Composition, Finished, PipelineConfig, StepReport, Stopped, Value as StepValue};

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
        let step = |report| PipelineStep { report, value: self.values.then_some(&report.value) };
        body_of(&PipelineReply {
            id: request_id,
            object: "pipeline.answer",
            pipeline,
            output: finished.output.as_ref(),
            stopped: finished.stopped.as_ref(),
            steps: finished.steps.iter().map(step).collect(),
        })
    }
}

/// The reply to [`PipelineRequest`].
#[derive(Serialize, JsonSchema)]
pub(crate) struct PipelineReply<'a> {
    /// Id of the request.
    id: &'a str,
    /// `pipeline.answer`
    object: &'static str,
    /// Its name.
    pipeline: &'a str,
    /// What the output step gave; absent where a step ended the request.
    output: Option<&'a StepValue>,
    /// Which step ended it.
    stopped: Option<&'a Stopped>,
    /// What each step that ran did, in the pipeline's order.
    steps: Vec<PipelineStep<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct PipelineStep<'a> {
    #[serde(flatten)]
    report: &'a StepReport,
    /// What it gave, where the request asks for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a StepValue>,
}

/// A pipeline in a list, and of what it is made now.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PipelineEntry {
    /// Its name.
    id: String,
    /// `pipeline`
    object: &'static str,
    /// The names of its steps.
    steps: Vec<String>,
    /// The step whose value is the answer.
    output: String,
    /// Of what it is made now; none where a member of it serves nothing.
    composition: Option<Composition>,
}

impl PipelineEntry {
    pub(crate) fn of(name: &str, config: &PipelineConfig, composition: Option<Composition>) -> Self {
        let steps: Vec<String> = config.steps.iter().map(|step| step.name.clone()).collect();
        let output = steps[config.output].clone();
        Self { id: name.to_owned(), object: "pipeline", steps, output, composition }
    }
}

/// What comes before a generated text that comes in events: where it rests on.
pub fn first_event(request_id: &str, pipeline: &str, finished: &Finished) -> Vec<u8> {
    let steps = serde_json::to_value(&finished.steps).expect("reports are JSON");
    let data = json!({ "id": request_id, "object": "pipeline.steps", "pipeline": pipeline, "steps": steps });
    format!("event: pipeline\ndata: {data}\n\n").into_bytes()
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
