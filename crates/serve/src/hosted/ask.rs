//! Asking one hosted member: a place, an admission, money set aside, tries.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use highroad_hosted::{Fault, FaultKind, Incoming, Tokens, pause_before_retry};
use highroad_package::Digest;
use highroad_service::trace::Span;
use highroad_service::{Kind, Problem};
use metrics::{Gauge, counter, gauge};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::breaker::Outcome;
use super::{HostedMember, Serving, lock};
use crate::budget::keeper::{Budgets, Hold};
use crate::error::AskError;
use crate::http::told;
use crate::protocol::openai::Refused;
use crate::telemetry::{HOSTED_IN_FLIGHT, HOSTED_TRIES};
use crate::traced;
use crate::urgency::{self, Urgency};

/// What is to be asked.
pub(crate) struct Wanted {
    /// Below the host's base URL.
    pub path: String,
    /// JSON, or of tensors JSON and binary data.
    pub body: Vec<u8>,
    /// How much of it is JSON, where binary data follows.
    pub json_bytes: Option<usize>,
    /// What it may take.
    pub most: Tokens,
    /// Whether the answer comes in events.
    pub events: bool,
}

impl Wanted {
    /// SHA-256 of the path and the canonical JSON (RFC 8785) of the body, but for whether the answer comes in events: two requests with
    /// one digest ask the same.
    pub(crate) fn digest(&self) -> Digest {
        let mut body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        if let Some(fields) = body.as_object_mut() {
            ["stream", "stream_options"].iter().for_each(|key| drop(fields.remove(*key)));
        }
        // A number beyond f64 has no canonical form; such a body is the bytes that it is.
        let canonical = serde_json_canonicalizer::to_vec(&body).unwrap_or_else(|_| self.body.clone());
        Digest::of(&[self.path.as_bytes(), b"\n", &canonical].concat())
    }
}

/// What came.
pub(crate) enum Received {
    /// All of it.
    Whole(Vec<u8>),
    /// All of it, of which so many bytes are JSON and the rest is binary data.
    Tensors(Vec<u8>, usize),
    /// The first bytes of a stream, and the rest of it.
    Events(Vec<u8>, Incoming),
}

/// An answer that is there, or has begun.
pub(crate) struct Began<T> {
    pub value: T,
    pub member: Arc<HostedMember>,
    pub serving: Arc<Serving>,
    pub hold: Option<Hold>,
    pub place: Place,
    pub n_tries: u32,
    pub begun: Instant,
    /// [`Wanted::digest`]
    pub request: Digest,
    pub span: Span,
}

/// One of a member's places, for as long as its answer comes.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    in_flight: Gauge,
}

/// Why a member gave no answer.
pub(crate) enum Failure {
    /// It is not ready, or the request must not be asked: no money, say.
    Ask(AskError),
    /// Too many wait for it already.
    Full,
    /// It is left alone, for so long.
    Open(Duration),
    /// The last try.
    Fault(Fault, u32),
}

impl HostedMember {
    /// Asks until there is an answer that `read` takes, or the request's deadline: what is under way then is broken off, and no try and no
    /// wait begins that would end after it. No try follows one whose answer has begun; the deadline is that of its beginning.
    pub(crate) async fn ask<T>(
        self: &Arc<Self>,
        wanted: &Wanted,
        budgets: Option<&Budgets>,
        read: impl Fn(Received) -> Result<T, String>,
    ) -> Result<Began<T>, Failure> {
        let serving = self.serving().map_err(Failure::Ask)?;
        told::asked(&serving.facts);
        let (begun, span) = (Instant::now(), traced::hosted(self.hosted(), &wanted.path));
        let urgency = Urgency::current();
        let left = || urgency.left(Instant::now());
        let late = || Failure::Ask(AskError::Expired { waited: begun.elapsed() });
        let place = self.place(left()).await?;
        lock(&self.retries).deposit();
        let (mut n_tries, mut waited, mut last) = (0, Duration::ZERO, None);
        loop {
            let attempt = match (self.admit(), last) {
                (Ok(attempt), _) => attempt,
                (Err(_), Some(fault)) => {
                    span.failed(reason(&fault));
                    return Err(Failure::Fault(fault, n_tries));
                }
                (Err(wait), None) => return Err(Failure::Open(wait)),
            };
            if left() == Some(Duration::ZERO) {
                span.failed(LATE);
                return Err(late());
            }
            n_tries += 1;
            let hold = self.hold(budgets, wanted.most).await.map_err(Failure::Ask)?;
            let received = match within(left(), serving.receive(wanted, &span, left(), &read)).await {
                Some(received) => received,
                // The host is not at fault, and may have worked: what was set aside counts when it is dropped.
                None => {
                    self.count_try(LATE);
                    attempt.end(Outcome::Unknown);
                    span.failed(LATE);
                    return Err(late());
                }
            };
            let fault = match received {
                Ok(value) => {
                    self.count_try("ok");
                    attempt.end(Outcome::Worked);
                    let request = wanted.digest();
                    return Ok(Began {
                        value,
                        member: Arc::clone(self),
                        serving,
                        hold,
                        place,
                        n_tries,
                        begun,
                        request,
                        span,
                    });
                }
                Err(fault) => fault,
            };
            self.count_try(reason(&fault));
            attempt.end(if is_hosts_failure(&fault) { Outcome::Failed } else { Outcome::Worked });
            // What may have cost is counted at its dearest when it is dropped.
            if let Some(hold) = hold.filter(|_| !fault.may_have_cost()) {
                hold.settle(Default::default());
            }
            let wait = fault.retry_after.unwrap_or_else(|| pause_before_retry(n_tries));
            let is_in_time = left().is_none_or(|left| wait < left);
            let fits =
                is_in_time && n_tries <= self.config.retries && waited.saturating_add(wait) <= self.config.retry_wait;
            if !fault.is_passing() || !fits || !lock(&self.retries).withdraw() {
                span.failed(reason(&fault));
                return Err(Failure::Fault(fault, n_tries));
            }
            (waited, last) = (waited + wait, Some(fault));
            tokio::time::sleep(wait).await;
        }
    }

