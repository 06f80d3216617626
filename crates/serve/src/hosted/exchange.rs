//! From the first byte of a host's answer to the end of what is passed on: settled, counted and logged once, however it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::stream;
use highroad_hosted::{Incoming, Tokens};
use highroad_package::Digest;
use highroad_service::trace::Span;
use highroad_task::{Cut, Glimpse};
use metrics::{counter, histogram};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ask::Began;
use super::trial::Part;
use crate::alerts::watch::{self, Watch};
use crate::protocol::chat::{Event, Events, Tally, error_event};
use crate::request_log::{Caller, Record, RequestLog};
use crate::telemetry::{HOSTED_COST, HOSTED_FIRST_BYTE_SECONDS, HOSTED_TOKENS, REQUEST_SECONDS, REQUESTS};
use crate::traced;
use crate::traffic;

/// What the request log has of a hosted answer beside what it has of every answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostedRecord {
    /// What the host calls the model.
    pub model: String,
    /// The model that the host says answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    /// Digest of what the host was asked: of the path and the canonical JSON of the body, but for whether the answer comes in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Digest>,
    /// Tokens that were sent and written, as the host counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Tokens>,
    /// What that costs, where both are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// What the cost is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Tries it took.
    pub n_tries: u32,
    /// Members that could not answer before it, each with the reason: `chat=timeout`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback_from: Vec<String>,
    /// How it ended.
    pub ended: Ended,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HostedOutcome")]
pub enum Ended {
    /// As it should.
    Complete,
    /// The client left first.
    ClientLeft,
    /// The host broke off.
    Broken,
}

/// Who asked, and where.
pub(crate) struct Asked {
    pub request_id: String,
    pub caller: Caller,
    pub route: &'static str,
    pub log: RequestLog,
    /// Members that could not answer, each with the reason.
    pub passed: Vec<String>,
    /// The pipeline that this is a step of.
    pub step_of: Option<String>,
    /// Its part in a trial.
    pub part: Option<Part>,
    /// What monitoring looks at of a request to write.
    pub glimpse: Option<Glimpse>,
}

/// An answer that is passed on. Dropped before its end, the client has left.
pub(crate) struct Exchange {
    began: Began<()>,
    asked: Asked,
    tally: Tally,
    digests: Option<Vec<Digest>>,
    ended: Option<Ended>,
    /// Until its answer was there, or began to be.
    first_byte: Duration,
    watch: Option<Arc<Watch>>,
}

impl Exchange {
    /// Of an answer that has begun; what came of it goes to `began.value`.
    pub(crate) fn new<T>(began: Began<T>, asked: Asked) -> (Self, T) {
        let Began { value, member, serving, hold, place, n_tries, begun, request, span } = began;
        histogram!(HOSTED_FIRST_BYTE_SECONDS, "member" => member.name.clone()).record(begun.elapsed().as_secs_f64());
        let began = Began { value: (), member, serving, hold, place, n_tries, begun, request, span };
        let (first_byte, watch) = (begun.elapsed(), watch::current());
        (Self { began, asked, tally: Tally::default(), digests: None, ended: None, first_byte, watch }, value)
    }

    /// The end of a whole answer.
    pub(crate) fn whole(mut self, tally: Tally, digests: Vec<Digest>) {
        (self.tally, self.digests) = (tally, Some(digests));
        self.end(Ended::Complete);
    }

    fn end(&mut self, ended: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(ended);
        let (member, usage) = (&self.began.member, self.tally.usage);
        // Where the host does not count, or was still at it, what was set aside is what it took: nobody knows better.
        let counted = usage.filter(|_| ended == Ended::Complete);
        if let Some((hold, usage)) = self.began.hold.take().zip(counted) {
            let actual = member.amount(hold.budgets(), usage).amount();
            hold.settle(actual);
        }
        let (name, member_name) = (|| member.name.clone(), member.name.as_str());
        let outcome = match ended {
            Ended::Complete => "ok",
            Ended::ClientLeft => "client_left",
            Ended::Broken => "failed",
        };
        if let Some(watch) = self.watch.take() {
            watch.member(member_name, outcome, self.first_byte);
        }
        let took = self.began.begun.elapsed();
        traffic::count(member.name(), outcome, (outcome == "ok").then_some(took));
        counter!(REQUESTS, "member" => name(), "outcome" => outcome).increment(1);
        histogram!(REQUEST_SECONDS, "member" => name()).record(took.as_secs_f64());
        if let Some(usage) = usage {
            counter!(HOSTED_TOKENS, "member" => name(), "direction" => "input").increment(usage.input);
            counter!(HOSTED_TOKENS, "member" => name(), "direction" => "output").increment(usage.output);
        }
        if let Some(glimpse) = self.asked.glimpse.take().filter(|_| ended == Ended::Complete) {
            member.wrote(glimpse, self.tally.written());
        }
        let record = self.record(ended);
        if let Some((cost, currency)) =
            record.hosted.as_ref().and_then(|hosted| hosted.cost.zip(hosted.currency.clone()))
        {
            // Counters are whole numbers.
            counter!(HOSTED_COST, "member" => name(), "currency" => currency).increment((cost * 1e6).round() as u64);
        }
        if let Some(part) = self.asked.part.take().filter(|_| ended == Ended::Complete) {
            let cost = record.hosted.as_ref().and_then(|hosted| hosted.cost);
            part.answered(&member.name, &self.tally, cost, self.began.begun.elapsed());
        }
        self.end_span(&record);
        self.asked.log.put(record);
    }

