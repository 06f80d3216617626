//! What a verdict admits.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use highroad_eval::{Baseline, CheckResult, Flip, Outcome, Refusal, Test, Verdict, Waiver, outcome, to_accept};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

const NOW: &str = "2026-11-23T10:00:00Z";

/// A passing verdict on `sha256:a` with one check and one regression.
fn verdict(outcome: &str, check: &str, waivable: bool) -> Verdict {
    serde_json::from_value(json!({
        "highroad_verdict": 1, "outcome": outcome, "package": "sha256:a", "baseline": {"kind": "trivial", "name": "majority"},
        "golden_set": {"name": "g", "digest": "sha256:g", "n_cases": 50}, "gates": "sha256:r",
        "numerics_id": "highroad-1", "evidence": "bit-exact", "answers": "sha256:z",
        "checks": [{"rule": "accuracy", "outcome": check, "n_cases": 50, "candidate": 0.9, "waivable": waivable, "reason": "so"}],
        "flips": [{
            "case": "c1", "expected": "a", "baseline": "a", "candidate": "b", "regression": true, "must_pass": false
        }],
        "created_at": NOW, "created_by": "Ada",
    }))
    .unwrap()
}

fn waived(expires_at: &str) -> Verdict {
    let waiver = Waiver { case: "c1".into(), by: "Ada".into(), why: "ambiguous".into(), expires_at: expires_at.into() };
    Verdict { waivers: vec![waiver], ..verdict("pass", "inconclusive", true) }
}

#[test]
fn the_newest_verdict_is_the_later_one_and_at_one_time_the_worse_one() {
    let at = |outcome: &str, created_at: &str| {
        Verdict { created_at: created_at.to_owned(), ..verdict(outcome, "pass", false) }.recency()
    };
    let oldest_first = [
        at("fail", "yesterday"),
        at("fail", "2026-11-23T09:59:59.999Z"),
        at("pass", NOW),
        at("inconclusive", NOW),
        at("fail", NOW),
        at("pass", "2026-11-23T10:00:00.001Z"),
        at("fail", "2026-11-23T10:00:00.001Z"),
        at("pass", "2026-11-23T12:00:01+02:00"),
    ];
    assert!(oldest_first.is_sorted(), "{oldest_first:?}");
    assert!(oldest_first.windows(2).all(|two| two[0] != two[1]));
}

#[test]
fn a_pass_admits_its_own_package_only() {
    assert_eq!(verdict("pass", "pass", false).admits("sha256:a", NOW), Ok(()));
    let refused = verdict("pass", "pass", false).admits("sha256:b", NOW).unwrap_err();
    assert_eq!(refused.to_string(), "the verdict is about package sha256:a, not sha256:b");
}

#[test]
fn anything_but_a_pass_admits_nothing() {
    for outcome in ["fail", "inconclusive"] {
        let refused = verdict(outcome, outcome, true).admits("sha256:a", NOW).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("the verdict is {outcome}, not pass: ")), "{refused}");
    }
}

#[test]
fn a_refusal_names_the_checks_that_are_broken_before_those_that_are_open() {
    let mut judged = verdict("fail", "inconclusive", true);
    let check = |rule: &str, outcome| CheckResult {
        rule: rule.into(),
        reason: "why".into(),
        outcome,
        ..judged.checks[0].clone()
    };
    let broken = ["b", "c", "d"].map(|rule| check(rule, Outcome::Fail));
    judged.checks = [check("a", Outcome::Inconclusive)].into_iter().chain(broken).collect();
    let refused = judged.admits("sha256:a", NOW).unwrap_err().to_string();
    assert_eq!(refused, "the verdict is fail, not pass: b (why); c (why); d (why); and 1 more");
    let mut lost = verdict("fail", "pass", false);
    lost.flips[0].must_pass = true;
    assert!(
        lost.admits("sha256:a", NOW).unwrap_err().to_string().ends_with("not pass: the must-pass case `c1` was lost")
    );
}

#[test]
fn a_verdict_that_compares_a_package_with_itself_carries_nothing_new() {
    let with = |baseline| Verdict { baseline, ..verdict("pass", "pass", false) };
    let of = |package: &str| Baseline::Package { package: package.into(), reference: None };
    assert_eq!(with(of("sha256:a")).compares(), Err(Refusal::WithItself));
    assert_eq!(with(of("sha256:b")).compares(), Ok(()));
    assert_eq!(with(of("sha256:a")).admits("sha256:a", NOW), Ok(()), "what serves by one goes on");
}

