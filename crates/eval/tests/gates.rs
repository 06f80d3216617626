//! What a gate decides, on small pictures.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use highroad_eval::{
    Array, Case, CheckResult, Classes, Comparison, Decision, Discordance, Expected, Flip, GateError, Gates, Generated,
    Given, JudgeEvidence, Metric, Numbers, Observed, Outcome, Rankings, Resamples, Side, Similarities, Tensors, Test,
    Texts, Tolerance, Triplets, Waiver, WaiverError, decide, decide_with, outcome, summarise,
};

const LABELS: [&str; 2] = ["benign", "injection"];

/// `n` cases, every other one an injection; those at `wrong` are answered with the other label.
fn answers(n: usize, wrong: &[usize]) -> Observed {
    let labels = LABELS.map(str::to_owned);
    let expected: Vec<&str> = (0..n).map(|idx| LABELS[idx % 2]).collect();
    let answered = (0..n).map(|idx| if wrong.contains(&idx) { (idx + 1) % 2 } else { idx % 2 });
    let scores: Vec<(usize, [f32; 2])> =
        answered.map(|label| (label, if label == 0 { [0.9, 0.1] } else { [0.1, 0.9] })).collect();
    let answers = scores.iter().map(|(label, scores)| (LABELS[*label], scores.as_slice()));
    Observed::Classes(Classes::new(&labels, expected, answers).unwrap())
}

fn cases(n: usize) -> Vec<Case> {
    let case = |idx: usize| Case {
        id: format!("case-{idx}"),
        expected: Expected::Label(LABELS[idx % 2].to_owned()),
        slices: if idx < 40 { vec!["first".to_owned()] } else { Vec::new() },
        must_pass: idx == 0,
        sources: [idx, idx],
        weight: 1.0,
    };
    (0..n).map(case).collect()
}

fn judge(gates: &str, n: usize, baseline_wrong: &[usize], candidate_wrong: &[usize]) -> Result<Decision, GateError> {
    let (cases, candidate, baseline) = (cases(n), answers(n, candidate_wrong), answers(n, baseline_wrong));
    let comparison =
        Comparison { cases: &cases, candidate: &candidate, baseline: Side::Package(&baseline), latencies_ms: &[] };
    decide(&Gates::parse(gates).unwrap(), &comparison)
}

/// `n` cases that expect 10 within 1, but the last ten, which have no tolerance; answered so far off.
fn within_tolerance(n: usize, baseline_off: impl Fn(usize) -> f64, candidate_off: impl Fn(usize) -> f64) -> Decision {
    let one = |value: f64| BTreeMap::from([("y".to_owned(), Array::new(vec![1], vec![value]).unwrap())]);
    let tolerance = BTreeMap::from([("y".to_owned(), Tolerance::new(0.5, 0.05).unwrap())]);
    let (right, none) = (one(10.0), BTreeMap::new());
    let observed = |off: &dyn Fn(usize) -> f64| {
        let answers: Vec<_> = (0..n).map(|idx| one(10.0 + off(idx))).collect();
        let tolerances: Vec<_> = (0..n).map(|idx| if idx + 10 < n { &tolerance } else { &none }).collect();
        let tensors = Tensors::new(&vec![&right; n], &answers.iter().collect::<Vec<_>>()).unwrap();
        Observed::Tensors(tensors.with_tolerances(&tolerances).unwrap())
    };
    let (candidate, baseline) = (observed(&candidate_off), observed(&baseline_off));
    let comparison =
        Comparison { cases: &cases(n), candidate: &candidate, baseline: Side::Package(&baseline), latencies_ms: &[] };
    decide(&Gates::parse("[[rule]]\nmetric = 'within_tolerance'\nmargin = 0.02").unwrap(), &comparison).unwrap()
}

#[test]
fn tensors_with_a_tolerance_are_right_or_wrong_and_flip() {
    let lost = |at: &'static [usize]| move |idx| if at.contains(&idx) { 1.5 } else { 1.0 };
    let failed = within_tolerance(1000, |_| 1.0, lost(&[0]));
    assert_eq!((failed.outcome, failed.flips.len(), failed.flips[0].must_pass), (Outcome::Fail, 1, true));
    assert_eq!(failed.flips[0].candidate, "11.500 (number 0 of \"y\"), off by 1.500 where 1.000 is allowed");
    assert_eq!((failed.flips[0].expected.as_str(), failed.flips[0].baseline.as_str()), ("10.000", "11.000"));
    let gained = within_tolerance(1000, lost(&[7]), |_| -1.0);
    assert_eq!((gained.outcome, gained.flips[0].regression), (Outcome::Pass, false));
    // What has no tolerance is neither right nor wrong, however far it is off.
    let check = gained.checks.iter().find(|check| check.baseline.is_some()).unwrap();
    assert_eq!((check.n_cases, check.test), (990, Some(Test::ExactMcnemar)));
    assert_eq!(within_tolerance(1000, |_| 0.0, |idx| if idx < 990 { 0.0 } else { 9.0 }).flips, []);
    let undecided = within_tolerance(110, |_| 0.0, lost(&[3, 4]));
    assert_eq!(undecided.outcome, Outcome::Inconclusive);
    assert_eq!(undecided.accept(vec![waiver("case-3"), waiver("case-4")]).unwrap().outcome, Outcome::Pass);
}

const ACCURACY: &str = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.02";

fn waiver(case: &str) -> Waiver {
    Waiver {
        case: case.to_owned(),
        by: "Ada".to_owned(),
        why: "ambiguous".to_owned(),
        expires_at: "2027-01-01T00:00:00Z".to_owned(),
    }
}

#[test]
fn a_candidate_that_loses_many_cases_fails() {
    let lost: Vec<usize> = (10..30).collect();
    let decision = judge(ACCURACY, 200, &[], &lost).unwrap();
    assert_eq!(decision.outcome, Outcome::Fail);
    assert_eq!(decision.flips.len(), 20);
    assert!(decision.flips.iter().all(|flip| flip.regression));
    let check = decision.checks.iter().find(|check| check.baseline.is_some()).unwrap();
    assert!(check.reason.contains("worse by more than 2.0 points"), "{}", check.reason);
    assert!(check.p_value.unwrap() < 1e-5);
}

#[test]
fn the_same_answers_on_many_cases_pass() {
    assert_eq!(judge(ACCURACY, 1000, &[3, 5], &[3, 5]).unwrap().outcome, Outcome::Pass);
}

#[test]
fn the_same_answers_on_few_cases_are_inconclusive() {
    let decision = judge(ACCURACY, 50, &[], &[]).unwrap();
    assert_eq!(decision.outcome, Outcome::Inconclusive);
    assert!(decision.checks.iter().any(|check| check.waivable && check.cases_needed.is_some()));
}

#[test]
fn a_significant_drop_within_the_margin_passes_and_is_told() {
    let lost: Vec<usize> = (1..8).collect();
    let decision = judge("[[rule]]\nmetric = 'accuracy'\nmargin = 0.02", 1000, &[], &lost).unwrap();
    let check = decision.checks.iter().find(|check| check.baseline.is_some()).unwrap();
    assert_eq!(check.outcome, Outcome::Pass);
    assert!(check.reason.ends_with("a real drop, though a small one"), "{}", check.reason);
}

#[test]
fn one_lost_must_pass_case_fails_whatever_the_margin() {
    let decision = judge("[[rule]]\nmetric = 'accuracy'\nmargin = 0.5", 1000, &[], &[0]).unwrap();
    assert_eq!(decision.outcome, Outcome::Fail);
    assert!(decision.flips[0].must_pass);
    assert_eq!(decision.accept(vec![waiver("case-0")]).unwrap_err(), WaiverError::NothingToAccept(Outcome::Fail));
}

#[test]
fn a_must_pass_case_fails_even_if_the_baseline_never_had_it() {
    assert_eq!(judge(ACCURACY, 1000, &[0], &[0]).unwrap().outcome, Outcome::Fail);
}

#[test]
fn regressions_on_a_small_set_pass_once_each_is_accepted() {
    let undecided = || judge(ACCURACY, 100, &[7], &[3, 4]).unwrap();
    assert_eq!(undecided().outcome, Outcome::Inconclusive);
    let half = undecided().accept(vec![waiver("case-3")]).unwrap();
    assert_eq!(half.outcome, Outcome::Inconclusive);
    assert_eq!(half.unaccepted().map(|flip| flip.case.as_str()).collect::<Vec<_>>(), ["case-4"]);
    let whole = undecided().accept(vec![waiver("case-3"), waiver("case-4")]).unwrap();
    assert_eq!((whole.outcome, whole.waivers.len()), (Outcome::Pass, 2));
}

