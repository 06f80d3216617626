//! Traces and what was said about them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Args, Both, Listing, Reply, checks, done, missing, page};
use crate::wire::{ExperimentId, Int, filled, one_or_many, or_default, or_empty, present};
use crate::{Assessment, Millis, TraceInfo, TraceSearch, TracesToDelete, TrackError, Tracker, limits};

/// The state of a trace whose client says none.
const NO_STATE: &str = "STATE_UNSPECIFIED";

#[derive(Deserialize)]
pub struct Put {
    #[serde(deserialize_with = "present")]
    trace: Trace,
}

#[derive(Deserialize)]
struct Trace {
    trace_info: Info,
}

#[derive(Deserialize)]
struct Info {
    #[serde(deserialize_with = "filled")]
    trace_id: String,
    trace_location: Location,
    #[serde(default)]
    request_time: Option<String>,
    #[serde(default)]
    execution_duration: Option<String>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    client_request_id: Option<String>,
    #[serde(default)]
    request_preview: Option<String>,
    #[serde(default)]
    response_preview: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    trace_metadata: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    tags: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_empty")]
    assessments: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Location {
    #[serde(default)]
    mlflow_experiment: Option<InExperiment>,
}

#[derive(Deserialize)]
struct InExperiment {
    experiment_id: ExperimentId,
}

pub async fn put(State(tracker): State<Tracker>, Args(args): Args<Put>) -> Reply {
    let given = args.trace.trace_info;
    let experiment_id = experiment_of(&given.trace_location)?;
    let trace_id = given.trace_id.clone();
    let info = TraceInfo {
        trace_id: given.trace_id,
        experiment_id,
        request_time: given.request_time.as_deref().map(moment).transpose()?.unwrap_or(tracker.now()).0,
        execution_duration: given.execution_duration.as_deref().map(duration_ms).transpose()?,
        state: given.state.filter(|state| !state.is_empty()).unwrap_or_else(|| NO_STATE.to_owned()),
        client_request_id: given.client_request_id,
        request_preview: given.request_preview,
        response_preview: given.response_preview,
        tags: given.tags,
        metadata: given.trace_metadata,
        assessments: Vec::new(),
    };
    let mut info = tracker.store.put_trace(info).await?;
    for assessment in given.assessments {
        let new = new_assessment(&trace_id, assessment, tracker.now())?;
        info.assessments.push(tracker.store.put_assessment(&new).await?);
    }
    Ok(Json(json!({ "trace": { "trace_info": info_json(&info) } })))
}

fn experiment_of(location: &Location) -> Result<ExperimentId, TrackError> {
    let found = location.mlflow_experiment.as_ref().map(|place| place.experiment_id);
    found.ok_or_else(|| {
        TrackError::Invalid("a trace is kept in an MLflow experiment: name one in `trace_location`".into())
    })
}

fn moment(text: &str) -> Result<Millis, TrackError> {
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    parsed.map(|at| Millis(at.as_millisecond())).map_err(|_| {
        TrackError::Invalid(format!("Invalid value '{text}' for a time: it must be like 2026-01-31T12:00:00.000Z"))
    })
}

/// Protobuf's JSON of a duration: `1.211s`.
fn duration_ms(text: &str) -> Result<i64, TrackError> {
    let seconds: Option<f64> = text.strip_suffix('s').and_then(|seconds| seconds.parse().ok());
    let seconds = seconds.filter(|seconds| seconds.is_finite());
    let seconds = seconds.ok_or_else(|| {
        TrackError::Invalid(format!("Invalid value '{text}' for a duration: it must be seconds like 1.5s"))
    })?;
    Ok((seconds * 1000.0).round() as i64)
}

fn info_json(info: &TraceInfo) -> Value {
    let mut json = Map::new();
    json.insert("trace_id".into(), info.trace_id.as_str().into());
    let texts = [
        ("client_request_id", &info.client_request_id),
        ("request_preview", &info.request_preview),
        ("response_preview", &info.response_preview),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            json.insert(name.into(), text.as_str().into());
        }
    }
    let place = json!({ "type": "MLFLOW_EXPERIMENT", "mlflow_experiment": { "experiment_id": info.experiment_id } });
    json.insert("trace_location".into(), place);
    json.insert("request_time".into(), time_json(info.request_time));
    if let Some(ms) = info.execution_duration {
        json.insert("execution_duration".into(), format!("{}.{:03}s", ms / 1000, ms % 1000).into());
    }
    json.insert("state".into(), info.state.as_str().into());
    json.insert("trace_metadata".into(), json!(info.metadata));
    if !info.assessments.is_empty() {
        json.insert("assessments".into(), json!(info.assessments));
    }
    json.insert("tags".into(), json!(info.tags));
    Value::Object(json)
}

