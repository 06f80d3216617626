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

use super::{App, Routes, openai_method, openai_response, printable};
use crate::monitor::{Finding, Given, LabelOutcome, Labelled, MAX_LABELS_AT_ONCE, MemberReport};
use crate::protocol::json_of;
use crate::protocol::openai::Refused;

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

/// One right answer, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    Several { labels: Vec<Given> },
    One(Given),
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

impl App {
    async fn take_labels(&self, body: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
        let body: Body = serde_json::from_slice(&self.whole(body)?).map_err(|_| {
            Problem::invalid("expected `request_id` and `label` (or `relevant`), or `labels` with a list of these")
        })?;
        let given = match body {
            Body::Several { labels } => labels,
            Body::One(given) => vec![given],
        };
        if given.len() > MAX_LABELS_AT_ONCE {
            let message = format!("{} labels; the limit is {MAX_LABELS_AT_ONCE} at once", given.len());
            return Err(Problem::new(Kind::Invalid, message));
        }
        let (monitor, log) = (self.portfolio.monitor().clone(), self.log.clone());
        let allowed: BTreeSet<String> =
            self.portfolio.deployments().iter().map(|deployment| deployment.name().to_owned()).collect();
        // The files of the request log are read.
        let taken = tokio::task::spawn_blocking(move || {
            let ids = given.iter().map(|given| given.request_id.clone()).collect();
            log.find_all(&ids).map(|records| monitor.label(&given, &records, |member| allowed.contains(member)))
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