#[test]
fn only_the_cases_of_an_undecided_rule_have_to_be_accepted() {
    let rules = format!("{ACCURACY}\n[[rule]]\nmetric = 'accuracy'\nslice = 'first'\nmargin = 0.02");
    let undecided = || judge(&rules, 2000, &[], &[3, 500, 501]).unwrap();
    let wanted = |decision: &Decision| decision.unaccepted().map(|flip| flip.case.clone()).collect::<Vec<_>>();
    assert_eq!((undecided().outcome, wanted(&undecided())), (Outcome::Inconclusive, vec!["case-3".to_owned()]));
    assert_eq!(undecided().accept(vec![waiver("case-500")]).unwrap().outcome, Outcome::Inconclusive);
    assert_eq!(undecided().accept(vec![waiver("case-3")]).unwrap().outcome, Outcome::Pass);
    // A slice on which nothing was lost is accepted as such, whatever was lost elsewhere.
    let elsewhere = judge(&rules, 2000, &[], &[500, 501]).unwrap();
    assert!(elsewhere.outcome == Outcome::Inconclusive && wanted(&elsewhere).is_empty());
    assert_eq!(elsewhere.accept(vec![waiver("")]).unwrap().outcome, Outcome::Pass);
}

#[test]
fn a_rule_about_a_label_is_about_the_cases_that_its_metric_counts() {
    // case-3 is an injection that is called benign now, case-4 the other way round.
    let wanted = |metric: &str| {
        let rule = format!("[[rule]]\nmetric = '{metric}'\nlabel = 'injection'\nmargin = 0.02");
        let decision = judge(&rule, 100, &[7], &[3, 4]).unwrap();
        decision.unaccepted().map(|flip| flip.case.clone()).collect::<Vec<_>>()
    };
    assert_eq!(wanted("recall"), ["case-3"]);
}

#[test]
fn only_regressions_can_be_accepted_and_only_once() {
    let accept = |cases: &[&str]| {
        let waivers = cases.iter().map(|case| waiver(case)).collect();
        judge(ACCURACY, 100, &[7], &[3]).unwrap().accept(waivers).unwrap_err()
    };
    let not_one = |case: &str| WaiverError::NotARegression { case: case.to_owned() };
    assert_eq!(accept(&["case-7"]), not_one("case-7"));
    assert_eq!(accept(&["nonsense"]), not_one("nonsense"));
    assert_eq!(accept(&[""]), WaiverError::CasesLost { cases: "`case-3`".to_owned() });
    assert_eq!(accept(&["case-3", "case-3"]), WaiverError::Twice { case: "case-3".to_owned() });
}

#[test]
fn an_undecided_floor_cannot_be_waived() {
    let gates = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.02\nfloor = 0.97";
    let decision = judge(gates, 100, &[], &[3, 4]).unwrap();
    let refused = decision.accept(vec![waiver("case-3"), waiver("case-4")]).unwrap_err();
    assert!(matches!(refused, WaiverError::NotWaivable { .. }), "{refused}");
}

#[test]
fn an_undecided_rule_with_enough_power_cannot_be_waived() {
    // 25 lost and 20 won of 3,000: an equal candidate would have passed, so this one is probably worse.
    let gates = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.004\ndiscordant = 0.0005";
    let lost: Vec<usize> = (1..11).collect();
    let decision = judge(gates, 3000, &[], &lost).unwrap();
    assert_eq!(decision.outcome, Outcome::Inconclusive);
    let refused = decision.accept((1..11).map(|idx| waiver(&format!("case-{idx}"))).collect()).unwrap_err();
    assert!(matches!(refused, WaiverError::NotWaivable { .. }), "{refused}");
}

#[test]
fn cases_of_one_source_are_not_so_many_observations() {
    let lost: Vec<usize> = (40..60).collect();
    let judge = |n_a_source: usize| {
        let mut cases = cases(400);
        cases.iter_mut().enumerate().for_each(|(idx, case)| case.sources = [idx / n_a_source; 2]);
        let (candidate, baseline) = (answers(400, &lost), answers(400, &[]));
        let side = Side::Package(&baseline);
        let comparison = Comparison { cases: &cases, candidate: &candidate, baseline: side, latencies_ms: &[] };
        let mut decision = decide(&Gates::parse(ACCURACY).unwrap(), &comparison).unwrap();
        decision.checks.pop().unwrap()
    };
    let [alone, of_ten, of_twenty] = [1, 10, 20].map(judge);
    let width = |check: &CheckResult| check.interval.map(|[low, high]| high - low).unwrap();
    let exact = Some(Test::ExactMcnemar);
    assert!(alone.test == exact && of_ten.test != exact, "exact McNemar takes independent cases");
    // All twenty lost cases lie in two sources of ten: that is two losses of forty, not twenty of four hundred.
    assert!(width(&of_ten) > 2.0 * width(&alone), "{} and {}", width(&of_ten), width(&alone));
    assert_eq!((alone.outcome, of_ten.outcome), (Outcome::Fail, Outcome::Inconclusive));
    // Twenty sources are too few to resample at all.
    assert_eq!(of_twenty.outcome, Outcome::Inconclusive);
}

#[test]
fn a_slice_is_judged_on_its_own_cases() {
    let lost: Vec<usize> = (10..30).collect();
    let gates =
        "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nslice = '*'";
    let decision = judge(gates, 2000, &[], &lost).unwrap();
    let of = |name: &str| decision.checks.iter().find(|check| check.rule.starts_with(name)).unwrap();
    assert_eq!(of("accuracy:").outcome, Outcome::Pass);
    assert_eq!(of("accuracy, slice \"first\"").outcome, Outcome::Fail);
    assert_eq!(of("accuracy, slice \"first\"").n_cases, 40);
}

#[test]
fn a_rule_on_a_slice_without_cases_is_an_error() {
    let gates = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nslice = 'second'";
    let error = judge(gates, 100, &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "no golden case is in slice `second`; there are: first");
}

#[test]
fn a_rule_on_each_slice_where_there_are_none_is_an_error_and_no_pass() {
    let mut cases = cases(100);
    cases.iter_mut().for_each(|case| (case.slices, case.must_pass) = (Vec::new(), false));
    let same = answers(100, &[]);
    for baseline in [Side::Package(&same), Side::Trivial] {
        let comparison = Comparison { cases: &cases, candidate: &same, baseline, latencies_ms: &[] };
        let gates = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nfloor = 0.5\nslice = '*'";
        let error = decide(&Gates::parse(gates).unwrap(), &comparison).unwrap_err();
        assert!(matches!(error, GateError::NoSlices { metric: Metric::Accuracy }), "{error}");
    }
    assert_eq!(outcome(&[], &[], &[]), Outcome::Inconclusive);
    assert_eq!(outcome(&[], &[], &[waiver("")]), Outcome::Inconclusive);
}

/// The check of one rule on the accuracy of `n` cases, where the candidate lost and won so many.
fn accuracy(n: usize, rule: &str, [lost, won]: [usize; 2]) -> CheckResult {
    let (candidate, baseline): (Vec<usize>, Vec<usize>) = ((1..=lost).collect(), (1 + lost..=lost + won).collect());
    judge(&format!("[[rule]]\nmetric = 'accuracy'\n{rule}"), n, &baseline, &candidate).unwrap().checks.pop().unwrap()
}

#[test]
fn a_required_improvement_has_to_be_shown() {
    let shown = accuracy(200, "improvement = 0.05", [0, 30]);
    assert_eq!((shown.outcome, shown.test), (Outcome::Pass, Some(Test::ExactUnconditional)));
    assert_eq!(shown.rule, "accuracy: better than the baseline by at least 5.0 points");
    assert!(shown.reason.ends_with("at worst, so better by more than 5.0 points"), "{}", shown.reason);
    assert!(shown.p_value.unwrap() < 0.01 && shown.improved);
    let note = shown.power_note.unwrap();
    assert!(note.starts_with("a true gain of ") && note.ends_with("passes with 80 % power"), "{note}");
    assert!(shown.minimum_detectable_effect.unwrap() > 0.05 && shown.pass_power.is_none());

    let open = accuracy(200, "improvement = 0.14", [0, 30]);
    assert_eq!((open.outcome, open.waivable), (Outcome::Inconclusive, false));
    assert!(open.reason.ends_with("200 cases are too few to tell from a gain below 14.0 points"), "{}", open.reason);
    let lacking = accuracy(1000, "improvement = 0.05", [0, 0]);
    assert!(lacking.reason.ends_with("at best, so not better by 5.0 points"), "{}", lacking.reason);
    assert_eq!(lacking.outcome, Outcome::Fail);
    // Any gain at all is what a margin of 0 asks for too.
    let [none, any] = ["margin = 0", "improvement = 0"].map(|rule| accuracy(200, rule, [1, 12]));
    assert_eq!(none, any);
}