fn time_json(millis: i64) -> Value {
    jiff::Timestamp::from_millisecond(millis).map_or(Value::Null, |at| format!("{at:.3}").into())
}

pub async fn get_info(State(tracker): State<Tracker>, Path(id): Path<String>) -> Reply {
    Ok(Json(json!({ "trace": { "trace_info": info_json(&tracker.store.trace_info(&id).await?) } })))
}

#[derive(Deserialize)]
pub struct ById {
    #[serde(deserialize_with = "filled")]
    trace_id: String,
}

pub async fn get(State(tracker): State<Tracker>, Args(args): Args<ById>) -> Reply {
    let info = tracker.store.trace_info(&args.trace_id).await?;
    Ok(Json(json!({ "trace": whole(&tracker, &info).await? })))
}

async fn whole(tracker: &Tracker, info: &TraceInfo) -> Result<Value, TrackError> {
    let spans = tracker.store.spans(&info.trace_id).await?;
    let mut trace = json!({ "trace_info": info_json(info) });
    if !spans.is_empty() {
        trace["spans"] = spans.into();
    }
    Ok(trace)
}

#[derive(Deserialize)]
pub struct ByIds {
    #[serde(default, deserialize_with = "one_or_many")]
    trace_ids: Vec<String>,
}

impl ByIds {
    fn ids(self) -> Result<Vec<String>, TrackError> {
        if self.trace_ids.is_empty() {
            return Err(missing("trace_ids"));
        }
        limits::at_most("trace_ids", self.trace_ids.len(), limits::MAX_TRACES_PER_CALL)?;
        Ok(self.trace_ids)
    }
}

pub async fn batch_get(State(tracker): State<Tracker>, Args(args): Args<ByIds>) -> Listing {
    let mut items = Vec::new();
    for info in tracker.store.trace_infos(&args.ids()?).await? {
        items.push(whole(&tracker, &info).await?);
    }
    page("traces", crate::Page { items, next_page_token: None })
}

pub async fn batch_get_infos(State(tracker): State<Tracker>, Args(args): Args<ByIds>) -> Listing {
    let infos = tracker.store.trace_infos(&args.ids()?).await?;
    page("trace_infos", crate::Page { items: infos.iter().map(info_json).collect(), next_page_token: None })
}

#[derive(Deserialize)]
pub struct Search {
    #[serde(deserialize_with = "present")]
    locations: Vec<Location>,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    max_results: Option<Int>,
    #[serde(default, deserialize_with = "one_or_many")]
    order_by: Vec<String>,
    #[serde(default)]
    page_token: Option<String>,
}

pub async fn search(State(tracker): State<Tracker>, Args(args): Args<Search>) -> Listing {
    let search = TraceSearch {
        experiment_ids: args.locations.iter().map(experiment_of).collect::<Result<_, _>>()?,
        filter: args.filter.unwrap_or_default(),
        order_by: args.order_by,
        max_results: checks::page_size(args.max_results)?,
        page_token: args.page_token.unwrap_or_default(),
    };
    let found = tracker.store.search_traces(&search).await?;
    let items = found.items.iter().map(info_json).collect();
    page("traces", crate::Page { items, next_page_token: found.next_page_token })
}

