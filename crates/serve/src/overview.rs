//! The portfolio as one picture: members and what they were asked lately, pipelines as graphs over them, indexes.

use std::sync::Arc;

use highroad_service::access::Principal;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::{ModelSource, RequestLimits};
use crate::deployment::{Deployment, State, Status};
use crate::hosted::HostedMember;
use crate::http;
use crate::portfolio::Portfolio;
use crate::revision::Revision;
use crate::traffic;

/// The name under which requests to a pipeline are counted; no member has it.
pub(crate) fn of_pipeline(name: &str) -> String {
    format!("pipelines/{name}")
}

/// Everything of `portfolio` that the request's key may see.
pub(crate) fn overview(portfolio: &Portfolio) -> Value {
    let of_all = portfolio.limits();
    let own = portfolio.deployments().into_iter().map(|member| own(&member, &of_all));
    let trials = portfolio.hosted();
    let shown =
        |member: Arc<HostedMember>| hosted(&member, trials.trial(member.name()).map(|trial| trial.shown()), &of_all);
    let hosted = portfolio.hosted().all().into_iter().map(shown);
    let mut members: Vec<Shown> = own.chain(hosted).collect();
    members.sort_by(|left, right| left.status.member.cmp(&right.status.member));
    let opened = portfolio.pipelines();
    let (pipelines, indexes) = opened.map(|opened| opened.shown(portfolio)).unwrap_or_default();
    json!({
        "at_ms": jiff::Timestamp::now().as_millisecond(),
        "ready": members.iter().all(|member| member.status.state != State::Starting),
        // A key that may ask some members is told so: what it does not see may be there.
        "all": Principal::current().is_none_or(|principal| principal.members().is_none()),
        "members": members,
        "pipelines": pipelines,
        "indexes": indexes,
    })
}

/// One member.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    /// The registered model and the alias that it follows, if it follows one.
    model: Option<Value>,
    task: Option<Value>,
    /// What of its queue is taken.
    queue: Option<Value>,
    #[serde(flatten)]
    more: Map<String, Value>,
    traffic: traffic::Traffic,
}

fn own(member: &Arc<Deployment>, of_all: &RequestLimits) -> Shown {
    let revision = member.revision().ok();
    let rollout = member.rollout().filter(|status| status.end.is_none()).map(|status| {
        json!({
            "id": status.rollout.id, "candidate": status.rollout.candidate.version,
            "percent": status.percent, "passed": status.step.passed.is_some(),
        })
    });
    let config = member.config();
    let most = config.batching.queue_rows;
    let mut more = Map::from_iter([
        ("threads".to_owned(), json!(config.threads)),
        ("replicas".to_owned(), json!(config.batching.replicas)),
        ("rollout".to_owned(), json!(rollout)),
    ]);
    if let Some(revision) = &revision {
        let manifest = revision.manifest();
        more.insert("owner".to_owned(), json!(manifest.owner));
        more.insert("run_id".to_owned(), json!(manifest.provenance.run_id));
        more.insert("max_tokens".to_owned(), json!(revision.max_tokens()));
        more.insert("limits".to_owned(), json!(revision.limits(of_all)));
        more.insert("prompts".to_owned(), json!(manifest.task.prompts.keys().collect::<Vec<_>>()));
        more.insert("default_prompt_name".to_owned(), json!(manifest.task.default_prompt_name));
        more.insert("truncation".to_owned(), json!(manifest.task.truncation));
    }
    Shown {
        model: match member.source() {
            ModelSource::Registry(reference) => {
                Some(json!({ "name": reference.name, "reference": reference.to_string() }))
            }
            ModelSource::Directory(_) => None,
        },
        task: revision.as_deref().map(|revision| json!(http::task_name(revision))),
        queue: revision
            .as_ref()
            .map(|revision: &Arc<Revision>| json!({ "used": revision.n_waiting(), "most": most, "of": "rows" })),
        traffic: traffic::of(member.name()),
        status: member.status(),
        more,
    }
}

fn hosted(member: &Arc<HostedMember>, trial: Option<Value>, of_all: &RequestLimits) -> Shown {
    let standing = member.standing();
    Shown {
        model: None,
        task: Some(json!(member.hosted().task)),
        queue: Some(json!({ "used": standing.n_waiting, "most": standing.queue_requests, "of": "requests" })),
        more: Map::from_iter([
            ("hosted".to_owned(), json!(standing)),
            ("trial".to_owned(), json!(trial)),
            ("limits".to_owned(), json!(member.limits(of_all))),
        ]),
        traffic: traffic::of(member.name()),
        status: member.status(),
    }
}