#[test]
fn the_p_value_of_a_gain_and_its_bound_decide_alike() {
    for (lost, won) in [(0, 3), (0, 9), (2, 12), (5, 20), (8, 9)] {
        let pairs = Discordance::from_counts(80, lost, won).unwrap();
        for gain in [0.0, 0.01, 0.05, 0.1, 0.2] {
            let (bound, p) = (pairs.exact_bounds(0.05)[0], pairs.p_better_by(gain));
            // They order outcomes by the score for another difference each, which close to the limit is the same one.
            let alike = (p < 0.05) == (bound > gain) || (bound - gain).abs() < 0.003;
            assert!(alike, "{lost} lost, {won} won: p {p} of {gain}, bound {bound}");
        }
    }
    // Where the score test stands in for the exact one, of more cases, the step is small.
    let [exact, score] = [4_000, 4_001].map(|n| Discordance::from_counts(n, 60, 190).unwrap());
    for gain in [0.02, 0.025] {
        let [exact, score] = [exact, score].map(|pairs| pairs.p_better_by(gain));
        assert!((exact - score).abs() < 0.015, "{exact} and {score} of {gain}");
    }
}

#[test]
fn the_rules_say_how_what_is_undecided_counts() {
    let undecided = |policy: &str, rule: &str| judge(&format!("{policy}\n{ACCURACY}\n{rule}"), 100, &[], &[3]).unwrap();
    let asked = undecided("inconclusive = 'ask'", "");
    assert_eq!(asked, undecided("", ""));
    assert_eq!(asked.outcome, Outcome::Inconclusive);
    for failed in [undecided("inconclusive = 'fail'", ""), undecided("", "inconclusive = 'fail'")] {
        let check = failed.checks.last().unwrap();
        assert!((failed.outcome, check.undecided) == (Outcome::Fail, true) && !check.waivable);
        assert!(check.reason.starts_with("undecided, which the rules count as failed: "), "{}", check.reason);
        assert_eq!(failed.accept(vec![waiver("case-3")]), Err(WaiverError::NothingToAccept(Outcome::Fail)));
    }
    let mild = undecided("inconclusive = 'fail'", "inconclusive = 'pass'");
    assert_eq!((mild.outcome, mild.checks.last().unwrap().undecided), (Outcome::Pass, true));
    // What is shown is never let pass, and neither is a gate that shows nothing.
    let lost: Vec<usize> = (10..40).collect();
    let gates = format!("{ACCURACY}\ninconclusive = 'pass'");
    assert_eq!(judge(&gates, 200, &[], &lost).unwrap().outcome, Outcome::Fail);
    assert_eq!(outcome(&mild.checks[1..], &mild.flips, &[]), Outcome::Inconclusive);

    let slow = format!("inconclusive = 'fail'\n{ACCURACY}\n[[latency]]\npercentile = 99\nmax_ms = 5");
    let (cases, same) = (cases(1000), answers(1000, &[]));
    let (baseline, latencies_ms) = (Side::Package(&same), &[1.0; 50][..]);
    let comparison = Comparison { cases: &cases, candidate: &same, baseline, latencies_ms };
    let check = decide(&Gates::parse(&slow).unwrap(), &comparison).unwrap().checks.pop().unwrap();
    assert_eq!((check.outcome, check.undecided), (Outcome::Fail, true), "{}", check.reason);
}

#[test]
fn a_gates_file_may_have_a_byte_order_mark() {
    assert_eq!(Gates::parse(&format!("\u{feff}{ACCURACY}")).unwrap(), Gates::parse(ACCURACY).unwrap());
}

/// `n` texts on both sides, scored by a judge: `candidate` by the number of the case, the baseline 0.5.
fn scored(n: usize, candidate: impl Fn(usize) -> f64) -> (Vec<Case>, [Observed; 2]) {
    let (cases, _) = written(n, &[]);
    let of = |score: &dyn Fn(usize) -> f64| {
        let one = |idx| Generated { judged: [("better".to_owned(), score(idx))].into(), ..Generated::text("x") };
        let references = vec![vec!["y".to_owned()]; n];
        Observed::Texts(Texts::new(references, (0..n).map(one).collect()).unwrap())
    };
    let cases = cases.into_iter().map(|case| Case { must_pass: false, ..case }).collect();
    (cases, [of(&candidate), of(&|_| 0.5)])
}

const JUDGED: &str = "[judge.better]\nmodel = 'judge.toml'\nmode = 'pairwise'\nprompt = '{a} or {b}?'
    [[rule]]\nmetric = 'judged'\njudge = 'better'\nmargin = 0.1";

