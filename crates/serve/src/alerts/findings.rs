//! What is wrong with a portfolio beside its objectives, and what ended since the last look.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::Event;
use super::book::{Finding, Severity};
use crate::budget::{Meter, Standing};
use crate::deployment::Status;
use crate::monitor;
use crate::portfolio::Portfolio;
use crate::rollout::Ended;

/// Shares of a budget that are told, and how much they matter.
const SHARES: [(f64, &str, Severity); 3] =
    [(0.5, "50 %", Severity::Info), (0.8, "80 %", Severity::Warning), (1.0, "100 %", Severity::Critical)];
/// An override that ends sooner is told, and sooner than the second urgently.
const LITTLE_LEFT: SignedDuration = SignedDuration::from_hours(24);

pub(super) fn of(portfolio: &Portfolio, now: Timestamp) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for status in portfolio.statuses() {
        found.extend(load_failure(&status));
        found.extend(override_ends(&status, now));
        found.extend(no_way_back(&status));
    }
    for member in portfolio.hosted().all() {
        if let Some(circuit) = member.circuit_open() {
            let summary = format!("`{}` is left alone: its host failed again and again", member.name());
            let finding = Finding::new("circuit_open", Severity::Critical, summary).label("member", member.name());
            // A circuit that is tried is no open one, and no closed one either.
            let hold = SignedDuration::from_secs(10);
            found.push(Finding { hold, ..finding }.value("half_open", f64::from(u8::from(circuit == "half_open"))));
        }
    }
    if let Some(budgets) = portfolio.budgets() {
        let currency = budgets.currency().unwrap_or_default().to_owned();
        found.extend(budgets.standings().iter().flat_map(|standing| budget_shares(standing, &currency)));
    }
    for deployment in portfolio.deployments() {
        if let Some(held) = deployment.held_probation() {
            let summary = format!("`{}` should go back and does not: {held}", deployment.name());
            let finding = Finding::new("rollback_held", Severity::Critical, summary).label("member", deployment.name());
            found.push(Finding { hold: SignedDuration::from_secs(60), ..finding });
        }
    }
    found.extend(portfolio.monitor().last_findings().into_iter().map(drift));
    found
}

fn drift(finding: monitor::Finding) -> Finding {
    let found = Finding::new("drift", Severity::Warning, finding.message).label("member", finding.member);
    let found = found.label("version", finding.version).label("signal", finding.signal);
    found.value("effect", finding.effect).value("requests", finding.n as f64)
}

fn load_failure(status: &Status) -> Option<Finding> {
    // A circuit that is open has a finding of its own.
    let failure = status.failure.as_ref().filter(|failure| !failure.reason.starts_with("its circuit is "))?;
    let (severity, goes_on) = match &status.serving {
        Some(now) => (Severity::Warning, format!("; {} goes on serving", now.version)),
        None => (Severity::Critical, "; nothing serves".to_owned()),
    };
    let version = failure.version.as_deref().unwrap_or(&status.source);
    let summary = format!("`{}` cannot serve {version}: {}{goes_on}", status.member, short(&failure.reason));
    let finding = Finding::new("load_failure", severity, summary).label("member", status.member.clone());
    Some(finding.label("version", version).value("attempts", f64::from(failure.attempts)))
}

/// A rollback that would not serve is worth knowing of before it is needed.
fn no_way_back(status: &Status) -> Option<Finding> {
    let way_back = status.way_back.as_ref()?;
    let reason = way_back.failure.as_deref()?;
    let (member, version) = (&status.member, &way_back.version);
    let summary = format!("`{member}` could not be rolled back to {version} here: {}", short(reason));
    let finding = Finding::new("no_way_back", Severity::Warning, summary).label("member", member.clone());
    Some(finding.label("version", version.clone()))
}

fn override_ends(status: &Status, now: Timestamp) -> Option<Finding> {
    let serving = status.serving.as_ref()?;
    let overridden = serving.overridden.as_ref()?;
    let left = overridden.expires_at.parse::<Timestamp>().ok()?.duration_since(now);
    if left >= LITTLE_LEFT {
        return None;
    }
    let (severity, word) =
        if left <= SignedDuration::ZERO { (Severity::Critical, "ended") } else { (Severity::Warning, "ends") };
    let summary = format!(
        "the override by {} that `{}` serves {} by {word} at {}; after that it is not loaded again",
        overridden.by, status.member, serving.version, overridden.expires_at
    );
    let finding = Finding::new("override_ends", severity, summary).label("member", status.member.clone());
    Some(finding.label("version", serving.version.clone()).value("seconds_left", left.as_secs_f64()))
}

/// A minute's limit is a rate, which is used up and full again all the time: no finding.
fn budget_shares(standing: &Standing, currency: &str) -> Vec<Finding> {
    let Some(most) = standing.most.filter(|most| *most > 0 && standing.meter != Meter::TokensPerMinute) else {
        return Vec::new();
    };
    let share = standing.used as f64 / most as f64;
    let (scope, name, meter) = (standing.scope.name(), &standing.name, standing.meter);
    let reached = SHARES.iter().filter(|(least, ..)| share >= *least);
    let finding = |(least, words, severity): &(f64, &str, Severity)| {
        let shown =
            if meter.is_cost() { format!("{:.2} {currency}", most as f64 / 1e9) } else { format!("{most} tokens") };
        let summary = format!("{scope} `{name}` has spent {words} of its {meter} of {shown}");
        let finding = Finding::new("budget_spent", *severity, summary).label(scope, name.clone());
        finding
            .label("limit", meter.name())
            .label("share", words.to_string())
            .value("share", share)
            .value("least", *least)
    };
    reached.map(finding).collect()
}

/// Rollouts and ways back that ended since the last look, as events; `told` remembers them by member.
pub(super) fn ended(portfolio: &Portfolio, told: &mut BTreeMap<String, String>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut is_new = |member: String, id: &str| told.insert(member, id.to_owned()).as_deref() != Some(id);
    for rollout in portfolio.rollouts() {
        let Some(end) = &rollout.end else { continue };
        let (word, kind) = match end.outcome {
            Ended::Promoted => ("promoted", "rollout.promoted"),
            Ended::Aborted => ("aborted", "rollout.aborted"),
        };
        if !is_new(format!("rollout {}", rollout.member), &end.rollout) {
            continue;
        }
        let candidate = end.candidate;
        events.push(Event {
            // The same of every replica that tells it.
            id: format!("evt_{}_{word}", end.rollout),
            kind: kind.to_owned(),
            timestamp: end.at.clone(),
            text: format!("version {candidate} of `{}` was {word} by {}: {}", rollout.member, end.by, short(&end.reason)),
            data: json!({
                "member": rollout.member, "rollout": end.rollout, "outcome": end.outcome, "version": candidate, "by": end.by,
                "reason": short(&end.reason), "checks": end.checks, "counts": end.counts, "switch_ms": rollout.switch_ms,
            }),
        });
    }
    for deployment in portfolio.deployments() {
        let Some(back) = deployment.last_way_back() else { continue };
        if is_new(format!("way back {}", deployment.name()), &back.id) {
            events.push(back.event(deployment.name()));
        }
    }
    events
}

/// What others wrote, at most as long as a message should be.
fn short(text: &str) -> String {
    const MOST: usize = 500;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
}
