//! What objectives count of a request: who was asked, who asked, how it went.
//!
//! Kept with the task that answers, as budgets are, so that no route can forget it, and what is no request (a shadow's second answer, a
//! warm-up) counts for nobody. Members are counted where their answers are; the pipeline, the tenant and the key of a request when the
//! last of it is over: a stream keeps its watch until it ends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use highroad_service::Problem;
use highroad_service::access::Principal;

use super::lock;
use super::objectives::{Objectives, Scope};
use crate::error::AskError;

tokio::task_local! {
    static CURRENT: Arc<Watch>;
}

/// How a request went, as objectives see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    /// It was answered.
    Well,
    /// This side failed it.
    Badly,
    /// The client is at fault, or left: it counts for nothing.
    Aside,
}

/// One request.
pub(crate) struct Watch {
    objectives: Arc<Objectives>,
    principal: Option<Principal>,
    begun: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    went: Option<Went>,
    /// Until its answer began.
    took: Option<Duration>,
    pipeline: Option<String>,
}

impl Went {
    /// What a request's outcome, as metrics have it, says.
    pub(crate) fn of(outcome: &str) -> Self {
        match outcome {
            "ok" | "stopped" => Self::Well,
            "failed" | "overloaded" | "expired" | "not_ready" | "queue_full" | "circuit_open" | "no_connection"
            | "timeout" | "broken" | "malformed" | "too_large" | "key_refused" | "rate_limited" | "server_error" => {
                Self::Badly
            }
            _ => Self::Aside,
        }
    }

    /// What a refusal says of who refuses.
    pub(crate) fn of_problem(problem: &Problem) -> Self {
        match problem.kind.status() {
            StatusCode::TOO_MANY_REQUESTS => Self::Badly,
            status => Self::of_status(status).unwrap_or(Self::Aside),
        }
    }

    fn of_status(status: StatusCode) -> Option<Self> {
        status.is_server_error().then_some(Self::Badly)
    }
}

impl Watch {
    /// The request that this task answers.
    pub(crate) fn begin(objectives: &Arc<Objectives>) -> Arc<Self> {
        let (objectives, principal) = (Arc::clone(objectives), Principal::current());
        Arc::new(Self { objectives, principal, begun: Instant::now(), seen: Mutex::default() })
    }

    /// Does `work` with this watch.
    pub(crate) async fn scope<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::clone(self), work).await
    }

    /// A member's answer: `took` until it was there, or began to be.
    pub(crate) fn member(&self, member: &str, outcome: &str, took: Duration) {
        let went = Went::of(outcome);
        self.objectives.record(Scope::Member, member, went, took);
        // The last that is asked is the one whose answer the client gets.
        lock(&self.seen).went = Some(went);
    }

    /// The pipeline that was asked, and how it went.
    fn pipeline(&self, pipeline: &str, went: Went) {
        let mut seen = lock(&self.seen);
        (seen.pipeline, seen.went) = (Some(pipeline.to_owned()), Some(went));
    }

    /// The head of the answer is there.
    pub(crate) fn answered(&self, status: StatusCode) {
        let mut seen = lock(&self.seen);
        seen.took = Some(self.begun.elapsed());
        seen.went = Went::of_status(status).or(seen.went);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let seen = std::mem::take(&mut *lock(&self.seen));
        let went = if std::thread::panicking() { Some(Went::Badly) } else { seen.went };
        // A client that left before there was an answer is nobody's fault; one whose request failed before is.
        let Some((went, took)) = went.zip(seen.took.or_else(|| std::thread::panicking().then(|| self.begun.elapsed())))
        else {
            return;
        };
        if let Some(pipeline) = &seen.pipeline {
            self.objectives.record(Scope::Pipeline, pipeline, went, took);
        }
        if let Some(principal) = &self.principal {
            self.objectives.record(Scope::Tenant, &principal.tenant, went, took);
            self.objectives.record(Scope::Key, &principal.key, went, took);
        }
    }
}

/// The watch of the request that this task answers, where anything is watched.
pub(crate) fn current() -> Option<Arc<Watch>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Counts a member's answer to the request that this task answers.
pub(crate) fn member(member: &str, outcome: &str, took: Duration) {
    let _nobody_watches = CURRENT.try_with(|watch| watch.member(member, outcome, took));
}

/// Counts a refusal of a member, which is the one that does not serve where no revision was asked.
pub(crate) fn refused(asked: Option<&str>, error: &AskError) {
    let absent = match error {
        AskError::NotReady { member, .. } | AskError::NotDeployed(member) => Some(member.as_str()),
        _ => None,
    };
    if let Some(name) = asked.or(absent) {
        member(name, error.outcome(), Duration::ZERO);
    }
}

/// Tells that the request that this task answers asked a pipeline.
pub(crate) fn pipeline(pipeline: &str, went: Went) {
    let _nobody_watches = CURRENT.try_with(|watch| watch.pipeline(pipeline, went));
}
