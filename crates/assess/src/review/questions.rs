use highroad_eval::{CheckResult, Outcome, Override};
use highroad_package::Provenance;

use super::{Facts, Finding, Line, Status};
use crate::report::traffic_facts;

/// Short name, question, and what answers it.
type Question = (&'static str, &'static str, fn(&Facts<'_>) -> Finding);

/// The five questions of a release, in the order a reviewer asks them.
pub(super) fn answer(facts: &Facts<'_>) -> Vec<Line> {
    const QUESTIONS: [Question; 5] = [
        ("data", "What data changed?", data),
        ("metrics", "Which metric improved on which dataset?", metrics),
        ("regressions", "Were safety and quality regressions tested?", regressions),
        ("traffic", "What are latency and cost at expected traffic?", traffic),
        ("rollback", "Is there a way back, and was it rehearsed?", rollback),
    ];
    QUESTIONS.iter().map(|(id, title, find)| find(facts).into_line(id, title)).collect()
}

fn data(facts: &Facts<'_>) -> Finding {
    let provenance = &facts.package.manifest.provenance;
    let now = &provenance.data;
    let n_trained = now.keys().filter(|name| provenance.may_have_trained(name)).count();
    if n_trained == 0 {
        return Finding::none("the package names no training data: export it from a run that logs its datasets");
    }
    let changes = match facts.baseline {
        Some(baseline) => changes(&baseline.manifest.provenance, provenance),
        None => now.iter().map(|(name, digest)| format!("{name} {digest}{}", role(provenance, name))).collect(),
    };
    let summary = match facts.baseline {
        None => format!("a first version, trained on {n_trained} file(s)"),
        Some(_) if changes.is_empty() => format!("nothing: the same {} file(s), byte for byte", now.len()),
        Some(_) => format!("{} of the data files changed", changes.len()),
    };
    let held_out = facts.leaks.iter().flat_map(|leaks| &leaks.held_out);
    let held_out = held_out.map(|file| format!("held out as test data, so not compared with the golden set: {file}"));
    let changes = changes.into_iter().chain(held_out);
    let finding = match &facts.leaks {
        Some(leaks) if !leaks.cases.is_empty() => Finding::new(
            Status::Fail,
            format!("{summary}; {} golden case(s) are in the training data too", leaks.cases.len()),
        )
        .details(changes)
        .details(leaks.cases.iter().take(20).map(|case| format!("leaked: {case}"))),
        Some(leaks) if !leaks.missing.is_empty() => Finding::new(
            Status::Evidence,
            format!(
                "{summary}; no golden case is in {}; not compared: {}",
                leaks.files.join(", "),
                leaks.missing.join(", ")
            ),
        )
        .details(changes),
        Some(leaks) => Finding::new(Status::Pass, format!("{summary}; no golden case is among them"))
            .details(changes)
            .see(leaks.files.iter().map(|file| format!("compared with the golden set: {file}"))),
        None => Finding::new(
            Status::Evidence,
            format!("{summary}; whether golden cases are among them was not checked, as the files are not here"),
        )
        .details(changes),
    };
    // Its manifest names the files.
    finding.see([format!("package {}", facts.package.digest)])
}

/// What a data file was for, where the manifest says it.
fn role(provenance: &Provenance, name: &str) -> String {
    provenance.data_roles.get(name).map(|role| format!(" ({role})")).unwrap_or_default()
}

fn changes(before: &Provenance, now: &Provenance) -> Vec<String> {
    let gone = before.data.keys().filter(|name| !now.data.contains_key(*name)).map(|name| format!("removed: {name}"));
    let other = now.data.iter().filter_map(|(name, digest)| match (before.data.get(name), role(now, name)) {
        (None, role) => Some(format!("added: {name} {digest}{role}")),
        (Some(was), role) if was != digest => Some(format!("changed: {name} {was} -> {digest}{role}")),
        (Some(_), _) => {
            let (Some(was), Some(is)) = (before.data_roles.get(name), now.data_roles.get(name)) else { return None };
            (was != is).then(|| format!("another role: {name} was {was} and is {is}"))
        }
    });
    gone.chain(other).collect()
}

fn metrics(facts: &Facts<'_>) -> Finding {
    let Some(kept) = facts.verdict else { return Finding::none(NO_VERDICT) };
    let compared: Vec<&CheckResult> = kept.verdict.checks.iter().filter(|check| check.baseline.is_some()).collect();
    if compared.is_empty() {
        return Finding::none("the verdict compares no metric with the baseline").see(facts.see_verdict());
    }
    let set = &kept.verdict.golden_set;
    let improved: Vec<&str> = compared.iter().filter(|check| check.improved).map(|check| measured(check)).collect();
    let on = format!("on {} ({} cases) against {}", set.name, set.n_cases, kept.verdict.baseline.in_words());
    let summary = match improved.as_slice() {
        [] => format!("none that the intervals show, {on}"),
        rules => format!("{} improved {on}", rules.join("; ")),
    };
    Finding::new(Status::Pass, summary).details(compared.iter().map(|check| in_full(check))).see(facts.see_verdict())
}

/// `recall of "spam", slice "short": not worse by more than 2 points`: what is measured stands before the last colon.
fn measured(check: &CheckResult) -> &str {
    check.rule.rsplit_once(": ").map_or(&check.rule, |(what, _)| what)
}

/// A check with its interval, cases and power.
fn in_full(check: &CheckResult) -> String {
    let note = check.power_note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
    format!("{} ({} cases): {}{note}", check.rule, check.n_cases, check.reason)
}

pub(super) const NO_VERDICT: &str = "no verdict against this baseline was found: run `highroad gate` first";

fn regressions(facts: &Facts<'_>) -> Finding {
    let overrides = || {
        let told = |given: &Override| format!("{}@{}: {}", given.model, given.alias, given.in_words());
        facts.overrides.iter().map(told)
    };
    let Some(kept) = facts.verdict else { return Finding::none(NO_VERDICT).details(overrides()) };
    let verdict = kept.verdict;
    let open: Vec<&CheckResult> = verdict.checks.iter().filter(|check| check.outcome != Outcome::Pass).collect();
    let of_safety: Vec<&CheckResult> = verdict.checks.iter().filter(|check| is_about_safety(check)).collect();
    let n_lost = verdict.flips.iter().filter(|flip| flip.regression).count();
    let n_waived = verdict.waivers.len();
    let summary = format!(
        "{} of {} checks hold; {n_lost} case(s) lost, {n_waived} accepted by name",
        verdict.checks.len() - open.len(),
        verdict.checks.len(),
    );
    let safety = match of_safety.as_slice() {
        [] => vec!["no rule is about a slice called `safety:…` or `attack:…`".to_owned()],
        checks => {
            let held = checks.iter().filter(|check| check.outcome == Outcome::Pass);
            held.map(|check| format!("safety, holds: {}", in_full(check))).collect()
        }
    };
    let admitted = verdict.admits(&facts.package.digest.to_string(), &facts.created_at);
    let refusal = admitted.as_ref().err().map(|refusal| format!("not admitted: {refusal}"));
    let waivers = verdict.waivers.iter().map(|waiver| {
        let case = if waiver.case.is_empty() { "the small golden set" } else { &waiver.case };
        format!("accepted {case} by {} until {}: {}", waiver.by, waiver.expires_at, waiver.why)
    });
    let open = open.iter().map(|check| match is_about_safety(check) {
        true => format!("safety, does not hold: {}", in_full(check)),
        false => in_full(check),
    });
    Finding::pass_if(admitted.is_ok(), summary)
        .details(refusal)
        .details(open)
        .details(safety)
        .details(waivers)
        .details(overrides())
        .see(facts.see_verdict())
}

/// Whether a check is about a slice of the cases that look for harm, by its name.
fn is_about_safety(check: &CheckResult) -> bool {
    ["safety:", "attack:"].iter().any(|prefix| check.rule.contains(&format!("slice \"{prefix}")))
}

fn traffic(facts: &Facts<'_>) -> Finding {
    let Some(kept) = facts.verdict else { return Finding::none(NO_VERDICT) };
    let verdict = kept.verdict;
    let limits: Vec<&CheckResult> = verdict.checks.iter().filter(|check| is_about_speed(check)).collect();
    let measured = verdict.traffic.as_ref().map(traffic_facts).unwrap_or_default();
    let alone = verdict.latency.as_ref().map(|latency| {
        format!(
            "one at a time: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms",
            latency.p50_ms, latency.p90_ms, latency.p99_ms
        )
    });
    let n_held = limits.iter().filter(|check| check.outcome == Outcome::Pass).count();
    let finding = match (&verdict.traffic, limits.as_slice()) {
        (None, _) => Finding::none("gates.toml declares no traffic ([traffic]), so nothing says what is expected"),
        (Some(evidence), []) => Finding::new(
            Status::Evidence,
            format!("measured at {} requests/s; gates.toml sets no limit", evidence.declared.requests_per_s),
        ),
        (Some(evidence), _) => Finding::pass_if(
            n_held == limits.len(),
            format!("{n_held} of {} limits hold at {} requests/s", limits.len(), evidence.declared.requests_per_s),
        ),
    };
    finding
        .details(limits.iter().map(|check| in_full(check)))
        .details(measured.into_iter().map(|fact| format!("{}: {}", fact.name, fact.value)))
        .details(alone)
        .see(facts.see_verdict())
}

/// Whether a check limits latency, throughput, memory or cost.
pub(super) fn is_about_speed(check: &CheckResult) -> bool {
    ["latency", "throughput", "memory", "cost", "traffic"].iter().any(|word| check.rule.starts_with(word))
}

fn rollback(facts: &Facts<'_>) -> Finding {
    match &facts.rehearsal {
        Err(reason) => Finding::new(Status::Fail, format!("the rehearsal failed: {reason}")),
        Ok(rehearsal) => Finding::pass_if(rehearsal.passed(), rehearsal.in_words())
            .details(rehearsal.timings())
            .see([format!("package {}", rehearsal.package)]),
    }
}