#[test]
fn what_was_compared_with_something_else_than_the_champion_is_told() {
    let told = |baseline: Baseline| baseline.caution("sha256:a", "m:1", "sha256:c");
    let of = |package: &str| Baseline::Package { package: package.into(), reference: Some("m:7".into()) };
    assert_eq!(told(of("sha256:c")), None);
    assert_eq!(of("sha256:b").caution("sha256:a", "m:1", "sha256:a"), None, "the champion again");
    let expected = "its verdict compares it with m:7 (sha256:b), not with m:1 (sha256:c), which it replaces";
    assert_eq!(told(of("sha256:b")).unwrap(), expected);
    assert!(told(Baseline::Trivial { name: "majority".into() }).unwrap().contains("the trivial baseline (majority)"));
}

#[test]
fn a_pass_that_its_checks_do_not_support_admits_nothing() {
    let must_pass_lost = {
        let mut verdict = verdict("pass", "pass", false);
        verdict.flips[0].must_pass = true;
        verdict
    };
    let no_checks = Verdict { checks: Vec::new(), ..verdict("pass", "pass", false) };
    let waived_failure = Verdict { waivers: waived(NOW).waivers, ..verdict("pass", "fail", true) };
    let waived_floor = Verdict { waivers: waived(NOW).waivers, ..verdict("pass", "inconclusive", false) };
    let not_waived = verdict("pass", "inconclusive", true);
    for verdict in [must_pass_lost, no_checks, waived_failure, waived_floor, not_waived] {
        assert!(matches!(verdict.admits("sha256:a", NOW), Err(Refusal::Inconsistent(_))), "{verdict:?}");
    }
}

#[test]
fn a_waiver_holds_until_it_expires() {
    assert_eq!(waived("2026-11-23T10:00:01Z").admits("sha256:a", NOW), Ok(()));
    assert!(matches!(waived(NOW).admits("sha256:a", NOW), Err(Refusal::WaiverExpired { .. })));
}

#[test]
fn an_unknown_field_of_a_verdict_is_refused() {
    let mut json = serde_json::to_value(verdict("pass", "pass", false)).unwrap();
    json["trust_me"] = json!(true);
    assert!(serde_json::from_value::<Verdict>(json).is_err());
}

#[test]
fn a_verdict_from_before_tests_were_named_is_read() {
    let mut json = serde_json::to_value(verdict("pass", "pass", false)).unwrap();
    json["checks"][0]["p_value"] = json!(0.25);
    let check = serde_json::from_value::<Verdict>(json.clone()).unwrap().checks.remove(0);
    assert_eq!((check.p_value, check.test, check.adjusted_p_value), (Some(0.25), None, None));
    json["checks"][0]["test"] = json!("exact_sign_flips");
    let check = serde_json::from_value::<Verdict>(json).unwrap().checks.remove(0);
    assert_eq!(check.test, Some(Test::ExactSignFlips));
}

#[test]
fn a_list_of_regressions_that_did_not_happen_supports_nothing() {
    let mut verdict = waived("2026-11-23T10:00:01Z");
    verdict.checks[0].regressions = Some(vec!["c1".to_owned()]);
    assert_eq!(verdict.admits("sha256:a", NOW), Ok(()));
    verdict.checks[0].regressions = Some(vec!["c2".to_owned()]);
    let refused = verdict.admits("sha256:a", NOW).unwrap_err();
    assert!(refused.to_string().contains("accuracy: `c2` did not regress"), "{refused}");
}

fn check(result: Outcome, waivable: bool, regressions: Option<Vec<String>>) -> CheckResult {
    let check =
        json!({"rule": "r", "outcome": result, "n_cases": 9, "candidate": 0.9, "waivable": waivable, "reason": "so"});
    CheckResult { regressions, ..serde_json::from_value(check).unwrap() }
}

fn flip(number: usize, regression: bool) -> Flip {
    let text = || "x".to_owned();
    Flip {
        case: format!("c{number}"),
        expected: text(),
        baseline: text(),
        candidate: text(),
        regression,
        must_pass: false,
    }
}

fn waive(cases: &BTreeSet<String>) -> Vec<Waiver> {
    let waiver = |case: &String| Waiver { case: case.clone(), by: "a".into(), why: "b".into(), expires_at: NOW.into() };
    cases.iter().map(waiver).collect()
}

