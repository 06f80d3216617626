//! The portfolio as one picture: members and what they were asked lately, pipelines as graphs over them, indexes.

use std::num::NonZeroUsize;
use std::sync::Arc;

use highroad_hosted::HostedTask;
use highroad_package::Truncation;
use highroad_service::access::Principal;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{ModelSource, RequestLimits};
use crate::deployment::{Deployment, State, Status};
use crate::hosted::{HostedMember, Standing, TrialShown};
use crate::http;
use crate::pipeline::{IndexShown, PipelineShown};
use crate::portfolio::Portfolio;
use crate::revision::Revision;
use crate::traffic;

/// The name under which requests to a pipeline are counted; no member has it.
pub(crate) fn of_pipeline(name: &str) -> String {
    format!("pipelines/{name}")
}

/// Everything of `portfolio` that the request's key may see.
pub(crate) fn overview(portfolio: &Portfolio) -> Overview {
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
    Overview {
        at_ms: jiff::Timestamp::now().as_millisecond(),
        ready: members.iter().all(|member| member.status.state != State::Starting),
        all: Principal::current().is_none_or(|principal| principal.members().is_none()),
        members,
        pipelines,
        indexes,
    }
}

/// The portfolio, as far as the request's key may see it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Portfolio")]
pub(crate) struct Overview {
    /// Now, milliseconds since 1970, UTC.
    at_ms: i64,
    /// Whether each of the members serves what it should.
    ready: bool,
    /// Whether the key sees all members.
    all: bool,
    members: Vec<Shown>,
    pipelines: Vec<PipelineShown>,
    indexes: Vec<IndexShown>,
}

/// One member.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Member")]
struct Shown {
    #[serde(flatten)]
    status: Status,
    /// The registered model and the alias that it follows, if it follows one.
    model: Option<Followed>,
    /// What it is for.
    task: Option<MemberTask>,
    /// What of its queue is taken.
    queue: Option<Queue>,
    /// What one request may ask; nothing of a model of our own that does not serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<RequestLimits>,
    #[serde(flatten)]
    own: Option<OwnMember>,
    #[serde(flatten)]
    loaded: Option<LoadedMember>,
    #[serde(flatten)]
    elsewhere: Option<MemberElsewhere>,
    traffic: traffic::Traffic,
}

/// What a member follows.
#[derive(Serialize, JsonSchema)]
struct Followed {
    /// The registered model.
    name: String,
    /// The same with the alias or the version, as `router@champion`.
    reference: String,
}

/// What a member is for: a word for what its package's task gives, or that of its description.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum MemberTask {
    Package(&'static str),
    Hosted(HostedTask),
}

/// What of a queue is taken.
#[derive(Serialize, JsonSchema)]
struct Queue {
    used: usize,
    most: usize,
    /// `rows` or `requests`
    of: &'static str,
}

/// Of a member that serves a package.
#[derive(Serialize, JsonSchema)]
struct OwnMember {
    threads: NonZeroUsize,
    replicas: NonZeroUsize,
    /// What is tried beside it.
    rollout: Option<RolloutShown>,
}

#[derive(Serialize, JsonSchema)]
struct RolloutShown {
    id: String,
    /// The version that is tried.
    candidate: u64,
    /// The share of the traffic that takes part here.
    percent: f64,
    /// Whether it has kept every rule.
    passed: bool,
}

/// Of a member that has loaded a package.
#[derive(Serialize, JsonSchema)]
struct LoadedMember {
    owner: String,
    /// The run that trained it.
    run_id: Option<String>,
    max_tokens: usize,
    /// Names of what may go before its texts.
    prompts: Vec<String>,
    default_prompt_name: Option<String>,
    truncation: Truncation,
}

/// Of a member that somebody else hosts.
#[derive(Serialize, JsonSchema)]
struct MemberElsewhere {
    hosted: Standing,
    /// Another description that is tried beside it.
    trial: Option<TrialShown>,
}

fn own(member: &Arc<Deployment>, of_all: &RequestLimits) -> Shown {
    let revision = member.revision().ok();
    let rollout = member.rollout().filter(|status| status.end.is_none()).map(|status| RolloutShown {
        candidate: status.rollout.candidate.version,
        percent: status.percent,
        passed: status.step.passed.is_some(),
        id: status.rollout.id,
    });
    let config = member.config();
    let most = config.batching.queue_rows.get();
    Shown {
        model: match member.source() {
            ModelSource::Registry(reference) => {
                Some(Followed { name: reference.name.clone(), reference: reference.to_string() })
            }
            ModelSource::Directory(_) => None,
        },
        task: revision.as_deref().map(|revision| MemberTask::Package(http::task_name(revision))),
        queue: revision.as_deref().map(|revision| Queue { used: revision.n_waiting(), most, of: "rows" }),
        limits: revision.as_deref().map(|revision| revision.limits(of_all)),
        own: Some(OwnMember { threads: config.threads, replicas: config.batching.replicas, rollout }),
        loaded: revision.as_deref().map(LoadedMember::of),
        elsewhere: None,
        traffic: traffic::of(member.name()),
        status: member.status(),
    }
}

impl LoadedMember {
    fn of(revision: &Revision) -> Self {
        let manifest = revision.manifest();
        Self {
            owner: manifest.owner.clone(),
            run_id: manifest.provenance.run_id.clone(),
            max_tokens: revision.max_tokens(),
            prompts: manifest.task.prompts.keys().cloned().collect(),
            default_prompt_name: manifest.task.default_prompt_name.clone(),
            truncation: manifest.task.truncation,
        }
    }
}

fn hosted(member: &Arc<HostedMember>, trial: Option<TrialShown>, of_all: &RequestLimits) -> Shown {
    let standing = member.standing();
    Shown {
        model: None,
        task: Some(MemberTask::Hosted(member.hosted().task)),
        queue: Some(Queue { used: standing.n_waiting, most: standing.queue_requests, of: "requests" }),
        limits: Some(member.limits(of_all)),
        own: None,
        loaded: None,
        elsewhere: Some(MemberElsewhere { hosted: standing, trial }),
        traffic: traffic::of(member.name()),
        status: member.status(),
    }
}
