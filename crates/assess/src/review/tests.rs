use super::*;
use crate::{Replayed, WayBack};
use highroad_eval::{Aliased, Baseline, CheckResult, Evidence, Missing};
use highroad_package::DataRole;

fn digest(byte: u8) -> Digest {
    Digest::of(&[byte])
}

fn manifest() -> Manifest {
    let json = serde_json::json!({
        "highroad_package": 1, "name": "moderation", "licence": "Apache-2.0", "owner": "trust@example.com",
        "task": {"task": "classify", "labels": ["benign", "injection"], "max_tokens": 128},
        "files": [], "parity": {"file": "parity.safetensors", "n_cases": 3, "check": {"relative_rms": 1e-5}},
        "provenance": {"run_id": "8c1f", "git_commit": "4f1c", "environment": digest(1).to_string(),
                       "data": {"train.csv": digest(2).to_string()}, "torch": "2.15.0"},
    });
    serde_json::from_value(json).unwrap()
}

fn check(rule: &str, baseline: Option<f64>, outcome: Outcome) -> CheckResult {
    let json = serde_json::json!({
        "rule": rule, "outcome": outcome, "n_cases": 200, "candidate": 0.96, "baseline": baseline,
        "interval": [-0.01, 0.03], "improved": false, "reason": "96.0 % against 95.0 %",
    });
    serde_json::from_value(json).unwrap()
}

fn verdict(package: &Digest, checks: Vec<CheckResult>) -> Verdict {
    let outcome = highroad_eval::outcome(&checks, &[], &[]);
    Verdict {
        highroad_verdict: 1,
        outcome,
        package: package.to_string(),
        baseline: Baseline::Package {
            package: digest(9).to_string(),
            reference: Some("moderation@champion".to_owned()),
        },
        golden_set: GoldenSet { name: "test".to_owned(), digest: digest(3).to_string(), n_cases: 200 },
        gates: digest(4).to_string(),
        numerics_id: "f32/avx512".to_owned(),
        evidence: Evidence::BitExact,
        answers: digest(5).to_string(),
        checks,
        flips: Vec::new(),
        flips_left_out: 0,
        waivers: Vec::new(),
        latency: None,
        traffic: None,
        hosted: None,
        judges: Vec::new(),
        custom: Vec::new(),
        pipeline: None,
        created_at: "2026-11-28T10:00:00Z".to_owned(),
        created_by: "Ada".to_owned(),
    }
}

/// A review with everything that exists today.
fn facts<'a>(
    manifest: &'a Manifest,
    verdict: &'a Verdict,
    attached: &'a BTreeMap<String, Vec<String>>,
    attested: &'a BTreeMap<String, Attestation>,
    history: &'a [(String, Digest)],
) -> Facts<'a> {
    let kept = Kept { digest: digest(6), verdict };
    Facts {
        package: Artifact { digest: digest(0), manifest },
        baseline: Some(Artifact { digest: digest(9), manifest }),
        verdict: Some(kept),
        overrides: &[],
        against_trivial: Some(kept),
        history,
        parity: Ok(ParityFact { n_cases: 3, worst_relative_rms: 1e-7, limit: 1e-5, passed: true }),
        rerun: Some(Rerun {
            golden_set: verdict.golden_set.clone(),
            answers: digest(5),
            numerics_id: "f32/avx512".to_owned(),
            batch_invariant: true,
            preprocessing_share: 0.02,
        }),
        rehearsal: Ok(Rehearsal {
            package: digest(9),
            way: WayBack::Previous,
            load_ms: 80.0,
            first_answer_ms: 12.0,
            replayed: Replayed::Goldens { n_cases: 200, same_bits: true },
        }),
        leaks: Some(Leaks {
            files: vec!["train.csv".to_owned()],
            missing: Vec::new(),
            held_out: Vec::new(),
            cases: Vec::new(),
        }),
        commit: Some(CommitFact {
            id: "4f1c".to_owned(),
            dirty: false,
            author: "Ada".to_owned(),
            reviewers: vec!["Grace".to_owned()],
        }),
        run: Some(RunFact {
            id: "8c1f".to_owned(),
            ended_at: Some("2026-11-27T10:00:00Z".to_owned()),
            age_days: Some(1.0),
            reproduced: Some("the same bits, by run 77aa".to_owned()),
            tuned: (vec!["learning_rate".to_owned()], 4),
            unit_tests: Some((12, 0)),
            pipeline: Some("actions run 17".to_owned()),
        }),
        attached,
        attested,
        monitored: None,
        canary: None,
        max_age_days: Some(90),
        created_at: "2026-11-28T12:00:00Z".to_owned(),
        created_by: "Ada".to_owned(),
    }
}

