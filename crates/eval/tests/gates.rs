//! What a gate decides, on small pictures.

#![allow(clippy::unwrap_used)]

use highroad_eval::{
    Case, CheckResult, Classes, Comparison, Decision, Expected, GateError, Gates, Observed, Outcome, Rankings, Side,
    Similarities, Waiver, WaiverError, decide,
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
    };
    (0..n).map(case).collect()
}

fn judge(gates: &str, n: usize, baseline_wrong: &[usize], candidate_wrong: &[usize]) -> Result<Decision, GateError> {
    let (cases, candidate, baseline) = (cases(n), answers(n, candidate_wrong), answers(n, baseline_wrong));
    let comparison =
        Comparison { cases: &cases, candidate: &candidate, baseline: Side::Package(&baseline), latencies_ms: &[] };
    decide(&Gates::parse(gates).unwrap(), &comparison)
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
fn only_regressions_can_be_accepted_and_only_once() {
    let accept = |cases: &[&str]| {
        let waivers = cases.iter().map(|case| waiver(case)).collect();
        judge(ACCURACY, 100, &[7], &[3]).unwrap().accept(waivers).unwrap_err()
    };
    let not_one = |case: &str| WaiverError::NotARegression { case: case.to_owned() };
    assert_eq!(accept(&["case-7"]), not_one("case-7"));
    assert_eq!(accept(&["nonsense"]), not_one("nonsense"));
    assert_eq!(accept(&[""]), not_one(""));
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
    assert!(alone.p_value.is_some() && of_ten.p_value.is_none(), "exact McNemar takes independent cases");
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
            expected: Expected::Similarity(value),
            slices: Vec::new(),
            must_pass: false,
            sources: [2 * idx, 2 * idx + 1],
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
        ("[[rule]]\nmetric = 'accuracy'", "rule 1 (accuracy): needs a `margin`, a `floor` or a `ceiling`"),
        ("[[rule]]\nmetric = 'f1'\nmargin = 0.1", "rule 1 (F1): needs a `label`"),
        ("[[rule]]\nmetric = 'accuracy'\nlabel = 'x'\nmargin = 0.1", "rule 1 (accuracy): takes no `label`"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = -0.1", "margin = -0.1 is out of range"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = 2", "margin = 2 is out of range"),
        ("[[rule]]\nmetric = 'accuracy'\nmargin = nan", "margin = NaN is out of range"),
        ("[[rule]]\nmetric = 'log_loss'\nfloor = 0.1", "is better when smaller"),
        ("alpha = 0.5\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.1", "alpha = 0.5 is out of range"),
        ("resamples = 100\n[[rule]]\nmetric = 'accuracy'\nmargin = 0.1", "resamples = 100 is out of range"),
        ("[[rule]]\nmetric = 'accuracy'\nmargins = 0.1", "unknown field `margins`"),
        ("[[rule]]\nmetric = 'bleu'\nmargin = 0.1", "`bleu` is no metric: there are `accuracy`"),
        (
            "[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\n[[latency]]\npercentile = 100\nmax_ms = 1",
            "percentile = 100 is out of range",
        ),
    ] {
        let error = Gates::parse(gates).unwrap_err().to_string();
        assert!(error.contains(complaint), "{gates}: {error}");
    }
}