    async fn place(&self, left: Option<Duration>) -> Result<Place, Failure> {
        let (begun, most) =
            (Instant::now(), left.map_or(self.config.queue_timeout, |left| left.min(self.config.queue_timeout)));
        let full = |_| match left {
            Some(left) if left <= self.config.queue_timeout => {
                Failure::Ask(AskError::Expired { waited: begun.elapsed() })
            }
            _ => Failure::Full,
        };
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if self.n_waiting() >= self.config.queue => return Err(Failure::Full),
            Err(_) => {
                let _waiting = Waiting::begin(self);
                let acquiring = Arc::clone(&self.places).acquire_owned();
                tokio::time::timeout(most, acquiring).await.map_err(full)?.map_err(|_| Failure::Full)?
            }
        };
        let in_flight = gauge!(HOSTED_IN_FLIGHT, "member" => self.name.clone());
        in_flight.increment(1.0);
        Ok(Place { _permit: permit, in_flight })
    }

    async fn hold(&self, budgets: Option<&Budgets>, most: Tokens) -> Result<Option<Hold>, AskError> {
        let Some(budgets) = budgets else { return Ok(None) };
        let most = self.amount(budgets, most);
        let mut hold = budgets.hold_written(&self.name, most).await?;
        // From here on the host may work.
        hold.on_drop(most.amount());
        Ok(Some(hold))
    }

    fn count_try(&self, outcome: &'static str) {
        counter!(HOSTED_TRIES, "member" => self.name.clone(), "outcome" => outcome).increment(1);
    }
}

struct Waiting<'a>(&'a HostedMember);

impl<'a> Waiting<'a> {
    fn begin(member: &'a HostedMember) -> Self {
        member.n_waiting.fetch_add(1, Ordering::Relaxed);
        Self(member)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.n_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight.decrement(1.0);
    }
}

impl Serving {
    async fn receive<T>(
        &self,
        wanted: &Wanted,
        span: &Span,
        left: Option<Duration>,
        read: impl Fn(Received) -> Result<T, String>,
    ) -> Result<T, Fault> {
        let (body, json_bytes) = (wanted.body.clone(), wanted.json_bytes);
        let mut headers = span.headers();
        // Another Highroad, or a proxy that knows it, need not work longer than anybody waits.
        if let Some(left) = left {
            headers.insert(urgency::TIMEOUT, u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1).into());
        }
        let mut incoming = self.client.forward(&wanted.path, headers, body, json_bytes).await?;
        let received = if wanted.events {
            if !incoming.is_event_stream() {
                return Err(Fault::malformed("it answered with no stream of events"));
            }
            let first = incoming.chunk().await?.ok_or_else(|| Fault::malformed("its stream is empty"))?;
            Received::Events(first, incoming)
        } else {
            let json_bytes = incoming.json_bytes();
            let body = incoming.whole().await?;
            match json_bytes {
                Some(json_bytes) => Received::Tensors(body, json_bytes),
                None => Received::Whole(body),
            }
        };
        read(received).map_err(|reason| Fault::malformed(self.client.told(&reason)))
    }
}

/// What ends before a request's deadline.
async fn within<F: Future>(left: Option<Duration>, future: F) -> Option<F::Output> {
    match left {
        Some(left) => tokio::time::timeout(left, future).await.ok(),
        None => Some(future.await),
    }
}

/// A try that the request's deadline broke off.
const LATE: &str = "deadline";

