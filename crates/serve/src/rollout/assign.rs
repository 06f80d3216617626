use std::sync::Arc;
use std::time::{Duration, Instant};

use highroad_service::trace::Span;
use highroad_task::raw::Tensor;
use highroad_task::{Answer, Input};
use metrics::counter;

use crate::config::RequestLimits;
use crate::error::AskError;
use crate::revision::{Asked, Revision, Terms};
use crate::rollout::shadow::{Exchange, Job};
use crate::rollout::trial::Trial;
use crate::rollout::{Probation, Side};
use crate::telemetry::ROLLOUT_RETRIED;

/// Who asks: decides on which side of a rollout a request falls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// User or tenant, whose requests all fall on one side.
    pub sticky: Option<String>,
    /// The request itself, for those that name nobody.
    pub request_id: String,
}

impl Key {
    pub(crate) fn as_str(&self) -> &str {
        self.sticky.as_deref().unwrap_or(&self.request_id)
    }
}

/// The revision that answers a request, and what else is to be done with it.
pub struct Assigned {
    revision: Arc<Revision>,
    part: Option<Part>,
    /// That of the revision, where it took another's place lately.
    probation: Option<Arc<Probation>>,
    request_id: String,
}

/// A request's part in a rollout.
struct Part {
    trial: Arc<Trial>,
    /// The version that does not answer the client.
    other: Arc<Revision>,
    /// The one that does.
    answers: Side,
}

/// What became of a request.
pub struct Served<A> {
    /// Who answered it, or failed to.
    pub revision: Arc<Revision>,
    /// The answer.
    pub result: Result<Asked<A>, AskError>,
    /// When it was begun.
    pub begun: Instant,
    /// For the client: id of the rollout whose candidate answered or, followed by `; retried`, failed to.
    pub rollout: Option<String>,
}

impl Assigned {
    /// A request that has no part in a rollout.
    pub(crate) fn plain(revision: Arc<Revision>, key: &Key) -> Self {
        Self { revision, part: None, probation: None, request_id: key.request_id.clone() }
    }

    /// A request to a version that took another's place lately.
    pub(crate) fn watched(probation: Arc<Probation>, revision: Arc<Revision>, key: &Key) -> Self {
        Self { probation: Some(probation), ..Self::plain(revision, key) }
    }

    /// The part that `key` has in `trial` beside `stable`.
    pub(crate) fn of(trial: Arc<Trial>, stable: Arc<Revision>, key: &Key) -> Self {
        if !trial.takes_part(key.as_str()) {
            return Self::plain(stable, key);
        }
        let candidate = Arc::clone(&trial.candidate);
        let (answers, revision, other) = match trial.rollout.plan {
            highroad_eval::Plan::Shadow { .. } => (Side::Stable, stable, candidate),
            highroad_eval::Plan::Canary { .. } => (Side::Candidate, candidate, stable),
        };
        let part = Some(Part { trial, other, answers });
        Self { part, ..Self::plain(revision, key) }
    }

    /// Who answers the request, unless a canary fails it.
    pub fn revision(&self) -> &Arc<Revision> {
        &self.revision
    }

    /// Makes the request one of the version that the client names: `matches` tells it. `None` if neither is.
    pub(crate) fn pinned(self, matches: impl Fn(&Revision) -> bool) -> Option<Self> {
        let Self { revision, part, request_id, .. } = self;
        let other = part.map(|part| part.other);
        let named = [Some(revision), other].into_iter().flatten().find(|revision| matches(revision))?;
        Some(Self { revision: named, part: None, probation: None, request_id })
    }

    /// Answers `inputs` through the task, in order. What a canary fails is answered by the stable version; the second answer
    /// that a rollout compares with is asked for after this one, elsewhere.
    pub async fn ask(&self, inputs: Vec<Input>, limits: &RequestLimits, terms: Terms) -> Served<Vec<Answer>> {
        let begun = Instant::now();
        let Some(part) = &self.part else {
            let Some(probation) = &self.probation else {
                let result = self.revision.ask(inputs, limits, terms).await;
                return self.served(result, begun);
            };
            let copy = inputs.clone();
            let result = self.revision.ask(inputs, limits, terms).await;
            let again = async |left| probation.before.ask(copy, limits, Terms { timeout: left, ..terms }).await;
            return self.judged(probation, result, (begun, terms.timeout), again).await;
        };
        let copy = inputs.clone();
        let result = self.revision.ask(inputs, limits, terms).await;
        let asked = match (result, part.answers) {
            (Ok(asked), _) => asked,
            (Err(error), Side::Stable) => return self.served(Err(error), begun),
            (Err(error), Side::Candidate) => {
                let left = terms.timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
                let again = part.other.ask(copy, limits, Terms { timeout: left, ..terms }).await;
                return part.retried(again, &error, begun);
            }
        };
        let exchange = Exchange::Rows { inputs: copy, cut: terms.cut, answers: asked.answers.clone() };
        part.compare(exchange, &self.revision, &self.request_id, begun);
        self.served(Ok(asked), begun)
    }