/// The rule from before checks listed their regressions, kept as the reference for verdicts of then.
fn before(checks: &[CheckResult], flips: &[Flip], waivers: &[Waiver]) -> Outcome {
    if checks.iter().any(|check| check.outcome == Outcome::Fail) {
        return Outcome::Fail;
    }
    let open: Vec<_> = checks.iter().filter(|check| check.outcome == Outcome::Inconclusive).collect();
    let accepted = |flip: &Flip| waivers.iter().any(|waiver| waiver.case == flip.case);
    let all_accepted = !waivers.is_empty() && flips.iter().filter(|flip| flip.regression).all(accepted);
    let passes = open.is_empty() || all_accepted && open.iter().all(|check| check.waivable);
    if passes { Outcome::Pass } else { Outcome::Inconclusive }
}

const N_CASES: usize = 8;

/// How each case flipped (not, won, lost); checks with an outcome, whether they are waivable and which cases they are about.
fn comparisons() -> impl Strategy<Value = (Vec<Flip>, Vec<CheckResult>, BTreeSet<String>)> {
    let outcomes = prop_oneof![1 => Just(Outcome::Fail), 6 => Just(Outcome::Pass), 6 => Just(Outcome::Inconclusive)];
    let checks = vec((outcomes, prop::bool::weighted(0.9), vec(any::<bool>(), N_CASES)), 1..4);
    (vec(0..3, N_CASES), checks, vec(any::<bool>(), N_CASES)).prop_map(|(flipped, checks, waived)| {
        let flipped: Vec<i32> = flipped;
        let changed = flipped.iter().enumerate().filter(|(_, how)| **how > 0);
        let flips: Vec<Flip> = changed.map(|(number, how)| flip(number, *how == 2)).collect();
        let lost = |about: &[bool]| {
            let is_lost = |number: &usize| about[*number] && flipped[*number] == 2;
            (0..N_CASES).filter(is_lost).map(|number| format!("c{number}")).collect()
        };
        let checks = checks.into_iter().map(|(result, waivable, about)| check(result, waivable, Some(lost(&about))));
        let waived = waived.iter().enumerate().filter(|(_, is)| **is).map(|(number, _)| format!("c{number}"));
        (flips, checks.collect(), waived.collect())
    })
}

fn unlisted(checks: &[CheckResult]) -> Vec<CheckResult> {
    checks.iter().map(|check| CheckResult { regressions: None, ..check.clone() }).collect()
}

proptest! {
    #[test]
    fn verdicts_from_before_regressions_were_listed_have_the_outcome_of_then((flips, checks, waived) in comparisons()) {
        let (checks, waivers) = (unlisted(&checks), waive(&waived));
        prop_assert_eq!(outcome(&checks, &flips, &waivers), before(&checks, &flips, &waivers));
    }

    #[test]
    fn what_was_enough_before_is_enough_and_one_more_waiver_never_takes_a_pass((flips, checks, waived) in comparisons()) {
        let waivers = waive(&waived);
        if before(&checks, &flips, &waivers) == Outcome::Pass {
            prop_assert_eq!(outcome(&checks, &flips, &waivers), Outcome::Pass);
        }
        if outcome(&checks, &flips, &waivers) == Outcome::Pass {
            let more = waived.into_iter().chain(["c0".to_owned()]).collect();
            prop_assert_eq!(outcome(&checks, &flips, &waive(&more)), Outcome::Pass);
        }
    }

    #[test]
    fn exactly_the_wanted_regressions_decide((flips, checks, _) in comparisons()) {
        let wanted: BTreeSet<String> = to_accept(&checks, &flips).iter().map(|flip| flip.case.clone()).collect();
        let open = || checks.iter().filter(|check| check.outcome == Outcome::Inconclusive);
        let about: BTreeSet<&String> = open().flat_map(|check| check.regressions.iter().flatten()).collect();
        prop_assert!(wanted.iter().eq(about.iter().copied()), "those its undecided checks are about");
        prop_assume!(open().next().is_some() && open().all(|check| check.waivable));
        prop_assume!(checks.iter().all(|check| check.outcome != Outcome::Fail) && !wanted.is_empty());
        prop_assert_eq!(outcome(&checks, &flips, &waive(&wanted)), Outcome::Pass);
        for missing in &wanted {
            let rest = wanted.iter().filter(|case| *case != missing).cloned().collect();
            prop_assert_eq!(outcome(&checks, &flips, &waive(&rest)), Outcome::Inconclusive);
        }
    }
}
