//! What the pages of the dashboard ask of a serving process beside what others ask.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use highroad_eval::Verdict;
use highroad_package::{Manifest, PackageError, VerifiedPackage};
use highroad_service::access::Principal;
use highroad_service::{Kind, Problem};
use highroad_task::{Predictor, PredictorOptions};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{App, Routes, openai_method, openai_response, printable};
use crate::deployment::LocalState;
use crate::overview::overview;
use crate::protocol::json_of;
use crate::protocol::openai::Refused;
use crate::replay::{Answers, Chain, Comparison, ReplayedAnswer};
use crate::request_log::Record;
use crate::revision::Revision;
use crate::rollout::CourseShown;
use crate::rollout::by_hand::Hand;

/// Answers that are computed again at one time: each may load a whole model that serves no more.
static REPLAYS: Semaphore = Semaphore::const_new(1);

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/v1/highroad/portfolio", get(portfolio).fallback(openai_method))
        .get("/v1/highroad/rollouts/{member}/course", get(course).fallback(openai_method))
        .post("/v1/highroad/rollouts/{member}/abort", post(abort).fallback(openai_method))
        .post("/v1/highroad/rollouts/{member}/promote", post(promote).fallback(openai_method))
        .get("/v1/highroad/requests/{id}/chain", get(request_chain).fallback(openai_method))
        .post("/v1/highroad/replay", post(replay).fallback(openai_method))
}

async fn portfolio(State(app): State<App>) -> Json<Value> {
    Json(json_of(&overview(&app.portfolio)))
}

async fn course(State(app): State<App>, Path(member): Path<String>) -> Response {
    openai_response(app.course(&member).await)
}

async fn abort(State(app): State<App>, Path(member): Path<String>, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.abort(&member, body))
}

async fn promote(State(app): State<App>, Path(member): Path<String>, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.promote(&member, body).await)
}

async fn request_chain(State(app): State<App>, Path(id): Path<String>) -> Response {
    openai_response(app.chain(&id).await.map_err(Refused::from))
}

async fn replay(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.replay(body).await.map_err(Refused::from))
}

/// What a person does to a rollout.
#[derive(Deserialize)]
struct Act {
    /// Id of the rollout: what somebody saw may be over, and another under way.
    rollout: String,
    by: String,
    why: String,
}

impl Act {
    /// Who acts and why; where keys are asked for, with the name of the key.
    fn hand(&self) -> Result<Hand, Problem> {
        let hand = Hand::new(&self.by, &self.why)?;
        Ok(match Principal::current() {
            Some(principal) => Hand { by: format!("{}, key `{}`", hand.by, principal.key), ..hand },
            None => hand,
        })
    }
}

/// An answer that is to be computed again.
#[derive(Deserialize)]
struct Replay {
    request_id: String,
    case: Value,
}

/// What each rule said in the course of a rollout.
#[derive(Serialize, JsonSchema)]
pub(crate) struct RolloutCourse {
    /// Its id.
    rollout: String,
    course: CourseShown,
}

/// An answer and what stands behind it.
#[derive(Serialize, JsonSchema)]
pub(crate) struct RequestChain {
    request: Record,
    chain: Chain,
}

/// An answer that was computed again.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Replayed {
    /// Whether its bits are those that were served.
    same_bits: bool,
    /// In words; where they are not, why that may be.
    why: String,
    /// What decided the bits here.
    numerics_id: String,
    /// The answers; absent where the bits are others.
    answers: Option<Vec<ReplayedAnswer>>,
    chain: Chain,
    request: Record,
}

fn parse<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, Problem> {
    // What is wrong is told by its place and never by its text, which may be an input.
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Problem::invalid(format!("expected JSON with {expected}; line {line}, column {column} is something else"))
    })
}

impl App {
    async fn course(&self, member: &str) -> Result<Response, Refused> {
        let deployment = self.portfolio.deployment(member)?;
        let status = deployment.rollout();
        let status = status.ok_or_else(|| Problem::not_found(format!("`{member}` has had no rollout here")))?;
        let id = status.rollout.id.clone();
        let course = blocking(move || status.course()).await?;
        Ok(Json(json_of(&RolloutCourse { rollout: id, course })).into_response())
    }

    fn abort(&self, member: &str, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let act: Act = parse(&self.whole(body)?, "`rollout`, `by` and `why`")?;
        let hosted = self.portfolio.hosted();
        let trial = hosted.trial(member).filter(|_| self.portfolio.hosted_member(member).is_ok());
        let end = match trial {
            Some(trial) => trial.abort_by_hand(&act.rollout, act.hand()?)?,
            None => self.portfolio.deployment(member)?.abort_by_hand(&act.rollout, act.hand()?)?,
        };
        Ok(Json(end).into_response())
    }