fn judge_evidence(more: serde_json::Value) -> JudgeEvidence {
    let mut json = serde_json::json!({
        "name": "better", "model": "sha256:m", "prompt": "sha256:p", "mode": "pairwise", "scale": [0, 1], "repeats": 1,
        "n_judged": 100, "n_unreadable": 0, "self_disagreement": 0.0,
        "hosted": {"model": "m", "base_url": "http://h", "n_questions": 200, "n_kept": 0, "n_retries": 0,
                   "input_tokens": 1, "output_tokens": 1},
    });
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_judge_that_carries_no_information_decides_nothing() {
    let (cases, [candidate, baseline]) = scored(100, |_| 0.5);
    let judged = |rules: &str, evidence: serde_json::Value| {
        let baseline = Side::Package(&baseline);
        let comparison = Comparison { cases: &cases, candidate: &candidate, baseline, latencies_ms: &[] };
        let gates = Gates::parse(&format!("{JUDGED}\n{rules}")).unwrap();
        decide_with(&gates, &comparison, &BTreeMap::new(), &[judge_evidence(evidence)]).unwrap()
    };
    let pairs = |n: usize, order_decided: f64, told_apart: f64| serde_json::json!({"different": {"n": n, "order_decided": order_decided, "told_apart": told_apart}});
    let reason = |evidence: serde_json::Value| {
        let decision = judged("", evidence);
        let check = &decision.checks[0];
        assert!(check.outcome == decision.outcome && !check.waivable);
        (check.outcome, check.reason.split("; ").next().unwrap().to_owned())
    };
    // One that always answers "A" finds nothing but ties.
    let (outcome, always_a) = reason(pairs(100, 1.0, 0.0));
    assert_eq!(outcome, Outcome::Inconclusive);
    assert!(always_a.starts_with("the order decided 100.0 % of the 100 pairs that judge \"better\""), "{always_a}");
    // A coin that is asked about both orders turns in half of them: 45 of 100 do not show that it is none.
    assert_eq!(reason(pairs(100, 0.45, 0.5)).0, Outcome::Inconclusive);
    assert_eq!(reason(pairs(100, 0.35, 0.5)).0, Outcome::Pass);
    assert!(reason(pairs(100, 0.0, 0.0)).1.ends_with("told none of the 100 pairs that differ apart"));
    assert_eq!(reason(pairs(0, 0.0, 0.0)).0, Outcome::Pass, "the same texts are ties whoever judges");

    let agreement = |interval: [f64; 2]| serde_json::json!({"measure": "alpha_ordinal", "value": 0.5, "interval": interval, "n_labelled": 60, "labels": "sha256:l"});
    let with = |mut evidence: serde_json::Value, interval: [f64; 2]| {
        evidence["agreement"] = agreement(interval);
        reason(evidence)
    };
    assert_eq!(with(pairs(100, 0.45, 0.5), [0.3, 0.7]).0, Outcome::Pass);
    assert_eq!(with(pairs(100, 0.0, 0.0), [0.3, 0.7]).0, Outcome::Pass);
    assert_eq!(with(pairs(100, 0.55, 0.4), [0.3, 0.7]).0, Outcome::Pass);
    assert!(with(pairs(100, 0.95, 0.05), [0.3, 0.7]).1.ends_with("so that hardly any tells anything"));
    let by_chance = with(pairs(100, 0.1, 0.6), [-0.541, 0.9]).1;
    assert!(by_chance.starts_with("judge \"better\" agrees with people no better than chance ("), "{by_chance}");

    let scale = |more: serde_json::Value| {
        let mut evidence = serde_json::json!({"mode": "scale"});
        evidence.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        reason(evidence)
    };
    assert_eq!(
        scale(serde_json::json!({"n_unreadable": 51})).1,
        "51 of the 100 replies of judge \"better\" hold no score"
    );
    assert_eq!(scale(serde_json::json!({"n_unreadable": 50})).0, Outcome::Pass);
    assert_eq!(scale(serde_json::json!({"n_different_scores": 1})).0, Outcome::Inconclusive);
    assert_eq!(scale(serde_json::json!({"n_different_scores": 2})).0, Outcome::Pass);
    // Verdicts from before these were counted are read as they are.
    assert_eq!(reason(serde_json::json!({})).0, Outcome::Pass);

    // No rule lets pass what nobody measured.
    assert_eq!(judged("inconclusive = 'pass'", pairs(100, 1.0, 0.0)).outcome, Outcome::Inconclusive);
    assert_eq!(judged("inconclusive = 'fail'", pairs(100, 1.0, 0.0)).outcome, Outcome::Fail);
}

#[test]
fn no_drop_is_told_that_a_share_cannot_have() {
    // Nearly all weight lies on one case that was lost: the resamples say nothing or all of it.
    let weight = |idx: usize| if idx == 0 { 1e4 } else { 1.0 };
    let weigh = |(idx, case): (usize, Case)| Case { must_pass: false, weight: weight(idx), ..case };
    let set: Vec<Case> = cases(100).into_iter().enumerate().map(weigh).collect();
    let rule = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.02\nfloor = 0.5";
    let decision = judge_weighted(&set, rule, &[0]).unwrap();
    let [compared, floor] = decision.checks.as_slice() else { panic!("{:?}", decision.checks) };
    assert_eq!((compared.minimum_detectable_effect, floor.minimum_detectable_effect), (None, None));
    let [compared, floor] = [compared, floor].map(|check| check.power_note.clone().unwrap());
    assert!(compared.starts_with("100 cases cannot show any drop with 80 % power"), "{compared}");
    assert!(floor.starts_with("100 cases cannot show any shortfall with 80 % power"), "{floor}");
}

#[test]
fn recall_is_judged_on_the_cases_of_its_label() {
    let gates = "[[rule]]\nmetric = 'recall'\nlabel = 'injection'\nfloor = 0.9";
    let decision = judge(gates, 400, &[], &[2, 4, 6]).unwrap();
    let check = decision.checks.last().unwrap();
    assert_eq!((check.n_cases, check.candidate, check.outcome), (200, 1.0, Outcome::Pass));
}

#[test]
fn bootstrapped_rules_tell_good_from_bad() {
    for metric in ["f1_macro", "log_loss"] {
        let gates = format!("[[rule]]\nmetric = '{metric}'\nmargin = 0.1");
        let lost: Vec<usize> = (10..300).collect();
        assert_eq!(judge(&gates, 600, &[1, 2, 3], &[1, 2, 4]).unwrap().outcome, Outcome::Pass, "{metric}");
        assert_eq!(judge(&gates, 600, &[1, 2, 3], &lost).unwrap().outcome, Outcome::Fail, "{metric}");
        assert_eq!(judge(&gates, 20, &[1], &[1]).unwrap().outcome, Outcome::Inconclusive, "{metric}");
    }
}

#[test]
fn a_bootstrap_that_never_varies_does_not_claim_certainty() {
    let gates = "[[rule]]\nmetric = 'auroc'\nlabel = 'injection'\nmargin = 0.01";
    assert_eq!(judge(gates, 100, &[], &[]).unwrap().outcome, Outcome::Inconclusive);
    assert_eq!(judge(gates, 1000, &[], &[]).unwrap().outcome, Outcome::Pass);
}

#[test]
fn a_first_version_must_beat_the_majority_and_its_floors() {
    let gates = Gates::parse("[[rule]]\nmetric = 'accuracy'\nmargin = 0.02\nfloor = 0.9").unwrap();
    let cases = cases(200);
    let outcome = |wrong: &[usize]| {
        let candidate = answers(200, wrong);
        let comparison =
            Comparison { cases: &cases, candidate: &candidate, baseline: Side::Trivial, latencies_ms: &[] };
        decide(&gates, &comparison).unwrap()
    };
    let good = outcome(&[1, 2, 3]);
    assert_eq!(good.outcome, Outcome::Pass);
    assert!(good.checks.iter().any(|check| check.rule == "accuracy: better than always answering \"benign\""));
    assert_eq!(outcome(&(1..40).collect::<Vec<_>>()).outcome, Outcome::Fail);
}

#[test]
fn a_first_version_without_a_floor_is_refused() {
    let cases = cases(50);
    let candidate = answers(50, &[]);
    let comparison = Comparison { cases: &cases, candidate: &candidate, baseline: Side::Trivial, latencies_ms: &[] };
    let refused = |gates: &str| decide(&Gates::parse(gates).unwrap(), &comparison).unwrap_err();
    assert!(matches!(refused(ACCURACY), GateError::NoAbsoluteLimit));
    let only_recall = "[[rule]]\nmetric = 'recall'\nlabel = 'benign'\nmargin = 0.02\nfloor = 0.5";
    assert!(matches!(refused(only_recall), GateError::NoTrivialComparison));
}

#[test]
fn an_embedder_is_judged_by_rank_correlation() {
    let human: Vec<f64> = (0..200).map(|idx| f64::from(idx % 37)).collect();
    let noisy = |size: f64| {
        let predicted = human.iter().enumerate().map(|(idx, v)| v + size * ((idx * 7919) % 101) as f64 / 101.0);
        Observed::Similarities(Similarities { expected: human.clone(), predicted: predicted.collect() })
    };
    let pairs: Vec<Case> = human
        .iter()
        .enumerate()
        .map(|(idx, &value)| Case {
            id: idx.to_string(),
            expected: Expected::Number(value),
            slices: Vec::new(),
            must_pass: false,
            sources: [2 * idx, 2 * idx + 1],
            weight: 1.0,
        })
        .collect();
    let gates = Gates::parse("[[rule]]\nmetric = 'spearman'\nmargin = 0.05\nfloor = 0.8").unwrap();
    let (good, bad) = (noisy(2.0), noisy(100.0));
    let outcome = |candidate: &Observed, baseline: Side<'_>| {
        decide(&gates, &Comparison { cases: &pairs, candidate, baseline, latencies_ms: &[] }).unwrap().outcome
    };
    assert_eq!(outcome(&good, Side::Package(&good)), Outcome::Pass);
    assert_eq!(outcome(&bad, Side::Package(&good)), Outcome::Fail);
    assert_eq!(outcome(&good, Side::Trivial), Outcome::Pass);
}

/// `n` queries with the relevant document among three; at `wrong` the model puts it last.
fn rankings(n: usize, wrong: &[usize]) -> Observed {
    let expected = vec![vec![0, 1, 0]; n];
    let scores = (0..n).map(|idx| if wrong.contains(&idx) { vec![2.0, 1.0, 3.0] } else { vec![1.0, 2.0, 0.0] });
    Observed::Rankings(Rankings::new(expected, scores.collect()).unwrap())
}

const NDCG: &str = "[[rule]]\nmetric = 'ndcg_at_10'\nmargin = 0.05\nfloor = 0.6";

fn judge_rankings(gates: &str, candidate: &Observed, baseline: Side<'_>) -> Decision {
    let cases: Vec<Case> = cases(candidate.n_cases())
        .into_iter()
        .map(|case| Case { expected: Expected::Relevances(vec![0, 1, 0]), ..case })
        .collect();
    let comparison = Comparison { cases: &cases, candidate, baseline, latencies_ms: &[] };
    decide(&Gates::parse(gates).unwrap(), &comparison).unwrap()
}

#[test]
fn a_reranker_is_judged_by_ndcg_query_by_query() {
    let (few, many): (Vec<usize>, Vec<usize>) = ((10..14).collect(), (10..60).collect());
    let good = rankings(200, &few);
    assert_eq!(judge_rankings(NDCG, &good, Side::Package(&good)).outcome, Outcome::Pass);
    let worse = judge_rankings(NDCG, &rankings(200, &many), Side::Package(&good));
    assert_eq!(worse.outcome, Outcome::Fail);
    let flip = &worse.flips[0];
    assert_eq!(
        (flip.expected.as_str(), flip.baseline.as_str(), flip.candidate.as_str()),
        ("rank 1", "rank 1", "rank 3")
    );
    assert_eq!(worse.flips.len(), 46);
}

#[test]
fn a_first_reranker_must_beat_the_order_the_documents_came_in() {
    let decision = judge_rankings(NDCG, &rankings(200, &[]), Side::Trivial);
    assert_eq!(decision.outcome, Outcome::Pass);
    let check = &decision.checks[1];
    assert_eq!(check.rule, "nDCG@10: better than the order the documents came in");
    // 1 / log2(3): the relevant document came second.
    assert!((check.baseline.unwrap() - 0.630_929_753_571_457_4).abs() < 1e-12);
    let all: Vec<usize> = (1..200).collect();
    assert_eq!(judge_rankings(NDCG, &rankings(200, &all), Side::Trivial).outcome, Outcome::Fail);
}

