//! What webhooks are still to be told: a bounded queue, sent in order to each, tried again for a day.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::config::WebhookConfig;
use super::{Event, lock, webhook};
use crate::telemetry::{WEBHOOK_QUEUE, WEBHOOK_TRIES};

/// Something that one webhook is to be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delivery {
    webhook: String,
    event: Event,
    since: Timestamp,
    n_tries: u32,
    next_try: Timestamp,
}

pub(super) struct Outbox {
    webhooks: watch::Sender<BTreeMap<String, WebhookConfig>>,
    waiting: Mutex<VecDeque<Delivery>>,
}

/// Most that wait, of all webhooks; the oldest go first.
const MOST_WAITING: usize = 1000;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// After which nobody is told any more.
const GIVE_UP: SignedDuration = SignedDuration::from_hours(24);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Outbox {
    /// With what an earlier process did not get rid of.
    pub(super) fn new(webhooks: BTreeMap<String, WebhookConfig>, waiting: Vec<Delivery>) -> Self {
        let waiting = waiting
            .into_iter()
            .filter(|delivery| webhooks.contains_key(&delivery.webhook))
            .take(MOST_WAITING)
            .collect();
        tell_outcomes(webhooks.keys());
        Self { webhooks: watch::Sender::new(webhooks), waiting: Mutex::new(waiting) }
    }

    /// Tells those of an edited file from now on. What a webhook that is gone was still to be told nobody is; one that changed is told
    /// in its new way.
    pub(super) fn take_up(&self, webhooks: &BTreeMap<String, WebhookConfig>) {
        tell_outcomes(webhooks.keys().filter(|name| !self.webhooks.borrow().contains_key(*name)));
        self.webhooks.send_if_modified(|now| {
            let is_other = now != webhooks;
            if is_other {
                now.clone_from(webhooks);
            }
            is_other
        });
        // From here on nothing is put for one that is gone.
        lock(&self.waiting).retain(|delivery| webhooks.contains_key(&delivery.webhook));
    }

    /// What an earlier process did not get rid of, found after this one began.
    pub(super) fn restore(&self, earlier: Vec<Delivery>) {
        let webhooks = self.webhooks.borrow();
        let mut waiting = lock(&self.waiting);
        let known = earlier.into_iter().filter(|delivery| webhooks.contains_key(&delivery.webhook));
        for delivery in known.take(MOST_WAITING.saturating_sub(waiting.len())) {
            waiting.push_back(delivery);
        }
    }

    /// Everybody who wants to know of `event` is to be told.
    pub(super) fn put(&self, event: &Event, now: Timestamp) {
        let webhooks = self.webhooks.borrow();
        let mut waiting = lock(&self.waiting);
        for (name, _) in webhooks.iter().filter(|(_, webhook)| webhook.wants(&event.kind)) {
            if waiting.len() >= MOST_WAITING
                && let Some(oldest) = waiting.pop_front()
            {
                count(&oldest.webhook, "given_up");
            }
            let (webhook, event) = (name.clone(), event.clone());
            waiting.push_back(Delivery { webhook, event, since: now, n_tries: 0, next_try: now });
        }
    }

    pub(super) fn waiting(&self) -> Vec<Delivery> {
        lock(&self.waiting).iter().cloned().collect()
    }

    /// Tells webhooks for as long as it is polled; `changed` is called after every try.
    pub(super) async fn run(&self, changed: impl Fn()) {
        // Only the address that the configuration names is asked, whatever its answer says.
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .user_agent(concat!("highroad/", env!("CARGO_PKG_VERSION")))
            .build();
        let http = match http {
            Ok(http) => http,
            Err(error) => return tracing::error!("No webhook can be told anything: {error}"),
        };
        let mut edits = self.webhooks.subscribe();
        let (mut telling, mut told) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            let names: Vec<String> = edits.borrow_and_update().keys().cloned().collect();
            for name in names {
                if told.insert(name.clone()) {
                    telling.push(self.tell(&http, name, &changed));
                }
            }
            tokio::select! {
                Some(gone) = telling.next() => drop(told.remove(&gone)),
                // The sender is this outbox itself.
                _ = edits.changed() => {}
            }
        }
    }

    /// One after the other, so that a receiver hears of the end of an alert after its beginning, until nobody of this `name` is to be told
    /// any more. An edit does not break off what is being told.
    async fn tell(&self, http: &reqwest::Client, name: String, changed: &impl Fn()) -> String {
        loop {
            let Some(webhook) = self.webhooks.borrow().get(&name).cloned() else {
                gauge!(WEBHOOK_QUEUE, "webhook" => name.clone()).set(0.0);
                return name;
            };
            let (first, n_waiting) = {
                let waiting = lock(&self.waiting);
                let mut own = waiting.iter().filter(|delivery| delivery.webhook == name);
                let first = own.next().cloned();
                (first, own.count() + 1)
            };
            gauge!(WEBHOOK_QUEUE, "webhook" => name.clone()).set(if first.is_some() { n_waiting as f64 } else { 0.0 });
            let Some(delivery) = first.filter(|delivery| delivery.next_try <= Timestamp::now()) else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            let result = send(http, &name, &webhook, &delivery.event).await;
            self.settle(delivery, result);
            changed();
        }
    }

    fn settle(&self, tried: Delivery, result: Result<(), String>) {
        let mut waiting = lock(&self.waiting);
        let is_it = |waits: &Delivery| {
            waits.webhook == tried.webhook && waits.event.id == tried.event.id && waits.since == tried.since
        };
        let Some(at) = waiting.iter().position(is_it) else { return };
        let name = &tried.webhook;
        let Err(reason) = result else {
            count(name, "delivered");
            waiting.remove(at);
            return;
        };
        let now = Timestamp::now();
        if now.duration_since(tried.since) > GIVE_UP {
            tracing::error!(webhook.name = %name, "Gives up to tell `{name}` of {}: {reason}", tried.event.kind);
            count(name, "given_up");
            waiting.remove(at);
            return;
        }
        count(name, "failed");
        let pause = FIRST_PAUSE.saturating_mul(1 << tried.n_tries.min(20)).min(LONGEST_PAUSE);
        if tried.n_tries == 0 {
            tracing::warn!(webhook.name = %name, "Cannot tell `{name}` of {}, and tries again: {reason}", tried.event.kind);
        }
        let waits = &mut waiting[at];
        waits.n_tries = tried.n_tries.saturating_add(1);
        waits.next_try = now.checked_add(SignedDuration::try_from(pause).unwrap_or(GIVE_UP)).unwrap_or(now);
    }
}