    /// Runs the program itself on `tensors`, past the task; it takes part in rollouts as [`Assigned::ask`] does.
    pub async fn run_program(&self, tensors: Vec<Tensor>, terms: Terms) -> Served<Vec<Tensor>> {
        let begun = Instant::now();
        let Some(part) = &self.part else {
            let Some(probation) = &self.probation else {
                let result = self.revision.run_program(tensors, terms).await;
                return self.served(result, begun);
            };
            let result = self.revision.run_program(tensors.clone(), terms).await;
            let again = async |left| probation.before.run_program(tensors, Terms { timeout: left, ..terms }).await;
            return self.judged(probation, result, (begun, terms.timeout), again).await;
        };
        let asked = match (self.revision.run_program(tensors.clone(), terms).await, part.answers) {
            (Ok(asked), _) => asked,
            (Err(error), Side::Stable) => return self.served(Err(error), begun),
            (Err(error), Side::Candidate) => {
                let left = terms.timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
                let again = part.other.run_program(tensors, Terms { timeout: left, ..terms }).await;
                return part.retried(again, &error, begun);
            }
        };
        let (outputs, answered_by) = (asked.answers.clone(), Arc::clone(&self.revision));
        let exchange = Exchange::Program { inputs: tensors, outputs, answered_by };
        part.compare(exchange, &self.revision, &self.request_id, begun);
        self.served(Ok(asked), begun)
    }

    /// What the version on probation answered, or else what the one before does. Where that fails too, it is the request's fault.
    async fn judged<A>(
        &self,
        probation: &Probation,
        result: Result<Asked<A>, AskError>,
        (begun, timeout): (Instant, Option<Duration>),
        again: impl AsyncFnOnce(Option<Duration>) -> Result<Asked<A>, AskError>,
    ) -> Served<A> {
        let error = match result {
            Err(error) if Probation::is_own(&error) => error,
            result => {
                if matches!(result, Ok(_) | Err(AskError::Expired { .. } | AskError::Overloaded { .. })) {
                    probation.answered(begun.elapsed());
                }
                return self.served(result, begun);
            }
        };
        match again(timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()))).await {
            Ok(asked) => {
                probation.failed(&error);
                let mut result = Ok(asked);
                look_at(&probation.before, &mut result);
                Served { revision: Arc::clone(&probation.before), result, begun, rollout: None }
            }
            Err(_) => self.served(Err(error), begun),
        }
    }

    fn served<A>(&self, mut result: Result<Asked<A>, AskError>, begun: Instant) -> Served<A> {
        look_at(&self.revision, &mut result);
        let canary = self.part.as_ref().filter(|part| part.answers == Side::Candidate);
        let rollout = canary.map(|part| part.trial.rollout.id.clone());
        Served { revision: Arc::clone(&self.revision), result, begun, rollout }
    }
}

impl Part {
    /// Has the other version asked the same, once the client has its answer.
    fn compare(&self, exchange: Exchange, first: &Arc<Revision>, request_id: &str, begun: Instant) {
        let live = begun.elapsed();
        if self.answers == Side::Candidate {
            self.trial.asked(Some(live));
        }
        self.trial.shadow.put(Job {
            trial: Arc::clone(&self.trial),
            first: Arc::clone(first),
            other: Arc::clone(&self.other),
            answered: self.answers,
            request_id: request_id.to_owned(),
            exchange,
            live,
            cause: Span::current(),
        });
    }

    /// The stable version's answer to what the candidate failed. Where that fails too, it is the request's fault, or nobody's
    /// that one could tell.
    fn retried<A>(&self, mut again: Result<Asked<A>, AskError>, error: &AskError, begun: Instant) -> Served<A> {
        if again.is_ok() {
            tracing::warn!(
                member.name = %self.trial.member, rollout.id = %self.trial.rollout.id,
                "{} failed a request that {} answered: {error}",
                self.trial.resolved.label(), self.other.facts().version
            );
            counter!(ROLLOUT_RETRIED, "member" => self.trial.member.clone()).increment(1);
            self.trial.asked(None);
        }
        look_at(&self.other, &mut again);
        let rollout = Some(format!("{}; retried", self.trial.rollout.id));
        Served { revision: Arc::clone(&self.other), result: again, begun, rollout }
    }
}

/// Has monitoring look at what a client is answered; a shadow's answers are not.
fn look_at<A>(revision: &Revision, result: &mut Result<Asked<A>, AskError>) {
    if let Ok(asked) = result {
        revision.answered(asked.seen.take());
    }
}