#[test]
fn a_graded_metric_is_tested_by_swapping_sides() {
    let check = |candidate_wrong: &[usize], margin: f64| {
        let gates = format!("[[rule]]\nmetric = 'ndcg_at_10'\nmargin = {margin}");
        let (candidate, baseline) = (rankings(200, candidate_wrong), rankings(200, &[]));
        judge_rankings(&gates, &candidate, Side::Package(&baseline)).checks.pop().unwrap()
    };
    let few = check(&[11, 12, 13, 14, 15], 0.05);
    // Each lost query loses as much, so all of 2^5 swaps but one are better.
    assert_eq!((few.test, few.p_value), (Some(Test::ExactSignFlips), Some(1.0 / 32.0)));
    assert_eq!(few.outcome, Outcome::Pass);
    assert!(few.reason.ends_with("a real drop, though a small one"), "{}", few.reason);
    let many = check(&(10..60).collect::<Vec<_>>(), 0.05);
    // None of 10,000 drawn swaps is as bad.
    assert_eq!((many.test, many.p_value), (Some(Test::SignFlips), Some(1.0 / 10_001.0)));
    assert!(check(&[11, 12, 13, 14, 15], 0.0).p_value.unwrap() > 0.9, "a gain was asked for");
}

#[test]
fn a_loss_that_grows_is_tested_as_a_drop() {
    let lost: Vec<usize> = (10..80).collect();
    let decision = judge("[[rule]]\nmetric = 'log_loss'\nmargin = 0.1", 600, &[1, 2, 3], &lost).unwrap();
    assert!(decision.checks.last().unwrap().p_value.unwrap() < 0.001);
}

/// 40 documents with ten cases each; the candidate loses every case of the documents at `lost`.
fn clustered(lost: &[usize]) -> Decision {
    let n = 400;
    let cases: Vec<Case> = cases(n)
        .into_iter()
        .enumerate()
        .map(|(idx, case)| Case { sources: [idx / 10; 2], must_pass: false, ..case })
        .collect();
    let wrong: Vec<usize> = (0..n).filter(|idx| lost.contains(&(idx / 10))).collect();
    let (candidate, baseline) = (answers(n, &wrong), answers(n, &[]));
    let comparison =
        Comparison { cases: &cases, candidate: &candidate, baseline: Side::Package(&baseline), latencies_ms: &[] };
    decide(&Gates::parse("[[rule]]\nmetric = 'accuracy'\nmargin = 0.02").unwrap(), &comparison).unwrap()
}

#[test]
fn cases_of_one_document_are_one_observation() {
    // Ten lost cases of independent documents would be exact evidence against a margin of 2 points; of one document they
    // may be bad luck.
    let decision = clustered(&[7]);
    let check = decision.checks.last().unwrap();
    assert_eq!((decision.outcome, check.p_value), (Outcome::Inconclusive, Some(0.5)));
    assert_eq!(check.test, Some(Test::ExactSignFlips));
    assert_eq!(clustered(&(0..8).collect::<Vec<_>>()).outcome, Outcome::Fail);
    let independent = judge(ACCURACY, 400, &[], &(70..80).collect::<Vec<_>>()).unwrap();
    assert!(independent.checks.last().unwrap().p_value.unwrap() < 0.001);
}

#[test]
fn a_drop_that_is_real_is_told_before_it_is_decided() {
    let decision = judge(ACCURACY, 400, &[], &(11..19).collect::<Vec<_>>()).unwrap();
    let check = decision.checks.last().unwrap();
    assert_eq!(check.outcome, Outcome::Inconclusive);
    assert!(check.reason.ends_with("; a real drop, of a size that is open"), "{}", check.reason);
}

#[test]
fn drops_are_looked_for_in_all_slices_at_once() {
    let slices = |idx: usize| if idx < 300 { vec![format!("s{}", idx / 50)] } else { Vec::new() };
    let cases: Vec<Case> =
        cases(1000).into_iter().enumerate().map(|(idx, case)| Case { slices: slices(idx), ..case }).collect();
    // Five lost in one slice of six and six in another: p = 1/32 and 1/64 alone.
    let (candidate, baseline) = (answers(1000, &[10, 11, 12, 13, 14, 60, 61, 62, 63, 64, 65]), answers(1000, &[]));
    let comparison =
        Comparison { cases: &cases, candidate: &candidate, baseline: Side::Package(&baseline), latencies_ms: &[] };
    let gates = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.5\nslice = '*'\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.5";
    let decision = decide(&Gates::parse(gates).unwrap(), &comparison).unwrap();
    let slices: Vec<_> = decision.checks.iter().filter(|check| check.rule.contains("slice")).collect();
    for (check, p, adjusted) in [(slices[0], 1.0 / 32.0, 5.0 / 32.0), (slices[1], 1.0 / 64.0, 6.0 / 64.0)] {
        assert!((check.p_value.unwrap() - p).abs() < 1e-9 && (check.adjusted_p_value.unwrap() - adjusted).abs() < 1e-9);
    }
    assert!(!slices[0].reason.contains("a real drop"), "{}", slices[0].reason);
    // Margins are judged slice by slice, whatever the adjusted values are.
    assert_eq!(decision.outcome, Outcome::Pass);
    let overall = decision.checks.last().unwrap();
    assert_eq!(overall.adjusted_p_value, None);
    assert!(overall.reason.ends_with("a real drop, though a small one"), "{}", overall.reason);
}

#[test]
fn every_line_on_answers_tells_what_it_could_have_seen() {
    let ranked = judge_rankings(NDCG, &rankings(200, &[7]), Side::Trivial);
    let gates =
        "[[rule]]\nmetric = 'accuracy'\nmargin = 0.02\nfloor = 0.9\n[[rule]]\nmetric = 'log_loss'\nceiling = 0.3";
    let classified = judge(gates, 200, &[], &[3, 5]).unwrap();
    for check in ranked.checks.iter().chain(&classified.checks).filter(|check| !check.rule.starts_with("must-pass")) {
        assert!(check.power_note.is_some(), "{}", check.rule);
    }
    let floor = classified.checks.iter().find(|check| check.rule == "accuracy: at least 90.0 %").unwrap();
    assert_eq!(floor.power_note.as_deref(), Some("a true value of 84.1 % would have failed with 80 % power"));
}

#[test]
fn a_must_pass_query_needs_its_document_first() {
    let decision = judge_rankings(NDCG, &rankings(200, &[0]), Side::Package(&rankings(200, &[0])));
    assert_eq!(decision.outcome, Outcome::Fail);
    assert_eq!(decision.checks[0].reason, "`case-0` is answered wrongly");
}

#[test]
fn latency_is_judged_by_the_interval_of_its_percentile() {
    let gates = |max_ms: f64| format!("{ACCURACY}\n[[latency]]\npercentile = 90\nmax_ms = {max_ms}");
    let cases = cases(1000);
    let answers = answers(1000, &[]);
    let latencies: Vec<f64> = (0..1000).map(|idx| f64::from(idx) / 100.0).collect();
    let outcome = |max_ms: f64, latencies_ms: &[f64]| {
        let comparison =
            Comparison { cases: &cases, candidate: &answers, baseline: Side::Package(&answers), latencies_ms };
        decide(&Gates::parse(&gates(max_ms)).unwrap(), &comparison).map(|decision| decision.outcome)
    };
    assert_eq!(outcome(9.5, &latencies).unwrap(), Outcome::Pass);
    assert_eq!(outcome(8.0, &latencies).unwrap(), Outcome::Fail);
    assert_eq!(outcome(9.0, &latencies).unwrap(), Outcome::Inconclusive);
    assert!(matches!(outcome(9.5, &[]), Err(GateError::NoLatency)));
}

