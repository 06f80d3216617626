//! Findings become alerts that begin once and end once. Pure: time is an argument.

use std::collections::BTreeMap;

use highroad_package::Digest;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Event;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody should know.
    Info,
    /// Somebody should look in working hours.
    Warning,
    /// Somebody should look now.
    Critical,
}

impl Severity {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Something that is wrong now.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What kind of thing, as `objective_burns`: bounded, it is a label of a metric.
    pub alert: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about: with the kind, what makes two findings one alert.
    pub labels: BTreeMap<String, String>,
    /// In a sentence.
    pub summary: String,
    /// Numbers that go with it.
    pub values: BTreeMap<String, f64>,
    /// How long it stays an alert after it was last found, so that what comes and goes is one alert.
    pub hold: SignedDuration,
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
#[schemars(rename = "AlertState")]
pub enum State {
    Firing,
    Resolved,
}

/// A finding from its first to its last time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// 16 hexadecimal digits of what it is about.
    pub fingerprint: String,
    /// What kind of thing.
    pub alert: String,
    /// How much it matters.
    pub severity: Severity,
    /// Whether it goes on.
    pub state: State,
    /// What it is about.
    pub labels: BTreeMap<String, String>,
    /// In a sentence.
    pub summary: String,
    /// Numbers that go with it, as last found.
    pub values: BTreeMap<String, f64>,
    /// Since when, RFC 3339 in UTC.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub resolved_at: Option<Timestamp>,
    /// When it is over unless it is found again.
    #[schemars(with = "String")]
    until: Timestamp,
}

/// Most findings that become alerts at one time, and most ended alerts that are remembered.
const MOST_FIRING: usize = 1000;
const MOST_RESOLVED: usize = 256;
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// All alerts, by fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Book {
    alerts: BTreeMap<String, Alert>,
}

impl Finding {
    /// One that is an alert for as long as it is found.
    pub fn new(alert: &'static str, severity: Severity, summary: String) -> Self {
        let (labels, values, hold) = (BTreeMap::new(), BTreeMap::new(), SignedDuration::ZERO);
        Self { alert, severity, labels, summary, values, hold }
    }

    /// What it is about.
    #[must_use]
    pub fn label(mut self, name: &str, value: impl Into<String>) -> Self {
        self.labels.insert(name.to_owned(), value.into());
        self
    }

    /// A number that goes with it.
    #[must_use]
    pub fn value(mut self, name: &str, value: f64) -> Self {
        self.values.insert(name.to_owned(), value);
        self
    }

    fn fingerprint(&self) -> String {
        let about = json!([self.alert, self.severity, self.labels]).to_string();
        Digest::of(about.as_bytes()).hex()[..16].to_owned()
    }
}

impl Book {
    /// Takes in everything that is wrong at `now`; gives what begins and what ends.
    pub fn update(&mut self, now: Timestamp, findings: Vec<Finding>) -> Vec<Event> {
        let mut events = Vec::new();
        for finding in findings.into_iter().take(MOST_FIRING) {
            events.extend(self.found(now, finding));
        }
        for alert in self.alerts.values_mut().filter(|alert| alert.state == State::Firing && alert.until < now) {
            (alert.state, alert.resolved_at) = (State::Resolved, Some(now));
            events.push(alert.event("alert.resolved", now));
        }
        self.forget(now);
        events
    }

    fn found(&mut self, now: Timestamp, finding: Finding) -> Option<Event> {
        let fingerprint = finding.fingerprint();
        let until = now.checked_add(finding.hold).unwrap_or(now);
        let known = self.alerts.get_mut(&fingerprint).filter(|alert| alert.state == State::Firing);
        if let Some(alert) = known {
            (alert.summary, alert.values, alert.until) = (finding.summary, finding.values, until);
            return None;
        }
        let Finding { alert, severity, labels, summary, values, .. } = finding;
        let (alert, state, since) = (alert.to_owned(), State::Firing, now);
        let fingerprint_of = fingerprint.clone();
        let alert =
            Alert { fingerprint, alert, severity, state, labels, summary, values, since, resolved_at: None, until };
        let event = alert.event("alert.firing", now);
        self.alerts.insert(fingerprint_of, alert);
        Some(event)
    }

