//! How the package did on live traffic before it served, as the registry keeps the rollouts of its model.

use highroad_assess::review::Canary;
use highroad_eval::{CheckResult, Outcome, RolloutCounts};
use highroad_package::registry::{RegistryError, ResolvedVersion};
use highroad_package::{Reference, Selector, VerifiedPackage};
use highroad_serve::rollout::{Book, End, Ended, Rollout};

use super::super::deploy::plan_in_words;
use crate::tracking::{self, Tracking, TrackingArgs};

/// What a rollout is known by, followed by the alias it is for.
const ROLLOUTS: [&str; 2] = ["highroad.rollout.", "highroad.rollout-end."];

/// The newest rollout of the package for any alias; `None` where there was none, or with a warning where nobody can tell.
pub fn find(place: &TrackingArgs, package: &VerifiedPackage, version: Option<&ResolvedVersion>) -> Option<Canary> {
    let name = version.map_or(package.manifest().name.as_str(), |version| version.name.as_str());
    let asked = tracking::client(place).and_then(|tracking| Ok(look(&tracking, name, package)?));
    asked.unwrap_or_else(|error| {
        eprintln!("warning: the rollouts of `{name}` cannot be looked up: {error:#}");
        None
    })
}

fn look(tracking: &Tracking, name: &str, package: &VerifiedPackage) -> Result<Option<Canary>, RegistryError> {
    let client = tracking.client();
    let reference = Reference { name: name.to_owned(), selector: Selector::Digest(package.digest()) };
    let asked = tracking.block_on(async {
        let version = client.resolve(&reference).await?;
        Ok::<_, RegistryError>((version, client.model_tags(name).await?))
    });
    let (version, tags) = match asked {
        Err(RegistryError::NotFound(_) | RegistryError::NotAPackage(_)) => return Ok(None),
        found => found?,
    };
    // `highroad.rollout.ALIAS` and `highroad.rollout-end.ID.ALIAS`.
    let of_running = |key: &String| key.strip_prefix(ROLLOUTS[0]).map(str::to_owned);
    let of_ended = |key: &String| Some(key.strip_prefix(ROLLOUTS[1])?.split_once('.')?.1.to_owned());
    let mut aliases: Vec<String> = tags.keys().filter_map(|key| of_running(key).or_else(|| of_ended(key))).collect();
    aliases.sort_unstable();
    aliases.dedup();
    let canaries = aliases.iter().filter_map(|alias| of_alias(&Book::read(&tags, alias), &version, alias));
    Ok(canaries.max_by(|a, b| a.at.cmp(&b.at)))
}

fn of_alias(book: &Book, version: &ResolvedVersion, alias: &str) -> Option<Canary> {
    let running = book.running().filter(|rollout| rollout.candidate.package == version.package);
    if let Some(rollout) = running {
        return Some(going_on(book, rollout, version, alias));
    }
    let end = book.ends.iter().rev().find(|end| end.candidate == version.version)?;
    Some(ended(book, end, version, alias))
}

fn going_on(book: &Book, rollout: &Rollout, version: &ResolvedVersion, alias: &str) -> Canary {
    let plan = plan_in_words(&rollout.plan);
    let seen = seen(&book.counts());
    let (outcome, told, checks) = match &book.step.passed {
        Some(passed) => (Outcome::Pass, format!("a {plan} passed: {seen}"), passed.checks.as_slice()),
        None => (Outcome::Inconclusive, format!("a {plan} goes on, too little was seen to tell: {seen}"), &[] as &[_]),
    };
    let at = rollout.begun_at.clone();
    Canary { rollout: rollout.id.clone(), version: of(version, alias), outcome, told, at, checks: in_words(checks) }
}

fn ended(book: &Book, end: &End, version: &ResolvedVersion, alias: &str) -> Canary {
    let plan = book.rollout.as_ref().filter(|rollout| rollout.id == end.rollout);
    let plan = plan.map_or("rollout".to_owned(), |rollout| plan_in_words(&rollout.plan));
    let passed = !end.checks.is_empty() && end.checks.iter().all(|check| check.outcome == Outcome::Pass);
    let outcome = match end.outcome {
        Ended::Aborted => Outcome::Fail,
        Ended::Promoted if passed && end.counts.n_asked > 0 => Outcome::Pass,
        // By hand, before its rules could tell.
        Ended::Promoted => Outcome::Inconclusive,
    };
    let what = match (end.outcome, outcome) {
        (Ended::Aborted, _) => format!("was aborted by {}", end.by),
        (Ended::Promoted, Outcome::Pass) => "passed".to_owned(),
        (Ended::Promoted, _) => format!("was ended by {} before its rules passed", end.by),
    };
    let told = format!("a {plan} {what}: {}; {}", end.reason, seen(&end.counts));
    let (rollout, at) = (end.rollout.clone(), end.at.clone());
    Canary { rollout, version: of(version, alias), outcome, told, at, checks: in_words(&end.checks) }
}

fn of(version: &ResolvedVersion, alias: &str) -> String {
    format!("{} for `{alias}`", version.label())
}

fn seen(counts: &RolloutCounts) -> String {
    format!("{} requests asked of it, {} compared", counts.n_asked, counts.n_compared)
}

fn in_words(checks: &[CheckResult]) -> Vec<String> {
    checks.iter().map(|check| format!("{}: {} ({})", check.outcome, check.rule, check.reason)).collect()
}