#[test]
fn rules_that_decide_nothing_or_too_much_are_refused() {
    for (gates, complaint) in [
        ("", "there is no [[rule]], so nothing would be gated"),
        (
            "[[rule]]\nmetric = 'accuracy'\nmargin = 1.0",
            "rule 1 (accuracy): has `margin = 1`, which no model can break",
        ),
        (
            "[[rule]]\nmetric = 'ndcg_at_10'\nfloor = 0.0",
            "has `floor = 0`, which no model can break: the metric goes from 0 to 1",
        ),
        ("[[rule]]\nmetric = 'ece'\nceiling = 1.0", "has `ceiling = 1`, which no model can break"),
        ("[[rule]]\nmetric = 'accuracy'", "rule 1 (accuracy): needs a `margin`, an `improvement`, a `floor`"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nimprovement = 0.1", "better by as much), not both"),
        ("[[rule]]\nmetric = 'accuracy'\nimprovement = 1.1", "improvement = 1.1 is out of range"),
        ("inconclusive = 'pass'\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.1", "is for single rules"),
        ("inconclusive = 'warn'\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.1", "expected one of `ask`, `fail`, `pass`"),
        ("[[rule]]\nmetric = 'f1'\nmargin = 0.1", "rule 1 (F1): needs a `label`"),
        ("[[rule]]\nmetric = 'accuracy'\nlabel = 'x'\nmargin = 0.1", "rule 1 (accuracy): takes no `label`"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = -0.1", "margin = -0.1 is out of range"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = 2", "margin = 2 is out of range"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = nan", "margin = NaN is out of range"),
        ("[[rule]]\nmetric = 'log_loss'\nfloor = 0.1", "is better when smaller"),
        ("alpha = 0.5\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.1", "alpha = 0.5 is out of range"),
        ("resamples = 100\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.1", "resamples = 100 is out of range"),
        ("[[rule]]\nmetric = 'accuracy'\nmargins = 0.1", "unknown field `margins`"),
        ("[[rule]]\nmetric = 'bleurt'\nmargin = 0.1", "`bleurt` is no metric: there are `accuracy`"),
        ("[[rule]]\nmetric = 'cost'\nceiling = 0.1", "rule 1 (cost): needs `costs`"),
        ("[[rule]]\nmetric = 'accuracy'\nfloor = 0.1\ncosts.a.b = 2", "rule 1 (accuracy): takes no `costs`"),
        (
            "[[rule]]\nmetric = 'cost'\nceiling = 0.1\ncosts.a.b = -2",
            "answering `a` with `b` costs -2: expected 0 or more",
        ),
        ("[[rule]]\nmetric = 'ece'\nceiling = 1.5", "ceiling = 1.5 is out of range"),
        ("[[rule]]\nmetric = 'matches_regex'\nfloor = 0.9\nregex = '('", "unclosed group"),
        ("[[rule]]\nmetric = 'matches_schema'\nfloor = 0.9\nschema = '{'", "the schema is not JSON"),
        (
            "[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\n[[latency]]\npercentile = 100\nmax_ms = 1",
            "percentile = 100 is out of range",
        ),
    ] {
        let error = Gates::parse(gates).unwrap_err().to_string();
        assert!(error.contains(complaint), "{gates}: {error}");
    }
}

#[test]
fn a_costly_mistake_fails_where_the_share_of_mistakes_is_the_same() {
    // Ten benign cases were lost, now ten injections are.
    let (benign, injections): (Vec<usize>, Vec<usize>) = ((20..40).step_by(2).collect(), (21..41).step_by(2).collect());
    let outcome = |gates: &str| judge(gates, 400, &benign, &injections).unwrap().outcome;
    assert_eq!(outcome("[[rule]]\nmetric = 'accuracy'\nmargin = 0.05"), Outcome::Pass);
    let cost = "[[rule]]\nmetric = 'cost'\nmargin = 0.05";
    assert_eq!(outcome(cost.replace("cost'", "cost'\ncosts = {}").as_str()), Outcome::Pass);
    assert_eq!(outcome(&format!("{cost}\n[rule.costs.injection]\nbenign = 20")), Outcome::Fail);
    assert_eq!(outcome(&format!("{cost}\n[rule.costs.benign]\ninjection = 20")), Outcome::Pass);
}

/// `n` questions; those at `wrong` are answered with another text.
fn written(n: usize, wrong: &[usize]) -> (Vec<Case>, Observed) {
    let references: Vec<Vec<String>> = (0..n).map(|idx| vec![format!("{{\"n\": {idx}}}"), format!("n{idx}")]).collect();
    let case = |(idx, case): (usize, Case)| Case { expected: Expected::References(references[idx].clone()), ..case };
    let cases = cases(n).into_iter().enumerate().map(case).collect();
    let answer = |idx| if wrong.contains(&idx) { "nothing".to_owned() } else { format!("n{idx}\n") };
    let generated = (0..n).map(|idx| Generated::text(answer(idx))).collect();
    (cases, Observed::Texts(Texts::new(references, generated).unwrap()))
}

#[test]
fn texts_that_equal_a_reference_are_judged_case_by_case() {
    let ((cases, candidate), (_, baseline)) = (written(100, &[3, 4]), written(100, &[7]));
    let against = |baseline, gates: &str| {
        let comparison = Comparison { cases: &cases, candidate: &candidate, baseline, latencies_ms: &[] };
        decide(&Gates::parse(gates).unwrap(), &comparison)
    };
    let rules = "[[rule]]\nmetric = 'exact_match'\nmargin = 0.02\n[[rule]]\nmetric = 'bleu'\nmargin = 0.02
        [[rule]]\nmetric = 'matches_regex'\nregex = '^n[0-9]'\nmargin = 0.02";
    let decision = against(Side::Package(&baseline), rules).unwrap();
    let exact: Vec<bool> = decision.checks.iter().map(|check| check.p_value.is_some()).collect();
    // The first check is that of the must-pass case.
    assert_eq!(exact, [false, true, false, true]);
    assert!(decision.checks[3].rule.starts_with("matches regex \"^n[0-9]\": not worse"), "{}", decision.checks[3].rule);
    let waivable: Vec<bool> = decision.checks.iter().map(|check| check.waivable).collect();
    // Flips do not show which answers lost their form only.
    assert_eq!(waivable, [false, true, false, false]);
    let told = |flip: &Flip| (flip.case.clone(), flip.expected.clone(), flip.candidate.clone());
    assert_eq!(told(&decision.flips[0]), ("case-3".to_owned(), "{\"n\": 3}".to_owned(), "nothing".to_owned()));

    let first = against(Side::Trivial, "[[rule]]\nmetric = 'exact_match'\nmargin = 0.02\nfloor = 0.8").unwrap();
    assert_eq!(first.outcome, Outcome::Pass);
    assert!(first.checks.iter().any(|check| check.rule.ends_with("always answering the most frequent reference")));
    let form_only = "[[rule]]\nmetric = 'valid_json'\nmargin = 0.02\nfloor = 0.8";
    assert!(matches!(against(Side::Trivial, form_only), Err(GateError::NoTrivialComparison)));
}

#[test]
fn triplets_must_beat_a_coin_and_numbers_the_mean() {
    let outcome = |observed: Observed, gates: &str| {
        let n_cases = observed.n_cases();
        let cases: Vec<Case> = cases(n_cases).into_iter().map(|case| Case { must_pass: false, ..case }).collect();
        let comparison = Comparison { cases: &cases, candidate: &observed, baseline: Side::Trivial, latencies_ms: &[] };
        decide(&Gates::parse(gates).unwrap(), &comparison).unwrap().outcome
    };
    let triplets = |n_right: usize| {
        let pairs = (0..100).map(|idx| if idx < n_right { [0.9, 0.1] } else { [0.1, 0.1] }).collect();
        Observed::Triplets(Triplets::new(pairs).unwrap())
    };
    let gates = "[[rule]]\nmetric = 'pair_accuracy'\nmargin = 0.0\nfloor = 0.1";
    assert_eq!(outcome(triplets(90), gates), Outcome::Pass);
    assert_ne!(outcome(triplets(50), gates), Outcome::Pass);
    let numbers = |noise: f64| {
        let expected: Vec<f64> = (0..100).map(f64::from).collect();
        let predicted = expected.iter().map(|value| value + noise * ((value * 7.0) % 11.0 - 5.0)).collect();
        Observed::Numbers(Numbers::new(expected, predicted).unwrap())
    };
    let gates = "[[rule]]\nmetric = 'mae'\nmargin = 0.0\nceiling = 200\n[[rule]]\nmetric = 'r2'\nmargin = 0.0";
    assert_eq!(outcome(numbers(1.0), gates), Outcome::Pass);
    assert_eq!(outcome(numbers(40.0), gates), Outcome::Fail);
}

#[test]
fn of_many_labels_the_worst_that_are_not_rare_are_shown() {
    let labels: Vec<String> = (0..30).map(|idx| format!("label-{idx:02}")).collect();
    // Label 29 has one case, all others six; every label from 12 on loses one, the first twelve none, the 20th all.
    let cases: Vec<usize> = (0..29).flat_map(|label| [label; 6]).chain([29]).collect();
    let is_wrong = |idx: usize, label: usize| label == 20 || label == 29 || (label >= 12 && idx.is_multiple_of(6));
    let answered: Vec<usize> =
        cases.iter().enumerate().map(|(idx, &label)| if is_wrong(idx, label) { 0 } else { label }).collect();
    let scores = vec![1.0 / 30.0; 30];
    let answers = answered.iter().map(|&label| (labels[label].as_str(), scores.as_slice()));
    let expected = cases.iter().map(|&label| labels[label].as_str());
    let observed = Observed::Classes(Classes::new(&labels, expected, answers).unwrap());
    let cases = self::cases(cases.len());
    let shown = |of_labels: &[String]| {
        let summaries = summarise(&cases, &observed, of_labels, Resamples { n: 20, seed: 1 });
        let of = summaries[0].metrics.iter().filter(|measured| measured.metric == Metric::F1);
        of.map(|measured| measured.label.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(shown(&labels[..20]), labels[..20]);
    let worst = shown(&labels);
    assert_eq!((worst.len(), worst[0].as_str(), worst[1].as_str()), (10, "label-20", "label-00"));
    assert!(!worst.contains(&labels[29]) && !worst.contains(&labels[1]));
}

#[test]
fn amounts_close_to_0_keep_three_digits() {
    let expected: Vec<f64> = (0..40).map(|idx| f64::from(idx) * 1e-3).collect();
    let observed = Observed::Numbers(Numbers::new(expected.clone(), expected).unwrap());
    let cases: Vec<Case> = cases(40).into_iter().map(|case| Case { must_pass: false, ..case }).collect();
    let baseline = Side::Package(&observed);
    let comparison = Comparison { cases: &cases, candidate: &observed, baseline, latencies_ms: &[] };
    let rule = |margin: f64| {
        let gates = format!("[[rule]]\nmetric = 'mae'\nmargin = {margin}");
        decide(&Gates::parse(&gates).unwrap(), &comparison).unwrap().checks.remove(0).rule
    };
    assert_eq!(rule(0.000_52), "mean absolute error: not worse by more than 0.000520");
    assert_eq!(rule(0.02), "mean absolute error: not worse by more than 0.020");
    assert_eq!(rule(1234.5), "mean absolute error: not worse by more than 1234.500");
}

/// `cases(n)` where every tenth counts ten times as much.
fn uneven(n: usize) -> Vec<Case> {
    let weight = |idx: usize| if idx.is_multiple_of(10) { 10.0 } else { 1.0 };
    cases(n).into_iter().enumerate().map(|(idx, case)| Case { must_pass: false, weight: weight(idx), ..case }).collect()
}

fn judge_weighted(cases: &[Case], gates: &str, lost: &[usize]) -> Result<Decision, GateError> {
    let (candidate, baseline) = (answers(cases.len(), lost), answers(cases.len(), &[]));
    let comparison = Comparison { cases, candidate: &candidate, baseline: Side::Package(&baseline), latencies_ms: &[] };
    decide(&Gates::parse(gates).unwrap(), &comparison)
}

#[test]
fn a_heavy_case_counts_and_no_exact_test_is_taken_for_it() {
    let set = uneven(400);
    let check = |lost: &[usize]| judge_weighted(&set, ACCURACY, lost).unwrap().checks.remove(0);
    let (heavy, light) = (check(&[10, 20, 30, 40]), check(&[11, 21, 31, 41]));
    assert!((heavy.candidate - (1.0 - 40.0 / 760.0)).abs() < 1e-12, "{}", heavy.candidate);
    assert!((light.candidate - (1.0 - 4.0 / 760.0)).abs() < 1e-12, "{}", light.candidate);
    assert_eq!((heavy.test, light.test), (Some(Test::ExactSignFlips), Some(Test::ExactSignFlips)));
    // Four swaps of one size: all of them fell the same way in one of sixteen.
    assert_eq!((heavy.p_value, light.p_value), (Some(1.0 / 16.0), Some(1.0 / 16.0)));
    assert!(light.outcome == Outcome::Pass && heavy.outcome != Outcome::Pass);
    // (40 * 10 + 360)^2 / (40 * 100 + 360) is 132.
    let note = heavy.power_note.unwrap();
    assert!(note.ends_with("; by their weights the 400 cases count as 132"), "{note}");
}

#[test]
fn weights_that_are_all_the_same_change_nothing() {
    let lost: Vec<usize> = (10..20).collect();
    let one = judge_weighted(&cases(200), ACCURACY, &lost).unwrap();
    let seven: Vec<Case> = cases(200).into_iter().map(|case| Case { weight: 7.0, ..case }).collect();
    assert_eq!(judge_weighted(&seven, ACCURACY, &lost).unwrap(), one);
}

#[test]
fn a_whole_weight_is_that_many_copies_of_one_source() {
    let n = 60;
    let set: Vec<Case> = uneven(n).into_iter().map(|case| Case { weight: case.weight.min(3.0), ..case }).collect();
    let copies: Vec<usize> = (0..n).flat_map(|idx| std::iter::repeat_n(idx, set[idx].weight as usize)).collect();
    let copied: Vec<Case> =
        copies.iter().map(|&idx| Case { weight: 1.0, sources: [idx; 2], ..set[idx].clone() }).collect();
    let lost = [3, 10, 20, 21];
    let (candidate, baseline) = (answers(n, &lost), answers(n, &[7]));
    // Of values that are whole numbers: others round differently, and BCa counts the resamples that equal the observed value.
    for metric in ["accuracy", "f1_macro", "mcc"] {
        let gates = Gates::parse(&format!("[[rule]]\nmetric = '{metric}'\nmargin = 0.05")).unwrap();
        let judge = |cases: &[Case], candidate: &Observed, baseline: &Observed| {
            let baseline = Side::Package(baseline);
            decide(&gates, &Comparison { cases, candidate, baseline, latencies_ms: &[] }).unwrap().checks.remove(0)
        };
        let weighted = judge(&set, &candidate, &baseline);
        let repeated = judge(&copied, &candidate.subset(&copies), &baseline.subset(&copies));
        assert!((weighted.candidate - repeated.candidate).abs() < 1e-12, "{metric}");
        assert_eq!(weighted.p_value, repeated.p_value, "{metric}");
        let ([low, high], [other_low, other_high]) = (weighted.interval.unwrap(), repeated.interval.unwrap());
        assert!((low - other_low).abs() < 1e-9 && (high - other_high).abs() < 1e-9, "{metric}");
    }
}

#[test]
fn a_metric_without_a_weighted_form_says_so() {
    let cases: Vec<Case> = uneven(40);
    let numbers: Vec<f64> = (0..40).map(f64::from).collect();
    let observed = Observed::Similarities(Similarities { expected: numbers.clone(), predicted: numbers });
    let gates = Gates::parse("[[rule]]\nmetric = 'spearman'\nmargin = 0.05").unwrap();
    let baseline = Side::Package(&observed);
    let error = decide(&gates, &Comparison { cases: &cases, candidate: &observed, baseline, latencies_ms: &[] });
    let told = std::error::Error::source(&error.unwrap_err()).unwrap().to_string();
    assert_eq!(told, "`Spearman correlation` has no weighted form, and these cases have different weights");
}

#[test]
fn the_trivial_answer_is_that_with_the_most_weight() {
    // Label 1 is as frequent as label 0, and heavy.
    let set: Vec<Case> = cases(100)
        .into_iter()
        .enumerate()
        .map(|(idx, case)| Case { must_pass: false, weight: if idx % 2 == 1 { 3.0 } else { 1.0 }, ..case })
        .collect();
    let gates = Gates::parse("[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nfloor = 0.5").unwrap();
    let candidate = answers(100, &[]);
    let decision =
        decide(&gates, &Comparison { cases: &set, candidate: &candidate, baseline: Side::Trivial, latencies_ms: &[] });
    let check = decision.unwrap().checks.into_iter().find(|check| check.baseline.is_some()).unwrap();
    assert_eq!(check.baseline, Some(0.75));
}

const OWN: &str = "[custom.own]\ncommand = ['./own']\n[[rule]]\nmetric = 'custom'\ncustom = 'own'\n";

#[test]
fn what_a_program_of_the_users_own_gives_is_judged_like_any_metric() {
    let (cases, answers) = (cases(80), answers(80, &[]));
    let baseline = Side::Package(&answers);
    let comparison = Comparison { cases: &cases, candidate: &answers, baseline, latencies_ms: &[] };
    let given = |candidate: f64| {
        let of = |base: f64, step: u32| (0..80).map(|idx| base + f64::from(step * idx % 5) / 1000.0).collect();
        [("own".to_owned(), Given { candidate: of(candidate, 2), baseline: Some(of(0.8, 1)) })].into()
    };
    let judged = |rule: &str, candidate: f64| {
        let decision =
            decide_with(&Gates::parse(&format!("{OWN}{rule}")).unwrap(), &comparison, &given(candidate), &[]);
        let check = decision.unwrap().checks.pop().unwrap();
        (check.rule, check.outcome)
    };
    let rule = "own metric \"own\": not worse by more than 0.020";
    assert_eq!(judged("margin = 0.02", 0.8), (rule.to_owned(), Outcome::Pass));
    assert_eq!(judged("margin = 0.02", 0.75).1, Outcome::Fail);
    assert_eq!(judged("floor = 0.7", 0.75).1, Outcome::Pass);
    assert_eq!(judged("floor = 0.9\nslice = 'first'", 0.8).1, Outcome::Fail);
    let smaller = OWN.replace("['./own']", "['./own']\nlower_is_better = true").replace("'custom'", "'custom_loss'");
    let gates = Gates::parse(&format!("{smaller}margin = 0.02")).unwrap();
    assert_eq!(
        decide_with(&gates, &comparison, &given(0.75), &[]).unwrap().checks.pop().unwrap().outcome,
        Outcome::Pass
    );
    let nothing = decide(&Gates::parse(&format!("{OWN}margin = 0.1")).unwrap(), &comparison).unwrap_err();
    assert!(nothing.to_string().contains("a program of your own"), "{nothing}");
    let short = [("own".to_owned(), Given { candidate: vec![1.0], baseline: None })].into();
    let short =
        decide_with(&Gates::parse(&format!("{OWN}margin = 0.1")).unwrap(), &comparison, &short, &[]).unwrap_err();
    assert!(short.to_string().contains("not one value for each case"), "{short}");
}

const DECIDES: &str =
    "[custom.own]\ncommand = ['./own']\ndecides = true\n[[rule]]\nmetric = 'custom_share'\ncustom = 'own'\n";

/// `n` prompts without references, in slices of which the second half has one of its own, answered with a text each.
fn prompts(n: usize) -> (Vec<Case>, Observed) {
    let case = |idx: usize| Case {
        id: format!("p{idx}"),
        expected: Expected::References(Vec::new()),
        slices: vec![if idx < n / 2 { "first" } else { "second" }.to_owned()],
        must_pass: false,
        sources: [idx; 2],
        weight: 1.0,
    };
    let texts = Texts::new(vec![Vec::new(); n], (0..n).map(|idx| Generated::text(format!("text {idx}"))).collect());
    ((0..n).map(case).collect(), Observed::Texts(texts.unwrap()))
}

/// A share's values: 0 for the cases in `wrong`.
fn but(n: usize, wrong: &[usize]) -> Vec<f64> {
    (0..n).map(|idx| if wrong.contains(&idx) { 0.0 } else { 1.0 }).collect()
}

fn decided(
    rule: &str,
    cases: &[Case],
    answers: &Observed,
    [candidate, baseline]: [&[usize]; 2],
) -> Result<Decision, GateError> {
    let n = cases.len();
    let given = Given { candidate: but(n, candidate), baseline: Some(but(n, baseline)) };
    let comparison = Comparison { cases, candidate: answers, baseline: Side::Package(answers), latencies_ms: &[] };
    let gates = Gates::parse(&format!("{DECIDES}{rule}")).unwrap();
    decide_with(&gates, &comparison, &[("own".to_owned(), given)].into(), &[])
}

#[test]
fn a_program_that_decides_is_judged_by_exact_tests_and_its_flips_are_listed() {
    let (cases, texts) = prompts(100);
    let lost: Vec<usize> = (60..72).collect();
    let decision = decided("margin = 0.05\nfloor = 0.5", &cases, &texts, [&lost, &[3]]).unwrap();
    let [margin, floor] = &decision.checks[..] else { panic!("{:?}", decision.checks) };
    assert_eq!(
        (margin.rule.as_str(), margin.outcome),
        ("own share \"own\": not worse by more than 5.0 points", Outcome::Fail)
    );
    // Of 13 flips 12 were lost: (13 + 1) / 2^13.
    assert_eq!(margin.test, Some(Test::ExactMcnemar));
    assert!((margin.p_value.unwrap() - 14.0 / 8192.0).abs() < 1e-12);
    assert_eq!((floor.rule.as_str(), floor.outcome), ("own share \"own\": at least 50.0 %", Outcome::Pass));
    let flips: Vec<(&str, bool)> = decision.flips.iter().map(|flip| (flip.case.as_str(), flip.regression)).collect();
    assert_eq!((flips.len(), flips[0], flips[12]), (13, ("p60", true), ("p3", false)));
    assert_eq!(
        (decision.flips[0].expected.as_str(), decision.flips[0].candidate.as_str()),
        ("1 from \"own\"", "text 60")
    );
    // A rule about a slice decides its cases only.
    let of_slice = decided("margin = 0.05\nslice = 'first'", &cases, &texts, [&lost, &[3]]).unwrap();
    assert_eq!(of_slice.flips.iter().map(|flip| flip.case.as_str()).collect::<Vec<_>>(), ["p3"]);
    assert_eq!(of_slice.checks[0].n_cases, 50);
}

#[test]
fn flips_of_a_program_that_decides_may_be_accepted_by_name() {
    let (cases, texts) = prompts(40);
    let decision = decided("margin = 0.02", &cases, &texts, [&[7], &[]]).unwrap();
    assert_eq!(decision.outcome, Outcome::Inconclusive);
    assert_eq!(decision.checks[0].regressions.as_deref(), Some(&["p7".to_owned()][..]));
    let waiver = |case: &str| Waiver {
        case: case.to_owned(),
        by: "mira".to_owned(),
        why: "a story".to_owned(),
        expires_at: "2026-12-01T00:00:00Z".to_owned(),
    };
    assert_eq!(decision.accept(vec![waiver("p7")]).unwrap().outcome, Outcome::Pass);
}

#[test]
fn what_must_pass_is_decided_by_the_program_where_there_is_no_reference() {
    let (mut cases, texts) = prompts(60);
    cases[5].must_pass = true;
    let right = decided("margin = 0.5", &cases, &texts, [&[6], &[]]).unwrap();
    assert_eq!((right.checks[0].outcome, right.checks[0].n_cases), (Outcome::Pass, 1));
    let wrong = decided("margin = 0.5", &cases, &texts, [&[5], &[]]).unwrap();
    assert_eq!((wrong.outcome, wrong.checks[0].reason.as_str()), (Outcome::Fail, "`p5` is answered wrongly"));
    let of_others = decided("margin = 0.5\nslice = 'second'", &cases, &texts, [&[], &[]]).unwrap_err().to_string();
    assert!(of_others.starts_with("case `p5` must pass, and nothing decides whether it does"), "{of_others}");
    // A label has to be right whatever a program finds.
    let (labelled, answers) = (self::cases(60), answers(60, &[0]));
    assert!(labelled[0].must_pass);
    let decision = decided("margin = 0.5", &labelled, &answers, [&[], &[]]).unwrap();
    assert_eq!(decision.checks[0].outcome, Outcome::Fail);
}

#[test]
fn a_first_version_without_references_is_judged_by_its_floors() {
    let (cases, texts) = prompts(100);
    let comparison = Comparison { cases: &cases, candidate: &texts, baseline: Side::Trivial, latencies_ms: &[] };
    let given = [("own".to_owned(), Given { candidate: but(100, &[1, 2]), baseline: None })].into();
    let judged =
        |rule: &str| decide_with(&Gates::parse(&format!("{DECIDES}{rule}")).unwrap(), &comparison, &given, &[]);
    assert_eq!(judged("floor = 0.9\nmargin = 0.05").unwrap().outcome, Outcome::Pass);
    assert_eq!(judged("floor = 0.99").unwrap().outcome, Outcome::Inconclusive);
    assert!(matches!(judged("margin = 0.05"), Err(GateError::NoAbsoluteLimit)));
}

#[test]
fn a_share_of_values_that_decide_nothing_is_an_error() {
    let (cases, texts) = prompts(40);
    let comparison =
        Comparison { cases: &cases, candidate: &texts, baseline: Side::Package(&texts), latencies_ms: &[] };
    let mut values = but(40, &[]);
    values[9] = 0.5;
    let given = [("own".to_owned(), Given { candidate: values, baseline: Some(but(40, &[])) })].into();
    let error =
        decide_with(&Gates::parse(&format!("{DECIDES}margin = 0.1")).unwrap(), &comparison, &given, &[]).unwrap_err();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(error, "`own share` needs a value of 0 or 1 for each case, and case 9 has another");
    let exact = Gates::parse("[[rule]]\nmetric = 'exact_match'\nfloor = 0.1").unwrap();
    let error = decide(&exact, &comparison).unwrap_err();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(error, "`exact match` needs a reference for each case, and case 0 has none");
}

#[test]
fn a_metric_of_ones_own_says_what_runs_and_which_way_is_better() {
    for (text, expected) in [
        (OWN.replace("command = ['./own']", ""), "needs a `command` or a `python` function"),
        (OWN.replace("['./own']", "['./own']\npython = 'a.py:f'"), "not both"),
        (OWN.replace("command = ['./own']", "python = 'a.py'"), "FILE:FUNCTION"),
        (OWN.replace("['./own']", "['./own']\ntimeout_s = 0"), "timeout_s"),
        (OWN.replace("['./own']", "['./own']\nlower_is_better = true"), "the metric is `custom_loss`"),
        (OWN.replace("['./own']", "['./own']\ndecides = true"), "the metric is `custom_share`"),
        (DECIDES.replace("= true", "= true\nlower_is_better = true"), "`lower_is_better` contradicts it"),
        (OWN.replace("[custom.own]", "[custom.other]"), "there is no [custom.own]"),
        (OWN.replace("custom = 'own'", ""), "needs a `custom`"),
    ] {
        let error = Gates::parse(&format!("{text}margin = 0.1")).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
