//! What a verdict admits.

#![allow(clippy::unwrap_used)]

use highroad_eval::{Outcome, Refusal, Test, Verdict, Waiver};
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
fn a_pass_admits_its_own_package_only() {
    assert_eq!(verdict("pass", "pass", false).admits("sha256:a", NOW), Ok(()));
    let refused = verdict("pass", "pass", false).admits("sha256:b", NOW).unwrap_err();
    assert_eq!(refused.to_string(), "the verdict is about package sha256:a, not sha256:b");
}

#[test]
fn anything_but_a_pass_admits_nothing() {
    for (text, outcome) in [("fail", Outcome::Fail), ("inconclusive", Outcome::Inconclusive)] {
        assert_eq!(verdict(text, text, true).admits("sha256:a", NOW), Err(Refusal::NotPassed(outcome)));
    }
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