/// Counters are there before they count.
fn tell_outcomes<'n>(names: impl Iterator<Item = &'n String>) {
    for name in names {
        for outcome in ["delivered", "failed", "given_up"] {
            counter!(WEBHOOK_TRIES, "webhook" => name.clone(), "outcome" => outcome).increment(0);
        }
    }
}

fn count(webhook: &str, outcome: &'static str) {
    counter!(WEBHOOK_TRIES, "webhook" => webhook.to_owned(), "outcome" => outcome).increment(1);
}

/// Tells it once. The reason of a failure holds no part of the address: it may be a secret.
async fn send(http: &reqwest::Client, name: &str, webhook: &WebhookConfig, event: &Event) -> Result<(), String> {
    let body = webhook::body(webhook.format, name, event);
    let now_s = Timestamp::now().as_second();
    let mut request = http
        .post(webhook.url.clone())
        .header("content-type", "application/json")
        .header("webhook-id", &event.id)
        .header("webhook-timestamp", now_s);
    if let Some(secret) = &webhook.secret {
        request = request.header("webhook-signature", secret.sign(&event.id, now_s, &body));
    }
    let response = request.body(body).send().await.map_err(|error| innermost(error.without_url()))?;
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answers {}", status.as_u16())) }
}

fn innermost(error: reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = &error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}