/// Whether the host does not work, and not just this request.
fn is_hosts_failure(fault: &Fault) -> bool {
    match fault.kind {
        FaultKind::NoConnection | FaultKind::Timeout | FaultKind::Broken | FaultKind::Malformed => true,
        FaultKind::Status(status) => status >= 500,
        FaultKind::TooLarge => false,
    }
}

/// One word, for headers and metrics.
fn reason(fault: &Fault) -> &'static str {
    match fault.kind {
        FaultKind::NoConnection => "no_connection",
        FaultKind::Timeout => "timeout",
        FaultKind::Broken => "broken",
        FaultKind::Malformed => "malformed",
        FaultKind::TooLarge => "too_large",
        FaultKind::Status(401 | 403) => "key_refused",
        FaultKind::Status(429) => "rate_limited",
        FaultKind::Status(500..) => "server_error",
        FaultKind::Status(_) => "refused",
    }
}

impl Failure {
    /// One word, for headers and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Ask(error) => error.outcome(),
            Self::Full => "queue_full",
            Self::Open(_) => "circuit_open",
            Self::Fault(fault, _) => reason(fault),
        }
    }

    /// Whether another member may answer in its place: where the request is at fault, or its payer, none may.
    pub(crate) fn falls_back(&self) -> bool {
        match self {
            Self::Ask(error) => matches!(error, AskError::NotReady { .. }),
            Self::Full | Self::Open(_) => true,
            Self::Fault(fault, _) => match fault.kind {
                // The key is ours, and so is the model's name.
                FaultKind::Status(401 | 403 | 404) => true,
                _ => fault.is_passing(),
            },
        }
    }

    /// What the client is told.
    pub(crate) fn declined(self, member: &str) -> Declined {
        match self {
            Self::Ask(error) => error.into(),
            Self::Full => {
                let problem = Problem::new(Kind::Overloaded, format!("too many requests wait for `{member}`"));
                Declined::new(problem.retry_after(Duration::from_secs(1)), "queue_full")
            }
            Self::Open(wait) => {
                let message = format!("`{member}` is left alone for a while: its host failed again and again");
                Declined::new(Problem::new(Kind::Unavailable, message).retry_after(wait), "circuit_open")
            }
            Self::Fault(fault, n_tries) => faulty(member, &fault, n_tries),
        }
    }
}

/// A refusal in OpenAI's words, which may be those of a host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Declined {
    pub problem: Problem,
    param: Option<String>,
    code: Option<String>,
}

impl Declined {
    fn new(problem: Problem, code: &str) -> Self {
        Self { problem, param: None, code: Some(code.to_owned()) }
    }

    /// OpenAI's error object.
    pub(crate) fn body(&self) -> Value {
        let mut body = Refused::from(self.problem.clone()).body();
        body["error"]["param"] = self.param.clone().into();
        body["error"]["code"] = self.code.clone().into();
        body
    }
}

impl<E: Into<Refused>> From<E> for Declined {
    fn from(refused: E) -> Self {
        let Refused { problem, param, code } = refused.into();
        Self { problem, param: param.map(str::to_owned), code: code.map(str::to_owned) }
    }
}

fn faulty(member: &str, fault: &Fault, n_tries: u32) -> Declined {
    let Fault { message: said, refusal, .. } = fault;
    let tries = if n_tries == 1 { "1 try".to_owned() } else { format!("{n_tries} tries") };
    let ours =
        |kind, message, code: &str| Declined::new(Problem { kind, message, retry_after: fault.retry_after }, code);
    // What the host says of the request is said to the client, with the parameter and the code it names.
    let theirs = |kind| {
        let message = format!("the host of `{member}` refused the request: {said}");
        Declined { problem: Problem::new(kind, message), param: refusal.param.clone(), code: refusal.code.clone() }
    };
    let failed = || format!("the host of `{member}` failed after {tries}: {said}");
    match fault.kind {
        FaultKind::Status(429) => {
            ours(Kind::Overloaded, format!("the host of `{member}` takes no more now: {said}"), "rate_limit_exceeded")
        }
        FaultKind::Status(401 | 403) => {
            ours(Kind::BadGateway, format!("the host of `{member}` refuses this server's key"), "upstream_key_refused")
        }
        FaultKind::Status(404) => {
            ours(Kind::BadGateway, format!("the host of `{member}` does not have it: {said}"), "upstream_not_found")
        }
        FaultKind::Status(413) => theirs(Kind::TooLarge),
        FaultKind::Status(422) => theirs(Kind::Unprocessable),
        FaultKind::Status(408 | 409 | 425 | 503 | 504) | FaultKind::NoConnection | FaultKind::Timeout => {
            ours(Kind::Unavailable, failed(), "upstream_unavailable")
        }
        FaultKind::Status(400..=499) => theirs(Kind::Invalid),
        FaultKind::Status(_) | FaultKind::Broken | FaultKind::Malformed | FaultKind::TooLarge => {
            ours(Kind::BadGateway, failed(), "upstream_failed")
        }
    }
}