    fn forget(&mut self, now: Timestamp) {
        let is_old = |alert: &Alert| alert.resolved_at.is_some_and(|at| now.duration_since(at) > REMEMBERED);
        self.alerts.retain(|_, alert| !is_old(alert));
        let mut ended: Vec<_> =
            self.alerts.values().filter_map(|alert| Some((alert.resolved_at?, alert.fingerprint.clone()))).collect();
        ended.sort();
        let n_over = ended.len().saturating_sub(MOST_RESOLVED);
        for (_, fingerprint) in ended.into_iter().take(n_over) {
            self.alerts.remove(&fingerprint);
        }
    }

    /// All of them: what fires first, of each the newest first.
    pub fn alerts(&self) -> Vec<Alert> {
        let mut alerts: Vec<Alert> = self.alerts.values().cloned().collect();
        alerts.sort_by_key(|alert| (alert.state == State::Resolved, std::cmp::Reverse(alert.since)));
        alerts
    }

    /// How many fire, of every kind that is remembered.
    pub fn firing(&self) -> BTreeMap<(String, Severity), usize> {
        let mut firing = BTreeMap::new();
        for alert in self.alerts.values() {
            *firing.entry((alert.alert.clone(), alert.severity)).or_default() +=
                usize::from(alert.state == State::Firing);
        }
        firing
    }
}

impl Alert {
    fn event(&self, kind: &str, now: Timestamp) -> Event {
        let id = Digest::of(format!("{kind} {} {}", self.fingerprint, self.since).as_bytes());
        let word = if self.state == State::Firing { self.severity.name() } else { "resolved" };
        Event {
            id: format!("evt_{}", &id.hex()[..24]),
            kind: kind.to_owned(),
            timestamp: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            text: format!("[{word}] {}", self.summary),
            data: json!({
                "fingerprint": self.fingerprint, "alert": self.alert, "severity": self.severity, "state": self.state,
                "labels": self.labels, "summary": self.summary, "values": self.values, "since": self.since,
                "resolved_at": self.resolved_at,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn finding(member: &str) -> Finding {
        Finding::new("load_failure", Severity::Critical, format!("`{member}` does not load")).label("member", member)
    }

    fn kinds(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.kind.as_str()).collect()
    }

    #[test]
    fn an_alert_begins_once_and_ends_once() {
        let mut book = Book::default();
        assert_eq!(kinds(&book.update(at(0), vec![finding("a"), finding("b")])), ["alert.firing", "alert.firing"]);
        assert!(book.update(at(1), vec![finding("a"), finding("a"), finding("b").value("n", 2.0)]).is_empty());
        let ended = book.update(at(2), vec![finding("b")]);
        assert_eq!(kinds(&ended), ["alert.resolved"]);
        assert_eq!(
            (ended[0].data["labels"]["member"].as_str(), ended[0].text.as_str()),
            (Some("a"), "[resolved] `a` does not load")
        );
        assert!(book.update(at(3), vec![finding("b")]).is_empty());
        assert_eq!(book.firing().into_values().sum::<usize>(), 1);
        let again = book.update(at(4), vec![finding("a"), finding("b")]);
        assert_eq!(kinds(&again), ["alert.firing"]);
        assert_ne!(again[0].id, ended[0].id);
    }

    #[test]
    fn what_comes_and_goes_is_one_alert() {
        let held = || Finding { hold: SignedDuration::from_secs(60), ..finding("a") };
        let mut book = Book::default();
        assert_eq!(book.update(at(0), vec![held()]).len(), 1);
        assert!(book.update(at(30), vec![]).is_empty() && book.update(at(40), vec![held()]).is_empty());
        assert!(book.update(at(100), vec![]).is_empty());
        assert_eq!(kinds(&book.update(at(101), vec![])), ["alert.resolved"]);
    }

    #[test]
    fn a_book_survives_in_words_and_stays_small() {
        let mut book = Book::default();
        for round in 0..600 {
            book.update(at(round), vec![finding(&format!("m{round}"))]);
        }
        assert!(book.alerts.len() <= MOST_RESOLVED + 1);
        let text = serde_json::to_string(&book).unwrap();
        let mut back: Book = serde_json::from_str(&text).unwrap();
        assert_eq!(back, book);
        assert!(back.update(at(600), vec![finding("m599")]).is_empty(), "it goes on firing");
        back.update(at(100_000), vec![]);
        back.update(at(300_000), vec![]);
        assert!(back.alerts.is_empty());
    }
}