    async fn promote(&self, member: &str, body: Result<Bytes, BytesRejection>) -> Result<Response, Refused> {
        let act: Act = parse(&self.whole(body)?, "`rollout`, `by` and `why`")?;
        let end = self.portfolio.deployment(member)?.promote_by_hand(&act.rollout, act.hand()?).await?;
        Ok(Json(end).into_response())
    }

    /// The record that `id` names of those that the key may read. Errors with 409 where it names several.
    pub(super) async fn record(&self, id: &str) -> Result<Record, Problem> {
        let (log, wanted, may) = (self.log.clone(), id.to_owned(), super::records::reader());
        let found = blocking(move || log.find(&wanted, may)).await?.map_err(|error| error.problem())?;
        // That there is one is a secret too.
        found.ok_or_else(|| Problem::not_found(format!("the request log has no `{}`", printable(id))))
    }

    fn loaded(&self, record: &Record) -> Option<Arc<Revision>> {
        self.portfolio.deployments().iter().find_map(|member| member.loaded(&record.package))
    }

    async fn chain(&self, id: &str) -> Result<Response, Problem> {
        let record = self.record(id).await?;
        let (loaded, local) = (self.loaded(&record), self.portfolio.local().clone());
        let told = blocking(move || {
            let kept = || local.store.get(&record.package).ok();
            let manifest = match &loaded {
                Some(revision) => Some(revision.manifest().clone()),
                None if record.hosted.is_some() => None,
                None => kept().map(|package| package.manifest().clone()),
            };
            let chain = told_chain(&record, manifest.as_ref(), &local);
            json_of(&RequestChain { request: record, chain })
        })
        .await?;
        Ok(Json(told).into_response())
    }

    /// Computes an answer again. It is told only where its bits are those that were served: a key that may read records may not ask models
    /// on this way.
    async fn replay(&self, body: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
        let wanted: Replay = parse(&self.whole(body)?, "`request_id` and `case`")?;
        let record = self.record(&wanted.request_id).await?;
        if let Some(hosted) = &record.hosted {
            return Err(Problem::invalid(format!(
                "`{}` is hosted elsewhere (as `{}`): its answers are observed, and nobody but its host can give them again",
                record.member, hosted.model
            )));
        }
        if record.pipeline.is_some() {
            return Err(Problem::invalid(format!(
                "`{0}` is a whole request to a pipeline: here one of its steps is computed again, `{0}.STEP`",
                record.request_id
            )));
        }
        let permit = REPLAYS.try_acquire().map_err(|_| {
            let busy = Problem::new(Kind::Overloaded, "another answer is being computed again");
            busy.retry_after(std::time::Duration::from_secs(1))
        })?;
        let (loaded, local) = (self.loaded(&record), self.portfolio.local().clone());
        let replayed = blocking(move || {
            // Held for as long as it takes, also for a client that has left.
            let _one_at_a_time = permit;
            let case = wanted.case.to_string().into_bytes();
            let (answers, manifest) = match &loaded {
                Some(revision) => (Answers::of(revision.predictor(), &case, &record)?, revision.manifest().clone()),
                None => {
                    let package = kept(&local, &record)?;
                    let predictor = Predictor::open(&package, &PredictorOptions::default());
                    let predictor = predictor.map_err(|error| Problem::internal(&error))?;
                    (Answers::of(&predictor, &case, &record)?, package.manifest().clone())
                }
            };
            let Comparison { same_bits, why } = Comparison::of(&record, &answers);
            Ok::<_, Problem>(json_of(&Replayed {
                same_bits,
                why,
                answers: same_bits.then(|| answers.told()),
                numerics_id: answers.numerics_id,
                chain: told_chain(&record, Some(&manifest), &local),
                request: record,
            }))
        });
        Ok(Json(replayed.await??).into_response())
    }
}

/// The package that answered, from this machine's store.
fn kept(local: &LocalState, record: &Record) -> Result<VerifiedPackage, Problem> {
    local.store.get(&record.package).map_err(|error| match error {
        PackageError::NotInStore(_) => Problem::not_found(format!(
            "package {} is not on this machine any more; `highroad replay` brings it from the registry",
            record.package.short()
        )),
        error => Problem::internal(&error),
    })
}

fn told_chain(record: &Record, manifest: Option<&Manifest>, local: &LocalState) -> Chain {
    let verdict = record.verdict.and_then(|digest| local.verdicts.get(&record.package, &digest).ok());
    let verdict: Option<Verdict> = verdict.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Chain::of(record, manifest, verdict, None)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Problem::internal(&error))
}