    fn end_span(&mut self, record: &Record) {
        let Some(hosted) = &record.hosted else { return };
        let Began { member, serving, begun, span, .. } = &self.began;
        traced::ended(span, member.hosted(), &serving.facts, hosted, self.tally.finish_reasons(), begun.elapsed());
        // It ends here, whoever still holds the exchange.
        self.began.span = Span::default();
    }

    fn record(&self, ended: Ended) -> Record {
        let (facts, usage) = (self.began.serving.facts.clone(), self.tally.usage);
        let price = self.began.member.hosted().price.as_ref();
        let hosted = HostedRecord {
            model: self.began.member.hosted().model.clone(),
            served_by: self.tally.served_by.as_deref().map(short_name),
            request: Some(self.began.request),
            usage,
            cost: price.zip(usage).map(|(price, usage)| price.of(usage)),
            currency: price.map(|price| price.currency.clone()),
            n_tries: self.began.n_tries,
            fallback_from: self.asked.passed.clone(),
            ended,
        };
        Record {
            request_id: self.asked.request_id.clone(),
            caller: self.asked.caller.clone(),
            time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            member: facts.member,
            route: self.asked.route.to_owned(),
            version: facts.version,
            package: facts.package,
            verdict: facts.verdict,
            evidence: facts.evidence.to_owned(),
            overridden: None,
            development: facts.development,
            numerics_id: facts.numerics_id,
            outputs: self.digests.clone().unwrap_or_else(|| self.tally.digests()),
            labels: Vec::new(),
            order: Vec::new(),
            n_tokens: usage.map(|usage| usage.input as usize).into_iter().collect(),
            n_truncated: 0,
            cut: Cut::End,
            document_tokens: None,
            prompts: Vec::new(),
            cache: None,
            queue_ms: 0.0,
            compute_ms: 0.0,
            total_ms: milliseconds(self.began.begun.elapsed()),
            hosted: Some(hosted),
            step_of: self.asked.step_of.clone(),
            pipeline: None,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(Ended::ClientLeft);
    }
}

/// A model's name without folders: names of files are no names of models.
fn short_name(name: &str) -> String {
    const MOST: usize = 120;
    name.rsplit('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(MOST).collect()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A stream of events on its way to the client.
struct Relay {
    exchange: Exchange,
    events: Events,
    incoming: Incoming,
    wants_usage: bool,
    is_over: bool,
}

/// Passes a stream on as it comes, from its first bytes; that which counts the tokens only where the client asked for it.
pub(crate) fn relay(exchange: Exchange, first: &[u8], incoming: Incoming, wants_usage: bool) -> Body {
    let mut relay = Relay { exchange, events: Events::default(), incoming, wants_usage, is_over: false };
    let begun = match relay.events.push(first) {
        Ok(()) => None,
        Err(reason) => Some(relay.broke(&reason)),
    };
    Body::from_stream(stream::unfold((relay, begun), |(mut relay, begun)| async move {
        let bytes = match begun {
            Some(bytes) => bytes,
            None => relay.next().await?,
        };
        Some((Ok::<_, Infallible>(bytes), (relay, None)))
    }))
}

impl Relay {
    /// The next whole events, `None` after the last.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let ready = self.ready();
            if !ready.is_empty() {
                return Some(ready);
            }
            if self.is_over {
                return None;
            }
            match self.incoming.chunk().await {
                Ok(Some(bytes)) => {
                    if let Err(reason) = self.events.push(&bytes) {
                        return Some(self.broke(&reason));
                    }
                }
                Ok(None) => return self.closed(),
                Err(fault) => return Some(self.broke(&fault.message)),
            }
        }
    }

    fn ready(&mut self) -> Vec<u8> {
        let mut ready = Vec::new();
        while !self.is_over {
            let Some(event) = self.events.next_event() else { break };
            match self.exchange.tally.event(&event) {
                Event::Usage if !self.wants_usage => {}
                Event::Part | Event::Usage => ready.extend(event),
                Event::Done => {
                    ready.extend(event);
                    self.over(Ended::Complete);
                }
                Event::Error(message) => ready.extend(self.broke(&message)),
            }
        }
        ready
    }

    /// Some hosts end without `[DONE]`; what never came to an end broke off.
    fn closed(&mut self) -> Option<Vec<u8>> {
        if !self.exchange.tally.is_finished() {
            return Some(self.broke("its stream ended in the middle"));
        }
        self.over(Ended::Complete);
        let rest = self.events.rest();
        (!rest.is_empty()).then_some(rest)
    }

    fn broke(&mut self, reason: &str) -> Vec<u8> {
        self.over(Ended::Broken);
        let reason = self.exchange.began.serving.client.told(reason);
        error_event(&format!("the host of `{}` broke off: {reason}", self.exchange.began.member.name))
    }

    fn over(&mut self, ended: Ended) {
        self.is_over = true;
        self.exchange.end(ended);
    }
}