fn full(change: impl FnOnce(&mut Facts<'_>)) -> Review {
    let (manifest, history) = (manifest(), [(digest(9).to_string(), digest(7))]);
    let checks = vec![
        check("accuracy: not worse by more than 2.0 points", Some(0.95), Outcome::Pass),
        check("recall of \"injection\", slice \"short\": not worse by more than 5.0 points", Some(0.95), Outcome::Pass),
        check("latency p90: at most 40.0 ms", None, Outcome::Pass),
    ];
    let verdict = verdict(&digest(0), checks);
    let attached = ["D2", "D5"].map(|id| (id.to_owned(), vec![format!("review/{id}.md")])).into();
    let attested = [("D6".to_owned(), Attestation { by: "Grace".to_owned(), why: "took a day".to_owned() })].into();
    let mut facts = facts(&manifest, &verdict, &attached, &attested, &history);
    change(&mut facts);
    Review::of(&facts)
}

#[test]
fn the_rubric_has_19_tests_by_artifacts_8_by_evidence_and_1_by_a_person() {
    let count = |decided| {
        let tests = test_score::SECTIONS.iter().flat_map(|(_, tests)| tests);
        tests.filter(|test| test.decided == decided).count()
    };
    use test_score::Decided;
    assert_eq!([Decided::Artifacts, Decided::Evidence, Decided::Person].map(count), [19, 8, 1]);
}

#[test]
fn what_does_not_exist_yet_scores_nothing_however_much_else_is_evidenced() {
    let review = full(|_| ());
    for id in ["M2", "I6", "N2", "N7"] {
        assert_eq!(review.line(id).unwrap().status, Status::NotEvidenced, "{id}");
    }
    let settled = |id: &str| review.line(id).unwrap().status;
    assert_eq!((settled("D2"), settled("D6"), settled("M6")), (Status::Evidence, Status::Attested, Status::Pass));
    let points: Vec<f64> = review.ml_test_score.sections.iter().map(|section| section.points).collect();
    // Data: D1, D7 by artifacts, five by people; model: M1, M5, M6 and M3, M4, M7; all but the canary; N1, N3 to N6.
    assert_eq!(points, [4.5, 4.5, 6.0, 5.0]);
    assert_eq!(review.ml_test_score.score, 4.5);
}

#[test]
fn a_recorded_rollout_is_what_canaried_means() {
    let with = |outcome| {
        let review = full(|facts| {
            facts.canary = Some(Canary {
                rollout: "00112233445566aa".to_owned(),
                version: "moderation:3 for `champion`".to_owned(),
                outcome,
                told: "a canary of 5 %, 100 % passed: 400 requests asked of it, 400 compared".to_owned(),
                at: "2026-11-28T11:00:00Z".to_owned(),
                checks: vec!["pass: at most 2 % of the answers differ (they do not)".to_owned()],
            });
        });
        let line = review.line("I6").unwrap().clone();
        let infrastructure = review.ml_test_score.sections[2].points;
        (line, infrastructure)
    };
    let (line, points) = with(Outcome::Pass);
    assert_eq!((line.status, points), (Status::Pass, 7.0));
    assert_eq!((line.evidence.as_slice(), line.details.len()), (&["rollout 00112233445566aa".to_owned()][..], 1));
    assert!(line.summary.starts_with("moderation:3 for `champion`: a canary of 5 %"), "{}", line.summary);
    assert_eq!(with(Outcome::Fail).0.status, Status::Fail);
    assert_eq!((with(Outcome::Inconclusive).0.status, with(Outcome::Inconclusive).1), (Status::NotEvidenced, 6.0));
}

#[test]
fn checks_about_safety_slices_are_told_one_by_one_and_so_is_that_there_are_none() {
    let told = |rules: &[(&str, Outcome)]| {
        let checks = rules.iter().map(|(rule, outcome)| check(rule, Some(0.95), *outcome)).collect();
        let verdict = verdict(&digest(0), checks);
        let review =
            full(|facts| facts.verdict = Some(Kept { digest: digest(6), verdict: Box::leak(Box::new(verdict)) }));
        review.line("regressions").unwrap().details.clone()
    };
    let none = told(&[("accuracy, slice \"short\": at least 90.0 %", Outcome::Pass)]);
    assert_eq!(none, ["no rule is about a slice called `safety:…` or `attack:…`"]);
    let refusal = "own share \"refuses\", slice \"safety:refusal\": not worse by more than 5.0 points";
    let details =
        told(&[(refusal, Outcome::Pass), ("recall, slice \"attack:encoding\": at least 90.0 %", Outcome::Fail)]);
    assert!(
        details.iter().any(|detail| detail.starts_with(&format!("safety, holds: {refusal} (200 cases)"))),
        "{details:?}"
    );
    assert!(
        details.iter().any(|detail| detail.starts_with("safety, does not hold: recall, slice \"attack:")),
        "{details:?}"
    );
}

#[test]
fn nobody_can_attest_what_artifacts_decide() {
    let review = full(|facts| {
        let everyone = ["I6", "M2", "N2"]
            .map(|id| (id.to_owned(), Attestation { by: "Mallory".to_owned(), why: "trust me".to_owned() }));
        facts.attested = Box::leak(Box::new(everyone.into()));
    });
    assert!(["I6", "M2", "N2"].iter().all(|id| review.line(id).unwrap().status == Status::NotEvidenced));
}

#[test]
fn without_facts_no_line_holds() {
    let bare = Manifest { provenance: Default::default(), ..manifest() };
    let nothing = BTreeMap::new();
    let nobody = BTreeMap::new();
    let review = Review::of(&Facts {
        package: Artifact { digest: digest(0), manifest: &bare },
        baseline: None,
        verdict: None,
        overrides: &[],
        against_trivial: None,
        history: &[],
        parity: Err("the program does not load".to_owned()),
        rerun: None,
        rehearsal: Err("the program does not load".to_owned()),
        leaks: None,
        commit: None,
        run: None,
        attached: &nothing,
        attested: &nobody,
        monitored: None,
        canary: None,
        max_age_days: None,
        created_at: "2026-11-28T12:00:00Z".to_owned(),
        created_by: "Ada".to_owned(),
    });
    assert!(review.lines().all(|line| !line.status.is_settled()), "{review:#?}");
    assert_eq!(review.ml_test_score.score, 0.0);
    assert_eq!(review.lines().count(), 5 + 28);
}

#[test]
fn roles_of_data_files_are_told_and_a_file_that_changed_sides_is_a_change() {
    let with = |role| {
        let mut with = manifest();
        with.provenance.data.insert("test.csv".to_owned(), digest(4));
        with.provenance.data_roles = [("test.csv".to_owned(), role)].into();
        with
    };
    let (before, now) = (with(DataRole::Test), with(DataRole::Train));
    let (nobody, nothing) = (BTreeMap::new(), BTreeMap::new());
    let judged = verdict(&digest(0), vec![check("accuracy: at least 90.0 %", None, Outcome::Pass)]);
    let line = |facts: Facts<'_>| Review::of(&facts).line("data").unwrap().clone();
    let mut compared = facts(&now, &judged, &nothing, &nobody, &[]);
    compared.baseline = Some(Artifact { digest: digest(9), manifest: &before });
    assert_eq!(line(compared).details[0], "another role: test.csv was test and is train");

    let mut first = facts(&before, &judged, &nothing, &nobody, &[]);
    first.baseline = None;
    first.leaks = first.leaks.map(|leaks| Leaks { held_out: vec!["test.csv".to_owned()], ..leaks });
    let told = line(first);
    assert!(told.summary.contains(&format!("trained on {} file(s)", before.provenance.data.len() - 1)), "{told:?}");
    assert!(told.details.iter().any(|file| file.starts_with("test.csv ") && file.ends_with("(test)")), "{told:?}");
    assert!(told.details.last().unwrap().starts_with("held out as test data"), "{told:?}");

    let mut only_tested = before.clone();
    only_tested.provenance.data.retain(|name, _| name == "test.csv");
    let told = line(facts(&only_tested, &judged, &nothing, &nobody, &[]));
    assert_eq!(told.status, Status::NotEvidenced, "{told:?}");
}

#[test]
fn an_override_is_told_beside_what_it_stands_in_for_and_settles_nothing() {
    let asked = Aliased { package: &digest(0).to_string(), model: "router", alias: "champion" };
    let missing = Missing { verdict: None, outcome: None, reason: "it has no verdict".to_owned() };
    let given = Override::new(asked, ["Grace", "an outage"], missing, "2026-11-28T12:00:00Z", 7).unwrap();
    let given: &'static [Override] = vec![given].leak();
    let line = |verdict: bool| {
        let review = full(|facts| {
            facts.overrides = given;
            facts.verdict = facts.verdict.filter(|_| verdict);
        });
        review.line("regressions").unwrap().clone()
    };
    for with_verdict in [true, false] {
        let told = line(with_verdict).details.join("\n");
        assert!(
            told.contains("router@champion: Grace overrode the gate until 2026-12-05T12:00:00Z: an outage"),
            "{told}"
        );
    }
    assert_eq!(line(false).status, Status::NotEvidenced);
}

#[test]
fn a_leak_a_changed_answer_and_a_broken_way_back_fail_their_lines() {
    let review = full(|facts| {
        facts.leaks = Some(Leaks {
            files: vec!["train.csv".to_owned()],
            missing: Vec::new(),
            held_out: Vec::new(),
            cases: vec!["slabs-17".to_owned()],
        });
        facts.rerun = facts.rerun.clone().map(|rerun| Rerun { answers: digest(77), ..rerun });
        facts.rehearsal = facts
            .rehearsal
            .clone()
            .map(|rehearsal| Rehearsal { replayed: Replayed::Goldens { n_cases: 200, same_bits: false }, ..rehearsal });
    });
    for id in ["data", "I5", "rollback", "I7"] {
        assert_eq!(review.line(id).unwrap().status, Status::Fail, "{id}");
    }
    assert!(review.line("data").unwrap().details.iter().any(|detail| detail.contains("slabs-17")));
}

#[test]
fn training_files_that_were_not_compared_leave_the_question_to_a_person() {
    let review = full(|facts| {
        let (files, missing) = (vec!["train.csv".to_owned()], vec!["more.csv".to_owned()]);
        facts.leaks = Some(Leaks { files, missing, held_out: Vec::new(), cases: Vec::new() });
    });
    let line = review.line("data").unwrap();
    assert_eq!(line.status, Status::Evidence);
    assert!(line.summary.contains("not compared: more.csv"), "{}", line.summary);
}

#[test]
fn a_verdict_on_other_bytes_admits_nothing() {
    let review = full(|facts| facts.package.digest = digest(42));
    assert_eq!(review.line("regressions").unwrap().status, Status::Fail);
    assert_eq!(review.line("I4").unwrap().status, Status::Fail);
}

#[test]
fn a_review_survives_its_file() {
    let review = full(|_| ());
    let text = serde_json::to_string_pretty(&review).unwrap();
    assert_eq!(serde_json::from_str::<Review>(&text).unwrap(), review);
}

fn monitored() -> Monitored {
    Monitored {
        version: "router (router:7)".to_owned(),
        baseline: Some(digest(8).to_string()),
        since: "2026-11-01T00:00:00Z".to_owned(),
        n_requests: 4000,
        judged: true,
        findings: Vec::new(),
        live: Some(LiveQuality { n: 300, accuracy: 0.94, bounds: [0.9, 0.97], baseline: Some(0.95), is_worse: false }),
    }
}

#[test]
fn what_was_met_in_production_decides_inputs_and_live_quality() {
    let with = |monitored: Monitored| full(|facts| facts.monitored = Some(monitored));
    let status = |review: &Review, id: &str| review.line(id).unwrap().status;
    let healthy = with(monitored());
    assert_eq!(["M2", "N2", "N7"].map(|id| status(&healthy, id)), [Status::Pass; 3]);
    let points = |review: &Review, at: usize| review.ml_test_score.sections[at].points;
    let without = full(|_| ());
    assert_eq!((points(&healthy, 1) - points(&without, 1), points(&healthy, 3) - points(&without, 3)), (1.0, 2.0));

    let drifted = with(Monitored { findings: vec!["`language` differs".to_owned()], ..monitored() });
    assert_eq!(status(&drifted, "N2"), Status::Fail);
    assert_eq!(drifted.line("N2").unwrap().details, ["`language` differs"]);
    let live = |change: fn(&mut LiveQuality)| {
        let mut monitored = monitored();
        monitored.live.iter_mut().for_each(change);
        with(monitored)
    };
    let worse = live(|live| (live.bounds, live.is_worse) = ([0.7, 0.8], true));
    assert_eq!(["M2", "N7"].map(|id| status(&worse, id)), [Status::Fail; 2]);
    let few = live(|live| live.n = 3);
    assert_eq!(["M2", "N7"].map(|id| status(&few, id)), [Status::NotEvidenced; 2]);
    let unknown = live(|live| live.baseline = None);
    assert_eq!(["M2", "N7"].map(|id| status(&unknown, id)), [Status::NotEvidenced, Status::Evidence]);
    let unjudged = with(Monitored { judged: false, ..monitored() });
    assert_eq!(status(&unjudged, "N2"), Status::NotEvidenced);
    let blind = with(Monitored { baseline: None, live: None, ..monitored() });
    assert_eq!(["N2", "N7"].map(|id| status(&blind, id)), [Status::NotEvidenced; 2]);
}
