//! What members meet, and the right answers that come later.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use highroad_service::access::Principal;
use highroad_service::{Kind, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{App, Routes, openai_method, openai_response, printable};
use crate::monitor::{Finding, Given, LabelOutcome, Labelled, MAX_LABELS_AT_ONCE, MemberReport};
use crate::protocol::json_of;
use crate::protocol::openai::Refused;
use crate::request_log::Record;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/v1/highroad/monitor", get(members).fallback(openai_method))
        .get("/v1/highroad/monitor/{member}", get(member).fallback(openai_method))
        .post("/v1/highroad/labels", post(labels).fallback(openai_method))
}

async fn members(State(app): State<App>) -> Response {
    // Evidence and kernel tests take milliseconds a member.
    let monitor = app.portfolio.monitor().clone();
    let own = app.portfolio.deployments().into_iter().map(|deployment| deployment.name().to_owned());
    let allowed: BTreeSet<String> = own.chain(app.portfolio.hosted().names()).collect();
    let reports = tokio::task::spawn_blocking(move || monitor.reports(|member| allowed.contains(member))).await;
    let reports: Vec<MemberReport> = reports.unwrap_or_default().into_iter().map(MemberReport::brief).collect();
    let findings = reports.iter().flat_map(|report| report.findings.clone()).collect();
    Json(json_of(&Monitored { members: reports, findings })).into_response()
}

/// How every member that is watched stands.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Monitored {
    /// Without distributions and series.
    members: Vec<MemberReport>,
    /// What differs now, of all of them.
    findings: Vec<Finding>,
}

async fn member(State(app): State<App>, Path(member): Path<String>) -> Response {
    let found = async {
        if !app.portfolio.hosted().names().contains(&member) {
            app.portfolio.deployment(&member).map_err(Refused::from)?;
        }
        let (monitor, name) = (app.portfolio.monitor().clone(), member.clone());
        let report = tokio::task::spawn_blocking(move || monitor.report(&name)).await;
        report
            .ok()
            .flatten()
            .ok_or_else(|| Problem::not_found(format!("`{}` is not watched", printable(&member))).into())
    };
    openai_response(found.await.map(|report| Json(report).into_response()))
}

/// What became of right answers.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LabelsTaken {
    /// How many count.
    counted: usize,
    /// Each, in the order sent.
    results: Vec<Labelled>,
}

async fn labels(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.take_labels(body).await.map_err(Refused::from))
}

/// One right answer, or several. Errors tell where a body is something else, and nothing of what it says.
fn read_labels(body: &[u8]) -> Result<Vec<Given>, Problem> {
    const EXPECTED: &str = "expected `request_id` and `label` (or `relevant`), or `labels` with a list of these";
    let refused = |what: String| Problem::invalid(format!("{what}; {EXPECTED}"));
    if body.trim_ascii().is_empty() {
        return Err(refused("the body is empty".to_owned()));
    }
    let mut body: Value = serde_json::from_slice(body).map_err(|error| {
        refused(format!("the body is not JSON at line {}, column {}", error.line(), error.column()))
    })?;
    let (items, is_list) = match body.get_mut("labels").map(Value::take) {
        Some(Value::Array(items)) => (items, true),
        Some(_) => return Err(refused("`labels` is no list".to_owned())),
        None => (vec![body], false),
    };
    if items.len() > MAX_LABELS_AT_ONCE {
        let message = format!("{} labels; the limit is {MAX_LABELS_AT_ONCE} at once", items.len());
        return Err(Problem::new(Kind::Invalid, message));
    }
    let one = |(idx, item)| {
        let place = if is_list { format!("`labels[{idx}]`") } else { "the body".to_owned() };
        serde_json::from_value(item).map_err(|_| refused(format!("{place} is something else")))
    };
    items.into_iter().enumerate().map(one).collect()
}

impl App {
    async fn take_labels(&self, body: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
        let given = read_labels(&self.whole(body)?)?;
        let (monitor, log, may) = (self.portfolio.monitor().clone(), self.log.clone(), super::records::reader());
        let allowed: BTreeSet<String> =
            self.portfolio.deployments().iter().map(|deployment| deployment.name().to_owned()).collect();
        // The files of the request log are read.
        let taken = tokio::task::spawn_blocking(move || {
            let ids = given.iter().map(|given| given.request_id.clone()).collect();
            // What a key may not read is as unknown to it as what never was.
            let may = |record: &Record| allowed.contains(&record.member) && may(record);
            log.find_all(&ids, may).map(|records| monitor.label(&given, &records))
        });
        let results = taken.await.map_err(|error| Problem::internal(&error))?;
        let results = results.map_err(|error| Problem::internal(&error))?;
        let counts = |outcome| results.iter().filter(|labelled| labelled.outcome == outcome).count();
        let n_counted = counts(LabelOutcome::Counted) + counts(LabelOutcome::Replaced);
        Ok(Json(json_of(&LabelsTaken { counted: n_counted, results })).into_response())
    }

    /// Counts a body that cannot be read for the member it was meant for: the path's, the one it names, or the only one.
    pub(super) fn malformed(&self, model: Option<&str>, body: &[u8], message: &str) {
        #[derive(Deserialize)]
        struct Named {
            model: Option<String>,
        }
        let named = model.map(str::to_owned).or_else(|| serde_json::from_slice::<Named>(body).ok()?.model);
        let member = named.or_else(|| match self.portfolio.deployments().as_slice() {
            [only] => Some(only.name().to_owned()),
            _ => None,
        });
        // Its key may not ask every member, and what it may not ask it does not count for.
        if let Some(member) = member.filter(|member| Principal::current_may_ask(member)) {
            self.portfolio.monitor().violation(&member, kind_of(message));
        }
    }
}

/// What was wrong with a body, by how it is told.
fn kind_of(message: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match () {
        () if says(&["not a number", "NaN"]) => "not_a_number",
        () if says(&["empty", "at least one"]) => "empty",
        () if says(&["not JSON", "cannot read", "EOF", "expected value", "trailing"]) => "not_json",
        () => "wrong_type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_label_is_told_by_its_place() {
        let one = r#"{"request_id": "a", "label": "b"}"#;
        assert_eq!(read_labels(one.as_bytes()).map(|given| given.len()), Ok(1));
        assert_eq!(read_labels(format!("{{\"labels\": [{one}, {one}]}}").as_bytes()).map(|given| given.len()), Ok(2));
        let many = format!("{{\"labels\": [{}0]}}", "0,".repeat(MAX_LABELS_AT_ONCE));
        for (body, reason) in [
            (" ", "the body is empty; expected"),
            ("{\n  secret", "the body is not JSON at line 2, column 3; expected"),
            (r#"{"labels": 1}"#, "`labels` is no list"),
            (r#"{"label": "secret"}"#, "the body is something else; expected"),
            (&format!(r#"{{"labels": [{one}, {{"request_id": 1}}]}}"#), "`labels[1]` is something else"),
            (&many, "10001 labels; the limit is 10000 at once"),
        ] {
            let message = read_labels(body.as_bytes()).unwrap_err().message;
            assert!(message.starts_with(reason) && !message.contains("secret"), "{message}");
        }
    }
}
