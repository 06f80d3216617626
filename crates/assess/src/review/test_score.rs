use highroad_eval::{Evidence, Outcome};
use serde::{Deserialize, Serialize};

use super::{Facts, Finding, Line, LiveQuality, Monitored, Status};
use crate::review::questions::{NO_VERDICT, is_about_speed};

/// "The ML Test Score: A Rubric for ML Production Readiness" (Breck et al., IEEE BigData 2017): 28 tests in four sections.
/// A test that runs by itself counts 1, one that a person does by hand and documents counts 0.5; the score is the lowest
/// section's sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlTestScore {
    /// The least of the sections' points.
    pub score: f64,
    /// What the paper says of a score like that.
    pub meaning: String,
    /// Data, model, infrastructure, monitoring.
    pub sections: Vec<SectionScore>,
}

/// Seven tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SectionScore {
    pub name: String,
    pub points: f64,
    pub tests: Vec<Line>,
}

/// Who decides a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// This program, from artifacts.
    Artifacts,
    /// A person, from evidence that is attached.
    Evidence,
    /// A person.
    Person,
}

/// One test of the rubric.
pub(super) struct Test {
    pub id: &'static str,
    pub title: &'static str,
    pub decided: Decided,
    find: fn(&Facts<'_>) -> Finding,
}

const fn by_artifacts(id: &'static str, title: &'static str, find: fn(&Facts<'_>) -> Finding) -> Test {
    Test { id, title, decided: Decided::Artifacts, find }
}

const fn by_evidence(id: &'static str, title: &'static str, find: fn(&Facts<'_>) -> Finding) -> Test {
    Test { id, title, decided: Decided::Evidence, find }
}

/// The rubric, in the paper's order.
pub(super) const SECTIONS: [(&str, [Test; 7]); 4] = [
    (
        "Data",
        [
            by_artifacts("D1", "Feature expectations are captured in a schema", schema),
            by_evidence("D2", "All features are beneficial", nothing_attached),
            by_evidence("D3", "No feature's cost is too much", preprocessing_cost),
            by_evidence("D4", "Features adhere to meta-level requirements", sources),
            by_evidence("D5", "The data pipeline has appropriate privacy controls", nothing_attached),
            Test {
                id: "D6",
                title: "New features can be added quickly",
                decided: Decided::Person,
                find: nothing_attested,
            },
            by_artifacts("D7", "All input feature code is tested", preprocessing),
        ],
    ),
    (
        "Model",
        [
            by_artifacts("M1", "Model specs are reviewed and submitted", commit),
            by_artifacts("M2", "Offline and online metrics correlate", online_metrics),
            by_evidence("M3", "All hyperparameters have been tuned", tuned),
            by_evidence("M4", "The impact of model staleness is known", staleness),
            by_artifacts("M5", "A simpler model is not better", simpler),
            by_artifacts("M6", "Model quality is sufficient on important data slices", slices),
            by_evidence("M7", "The model is tested for considerations of inclusion", inclusion),
        ],
    ),
    (
        "Infrastructure",
        [
            by_artifacts("I1", "Training is reproducible", reproducible),
            by_artifacts("I2", "Model specs are unit tested", unit_tests),
            by_artifacts("I3", "The ML pipeline is integration tested", pipeline),
            by_artifacts("I4", "Model quality is validated before serving", validated),
            by_artifacts("I5", "The model is debuggable", debuggable),
            by_artifacts("I6", "Models are canaried before serving", canaried),
            by_artifacts("I7", "Serving models can be rolled back", rolled_back),
        ],
    ),
    (
        "Monitoring",
        [
            by_artifacts("N1", "Dependency changes result in notification", dependencies),
            by_artifacts("N2", "Data invariants hold for inputs", live_inputs),
            by_artifacts("N3", "Training and serving are not skewed", skew),
            by_artifacts("N4", "Models are not too stale", age),
            by_artifacts("N5", "Models are numerically stable", stable),
            by_artifacts("N6", "Computing performance has not regressed", performance),
            by_evidence("N7", "Prediction quality has not regressed on served data", live_labels),
        ],
    ),
];

/// Whether `id` is a test that a person decides.
pub fn can_be_attested(id: &str) -> bool {
    let tests = SECTIONS.iter().flat_map(|(_, tests)| tests);
    tests.filter(|test| test.decided != Decided::Artifacts).any(|test| test.id == id)
}

pub(super) fn score(facts: &Facts<'_>) -> MlTestScore {
    let sections: Vec<SectionScore> = SECTIONS
        .iter()
        .map(|(name, tests)| {
            let tests: Vec<Line> = tests.iter().map(|test| test.line(facts)).collect();
            SectionScore { name: (*name).to_owned(), points: tests.iter().map(points).sum(), tests }
        })
        .collect();
    let score = sections.iter().map(|section| section.points).fold(f64::INFINITY, f64::min);
    MlTestScore { score, meaning: meaning(score).to_owned(), sections }
}

fn points(line: &Line) -> f64 {
    match line.status {
        Status::Pass => 1.0,
        Status::Evidence | Status::Attested => 0.5,
        Status::Fail | Status::NotEvidenced => 0.0,
    }
}

/// Table 5 of the paper, in other words.
fn meaning(score: f64) -> &'static str {
    match score {
        s if s <= 0.0 => "a research project more than a product",
        s if s <= 1.0 => "not wholly untested, but serious holes in reliability are likely",
        s if s <= 2.0 => "a first pass at production, more work is due",
        s if s <= 3.0 => "reasonably tested, more could be automated",
        s if s <= 5.0 => "strongly tested and monitored, fit for critical systems",
        _ => "exceptionally well tested and monitored",
    }
}

impl Test {
    /// What artifacts decide nobody can attest; evidence that is attached to the run, and a person's word, count where a
    /// person decides.
    fn line(&self, facts: &Facts<'_>) -> Line {
        let found = (self.find)(facts);
        let finding = match (self.decided, found.status) {
            (Decided::Artifacts, _) | (_, Status::Fail) => found,
            _ => self.by_a_person(facts).unwrap_or(found),
        };
        finding.into_line(self.id, self.title)
    }

    fn by_a_person(&self, facts: &Facts<'_>) -> Option<Finding> {
        let files = facts.attached.get(self.id).cloned().unwrap_or_default();
        if let Some(attestation) = facts.attested.get(self.id) {
            let summary = format!("{}: {}", attestation.by, attestation.why);
            return Some(Finding::new(Status::Attested, summary).see(files));
        }
        let attached = || Finding::new(Status::Evidence, "evidence is attached to the run; a person decides");
        (!files.is_empty()).then(|| attached().see(files))
    }
}

fn nothing_attached(_: &Facts<'_>) -> Finding {
    Finding::none("nothing is attached: log a file `review/ID.…` to the training run")
}

fn nothing_attested(_: &Facts<'_>) -> Finding {
    Finding::none("a person answers this: --attest ID --by NAME --why TEXT")
}

fn schema(facts: &Facts<'_>) -> Finding {
    let Some(rerun) = &facts.rerun else {
        return Finding::none("the golden set was not answered, so nothing shows that inputs fit the task's signature");
    };
    let set = &rerun.golden_set;
    Finding::new(
        Status::Pass,
        format!("the task signature is in the package, and all {} cases of {} fit it", set.n_cases, set.name),
    )
    .see(facts.see_rerun(rerun))
}

fn preprocessing_cost(facts: &Facts<'_>) -> Finding {
    match &facts.rerun {
        Some(rerun) => Finding::new(
            Status::Evidence,
            format!("preprocessing takes {:.1} % of the time from text to answer", 100.0 * rerun.preprocessing_share),
        )
        .see(facts.see_rerun(rerun)),
        None => Finding::none("the golden set was not answered, so nothing was measured"),
    }
}

fn sources(facts: &Facts<'_>) -> Finding {
    let provenance = &facts.package.manifest.provenance;
    if provenance.data.is_empty() {
        return Finding::none("the package names no training data");
    }
    let trained = provenance.data.iter().filter(|(name, _)| provenance.may_have_trained(name));
    let files = trained.map(|(name, digest)| format!("{name} {digest}")).collect::<Vec<_>>();
    let licence = &facts.package.manifest.licence;
    Finding::new(Status::Evidence, format!("licence of the weights: {licence}; {} training file(s)", files.len()))
        .see(files)
}

fn preprocessing(facts: &Facts<'_>) -> Finding {
    match &facts.parity {
        Ok(parity) => Finding::pass_if(
            parity.passed,
            format!("preprocessing is in the package; {} parity cases were replayed with it", parity.n_cases),
        )
        .see([format!("package {}", facts.package.digest)]),
        Err(reason) => Finding::new(Status::Fail, format!("the parity cases could not be replayed: {reason}")),
    }
}

fn commit(facts: &Facts<'_>) -> Finding {
    let Some(commit) = &facts.commit else {
        return Finding::none("the package names no commit, or it is not in this repository");
    };
    let see = [format!("commit {}", commit.id)];
    if commit.dirty {
        return Finding::new(Status::Fail, "trained from files that were changed after the commit").see(see);
    }
    match commit.reviewers.as_slice() {
        [] => Finding::none(format!("checked in by {}; nobody else signed it off", commit.author)).see(see),
        others => {
            let summary = format!("checked in by {}, reviewed by {}", commit.author, others.join(", "));
            Finding::new(Status::Pass, summary).see(see)
        }
    }
}

/// Fewest right answers that say something about a share.
const MIN_LABELS: u64 = 50;

fn online_metrics(facts: &Facts<'_>) -> Finding {
    let live = facts.monitored.as_ref().and_then(|monitored| Some((monitored, monitored.live.as_ref()?)));
    let Some((monitored, live)) = live.filter(|(_, live)| live.n >= MIN_LABELS) else {
        return Finding::none(format!(
            "fewer than {MIN_LABELS} right answers to served requests are known to compare the offline metrics with: `highroad monitor label`"
        ));
    };
    let Some(offline) = live.baseline else {
        return Finding::none("the baseline of the monitoring does not tell which answers were right")
            .see(monitored.see());
    };
    let [low, high] = live.bounds;
    let summary = format!("{}, and offline {:.1} %", live.in_words(), 100.0 * offline);
    Finding::pass_if((low..=high).contains(&offline), summary).see(monitored.see())
}

fn tuned(facts: &Facts<'_>) -> Finding {
    let tuned = facts.run.as_ref().map(|run| (&run.tuned.0, run.tuned.1));
    match tuned {
        Some((params, n_runs)) if n_runs > 0 => {
            let summary = format!("{n_runs} other run(s) of the experiment varied {}", params.join(", "));
            Finding::new(Status::Evidence, summary).see(facts.run.iter().map(|run| format!("run {}", run.id)))
        }
        Some(_) => Finding::none("no other run of the experiment tried other parameters"),
        None => Finding::none("the training run was not found"),
    }
}

fn staleness(facts: &Facts<'_>) -> Finding {
    match facts.history {
        [] => Finding::none("no earlier version was judged on this golden set"),
        versions => {
            Finding::new(Status::Evidence, format!("{} earlier package(s) answered this golden set", versions.len()))
                .see(versions.iter().map(|(package, verdict)| format!("package {package}, verdict {verdict}")))
        }
    }
}

fn simpler(facts: &Facts<'_>) -> Finding {
    let Some(kept) = facts.against_trivial else {
        return Finding::none("no verdict against a trivial baseline: `highroad gate PACKAGE --baseline trivial`");
    };
    let comparison = kept.verdict.checks.iter().find(|check| check.baseline.is_some());
    let summary = comparison.map_or("no comparison".to_owned(), |check| format!("{}: {}", check.rule, check.reason));
    let holds = comparison.is_some_and(|check| check.outcome == Outcome::Pass);
    Finding::pass_if(holds, summary).see([format!("verdict {}", kept.digest)])
}

fn slices(facts: &Facts<'_>) -> Finding {
    let Some(kept) = facts.verdict else { return Finding::none(NO_VERDICT) };
    let of_slices: Vec<_> = kept.verdict.checks.iter().filter(|check| check.rule.contains(", slice \"")).collect();
    if of_slices.is_empty() {
        return Finding::none("gates.toml has no rule about a slice").see(facts.see_verdict());
    }
    let n_open = of_slices.iter().filter(|check| check.outcome != Outcome::Pass).count();
    Finding::pass_if(n_open == 0, format!("{} of {} slice rules hold", of_slices.len() - n_open, of_slices.len()))
        .details(of_slices.iter().map(|check| format!("{} ({} cases): {}", check.rule, check.n_cases, check.reason)))
        .see(facts.see_verdict())
}

fn inclusion(facts: &Facts<'_>) -> Finding {
    let slices = slices(facts);
    match slices.status {
        Status::Pass => Finding { status: Status::Evidence, ..slices },
        _ => slices,
    }
}

fn reproducible(facts: &Facts<'_>) -> Finding {
    match facts.run.as_ref().map(|run| (&run.id, &run.reproduced)) {
        None => Finding::none("the training run was not found"),
        Some((id, None)) => Finding::none(format!("nobody repeated it: `highroad reproduce {id}`")),
        Some((id, Some(how))) => {
            Finding::pass_if(!how.starts_with("no"), format!("repeated: {how}")).see([format!("run {id}")])
        }
    }
}

fn unit_tests(facts: &Facts<'_>) -> Finding {
    match facts.run.as_ref().and_then(|run| Some((&run.id, run.unit_tests?))) {
        None => Finding::none("the training run holds no test report: log JUnit XML as `review/I2.xml`"),
        Some((id, (passed, failed))) => {
            Finding::pass_if(failed == 0 && passed > 0, format!("{passed} unit tests passed, {failed} failed"))
                .see([format!("run {id}, review/I2.xml")])
        }
    }
}

fn pipeline(facts: &Facts<'_>) -> Finding {
    match facts.run.as_ref().and_then(|run| run.pipeline.clone()) {
        None => Finding::none("the training run names no pipeline that ran it whole (tag `highroad.pipeline`)"),
        Some(pipeline) => Finding::new(Status::Pass, "the pipeline ran from training to gate").see([pipeline]),
    }
}

fn validated(facts: &Facts<'_>) -> Finding {
    let Some(kept) = facts.verdict else { return Finding::none(NO_VERDICT) };
    let admitted = kept.verdict.admits(&facts.package.digest.to_string(), &facts.created_at);
    let summary = match &admitted {
        Ok(()) => "a passing verdict is bound to these very bytes".to_owned(),
        Err(refusal) => refusal.to_string(),
    };
    Finding::pass_if(admitted.is_ok(), summary).see(facts.see_verdict())
}

fn debuggable(facts: &Facts<'_>) -> Finding {
    let (Some(kept), Some(rerun)) = (facts.verdict, &facts.rerun) else { return Finding::none(NO_VERDICT) };
    if kept.verdict.evidence != Evidence::BitExact {
        return Finding::none("the answers come from an engine that does not promise the same bits again");
    }
    if kept.verdict.golden_set.digest != rerun.golden_set.digest || kept.verdict.numerics_id != rerun.numerics_id {
        return Finding::none("the verdict is of another golden set or another kind of machine");
    }
    let same = kept.verdict.answers == rerun.answers.to_string();
    let summary = if same {
        format!("all {} golden answers came out again, bit for bit", rerun.golden_set.n_cases)
    } else {
        "the golden answers did not come out with the same bits".to_owned()
    };
    Finding::pass_if(same, summary).see(facts.see_verdict())
}

fn canaried(facts: &Facts<'_>) -> Finding {
    let Some(canary) = &facts.canary else {
        return Finding::none("the registry has no record of a shadow or canary of this package: `highroad deploy`");
    };
    let status = match canary.outcome {
        Outcome::Pass => Status::Pass,
        Outcome::Fail => Status::Fail,
        Outcome::Inconclusive => Status::NotEvidenced,
    };
    let summary = format!("{}: {} ({})", canary.version, canary.told, canary.at);
    Finding::new(status, summary).details(canary.checks.clone()).see([format!("rollout {}", canary.rollout)])
}

fn rolled_back(facts: &Facts<'_>) -> Finding {
    match &facts.rehearsal {
        Ok(rehearsal) => {
            Finding::pass_if(rehearsal.passed(), rehearsal.in_words()).see([format!("package {}", rehearsal.package)])
        }
        Err(reason) => Finding::new(Status::Fail, format!("the rehearsal failed: {reason}")),
    }
}

fn dependencies(facts: &Facts<'_>) -> Finding {
    let lock = |artifact: super::Artifact<'_>| artifact.manifest.provenance.environment;
    let Some(now) = lock(facts.package) else { return Finding::none("the package names no lock file") };
    let Some(before) = facts.baseline.and_then(lock) else {
        return Finding::none("there is no earlier lock file to compare with").see([format!("lock file {now}")]);
    };
    if now == before {
        return Finding::new(Status::Pass, "the lock file is the baseline's").see([format!("lock file {now}")]);
    }
    // The gate is the notification: it compared the two packages, environments included, answer by answer.
    match facts.verdict {
        Some(kept) => Finding::new(
            Status::Pass,
            format!("the lock file changed; the gate compared the answers: {} flip(s)", kept.verdict.flips.len()),
        )
        .details([format!("lock file {before} -> {now}")])
        .see(facts.see_verdict()),
        None => Finding::none(NO_VERDICT),
    }
}

fn live_inputs(facts: &Facts<'_>) -> Finding {
    let Some(monitored) = facts.monitored.as_ref() else {
        return Finding::none("the package was not watched where it served: `highroad monitor` tells how");
    };
    if monitored.baseline.is_none() {
        return Finding::none("it was watched without a baseline: `highroad monitor baseline`").see(monitored.see());
    }
    if !monitored.judged {
        return Finding::none(format!("only {} requests were watched", monitored.n_requests)).see(monitored.see());
    }
    let n = monitored.findings.len();
    let summary = match n {
        0 => format!(
            "{} requests since {}: inputs and answers are as in the baseline",
            monitored.n_requests, monitored.since
        ),
        _ => format!(
            "{n} signal(s) of {} requests since {} differ from the baseline",
            monitored.n_requests, monitored.since
        ),
    };
    Finding::pass_if(n == 0, summary).details(monitored.findings.iter().cloned()).see(monitored.see())
}

fn skew(facts: &Facts<'_>) -> Finding {
    match &facts.parity {
        Ok(parity) => Finding::pass_if(
            parity.passed,
            format!(
                "eager PyTorch and the runtime that serves agree on {} cases (relative RMS {:.1e}, limit {:.0e})",
                parity.n_cases, parity.worst_relative_rms, parity.limit
            ),
        )
        .see([format!("package {}", facts.package.digest)]),
        Err(reason) => Finding::new(Status::Fail, format!("the parity cases could not be replayed: {reason}")),
    }
}

fn age(facts: &Facts<'_>) -> Finding {
    let Some(limit) = facts.max_age_days else {
        return Finding::none("the standard declares no limit: `[evaluation] max_age_days`");
    };
    match facts.run.as_ref().and_then(|run| Some((run, run.age_days?))) {
        None => Finding::none("when it was trained is not known"),
        Some((run, days)) => {
            Finding::pass_if(days <= f64::from(limit), format!("trained {days:.0} days ago; the limit is {limit}"))
                .see([format!("run {}", run.id)])
        }
    }
}

fn stable(facts: &Facts<'_>) -> Finding {
    let (Some(rerun), Ok(parity)) = (&facts.rerun, &facts.parity) else {
        return Finding::none("the golden set was not answered");
    };
    let invariant = if rerun.batch_invariant { "the same bits alone and in a batch" } else { "other bits in a batch" };
    Finding::pass_if(
        rerun.batch_invariant && parity.passed,
        format!(
            "every golden answer is finite, {invariant}, relative RMS to PyTorch {:.1e}",
            parity.worst_relative_rms
        ),
    )
    .see(facts.see_rerun(rerun))
}

fn performance(facts: &Facts<'_>) -> Finding {
    let Some(kept) = facts.verdict else { return Finding::none(NO_VERDICT) };
    let limits: Vec<_> = kept.verdict.checks.iter().filter(|check| is_about_speed(check)).collect();
    if limits.is_empty() {
        return Finding::none("gates.toml limits neither latency nor throughput nor memory").see(facts.see_verdict());
    }
    let holds = limits.iter().all(|check| check.outcome == Outcome::Pass);
    let summary = limits.iter().map(|check| format!("{}: {}", check.rule, check.reason)).collect::<Vec<_>>().join("; ");
    Finding::pass_if(holds, summary).see(facts.see_verdict())
}

fn live_labels(facts: &Facts<'_>) -> Finding {
    let live = facts.monitored.as_ref().and_then(|monitored| Some((monitored, monitored.live.as_ref()?)));
    let Some((monitored, live)) = live else {
        return Finding::none("no right answers to served requests are known: `highroad monitor label`");
    };
    if live.n < MIN_LABELS {
        return Finding::none(format!("{} right answers to served requests are too few", live.n)).see(monitored.see());
    }
    match live.baseline {
        Some(offline) => {
            let summary = format!("{}, and {:.1} % in the baseline", live.in_words(), 100.0 * offline);
            Finding::pass_if(!live.is_worse, summary)
        }
        None => Finding::new(Status::Evidence, live.in_words()),
    }
    .see(monitored.see())
}

impl Monitored {
    fn see(&self) -> Vec<String> {
        let baseline = self.baseline.as_ref().map(|digest| format!("baseline {digest}"));
        std::iter::once(format!("monitoring of {}", self.version)).chain(baseline).collect()
    }
}

impl LiveQuality {
    fn in_words(&self) -> String {
        let [low, high] = self.bounds.map(|bound| 100.0 * bound);
        format!(
            "right on {:.1} % ({low:.1} to {high:.1}) of {} labelled answers in production",
            100.0 * self.accuracy,
            self.n
        )
    }
}