#[derive(Deserialize)]
pub struct Delete {
    experiment_id: ExperimentId,
    #[serde(default)]
    max_timestamp_millis: Option<Int>,
    #[serde(default)]
    max_traces: Option<Int>,
    #[serde(default, deserialize_with = "or_empty")]
    request_ids: Vec<String>,
}

pub async fn delete(State(tracker): State<Tracker>, Args(args): Args<Delete>) -> Reply {
    let which = match (args.max_timestamp_millis, args.request_ids.is_empty()) {
        (Some(Int(until)), true) => {
            TracesToDelete::Until(Millis(until), args.max_traces.map_or(i64::from(i32::MAX), |n| n.0))
        }
        (None, false) if args.max_traces.is_none() => TracesToDelete::Ids(args.request_ids),
        _ => {
            return Err(TrackError::Invalid(
                "Either `max_timestamp_millis` or `request_ids` must be specified, not both; `max_traces` goes with the first".into(),
            )
            .into());
        }
    };
    Ok(Json(json!({ "traces_deleted": tracker.store.delete_traces(args.experiment_id, &which).await? })))
}

#[derive(Deserialize)]
pub struct Tag {
    #[serde(deserialize_with = "filled")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
}

pub async fn set_tag(State(tracker): State<Tracker>, Path(id): Path<String>, Args(tag): Args<Tag>) -> Reply {
    tracker.store.set_trace_tag(&id, &tag.key, &tag.value).await?;
    done()
}

pub async fn delete_tag(State(tracker): State<Tracker>, Path(id): Path<String>, Args(tag): Args<Tag>) -> Reply {
    tracker.store.delete_trace_tag(&id, &tag.key).await?;
    done()
}

#[derive(Deserialize)]
pub struct OfRun {
    #[serde(deserialize_with = "filled")]
    run_id: String,
}

pub async fn link_to_run(State(tracker): State<Tracker>, Both(traces, args): Both<ByIds, OfRun>) -> Reply {
    tracker.store.run(&args.run_id).await?;
    tracker.store.link_traces(&traces.ids()?, "run", &args.run_id).await?;
    done()
}

#[derive(Deserialize)]
pub struct Prompts {
    #[serde(deserialize_with = "filled")]
    trace_id: String,
    #[serde(deserialize_with = "present")]
    prompt_versions: Vec<PromptVersion>,
}

#[derive(Deserialize)]
struct PromptVersion {
    name: String,
    version: String,
}

pub async fn link_prompts(State(tracker): State<Tracker>, Args(args): Args<Prompts>) -> Reply {
    for prompt in &args.prompt_versions {
        let target = format!("{}/{}", prompt.name, prompt.version);
        tracker.store.link_traces(std::slice::from_ref(&args.trace_id), "prompt", &target).await?;
    }
    done()
}

#[derive(Deserialize)]
pub struct NewAssessment {
    #[serde(deserialize_with = "present")]
    assessment: Map<String, Value>,
}

pub async fn assess(State(tracker): State<Tracker>, Path(id): Path<String>, Args(args): Args<NewAssessment>) -> Reply {
    let new = new_assessment(&id, args.assessment, tracker.now())?;
    Ok(Json(json!({ "assessment": tracker.store.put_assessment(&new).await? })))
}

fn new_assessment(trace_id: &str, mut content: Map<String, Value>, now: Millis) -> Result<Assessment, TrackError> {
    let id = format!("a-{}", uuid::Uuid::new_v4().simple());
    content.insert("assessment_id".into(), id.clone().into());
    content.insert("trace_id".into(), trace_id.into());
    for time in ["create_time", "last_update_time"] {
        if !content.contains_key(time) {
            content.insert(time.into(), time_json(now.0));
        }
    }
    assessment(trace_id, id, content, now)
}

