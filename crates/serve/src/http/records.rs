//! The request log on HTTP: its records, what they name by digest, and those of pipelines.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use highroad_hosted::Hosted;
use highroad_package::Digest;
use highroad_service::access::Principal;
use highroad_service::{Problem, RequestId};
use highroad_task::Cut;
use metrics::histogram;
use schemars::JsonSchema;
use serde::Serialize;

use super::{App, milliseconds, openai_response, printable, record};
use crate::hosted::HostedMember;
use crate::pipeline::{self, Finished};
use crate::protocol::json_of;
use crate::protocol::openai::Refused;
use crate::request_log::{Caller, PipelineRecord, Record};
use crate::revision::Facts;
use crate::telemetry::PIPELINE_STEP_SECONDS;

/// `GET /v1/highroad/requests/{id}`
pub(super) async fn record_of(State(app): State<App>, Path(id): Path<String>) -> Response {
    openai_response(app.record(&id).await.map(|record| Json(record).into_response()).map_err(Refused::from))
}

/// Whether the request that this task answers may read a record: of what its key may ask, and of a tenant that it may see.
pub(super) fn reader() -> impl Fn(&Record) -> bool + Send + 'static {
    let principal = Principal::current();
    move |record| {
        let names = [Some(&record.member), record.step_of.as_ref()];
        principal.as_ref().is_none_or(|principal| {
            principal.may_see(record.caller.tenant.as_deref())
                && names.into_iter().flatten().any(|name| principal.may_ask(name))
        })
    }
}

/// What a pipeline or a hosted member was, for replays elsewhere; never a key.
pub(super) async fn definition(State(app): State<App>, Path(digest): Path<String>) -> Response {
    let unknown = || Problem::not_found(format!("there is no definition `{}` here", printable(&digest)));
    let found = digest.parse().ok().and_then(|digest| app.definition(&digest)).ok_or_else(|| unknown().into());
    openai_response(found.map(|definition| Json(json_of(&definition)).into_response()))
}

/// What a digest of a record is of.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Defined {
    Pipeline(pipeline::Definition),
    Hosted(Box<Hosted>),
}

impl App {
    /// A definition that the request's key may see: of a pipeline that it may ask, or a description that a member has which it may ask.
    fn definition(&self, digest: &Digest) -> Option<Defined> {
        let kept = self.portfolio.definitions();
        if let Some(definition) = kept.find(digest).and_then(|bytes| pipeline::Definition::read(&bytes).ok()) {
            return Principal::current_may_ask(&definition.name).then_some(Defined::Pipeline(definition));
        }
        let serves = |member: &Arc<HostedMember>| member.hosted().digest() == *digest;
        let may_see = self.portfolio.hosted().all().iter().any(serves) || Principal::current_may_ask_all();
        // Where a key lies on this machine is of use to nobody elsewhere.
        let hosted = kept.find_hosted(digest).filter(|_| may_see)?;
        Some(Defined::Hosted(Box::new(Hosted { api_key_file: None, ..hosted })))
    }

    /// Each step that asked a member has a record of its own, `REQUEST.STEP`, and can be replayed by it.
    pub(super) fn log_steps(&self, id: &RequestId, pipeline: &str, finished: &Finished) {
        for step in &finished.steps {
            let Some(asked) = &step.asked else { continue };
            histogram!(PIPELINE_STEP_SECONDS, "pipeline" => pipeline.to_owned(), "step" => step.name.clone())
                .record(step.duration_ms / 1e3);
            let total = Duration::from_secs_f64(step.duration_ms / 1e3);
            let id = format!("{}.{}", id.0, step.name);
            let caller = Caller::current().part(&step.name);
            let step = record(id, "/v1/pipelines", asked.facts.clone(), &asked.asked, total);
            self.log.put(Record { step_of: Some(pipeline.to_owned()), caller, ..step });
        }
    }
}

/// Evidence, the weakest first.
const WEAKEST: [&str; 6] = ["development", "observed", "override", "same-engine", "attested", "bit-exact"];

/// Where the answer of a whole pipeline comes from: its definition in the place of a package.
pub(super) fn origin_of(record: &Record) -> Facts {
    let evidence = WEAKEST.into_iter().find(|known| *known == record.evidence).unwrap_or("observed");
    Facts {
        member: record.member.clone(),
        version: record.version.clone(),
        package: record.package,
        verdict: None,
        evidence,
        overridden: None,
        development: (evidence == "development").then(|| "a step is answered without a verdict".to_owned()),
        numerics_id: record.numerics_id.clone(),
        loaded_at: record.time.clone(),
    }
}

/// The record of a whole request: what its steps are by digest, and the weakest of what stands behind them.
pub(super) fn of_pipeline(
    request_id: String,
    pipeline: PipelineRecord,
    finished: &Finished,
    total: Duration,
) -> Record {
    let steps = &pipeline.steps;
    let weakest = WEAKEST.iter().find(|weak| steps.iter().any(|step| step.evidence.as_deref() == Some(weak)));
    let numerics: BTreeSet<&str> = steps.iter().filter_map(|step| step.numerics_id.as_deref()).collect();
    Record {
        request_id,
        caller: Caller::current(),
        time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        member: pipeline.name.clone(),
        route: "/v1/pipelines".to_owned(),
        version: format!("{}@{}", pipeline.name, pipeline.definition),
        package: pipeline.definition,
        verdict: None,
        evidence: weakest.map_or("observed", |weakest| weakest).to_owned(),
        overridden: None,
        development: None,
        numerics_id: numerics.into_iter().collect::<Vec<_>>().join(", "),
        outputs: finished.output.iter().map(pipeline::Value::digest).collect(),
        labels: Vec::new(),
        order: Vec::new(),
        n_tokens: finished
            .steps
            .iter()
            .filter_map(|step| Some(step.asked.as_ref()?.asked.n_tokens.iter().sum()))
            .collect(),
        n_truncated: finished.steps.iter().filter_map(|step| Some(step.asked.as_ref()?.asked.n_truncated)).sum(),
        cut: Cut::End,
        document_tokens: None,
        prompts: Vec::new(),
        cache: None,
        queue_ms: 0.0,
        compute_ms: 0.0,
        total_ms: milliseconds(total),
        hosted: None,
        step_of: None,
        pipeline: Some(pipeline),
    }
}