fn assessment(trace_id: &str, id: String, content: Map<String, Value>, now: Millis) -> Result<Assessment, TrackError> {
    let name = content.get("assessment_name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(missing("assessment.assessment_name"));
    }
    limits::length("assessment.assessment_name", &name, limits::MAX_KEY)?;
    let kinds = ["feedback", "expectation", "issue"];
    let kind = kinds
        .into_iter()
        .find(|kind| content.contains_key(*kind))
        .ok_or_else(|| TrackError::Invalid("an assessment has a `feedback`, an `expectation` or an `issue`".into()))?;
    let value = value_text(content.get(kind).unwrap_or(&Value::Null));
    let overrides = content.get("overrides").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
    let created = content.get("create_time").and_then(Value::as_str).map(moment).transpose()?.unwrap_or(now);
    let (trace_id, content) = (trace_id.to_owned(), Value::Object(content));
    Ok(Assessment { assessment_id: id, trace_id, name, kind, value, overrides, created, content })
}

/// What searches compare: a text as it is, anything else as JSON.
fn value_text(of: &Value) -> String {
    let value = of.get("value").or_else(|| of.get("serialized_value")?.get("value")).unwrap_or(&Value::Null);
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub async fn assessment_of(State(tracker): State<Tracker>, Path((trace, id)): Path<(String, String)>) -> Reply {
    Ok(Json(json!({ "assessment": tracker.store.assessment(&trace, &id).await? })))
}

#[derive(Deserialize)]
pub struct Change {
    #[serde(deserialize_with = "present")]
    assessment: Map<String, Value>,
    #[serde(default, deserialize_with = "or_default")]
    update_mask: String,
}

pub async fn change_assessment(
    State(tracker): State<Tracker>,
    Path((trace, id)): Path<(String, String)>,
    Args(args): Args<Change>,
) -> Reply {
    let Value::Object(mut content) = tracker.store.assessment(&trace, &id).await? else {
        return Err(TrackError::Invalid("the assessment is no object".into()).into());
    };
    for field in args.update_mask.split(',').map(str::trim).filter(|field| !field.is_empty()) {
        let field = super::snake_case(field);
        match args.assessment.get(&field) {
            Some(value) => drop(content.insert(field, value.clone())),
            None => drop(content.remove(&field)),
        }
    }
    let now = tracker.now();
    content.insert("last_update_time".into(), time_json(now.0));
    let mut changed = assessment(&trace, id, content, now)?;
    // What it overrides was settled when it was made.
    changed.overrides = None;
    Ok(Json(json!({ "assessment": tracker.store.put_assessment(&changed).await? })))
}

pub async fn delete_assessment(State(tracker): State<Tracker>, Path((trace, id)): Path<(String, String)>) -> Reply {
    tracker.store.delete_assessment(&trace, &id).await?;
    done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_are_protobufs() {
        assert_eq!(moment("1970-01-01T00:00:01.5Z").unwrap(), Millis(1500));
        assert_eq!(time_json(1500), "1970-01-01T00:00:01.500Z");
        assert_eq!(duration_ms("1.211s").unwrap(), 1211);
        assert!(duration_ms("1211").is_err() && duration_ms("infs").is_err() && moment("now").is_err());
    }

    #[test]
    fn an_assessment_has_a_name_and_a_kind() {
        let of = |json: Value| new_assessment("tr-1", json.as_object().unwrap().clone(), Millis(0));
        let made = of(json!({"assessment_name": "good", "feedback": {"value": true}})).unwrap();
        assert_eq!(
            (made.kind, made.value.as_str(), made.content["trace_id"].as_str()),
            ("feedback", "true", Some("tr-1"))
        );
        assert!(of(json!({"assessment_name": "good"})).is_err());
        assert!(of(json!({"feedback": {"value": true}})).is_err());
    }
}
